"""Real trainers of all replicas of all stages, wired to each other in this process."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Self

from torch import Tensor

from commonweight.errors import CommonweightError
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated.pipe_pb2 import PipeFrame
from commonweight.wire.pipe import Assembled, Assembler
from node.flow import Slice, SliceFlow, StagePlan, slice_frames
from node.share import Share, read_share
from node.stage_round import Activation, Gradient
from node.trainer import (
    Arrived,
    Item,
    Outlet,
    Quit,
    Restore,
    TrainedRound,
    Trainer,
    TrainRound,
)
from tests.unit.shares import Row, plan_of

WAIT_S = 60.0


class Crew:
    """By node, its trainer; node names are addresses. Use as a context manager."""

    def __init__(self, spec: ModelSpec, data: Path, folder: Path, seats: dict[str, int]) -> None:
        self.spec, self.data, self.folder, self.seats = spec, data, folder, seats
        self.inboxes: dict[str, SimpleQueue[Item]] = {node: SimpleQueue() for node in seats}
        self.outcomes: SimpleQueue[tuple[str, TrainedRound | CommonweightError]] = SimpleQueue()
        self.trainers: dict[str, Trainer] = {}
        self._shares: dict[str, Share] = {}
        self.lost: dict[str, int] = {}
        """How many messages these nodes send before they are lost."""
        self.died: SimpleQueue[str] = SimpleQueue()
        self.late: SimpleQueue[tuple[str, str]] = SimpleQueue()
        """Who says it of whom."""
        self._lock = Lock()

    def __enter__(self) -> Self:
        self.trainers = {node: self._open(node) for node in self.seats}
        self._threads = [Thread(target=trainer.run) for trainer in self.trainers.values()]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for inbox in self.inboxes.values():
            inbox.put(Quit())
        for thread in self._threads:
            thread.join(WAIT_S)

    def form(self, generation: int, round_: int) -> None:
        """All go to the state at the start of this round."""
        done: list[Future[None]] = []
        for inbox in self.inboxes.values():
            done.append(Future())
            inbox.put(Restore(generation, round_, done[-1]))
        for each in done:
            each.result(WAIT_S)

    def begin(self, plan: pb.RoundPlan, nodes: Collection[str]) -> None:
        """These are told of a plan."""
        with self._lock:  # who hears of it later waits with what comes by it, as the data plane does
            self._shares |= {node: read_share(plan, self.spec, self.seats[node], node) for node in nodes}
            for node in sorted(nodes):
                self.inboxes[node].put(TrainRound(self._shares[node]))

    def reports(self, nodes: Collection[str]) -> dict[str, Report]:
        """What these report. Raises what a trainer reports instead."""
        reports: dict[str, Report] = {}
        while reports.keys() != set(nodes):
            node, outcome = self.outcomes.get(timeout=WAIT_S)
            if isinstance(outcome, CommonweightError):
                raise outcome
            reports[node] = outcome.report
        return reports

    def _pass(self, node: str, to: str, item: Item, revision: int | None = None) -> None:
        with self._lock:
            if node in self.lost:
                self.lost[node] -= 1
                if self.lost[node] == 0:
                    self.died.put(node)
            is_late = revision is not None and revision < self._shares[to].stage_revision
            if not is_late and self.lost.get(node, 1) >= 0 and self.lost.get(to, 1) > 0:
                self.inboxes[to].put(item)

    def train(
        self, generation: int, round_: int, rows: Sequence[Row], shadows: Sequence[str] = ()
    ) -> dict[str, Report]:
        """One round, divided like this; the reports by node. Raises what a trainer reports instead."""
        here = [{node for node in shadows if self.seats[node] == stage} for stage in range(self.spec.stages)]
        nodes = {node for row in rows for node in row} | set(shadows)
        self.begin(plan_of(generation, round_, rows, here), nodes)
        return self.reports(nodes)

    def _open(self, node: str) -> Trainer:
        stage = self.seats[node]

        def send_down(to: str, microbatch: int, frames: Sequence[PipeFrame]) -> None:
            arrived = _assembled(frames, StagePlan.activation, stage)
            tokens, code = arrived.tensors
            digests = arrived.digests[0], arrived.digests[1]
            generation, answered = self._generation(node), arrived.answered
            self._pass(node, to, Activation(generation, node, microbatch, tokens, code, digests, answered))

        def send_up(to: str, microbatch: int, frames: Sequence[PipeFrame]) -> None:
            if not frames:
                return
            arrived = _assembled(frames, StagePlan.gradient, stage)
            gradient = Gradient(self._generation(node), node, microbatch, arrived.tensors[0], arrived.digests[0])
            self._pass(node, to, gradient)

        def _assembled(frames: Sequence[PipeFrame], of: property, stage: int) -> Assembled:
            assert of.fget is not None
            assembler = Assembler(lambda *_: of.fget(StagePlan(self.spec, stage, b"", 0)))
            (arrived,) = filter(None, map(assembler.add, frames))
            return arrived

        def send_slice(share: Share, to: str, summed: bool, numbers: Tensor) -> None:
            flow = SliceFlow()
            flow.begin(share.round, {summed: numbers.numel()}, share.stage_revision)
            frames = slice_frames(share.round, share.stage_revision, summed, numbers)
            (arrived,) = [each for each in map(flow.add, frames) if each is not None]
            assert isinstance(arrived, Slice)
            self._pass(node, to, Arrived(self._generation(node), node, arrived), share.stage_revision)

        outlet = Outlet(
            send_down=send_down,
            send_up=send_up,
            send_slice=send_slice,
            report=lambda trained: self.outcomes.put((node, trained)),
            fail=lambda _, error, *__: self.outcomes.put((node, error)),
            late=lambda _, other, __: self.late.put((node, other)),
        )
        return Trainer.open(
            self.spec,
            stage,
            state_dir=self.folder / node,
            data_dir=self.data,
            device="cpu",
            inbox=self.inboxes[node],
            outlet=outlet,
        )

    def _generation(self, node: str) -> int:
        return self._shares[node].generation
