"""Real trainers, chained in this process, and a referee that reads what they keep on their disks."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Self

from adversary.cheat import Cheat
from adversary.worker import open_trainer
from commonweight.errors import CommonweightError, EvidenceMissing
from commonweight.model.data import Dataset
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated.pipe_pb2 import PipeFrame
from commonweight.wire.pipe import Assembled, Assembler
from node.flow import StagePlan
from node.published import version_path
from node.stage_round import Activation, Gradient
from node.traces import read_index, trace_path
from node.trainer import Item, Outlet, Quit, Restore, TrainedRound, Trainer, TrainRound
from referee.auditor import Auditor, Outcome
from tests.unit.shares import address, undivided_share

WAIT_S = 60.0
GENERATION = 1


@dataclass
class Keeper:
    """The disk of one trainer, as an auditor's source."""

    name: str
    state_dir: Path
    withholds: Callable[[int], bool] = lambda round_: False
    """Whether it gives nothing of a round."""

    async def tensor(self, round_: int, digest: bytes, size: int) -> bytes:
        self._refuse(round_)
        path = trace_path(self.state_dir / "traces", round_)
        try:
            return _entry(path, digest)
        except KeyError as error:
            raise EvidenceMissing("not kept") from error

    async def state(self, round_: int, part: str, *, after: bool, limit: int) -> bytes:
        self._refuse(round_)
        return (version_path(self.state_dir, round_ + after) / f"{part}.safetensors").read_bytes()

    async def gradient(self, round_: int, signed: bytes, *, limit: int) -> bytes:
        self._refuse(round_)
        return _entry(trace_path(self.state_dir / "gradients", round_), signed)

    def _refuse(self, round_: int) -> None:
        if self.withholds(round_):
            raise EvidenceMissing("withheld")


def _entry(path: Path, name: bytes) -> bytes:
    begin, size = read_index(path)[name]
    return path.read_bytes()[begin : begin + size]


@dataclass
class Pipeline:
    """All stages of a model, each trained by its own thread; one of them may cheat."""

    spec: ModelSpec
    data: Path
    folder: Path
    at: int = -1
    """The stage that cheats."""
    cheat: Cheat | None = None
    trainers: list[Trainer] = field(default_factory=list)
    reports: "SimpleQueue[TrainedRound | CommonweightError]" = field(default_factory=SimpleQueue)
    sealed: dict[tuple[int, int], Report] = field(default_factory=dict)
    """By round and stage."""

    def __enter__(self) -> Self:
        inboxes: list[SimpleQueue[Item]] = [SimpleQueue() for _ in range(self.spec.stages)]
        self.keepers = [Keeper(f"node {stage}", self.folder / str(stage)) for stage in range(self.spec.stages)]
        for stage, inbox in enumerate(inboxes):
            self.trainers.append(self._open(stage, inbox, inboxes))
        self._threads = [Thread(target=trainer.run) for trainer in self.trainers]
        for thread in self._threads:
            thread.start()
        restored: list[Future[None]] = [Future() for _ in inboxes]
        for inbox, done in zip(inboxes, restored, strict=True):
            inbox.put(Restore(GENERATION, 0, done))
        for done in restored:
            done.result(WAIT_S)
        auditor_data = Dataset.open(self.data, self.spec)
        self.auditor = Auditor(self.spec, dataset=auditor_data)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for trainer, thread in zip(self.trainers, self._threads, strict=True):
            trainer.inbox.put(Quit())
            thread.join(WAIT_S)

    def train(self, round_: int) -> None:
        """One round; its reports are in `sealed`."""
        for trainer in reversed(self.trainers):  # a plan is there before what comes by it
            share = undivided_share(self.spec, trainer.stage.index, GENERATION, round_)
            trainer.inbox.put(TrainRound(share))
        for _ in self.trainers:
            trained = self.reports.get(timeout=WAIT_S)
            if isinstance(trained, CommonweightError):
                raise trained
            self.sealed[round_, trained.report.stage] = trained.report

    def units(self, round_: int) -> list[Audit]:
        """All that may be drawn of a round."""
        microbatches, last = range(self.spec.training.microbatches_per_round), self.spec.stages - 1
        units = [Audit(round_, 0, Kind.DATA, number) for number in microbatches]
        for stage in range(self.spec.stages):
            kind = Kind.LOSS if stage == last else Kind.MICROBATCH
            units += [Audit(round_, stage, Kind.ROUND), *(Audit(round_, stage, kind, n) for n in microbatches)]
        return units

    def audit(self, unit: Audit) -> Outcome:
        """What the referee says of it, while the versions before and after its round are still there."""
        near = [unit.stage, unit.stage - 1, unit.stage + 1]
        sources = [self.keepers[stage] for stage in near if 0 <= stage < self.spec.stages]
        report = self.sealed[unit.round, unit.stage]
        return asyncio.run(self.auditor.audit(unit, report, self.trainers[unit.stage].numerics, sources))

    def _open(self, stage: int, inbox: "SimpleQueue[Item]", inboxes: "list[SimpleQueue[Item]]") -> Trainer:
        down, up = (Assembler(self._expect(stage, direction)) for direction in ("activation", "gradient"))

        def send(assembler: Assembler, frames: list[PipeFrame], to: int) -> None:
            for frame in frames:
                if (arrived := assembler.add(frame)) is not None:
                    inboxes[to].put(self._item(arrived, stage, down=to > stage))

        options: dict[str, Any] = {
            "state_dir": self.keepers[stage].state_dir,
            "data_dir": self.data,
            "device": "cpu",
            "inbox": inbox,
            "outlet": Outlet(
                send_down=lambda *sent: send(down, list(sent[-1]), stage + 1),
                send_up=lambda *sent: send(up, list(sent[-1]), stage - 1),
                send_slice=lambda *_: None,
                report=self.reports.put,
                fail=lambda _, error, *__: self.reports.put(error),
                late=lambda *_: None,
            ),
        }
        if stage == self.at and self.cheat is not None:
            return open_trainer(self.cheat, self.spec, stage, **options)
        return Trainer.open(self.spec, stage, **options)

    def _expect(self, stage: int, direction: str) -> Any:
        plan = getattr(StagePlan(self.spec, stage, b"", 0), direction)
        return lambda round_, microbatch: plan

    @staticmethod
    def _item(arrived: Assembled, stage: int, *, down: bool) -> Item:
        at = arrived.round, arrived.microbatch
        if down:
            tokens, code = arrived.tensors
            digests = arrived.digests[0], arrived.digests[1]
            return Activation(GENERATION, address(stage), *at, tokens, code, digests)
        return Gradient(GENERATION, address(stage), *at, arrived.tensors[0], arrived.digests[0])
