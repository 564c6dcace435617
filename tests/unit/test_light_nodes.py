"""The nodes of `bench coordinator` keep to the order in which real ones report."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from commonweight.bench.light_nodes import LightNode, LightNodes, light_identity
from commonweight.wire.attachment import Finished
from commonweight.wire.generated import control_pb2 as pb

pytestmark = pytest.mark.asyncio

DEADLINE_S = 20
MICROBATCHES = 4
GENERATION = 3


class Coordinator:
    """What the node is told, and what it has reported."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[pb.CoordinatorMessage | None] = asyncio.Queue()
        self._reports: asyncio.Queue[pb.SignedReport] = asyncio.Queue()

    def tell(self, **body: Any) -> None:
        self._inbox.put_nowait(pb.CoordinatorMessage(**body))

    def plan(self, round_: int, since: int = 0) -> None:
        member = bytes.fromhex(light_identity(0).address[2:])
        stage = pb.StagePlan(members=[member], assignment=[0] * MICROBATCHES, revision=since)
        self.tell(plan=pb.RoundPlan(generation=GENERATION, round=round_, stages=[stage], revision=since, since=since))

    def seal(self, round_: int, *, next_taken_back: bool = False) -> None:
        self.tell(sealed=pb.RoundSealed(round=round_, next_taken_back=next_taken_back))

    def end(self) -> None:
        self._inbox.put_nowait(None)

    async def reported(self) -> tuple[int, int]:
        """Round and revision of the next report."""
        async with asyncio.timeout(DEADLINE_S):
            report = (await self._reports.get()).report
        assert [hop.microbatch for hop in report.hops] == list(range(MICROBATCHES))
        return report.round, report.revision

    async def hears_nothing(self) -> None:
        await asyncio.sleep(0.05)
        assert self._reports.empty()

    # The node's end.

    async def receive(self) -> pb.CoordinatorMessage:
        if (message := await self._inbox.get()) is None:
            raise Finished
        return message

    def send(self, message: pb.NodeMessage) -> None:
        if message.HasField("report"):
            self._reports.put_nowait(message.report)


@asynccontextmanager
async def attached(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Coordinator]:
    """A light node, alone on its stage, whose rounds take no time."""
    coordinator = Coordinator()

    @asynccontextmanager
    async def attach(*_: object) -> AsyncIterator[Coordinator]:
        yield coordinator

    monkeypatch.setattr("commonweight.bench.light_nodes.attach", attach)
    shared = LightNodes("nobody@127.0.0.1:9", 0, 1, 1, stages=1, microbatches=MICROBATCHES, round_s=0, joins_per_s=1)
    coordinator.tell(assignment=pb.Assignment(stage=0, model_id=bytes(32), chain_id=1, settlement="0x" + "11" * 20))
    async with asyncio.TaskGroup() as group:
        group.create_task(LightNode(shared, 0).run())
        yield coordinator
        coordinator.end()


async def test_a_round_that_is_planned_ahead_is_reported_once_the_one_before_is_sealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with attached(monkeypatch) as coordinator:
        coordinator.plan(7)
        coordinator.plan(8)
        assert await coordinator.reported() == (7, 0)
        await coordinator.hears_nothing()
        for round_ in (7, 8, 9):
            coordinator.seal(round_)
            coordinator.plan(round_ + 2)
            assert await coordinator.reported() == (round_ + 1, 0)
            await coordinator.hears_nothing()


async def test_a_plan_that_was_taken_back_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached(monkeypatch) as coordinator:
        coordinator.plan(7)
        coordinator.plan(8)
        assert await coordinator.reported() == (7, 0)
        coordinator.seal(7, next_taken_back=True)
        await coordinator.hears_nothing()
        coordinator.plan(8, since=1)
        coordinator.plan(9)
        assert await coordinator.reported() == (8, 1)
        coordinator.seal(8)
        assert await coordinator.reported() == (9, 0)


async def test_nothing_is_left_of_a_generation_that_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async with attached(monkeypatch) as coordinator:
        coordinator.plan(7)
        coordinator.plan(8)
        assert await coordinator.reported() == (7, 0)
        coordinator.tell(pause=pb.Pause(generation=GENERATION))
        coordinator.plan(7)
        assert await coordinator.reported() == (7, 0)
        coordinator.seal(7)
        await coordinator.hears_nothing()
