"""The coordinator's child process that replays work: the only one of its processes that ever sees a weight."""

import asyncio
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass

from commonweight.errors import WireError, WorkerDied
from commonweight.events import emit
from commonweight.rules.audits import Verdict
from commonweight.rules.epoch import report_units
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token, stage_parameters
from commonweight.wire.generated import referee_pb2 as pb
from commonweight.wire.link import Link, end_worker, spawn_worker

START_S = 60.0
"""For the referee to import torch; a cold disk takes its time."""
STOP_S = 10.0
"""For the referee to finish the operation it is in."""
AUDIT_S = 300.0
"""For the referee to fetch and replay one unit, beyond what `audit_limit_s` adds: three times its patience with a node,
and more. A slow provider must run into that patience, which says `withheld`, and not into this.
"""
SOURCES = 3
"""A provider and its neighbours."""
BYTES_PER_PARAMETER = 12
"""Itself and Adam's two moments, float32."""
BYTES_PER_S = 1 << 20
FLOPS_PER_S = 1e9
"""At which the slowest way and the slowest core are taken to work."""
MODULE = "referee"


def audit_limit_s(spec: ModelSpec) -> float:
    """Seconds for the audit of a whole round of the largest stage.

    On the way are two states and, from each source in vain, what crossed the stage's sides; then there is the work.
    """
    stages = range(spec.stages)
    state_bytes = 2 * BYTES_PER_PARAMETER * max(stage_parameters(spec, stage) for stage in stages)
    traced_bytes = 2 * boundary_bytes_per_token(spec).sent * spec.training.tokens_per_round
    on_the_way_s = (state_bytes + SOURCES * traced_bytes) / BYTES_PER_S
    return AUDIT_S + on_the_way_s + max(report_units(spec, stage) for stage in stages) / FLOPS_PER_S


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

    async def audit(self, command: pb.RefereeAudit) -> pb.RefereeVerdict:
        """What it finds out about a unit."""
        await self._send(pb.RefereeCommand(audit=command))
        event = await self._receive(self._audit_s)
        found = event.verdict
        if event.WhichOneof("body") != "verdict" or found.unit != command.unit:
            raise WorkerDied(f"The referee answered an audit with {event!r:.200}.")
        if found.verdict not in {verdict.value for verdict in Verdict}:
            raise WorkerDied(f"The referee's verdict is {found.verdict!r:.40}.")
        if (found.verdict == Verdict.FAILED.value) != bool(found.evidence):
            raise WorkerDied(f"The referee's verdict is {found.verdict}, with {len(found.evidence)} bytes of evidence.")
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
