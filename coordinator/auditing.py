"""Audits: what the beacons draw goes to its auditors, unit after unit, and each verdict into the ledger, once.

Which audits are open follows from the ledger alone (what its beacons draw, less what is decided), so a coordinator that
was killed goes on with the same. An auditor or a referee that dies costs time, never the training.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.beacon import hash_chain
from commonweight.rules.panel import Standing
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine
from commonweight.wire.generated import control_pb2 as pb
from coordinator.beacons import beacon_seed
from coordinator.draws import Draw, draw
from coordinator.ledger import Ledger
from coordinator.members import Member
from coordinator.panel import MAX_ATTEMPTS, Given, Panel, ProviderGone

MAX_ROUNDS_AHEAD = 8
"""No round is planned that is so many beyond the oldest one with open audits: their traces fill the nodes' disks."""


@dataclass
class Auditing:
    """The audits of one model. All methods run on the event loop; only `resume`, `run` and `wait_…` wait."""

    spec: ModelSpec
    ledger: Ledger
    panel: Panel
    convicted: Callable[[], None] = lambda: None
    """Called when there is a fraud to slash for."""
    fraud: Callable[[str, int], None] = lambda *_: None
    """(node, stage): called when its work there was fraud."""
    _open: dict[int, Draw] = field(default_factory=dict)
    """By round, where audits aren't decided."""
    _put_off: Counter[Audit] = field(default_factory=Counter)
    """How often, because the provider had gone away in the midst of it."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def resume(self) -> None:
        """After a start: what the ledger says is open."""
        self._open = await asyncio.to_thread(self._load)

    def _load(self) -> dict[int, Draw]:
        found, per_epoch = {}, self.spec.economics.rounds_per_epoch
        for round_ in self.ledger.unaudited():
            (sealed,) = self.ledger.sealed_rounds(round_, round_ + 1)
            seed = beacon_seed(self.ledger, round_ // per_epoch)
            drawn = draw(self.spec, sealed, hash_chain(seed, per_epoch)[0], seed)
            decided = {line.audit for line in self.ledger.verdicts(round_, round_ + 1)}
            found[round_] = replace(drawn, audits=tuple(each for each in drawn.audits if each not in decided))
        return found

    # What training says

    def joined(self, stage: int, member: Member) -> None:
        """As `Audits.joined`. The node may not have heard of the rounds that are open: the last seal was cut off."""
        self.panel.holders.joined(member)
        self._changed.set()
        for _, drawn in sorted(self._open.items()):
            member.send(pb.CoordinatorMessage(sealed=self.announcement(drawn, member.node)))

    def lost(self, member: Member) -> None:
        """As `Audits.lost`."""
        self.panel.holders.lost(member)

    def sealed(self, drawn: Draw) -> None:
        """As `Audits.sealed`."""
        if drawn.audits:
            self._open[drawn.round] = drawn
            for audit in drawn.audits:
                emit(
                    "audit.drawn",
                    round=audit.round,
                    stage=audit.stage,
                    replica=audit.replica,
                    kind=audit.kind.value,
                    microbatch=audit.microbatch,
                )
            self._changed.set()

    def announcement(self, drawn: Draw, node: str) -> pb.RoundSealed:
        """As `Audits.announcement`."""
        return drawn.announcement(node, self.retained)

    def obstacle(self, round_: int) -> str | None:
        """As `Audits.obstacle`."""
        under_way = (
            number
            for number, drawn in self._open.items()
            if any(not self._patience_s(drawn, audit) for audit in drawn.audits)
        )
        oldest = min(under_way, default=round_)
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
        """Audit what is drawn, the oldest round first, until cancelled; `decided` is called after each verdict.

        What is drawn of a provider that is gone is put off until it is back, or waited for no longer.
        """
        try:
            while True:
                self._changed.clear()
                if (due := self._due()) is None:
                    await self._wait_for_change()
                    continue
                try:
                    await self._audit(*due)
                except ProviderGone:
                    self._put_off[due[1]] += 1
                    continue
                decided()
                self._changed.set()
        finally:
            await self.panel.replays.stop()

    def _due(self) -> tuple[Draw, Audit] | None:
        """What to audit next."""
        open_ = ((drawn, audit) for _, drawn in sorted(self._open.items()) for audit in drawn.audits)
        return next((each for each in open_ if not self._patience_s(*each)), None)

    def _patience_s(self, drawn: Draw, audit: Audit) -> float:
        """How long the unit's provider is still waited for; of text nothing of it is needed. Who goes away whenever it
        is asked gains nothing by it.
        """
        if audit.kind is Kind.DATA or not self._waits(audit):
            return 0.0
        return self.panel.holders.patience_s(drawn.sealed.provider(audit).node)

    def _waits(self, audit: Audit) -> bool:
        return self._put_off[audit] < MAX_ATTEMPTS

    async def _wait_for_change(self) -> None:
        """Until something is drawn, a node comes or goes, or one isn't waited for any longer."""
        waits_s = [self._patience_s(drawn, audit) for drawn in self._open.values() for audit in drawn.audits]
        with suppress(TimeoutError):
            async with asyncio.timeout(min(waits_s, default=None)):
                await self._changed.wait()

    async def _audit(self, drawn: Draw, audit: Audit) -> None:
        line, given = await self.panel.decide(drawn, audit, waits=self._waits(audit))
        del self._put_off[audit]
        failpoint("audit.deciding")
        await asyncio.to_thread(self.ledger.record_verdict, line, last=len(drawn.audits) == 1)
        failpoint("audit.decided")
        if rest := tuple(each for each in drawn.audits if each != audit):
            self._open[drawn.round] = replace(drawn, audits=rest)
        else:
            del self._open[drawn.round]
        node = drawn.sealed.provider(audit).node
        _tell_verdict(node, line, given)
        if _tell_convicted(node, line):
            self.convicted()
        if Verdict(line.verdict) is Verdict.FAILED:
            self.fraud(node, line.stage)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


def _tell_verdict(node: str, line: AuditLine, given: Sequence[Given]) -> None:
    emit(
        "audit.decided",
        round=line.round,
        stage=line.stage,
        replica=line.replica,
        kind=line.kind,
        microbatch=line.microbatch,
        node=node,
        verdict=line.verdict,
        why=given[-1].found.why[:500],
        auditors=[
            {
                "auditor": opinion.auditor,
                "owner": opinion.owner,
                "verdict": opinion.verdict,
                "known_bad": line.is_known_bad(opinion),
            }
            for opinion in line.opinions
        ],
        seconds=round(sum(each.found.seconds for each in given), 3),
        cpu_seconds=round(sum(each.found.cpu_seconds for each in given), 3),
        fetched_bytes=sum(each.found.fetched_bytes for each in given),
    )


def _tell_convicted(node: str, line: AuditLine) -> bool:
    """Whether the audit of this provider's work has convicted anybody."""
    is_fraud = Verdict(line.verdict) is Verdict.FAILED
    if is_fraud:
        emit("provider.convicted", node=node, stage=line.stage, round=line.round, evidence=line.evidence)
    for opinion in line.disproven:
        emit(
            "auditor.convicted",
            node=opinion.auditor,
            stage=line.stage,
            round=line.round,
            disproof=opinion.disproof,
            why="known bad" if line.standing_of(opinion) is Standing.FALSE else "overruled",
        )
    return is_fraud or bool(line.disproven)
