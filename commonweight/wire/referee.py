"""The process that replays work: a child of the coordinator or of an auditor, of which it alone sees a weight."""

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from commonweight.errors import WireError, WorkerDied
from commonweight.events import emit
from commonweight.rules.audits import Verdict
from commonweight.rules.epoch import report_units
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token, state_bytes
from commonweight.wire.generated import control_pb2
from commonweight.wire.generated import referee_pb2 as pb
from commonweight.wire.link import Link, end_worker, spawn_worker

START_S = 60.0
"""For the referee to import torch; a cold disk takes its time."""
STOP_S = 10.0
"""For the referee to finish the operation it is in."""
AUDIT_S = 150.0
"""For the referee to fetch and replay one unit, beyond what `audit_limit_s` adds: three times its patience with a node,
and more. A slow provider must run into that patience, which says `withheld`, and not into this.
"""
SOURCES = 3
"""A provider and its neighbours."""
BYTES_PER_S = 1 << 20
FLOPS_PER_S = 1e9
"""At which the slowest way and the slowest core are taken to work."""
MODULE = "referee"
MAX_ATTEMPTS = 3
"""At one unit, where the referee dies."""

Answer = TypeVar("Answer")


def audit_limit_s(spec: ModelSpec) -> float:
    """Seconds for the audit of a whole round of the largest stage.

    On the way are, where a doubt leads to the whole round, four states and two gradients, and from each source in vain
    what crossed the stage's sides; then there is the work.
    """
    stages = range(spec.stages)
    fetched_bytes = 5 * max(state_bytes(spec, stage) for stage in stages)
    traced_bytes = 2 * boundary_bytes_per_token(spec).sent * spec.training.tokens_per_round
    on_the_way_s = (fetched_bytes + SOURCES * traced_bytes) / BYTES_PER_S
    flops = max(report_units(spec, stage, spec.training.microbatches_per_round) for stage in stages)
    return AUDIT_S + on_the_way_s + flops / FLOPS_PER_S


@dataclass(frozen=True)
class RefereeConfig:
    """What a referee is started with."""

    start: pb.RefereeStart
    threads: int
    audit_s: float
    """For one audit; a referee that says nothing for so long is given up."""


class Referee:
    """A running one. Methods raise WorkerDied where it is gone, silent or says what makes no sense: stop it then."""

    def __init__(self, process: Process, link: Link, audit_s: float) -> None:
        """Use `start`."""
        self.process = process
        self._link = link
        self._audit_s = audit_s

    @classmethod
    async def start(cls, config: RefereeConfig) -> "Referee":
        """Start one, and wait until it can audit."""
        process, link = await spawn_worker([sys.executable, "-m", MODULE], threads=config.threads)
        referee = cls(process, link, config.audit_s)
        try:
            await referee._send(pb.RefereeCommand(start=config.start))
            event = await referee._receive(START_S)
            if event.WhichOneof("body") != "ready":
                raise WorkerDied(f"The referee began with {event.WhichOneof('body')}.")
        except BaseException:
            await referee.stop()
            raise
        emit("referee.started", referee_pid=process.pid, numerics=event.ready.numerics)
        return referee

    async def audit(self, order: control_pb2.AuditOrder) -> control_pb2.AuditOpinion:
        """What it finds out about a unit."""
        await self._send(pb.RefereeCommand(audit=order))
        event = await self._receive(self._audit_s)
        found = event.opinion
        if event.WhichOneof("body") != "opinion" or found.unit != order.unit:
            raise WorkerDied(f"The referee answered an audit with {event!r:.200}.")
        if found.verdict not in {verdict.value for verdict in Verdict}:
            raise WorkerDied(f"The referee's verdict is {found.verdict!r:.40}.")
        if (found.verdict == Verdict.FAILED.value) != bool(found.evidence):
            raise WorkerDied(f"The referee's verdict is {found.verdict}, with {len(found.evidence)} bytes of evidence.")
        return found

    async def record(self, order: control_pb2.AuditOrder, tensors_of: int | None = None) -> pb.Recording:
        """The operators of a unit's replay, and the tensors of one of them; or why there are none."""
        await self._send(pb.RefereeCommand(record=pb.RecordOperators(order=order, tensors_of=tensors_of)))
        event = await self._receive(self._audit_s)
        found = event.recording
        if event.WhichOneof("body") != "recording" or len(found.operators) % HASH_BYTES:
            raise WorkerDied(f"The referee answered a recording with {event!r:.200}.")
        if bool(found.operators) == bool(found.failure):
            raise WorkerDied(f"The referee recorded {len(found.operators)} bytes, failure {found.failure!r:.200}.")
        return found

    async def stop(self) -> None:
        """End it: by closing its link, and with SIGKILL where it doesn't end in time."""
        await end_worker(self.process, self._link, STOP_S)

    async def _send(self, command: pb.RefereeCommand) -> None:
        try:
            await self._link.send(command)
        except WireError as error:
            raise WorkerDied(f"The referee can't be told anything: {error.args[0]}") from error

    async def _receive(self, limit_s: float) -> pb.RefereeEvent:
        try:
            async with asyncio.timeout(limit_s):
                event = await self._link.receive(pb.RefereeEvent)
        except TimeoutError:
            raise WorkerDied(f"The referee said nothing for {limit_s:g} s.") from None
        except WireError as error:
            raise WorkerDied(f"The referee can't be understood: {error.args[0]}") from error
        if event is None:
            raise WorkerDied(f"The referee (pid {self.process.pid}) ended. Its last words are on stderr.")
        return event


Reach = Callable[[str, str], Awaitable[str]]
"""The host:port at which this machine reaches a source, by its PeerId and own address; that, where there is none."""


class Replays:
    """Referees, one at a time: started when one is needed, and again where it dies. One call at a time."""

    def __init__(self, start: Callable[[], Awaitable[Referee]], reach: Reach | None = None) -> None:
        """`start` may raise WorkerDied; nothing is started before it is needed. `reach`: None where every source is
        reached at its own address.
        """
        self._start = start
        self._reach = reach
        self._referee: Referee | None = None

    async def judge(self, order: control_pb2.AuditOrder) -> control_pb2.AuditOpinion:
        """What comes of a unit, unsigned: `undecided` where MAX_ATTEMPTS referees died of it."""
        try:
            return await self._ask(order, lambda referee: referee.audit(order))
        except WorkerDied as error:
            return _undecided(order, f"{MAX_ATTEMPTS} attempts. {error.args[0]}")

    async def judge_twice(self, order: control_pb2.AuditOrder) -> control_pb2.AuditOpinion:
        """As `judge`, where this is the last word: it says that there is fraud when a second referee has seen it, too.

        A bit that flips in a machine must cost nobody a stake. Who doesn't serve again gains nothing: only a replay
        that gives what was signed speaks for the provider.
        """
        if (found := await self.judge(order)).verdict != Verdict.FAILED.value:
            return found
        await self.stop()
        try:
            again = await self._ask(order, lambda referee: referee.audit(order), attempts=1)
        except WorkerDied:
            return found
        if again.verdict != Verdict.PASSED.value:
            return found
        return _undecided(order, f"One replay passed, another failed: {found.why}")

    async def record(self, order: control_pb2.AuditOrder, tensors_of: int | None = None) -> pb.Recording:
        """As `Referee.record`; a failure where MAX_ATTEMPTS referees died of it."""
        try:
            return await self._ask(order, lambda referee: referee.record(order, tensors_of))
        except WorkerDied as error:
            return pb.Recording(failure=f"{MAX_ATTEMPTS} attempts. {error.args[0]}")

    async def stop(self) -> None:
        """End the referee that runs, if one does; the next call starts another."""
        if self._referee is not None:
            referee, self._referee = self._referee, None
            await referee.stop()

    async def _ask(
        self,
        order: control_pb2.AuditOrder,
        question: Callable[[Referee], Awaitable[Answer]],
        attempts: int = MAX_ATTEMPTS,
    ) -> Answer:
        """A referee's answer. Raises WorkerDied where so many died of the question."""
        if self._reach is not None:
            for source in order.sources:
                source.address = await self._reach(source.peer_id, source.address)
        while True:
            attempts -= 1
            try:
                if self._referee is None:
                    self._referee = await self._start()
                return await question(self._referee)
            except WorkerDied as error:
                unit = order.unit
                emit("referee.died", code=error.code, message=error.args[0], round=unit.round, stage=unit.stage)
                await self.stop()
                if not attempts:
                    raise
            except asyncio.CancelledError:
                await self.stop()  # its answer would come, and be taken for that to a later question
                raise


def _undecided(order: control_pb2.AuditOrder, why: str) -> control_pb2.AuditOpinion:
    return control_pb2.AuditOpinion(unit=order.unit, verdict=Verdict.UNDECIDED.value, why=why)
