"""What a node does where its coordinator names keepers of a version: it restores it, once for all that is said."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from commonweight.errors import PiecesMissing
from commonweight.identity import NodeIdentity
from commonweight.rules.canonical import canonical_json
from commonweight.wire.evidence import Source
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import make_certificate
from node import state as state_module
from node.fetching import Version
from node.state import StageState
from tests.unit.tiny import tiny_spec

pytestmark = pytest.mark.asyncio

DEADLINE_S = 20
KEY = NodeIdentity(b"\x51" * 32)
SPEC = tiny_spec(stages=2)
ROOT = b"\x22" * 32
MAKER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
ASSIGNMENT = pb.Assignment(
    spec=canonical_json(SPEC.model_dump()),
    stage=1,
    chain_id=31337,
    settlement="0x5FbDB2315678afecb367f032d93F642f64180aa3",
)


class Restorer:
    """Takes the place of what restores, and never ends unless it is to fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Of which keepers, each time."""
        self.cancelled = 0
        self.fails = False
        self._changed = asyncio.Condition()

    async def restore(
        self, _: Any, version: Version, __: Path, keepers: Sequence[Source], makers: set[str], ___: Any
    ) -> None:
        assert (version.round, version.state_root, makers) == (7, ROOT, {MAKER})
        async with self._changed:
            self.asked.append("".join(keeper.peer_id for keeper in keepers))
            self._changed.notify_all()
        if self.fails:
            raise PiecesMissing("Of 2 keepers 1 brought a piece.")
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1

    async def until(self, times: int) -> None:
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(lambda: len(self.asked) >= times)


@pytest.fixture
def restorer(monkeypatch: pytest.MonkeyPatch) -> Restorer:
    restorer = Restorer()
    monkeypatch.setattr(state_module, "restore_version", restorer.restore)
    return restorer


class Told:
    """The events, as they come."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.first = asyncio.Event()

    def emit(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))
        self.first.set()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()
    monkeypatch.setattr(state_module, "emit", told.emit)
    return told


def wanted(keepers: str, round_: int = 7, maker: bytes = bytes.fromhex(MAKER[2:])) -> pb.Version:
    sources = [pb.EvidenceSource(peer_id=name, address="127.0.0.1:1") for name in keepers]
    return pb.Version(round=round_, state_root=ROOT, keepers=sources, makers=[maker])


async def no_order(command: Any) -> None:
    raise AssertionError("nothing is followed here")


async def a_state(directory: Path) -> StageState:
    state = StageState(directory, make_certificate(KEY), KEY)
    await state.begin(ASSIGNMENT, lambda message: None, no_order)
    await state.derived(b"\x33" * 32)
    return state


async def test_who_goes_doesnt_begin_it_anew_and_who_comes_does(tmp_path: Path, restorer: Restorer) -> None:
    state = await a_state(tmp_path)
    await state.want(wanted("AB"))
    await restorer.until(1)
    await state.want(wanted("B"))
    assert not restorer.cancelled
    await state.want(wanted("BC"))
    await restorer.until(2)
    assert (restorer.asked, restorer.cancelled) == (["AB", "BC"], 1)
    await state.close()
    assert restorer.cancelled == 2


async def test_it_ends_where_too_few_are_left_and_is_tried_again_where_it_fails(
    tmp_path: Path, restorer: Restorer, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = await a_state(tmp_path)
    await state.want(wanted("AB"))
    await restorer.until(1)
    await state.want(wanted(""))
    assert restorer.cancelled == 1
    async with asyncio.timeout(DEADLINE_S):
        await told.first.wait()
    assert told.events == [("state.waiting", {"round": 7})]
    monkeypatch.setattr(state_module, "RETRY_S", 0.01)
    restorer.fails = True
    await state.want(wanted("AB"))
    await restorer.until(3)
    await state.close()
    assert told.events[1][1]["code"] == "WIRE_NO_PIECES"


async def test_makers_that_are_no_addresses_are_told(tmp_path: Path, restorer: Restorer, told: Told) -> None:
    state = await a_state(tmp_path)
    await state.want(wanted("AB", maker=b"\x01"))
    async with asyncio.timeout(DEADLINE_S):
        await told.first.wait()
    await state.close()
    assert not restorer.asked
    assert [(name, fields["code"]) for name, fields in told.events] == [("state.failed", "WIRE_MALFORMED")]
