"""What is shared by all who stay attached to a coordinator."""

import asyncio
from typing import Any

import grpc
import pytest

from commonweight.errors import PeerUnreachable, Refused
from commonweight.wire import attachment as module
from commonweight.wire.attachment import Attachment, Backoff, Finished, together
from commonweight.wire.generated import control_pb2 as pb

pytestmark = pytest.mark.asyncio

HEARTBEAT = pb.CoordinatorMessage(heartbeat=pb.Heartbeat())
PAUSE = pb.CoordinatorMessage(pause=pb.Pause(why="a node was lost"))


class Call:
    """Says `items`, then nothing."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)

    async def read(self) -> Any:
        if not self.items:
            await asyncio.Event().wait()
        if isinstance(item := self.items.pop(0), Exception):
            raise item
        return item

    async def details(self) -> str:
        return "it restarts"


def failed_call(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details="why")


def attachment(*items: Any) -> Attachment:
    return Attachment(Call(*items), asyncio.Queue())


async def test_heartbeats_are_not_worth_telling() -> None:
    assert await attachment(HEARTBEAT, HEARTBEAT, PAUSE).receive() == PAUSE


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (grpc.aio.EOF, "ended the stream: it restarts"),
        (failed_call(grpc.StatusCode.UNAVAILABLE), "doesn't answer"),
        (failed_call(grpc.StatusCode.FAILED_PRECONDITION), "refused the call"),
    ],
)
async def test_however_the_stream_ends_it_is_worth_coming_back(item: Any, match: str) -> None:
    with pytest.raises(PeerUnreachable, match=match):
        await attachment(HEARTBEAT, item).receive()


async def test_silence_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    with pytest.raises(PeerUnreachable, match=r"silent for 0\.01 s"):
        await attachment(HEARTBEAT).receive()


async def test_all_is_done_once_it_says_so() -> None:
    with pytest.raises(Finished):
        await attachment(pb.CoordinatorMessage(finished=pb.Finished())).receive()


async def test_each_wait_is_twice_the_last_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(module, "emit", lambda name, **fields: told.append(fields["retry_s"]))
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    backoff = Backoff()
    for _ in range(7):
        await backoff.wait(PeerUnreachable("gone"))
    backoff.reset()
    await backoff.wait(PeerUnreachable("gone"))
    assert told == waited == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.2]


async def test_the_first_failure_ends_what_runs_together() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def fail() -> None:
        raise Refused("no.")

    with pytest.raises(Refused, match="no"):
        await together(wait(), fail())
    assert ended == ["cancelled"]
