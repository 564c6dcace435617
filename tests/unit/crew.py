"""Real trainers of all replicas of all stages, wired to each other in this process."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from types import TracebackType
from typing import Self

from commonweight.errors import CommonweightError
from commonweight.rules.averaging import slice_bounds, slice_coding
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
        self._shares: dict[str, dict[int, Share]] = {}
        """By node and round, as it was planned last."""
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
        """These are told of a plan. Where it changes one, that of the next round is void."""
        with self._lock:  # who hears of it later waits with what comes by it, as the data plane does
            for node in sorted(nodes):
                share = read_share(plan, self.spec, self.seats[node], node)
                kept = {round_: each for round_, each in self._shares.get(node, {}).items() if round_ < share.round}
                self._shares[node] = kept | {share.round: share}
                self.inboxes[node].put(TrainRound(share))

    def reports(self, nodes: Collection[str], round_: int | None = None) -> dict[str, Report]:
        """What these report next, or of this round. Raises what a trainer reports instead."""
        reports: dict[str, Report] = {}
        others: list[tuple[str, TrainedRound]] = []
        while reports.keys() != set(nodes):
            node, outcome = self.outcomes.get(timeout=WAIT_S)
            if isinstance(outcome, CommonweightError):
                raise outcome
            if node in nodes and round_ in (None, outcome.report.round):
                reports[node] = outcome.report
            else:
                others.append((node, outcome))
        for other in others:
            self.outcomes.put(other)
        return reports

    def _pass(self, node: str, to: str, item: Item, round_: int, revision: int) -> None:
        """`revision`: of the sender's plan; of a slice, by which its stage was changed last."""
        with self._lock:
            if node in self.lost:
                self.lost[node] -= 1
                if self.lost[node] == 0:
                    self.died.put(node)
            share = self._shares[to].get(round_)
            first = 0 if share is None else share.stage_revision if isinstance(item, Arrived) else share.since
            is_void = share is None or revision < first
            if not is_void and self.lost.get(node, 1) >= 0 and self.lost.get(to, 1) > 0:
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

        def send_down(share: Share, to: str, microbatch: int, frames: Sequence[PipeFrame]) -> None:
            arrived = _assembled(frames, StagePlan.activation, stage)
            tokens, code = arrived.tensors
            digests = arrived.digests[0], arrived.digests[1]
            generation, answered = self._generation(node), arrived.answered
            activation = Activation(generation, node, share.round, microbatch, tokens, code, digests, answered)
            self._pass(node, to, activation, share.round, frames[0].tensor.revision)

        def send_up(share: Share, to: str, microbatch: int, frames: Sequence[PipeFrame]) -> None:
            if not frames:
                return
            arrived = _assembled(frames, StagePlan.gradient, stage)
            (tensor,), (name,) = arrived.tensors, arrived.digests
            gradient = Gradient(self._generation(node), node, share.round, microbatch, tensor, name)
            self._pass(node, to, gradient, share.round, frames[0].tensor.revision)

        def _assembled(frames: Sequence[PipeFrame], of: property, stage: int) -> Assembled:
            assert of.fget is not None
            assembler = Assembler(lambda *_: of.fget(StagePlan(self.spec, stage, b"", 0)))
            (arrived,) = filter(None, map(assembler.add, frames))
            return arrived

        def send_slice(share: Share, to: str, summed: bool, data: bytes | memoryview) -> None:
            flow, numbers, adders = SliceFlow(), self.trainers[node].stage.numbers, share.contributors
            begin, end = slice_bounds(numbers, len(adders), adders.index(node if summed else to))
            coding = slice_coding(self.spec.training.averaging, len(adders))
            flow.begin(share.round, {summed: end - begin}, coding, share.stage_revision)
            frames = slice_frames(share.round, share.stage_revision, summed, data)
            (arrived,) = [each for each in map(flow.add, frames) if each is not None]
            assert isinstance(arrived, Slice)
            self._pass(node, to, Arrived(self._generation(node), node, arrived), share.round, share.stage_revision)

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
        return max(share.generation for share in self._shares[node].values())
