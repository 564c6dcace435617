"""Audits: what the beacons draw goes to the referee, unit after unit, and each verdict into the ledger, once.

Which audits are open follows from the ledger alone (what its beacons draw, less what is decided), so a coordinator that
was killed goes on with the same. A referee that dies costs time, never the training.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from commonweight.chain.keys import Key
from commonweight.errors import WorkerDied
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.epoch import audit_line
from commonweight.rules.spec import ModelSpec
from commonweight.watch.store import StatementStore
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from coordinator.beacons import beacon_chain
from coordinator.draws import Draw, draw
from coordinator.ledger import Ledger
from coordinator.members import Member, Place
from coordinator.referee import Referee

MAX_ROUNDS_AHEAD = 8
"""No round is planned that is so many beyond the oldest one with open audits: their traces fill the nodes' disks."""
GRACE_S = 60.0
"""For a provider that is gone to come back with what it keeps on its disk, before that counts as withheld."""
MAX_ATTEMPTS = 3
"""At one audit, where the referee dies or the provider goes away meanwhile."""


@dataclass
class Auditing:
    """The audits of one model. All methods run on the event loop; only `resume`, `run` and `wait_…` wait."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    key: Key
    """Signs the verdicts."""
    certificate: bytes
    """DER, that the referee presents to nodes."""
    start_referee: Callable[[], Awaitable[Referee]]
    evidence: StatementStore
    """Where the evidence of fraud is kept and served."""
    convicted: Callable[[], None] = lambda: None
    """Called when there is a fraud to slash for."""
    _open: dict[int, Draw] = field(default_factory=dict)
    """By round, where audits aren't decided."""
    _holders: dict[int, Member] = field(default_factory=dict)
    """Connected nodes, by stage."""
    _gone_since: dict[int, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _referee: Referee | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def resume(self) -> None:
        """After a start: what the ledger says is open."""
        self._open = await asyncio.to_thread(self._load)

    def _load(self) -> dict[int, Draw]:
        found, per_epoch = {}, self.spec.economics.rounds_per_epoch
        for round_ in self.ledger.unaudited():
            (sealed,) = self.ledger.sealed_rounds(round_, round_ + 1)
            drawn = draw(self.spec, sealed, beacon_chain(self.ledger, round_ // per_epoch, per_epoch)[0])
            decided = {line.audit for line in self.ledger.verdicts(round_, round_ + 1)}
            found[round_] = replace(drawn, audits=tuple(each for each in drawn.audits if each not in decided))
        return found

    # What training says

    def joined(self, stage: int, member: Member) -> None:
        """As `Audits.joined`. The node may not have heard of the rounds that are open: the last seal was cut off."""
        self._holders[stage] = member
        for _, drawn in sorted(self._open.items()):
            member.send(pb.CoordinatorMessage(sealed=drawn.announcement(self.retained)))
        self._changed.set()

    def lost(self, stage: int) -> None:
        """As `Audits.lost`."""
        del self._holders[stage]
        self._gone_since[stage] = time.monotonic()

    def sealed(self, drawn: Draw) -> pb.RoundSealed:
        """As `Audits.sealed`."""
        if drawn.audits:
            self._open[drawn.round] = drawn
            for audit in drawn.audits:
                emit(
                    "audit.drawn",
                    round=audit.round,
                    stage=audit.stage,
                    kind=audit.kind.value,
                    microbatch=audit.microbatch,
                )
            self._changed.set()
        return drawn.announcement(self.retained)

    def obstacle(self, round_: int) -> str | None:
        """As `Audits.obstacle`."""
        oldest = min(self._open, default=round_)
        if round_ - oldest <= MAX_ROUNDS_AHEAD:
            return None
        return (
            f"audits of round {oldest} aren't decided, and at most {MAX_ROUNDS_AHEAD} rounds are trained ahead of them"
        )

    def equivocated(self) -> None:
        """As `Audits.equivocated`."""
        self.convicted()

    @property
    def retained(self) -> list[int]:
        """The sealed rounds with open audits."""
        return sorted(self._open)

    async def wait_until_decided(self, end: int) -> None:
        """Return once no audit of a round before `end` is open. Those rounds are sealed."""
        await self._until(lambda: min(self._open, default=end) >= end)

    # The audits

    async def run(self, decided: Callable[[], None]) -> None:
        """Audit what is drawn, the oldest round first, until cancelled; `decided` is called after each verdict."""
        try:
            while True:
                await self._until(lambda: bool(self._open))
                drawn = self._open[min(self._open)]
                await self._audit(drawn, drawn.audits[0])
                decided()
                self._changed.set()
        finally:
            await self._stop_referee()

    async def _audit(self, drawn: Draw, audit: Audit) -> None:
        found = await self._judge(drawn, audit)
        verdict, evidence_hash = Verdict(found.verdict), NO_EVIDENCE
        if verdict is Verdict.FAILED:
            evidence_hash = await asyncio.to_thread(self.evidence.put, found.evidence)
        line = audit_line(
            self.place.model_id,
            audit,
            verdict,
            auditor=self.key.address,
            sign=lambda receipt: self.key.sign_digest(receipt.digest(self.place.domain)),
            evidence_hash=evidence_hash,
        )
        failpoint("audit.deciding")
        await asyncio.to_thread(self.ledger.record_verdict, line, last=len(drawn.audits) == 1)
        failpoint("audit.decided")
        if rest := drawn.audits[1:]:
            self._open[drawn.round] = replace(drawn, audits=rest)
        else:
            del self._open[drawn.round]
        node = drawn.sealed.reports[audit.stage].node
        emit(
            "audit.decided",
            round=audit.round,
            stage=audit.stage,
            kind=audit.kind.value,
            microbatch=audit.microbatch,
            node=node,
            verdict=verdict.value,
            why=found.why[:500],
            seconds=round(found.seconds, 3),
            cpu_seconds=round(found.cpu_seconds, 3),
            fetched_bytes=found.fetched_bytes,
        )
        if verdict is Verdict.FAILED:
            emit("provider.convicted", node=node, stage=audit.stage, round=audit.round, evidence=line.evidence)
            self.convicted()

    async def _judge(self, drawn: Draw, audit: Audit) -> referee_pb2.RefereeVerdict:
        """The referee's word, or ours where it can't give one."""
        found = referee_pb2.RefereeVerdict()
        for _ in range(MAX_ATTEMPTS):
            provider = self._holders.get(audit.stage)
            if provider is None and audit.kind is not Kind.DATA:  # the referee draws the tokens itself
                provider = await self._await_provider(audit.stage)
                if provider is None:
                    return _own_word(Verdict.WITHHELD, f"The provider was gone for {GRACE_S:g} s.")
            try:
                found = await self._ask(audit)
            except WorkerDied as error:
                emit("referee.died", code=error.code, message=error.args[0], round=audit.round, stage=audit.stage)
                await self._stop_referee()
                found = _own_word(Verdict.UNDECIDED, f"{MAX_ATTEMPTS} attempts. {error.args[0]}")
                continue
            if found.verdict == Verdict.FAILED.value:
                return await self._confirm(audit, found)
            if found.verdict != Verdict.WITHHELD.value or self._holders.get(audit.stage) is provider:
                break
            # It went away meanwhile; what it has on its disk it can still serve.
        return found

    async def _confirm(self, audit: Audit, found: referee_pb2.RefereeVerdict) -> referee_pb2.RefereeVerdict:
        """Fraud that another referee has seen, too: a bit that flips in a machine must cost nobody a stake.

        Who doesn't serve a second time gains nothing: only a replay that gives what was signed speaks for the provider.
        """
        await self._stop_referee()
        try:
            again = await self._ask(audit)
        except WorkerDied as error:
            emit("referee.died", code=error.code, message=error.args[0], round=audit.round, stage=audit.stage)
            await self._stop_referee()
            return found
        if again.verdict != Verdict.PASSED.value:
            return found
        return _own_word(Verdict.UNDECIDED, f"One replay passed, another failed: {found.why}")

    async def _await_provider(self, stage: int) -> Member | None:
        """The stage's holder; None where it has been gone for too long."""
        left_s = self._gone_since.get(stage, self._started) + GRACE_S - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                await self._until(lambda: stage in self._holders)
        except TimeoutError:
            pass
        return self._holders.get(stage)

    async def _ask(self, audit: Audit) -> referee_pb2.RefereeVerdict:
        """Raises WorkerDied."""
        if self._referee is None:
            self._referee = await self.start_referee()
        kept = await asyncio.to_thread(self.ledger.unaudited_report, audit.round, audit.stage)
        unit, sources = _unit(audit), []
        for stage in (audit.stage, audit.stage - 1, audit.stage + 1):
            if (member := self._holders.get(stage)) is not None:
                member.send(pb.CoordinatorMessage(audit=pb.AuditGrant(unit=unit, auditor=self.certificate)))
                sources.append(
                    referee_pb2.EvidenceSource(
                        peer_id=member.peer_id, address=member.evidence_address, certificate=member.certificate
                    )
                )
        report = pb.StageReport.FromString(kept)
        return await self._referee.audit(referee_pb2.RefereeAudit(unit=unit, report=report, sources=sources))

    async def _stop_referee(self) -> None:
        if self._referee is not None:
            referee, self._referee = self._referee, None
            await referee.stop()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def _unit(audit: Audit) -> pb.AuditUnit:
    return pb.AuditUnit(round=audit.round, stage=audit.stage, kind=audit.kind.value, microbatch=audit.microbatch)


def _own_word(verdict: Verdict, why: str) -> referee_pb2.RefereeVerdict:
    return referee_pb2.RefereeVerdict(verdict=verdict.value, why=why)
