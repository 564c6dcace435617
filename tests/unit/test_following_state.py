"""A newcomer whose line is slow: what it fetches is fetched to its end, and from there it follows."""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import StateUnavailable
from commonweight.identity import NodeIdentity
from commonweight.rules.canonical import canonical_json
from commonweight.rules.following import FOLLOWED_ROUNDS, NEWCOMERS_S, is_to_be_waited_for
from commonweight.wire.evidence import Source
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import worker_pb2
from commonweight.wire.tls import make_certificate
from node import following, state
from node.fetching import RoundGradient, Version
from node.meta import meta_bytes, stored_root
from node.published import META_FILE, version_path
from node.state import StageState
from tests.unit.tiny import tiny_spec

DEADLINE_S = 20
KEY = NodeIdentity(b"\x51" * 32)
SPEC = tiny_spec(stages=2)
STAGE = 1
ASSIGNMENT = pb.Assignment(
    spec=canonical_json(SPEC.model_dump()),
    stage=STAGE,
    chain_id=31337,
    settlement="0x5FbDB2315678afecb367f032d93F642f64180aa3",
)


def root(round_: int) -> bytes:
    """Of the version that is ready to train it."""
    return bytes([round_]) * 32


def gradient(round_: int) -> bytes:
    return bytes([100 + round_]) * 32


def wanted(round_: int, sources: str = "A") -> pb.Version:
    """As a coordinator says it that has sealed all rounds before."""
    first = max(0, round_ - FOLLOWED_ROUNDS)
    return pb.Version(
        round=round_,
        state_root=root(round_),
        sources=[pb.EvidenceSource(peer_id=name, address="127.0.0.1:1") for name in sources],
        steps=[
            pb.SealedStep(round=each, state_before=root(each), gradient_hash=gradient(each))
            for each in range(first, round_)
        ],
    )


class Node:
    """Its state, whose transfers and steps end when the test says so."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / f"stage-{STAGE}"
        self.folder.mkdir()
        self.state = StageState(folder, make_certificate(KEY), KEY)
        self.said: list[int] = []
        """The versions that it says that it has."""
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.gradients: list[str] = []
        """That have come, and aren't used."""
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.roots = {round_: root(round_) for round_ in range(100)}
        """What its worker comes to."""
        self._ends: defaultdict[str, asyncio.Future[None]] = defaultdict(asyncio.get_running_loop().create_future)
        self._changed = asyncio.Condition()
        monkeypatch.setattr(state, "fetch_version", self._fetch_version)
        monkeypatch.setattr(following, "fetch_gradient", self._fetch_gradient)
        for module in (state, following):
            monkeypatch.setattr(module, "emit", lambda name, **fields: self.told.append((name, fields)))

    async def begin(self) -> None:
        await self.state.begin(ASSIGNMENT, self._hear, self._order)
        await self.state.derived(b"\x33" * 32)

    def end(self, transfer: str, error: Exception | None = None) -> None:
        """This transfer comes to its end, or fails."""
        if error is None:
            self._ends[transfer].set_result(None)
        else:
            self._ends[transfer].set_exception(error)

    async def until(self, *begun: str, said: Sequence[int] | None = None) -> None:
        """It has begun these transfers, and no others, and said this."""

        def is_there() -> bool:
            return self.begun == list(begun) and (said is None or self.said == list(said))

        try:
            async with asyncio.timeout(DEADLINE_S), self._changed:
                await self._changed.wait_for(is_there)
        except TimeoutError:
            raise AssertionError(f"begun {self.begun}, said {self.said}, told {self.told}") from None

    def has(self, round_: int, state_root: bytes | None = None) -> None:
        """Put this version on its disk."""
        path = version_path(self.folder, round_)
        path.mkdir(exist_ok=True)
        (path / META_FILE).write_bytes(meta_bytes(SPEC, STAGE, round_, state_root or root(round_)))

    def _hear(self, message: pb.NodeMessage) -> None:
        self.said.append(message.version.round)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _transfer(self, name: str) -> None:
        self.begun.append(name)
        await self._notify()
        try:
            await self._ends[name]
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise

    async def _fetch_version(self, _: Any, version: Version, folder: Path, sources: Sequence[Source]) -> None:
        assert (version.state_root, folder) == (root(version.round), self.folder)
        await self._transfer(f"version {version.round}")
        self.has(version.round)

    async def _fetch_gradient(self, _: Any, wanted: RoundGradient, path: Path, sources: Sequence[Source]) -> None:
        assert wanted.gradient_hash == gradient(wanted.round)
        await self._transfer(f"gradient {wanted.round}")
        self.gradients.append(path.name)

    async def _order(self, command: worker_pb2.WorkerCommand) -> None:
        follow = command.follow
        assert follow.round == 0 or stored_root(self.folder, follow.round) == root(follow.round)
        assert Path(follow.gradient).name == self.gradients.pop()
        result = self.roots[follow.round + 1]
        self.has(follow.round + 1, result)
        self.state.followed(worker_pb2.Followed(round=follow.round, state_root=result))


@asynccontextmanager
async def a_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    node = Node(folder, monkeypatch)
    await node.begin()
    try:
        yield node
    finally:
        await node.state.close()


@pytest.mark.asyncio
async def test_a_transfer_that_takes_several_rounds_is_ended_and_the_rounds_since_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        for round_ in (10, 11, 12, 13):
            await node.state.want(wanted(round_))
            await node.until("version 10")
        node.end("version 10")
        for round_ in (10, 11, 12):
            node.end(f"gradient {round_}")
        await node.until("version 10", "gradient 10", "gradient 11", "gradient 12", said=[13])
        assert node.cancelled == []
        followed = [fields["round"] for name, fields in node.told if name == "state.followed"]
        assert followed == [10, 11, 12]


@pytest.mark.asyncio
async def test_who_comes_no_nearer_but_would_be_there_soon_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        await node.state.want(wanted(10))
        await node.until("version 10")
        await node.state.want(wanted(11))
        node.end("version 10")
        await node.until("version 10", "gradient 10", said=[])
        await node.state.want(wanted(12))
        node.end("gradient 10")
        await node.until("version 10", "gradient 10", "gradient 11", said=[11])
        node.end("gradient 11")
        await node.until("version 10", "gradient 10", "gradient 11", said=[11, 12])


@pytest.mark.asyncio
async def test_who_comes_back_follows_from_the_latest_version_on_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        node.has(7)
        node.has(8)
        node.has(9, b"\x99" * 32)  # which wasn't sealed
        await node.state.want(wanted(10))
        node.end("gradient 8")
        node.end("gradient 9")
        await node.until("gradient 8", "gradient 9", said=[10])


@pytest.mark.asyncio
async def test_what_is_too_old_to_be_followed_from_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        node.has(9 - FOLLOWED_ROUNDS)
        await node.state.want(wanted(10))
        node.end("version 10")
        await node.until("version 10", said=[10])


@pytest.mark.asyncio
async def test_the_first_rounds_are_followed_from_version_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        await node.state.want(wanted(1))
        node.end("gradient 0")
        await node.until("gradient 0", said=[1])


@pytest.mark.asyncio
async def test_where_nobody_has_the_gradient_the_state_is_fetched_and_followed_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        node.has(9)
        node.end("gradient 9", StateUnavailable("Nobody has it."))
        await node.state.want(wanted(10))
        node.end("version 10")
        await node.until("gradient 9", "version 10", said=[10])
        ((name, fields),) = node.told
        assert (name, fields["code"], fields["round"]) == ("state.failed", "WIRE_NO_STATE", 10)
        await node.state.want(wanted(11))
        node.end("gradient 10")
        await node.until("gradient 9", "version 10", "gradient 10", said=[10, 11])


@pytest.mark.asyncio
async def test_a_machine_that_steps_to_another_state_says_so_once_and_fetches_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_node(tmp_path, monkeypatch) as node:
        node.has(8)
        node.roots[9] = b"\x99" * 32
        await node.state.want(wanted(10))
        node.end("gradient 8")
        node.end("version 10")
        await node.until("gradient 8", "version 10", said=[10])
        ((_, fields),) = node.told
        assert "computes other bits" in fields["message"]
        assert root(9).hex() in fields["message"]
        await node.state.want(wanted(11))
        node.end("version 11")
        await node.until("gradient 8", "version 10", "version 11", said=[10, 11])


@pytest.mark.asyncio
async def test_what_is_coming_is_given_up_for_an_earlier_version_or_for_a_further_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer sources are no reason."""
    async with a_node(tmp_path, monkeypatch) as node:
        await node.state.want(wanted(10, "AB"))
        await node.until("version 10")
        await node.state.want(wanted(10, "A"))
        assert node.cancelled == []
        await node.state.want(wanted(10, "AC"))
        await node.until("version 10", "version 10")
        await node.state.want(wanted(9))
        await node.until("version 10", "version 10", "version 9")
        assert node.cancelled == ["version 10", "version 10"]


@given(
    behind=st.integers(1, 10),
    before=st.integers(0, 10) | st.just(math.inf),
    fetch_s=st.floats(0, 1e6) | st.just(math.inf),
    follow_s=st.floats(0, 1e6) | st.just(math.inf),
)
def test_who_is_waited_for_is_there_in_time_one_way_or_the_other(
    behind: int, before: float, fetch_s: float, follow_s: float
) -> None:
    can_follow = behind < FOLLOWED_ROUNDS and follow_s * (behind + 1) <= NEWCOMERS_S
    expected = before <= behind and (fetch_s <= NEWCOMERS_S or can_follow)
    assert is_to_be_waited_for(behind, before, fetch_s, follow_s) == expected
