"""The opinions on one unit: who is asked in which order, and whether what they say can be used.

See commonweight/rules/panel.py. Until a unit is decided its opinions are in memory only: a coordinator that was killed
asks the same ones again.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

from commonweight.chain.keys import Key
from commonweight.errors import MalformedMessage, Refused, WireError
from commonweight.identity import recover_address
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.epoch import audit_line, drawn_auditors, make_opinion
from commonweight.rules.merkle import keccak
from commonweight.rules.panel import Owner, Standing, left_to_ask, opinion_receipt, settled_verdict
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine, Conviction, Opinion, to_hex
from commonweight.watch.fraud import Commitments, FraudEvidence, parse_document
from commonweight.watch.known_bad import known_bad_evidence
from commonweight.watch.store import StatementStore
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.referee import Replays
from coordinator.auditors import Auditors
from coordinator.claims import Claim, false_claim, signed_claim
from coordinator.disputes import Disputes
from coordinator.draws import Draw
from coordinator.holders import GRACE_S, Holders
from coordinator.ledger import Ledger
from coordinator.members import AuditorMember, Panels, Place

Judge = Callable[[pb.AuditOrder], Awaitable[pb.AuditOpinion]]
"""How the referee comes to its opinion."""
MAX_ATTEMPTS = 3
"""At one opinion, where the provider goes away meanwhile."""


class ProviderGone(Exception):
    """Whose work is to be audited is gone, and may still come back."""


@dataclass(frozen=True)
class Given:
    """An opinion, and how it came."""

    claim: Claim
    opinion: Opinion
    found: pb.AuditOpinion
    """With what was measured, as whoever gave it says."""
    member: AuditorMember | None
    """None: the referee."""

    @property
    def verdict(self) -> Verdict:
        """What it says."""
        return Verdict(self.opinion.verdict)


@dataclass(frozen=True)
class Panel:
    """The auditors of one model, and its referee."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    key: Key
    """Signs what the referee says."""
    panels: Panels
    evidence: StatementStore
    """Where the evidence of fraud is kept and served."""
    holders: Holders
    """Whose work it is."""
    auditors: Auditors
    replays: Replays
    """The referee's."""
    certificate: bytes
    """DER, that the referee presents to nodes."""
    disputes: Disputes

    async def decide(self, drawn: Draw, audit: Audit, *, waits: bool = True) -> tuple[AuditLine, tuple[Given, ...]]:
        """What an audit of a sealed round comes to, and the opinions that say so.

        Where there is fraud, or an opinion is disproven, the evidence is kept when this returns. Raises ProviderGone
        where the provider may still come back, and that is to be waited for (`waits`); what was said until then is
        asked again.
        """
        epoch = audit.round // self.spec.economics.rounds_per_epoch
        await self.panels.commit(epoch)
        left: Sequence[Owner] = drawn_auditors(drawn.sealed, audit, drawn.beacon, self.panels.auditors(epoch))
        signed, false, convicted = await asyncio.to_thread(self._look_up, drawn, audit)
        provider = Conviction(stage=audit.stage, node=signed.provider)
        # More fraud costs who is convicted nothing more, so there a second replay would only take time.
        judge = self.replays.judge if provider in convicted else self.replays.judge_twice
        given: list[Given] = []
        verdict: Verdict | None = None
        while verdict is None:
            owner, *left = left_to_ask(left, sum(each.claim is signed for each in given))
            shown = signed if false is None or given or owner is None else false
            if (found := await self._opinion(owner, shown, signed, judge, convicted, waits=waits)) is not None:
                given.append(found)
            verdict = settled_verdict([(each.opinion.owner, each.verdict) for each in given if each.claim is signed])
        line = audit_line(audit, verdict, [each.opinion for each in given])
        opinions = [await self._with_disproof(line, each, signed) for each in given]
        for each in given:
            if each.member is not None and self._was_no_help(line, each):
                self.auditors.pass_over(each.member.owner, audit.round)
        given = [replace(each, opinion=opinion) for each, opinion in zip(given, opinions, strict=True)]
        return audit_line(audit, verdict, opinions), tuple(given)

    @staticmethod
    def _was_no_help(line: AuditLine, each: Given) -> bool:
        """Whether to ask it would only take time: it may be slow about saying nothing, too."""
        standing = line.standing_of(each.opinion)
        return standing is Standing.FALSE or (standing is not Standing.PAID and each.opinion.verdict != line.verdict)

    def _look_up(self, drawn: Draw, audit: Audit) -> tuple[Claim, Claim | None, Collection[Conviction]]:
        """What the provider claims, what is shown first in its stead, and who isn't asked."""
        signed = signed_claim(self.spec, self.ledger, drawn.sealed, audit)
        return signed, false_claim(self.spec, drawn.seed, signed), self.ledger.convicted()

    async def _opinion(
        self,
        owner: str | None,
        shown: Claim,
        signed: Claim,
        judge: Judge,
        convicted: Collection[Conviction],
        *,
        waits: bool,
    ) -> Given | None:
        """That of who has this seat, or of the referee (None) in its stead where the provider is gone for good; None
        where nobody is there for the seat, or what they say can't be used.
        """
        audit, found = shown.audit, None
        for _ in range(MAX_ATTEMPTS):
            if (provider := self.holders.provider(shown)) is None and audit.kind is not Kind.DATA:
                if waits and self.holders.patience_s(shown.provider):
                    raise ProviderGone(shown.provider)
                gone = f"The provider was gone for {GRACE_S:g} s, or in each of {MAX_ATTEMPTS} attempts."
                return self._of_referee(signed, pb.AuditOpinion(verdict=Verdict.WITHHELD.value, why=gone))
            if owner is None:
                found = self._of_referee(shown, await judge(self.holders.order(shown, self.certificate)))
            else:
                member = self.auditors.of_owner(owner, audit.round, audit.stage, convicted)
                found = None if member is None else await self._of_seat(member, shown)
            if found is None or found.verdict is not Verdict.WITHHELD or self.holders.provider(shown) is provider:
                break
            # It went away meanwhile; what it has on its disk it can still serve.
        if found is not None and found.found.evidence:
            await asyncio.to_thread(self.evidence.put, found.found.evidence)
        return found

    def _of_referee(self, claim: Claim, found: pb.AuditOpinion) -> Given:
        verdict = Verdict(found.verdict)
        evidence_hash = keccak(found.evidence) if found.evidence else NO_EVIDENCE
        opinion = make_opinion(
            claim.hash,
            verdict,
            auditor=self.key.address,
            signature=self.key.sign_digest(self._digest(claim, verdict, evidence_hash)),
            evidence_hash=evidence_hash,
        )
        return Given(claim, opinion, found, None)

    async def _of_seat(self, member: AuditorMember, claim: Claim) -> Given | None:
        """What it says, if that can be used; otherwise it is hung up on."""
        order = self.holders.order(claim, member.certificate)
        found = await self.auditors.opinion(member, order)
        if found is None:
            return None
        try:
            return Given(claim, self._checked(member, claim, found), found, member)
        except WireError as error:
            self.auditors.distrust(member, claim.audit.round, error)
            return None

    def _checked(self, member: AuditorMember, claim: Claim, found: pb.AuditOpinion) -> Opinion:
        """Raises MalformedMessage or Refused."""
        if found.verdict not in {verdict.value for verdict in Verdict}:
            raise MalformedMessage(f"verdict: {found.verdict!r:.40} is none.")
        if any(not (math.isfinite(spent) and spent >= 0) for spent in (found.seconds, found.cpu_seconds)):
            raise MalformedMessage(f"seconds: {found.seconds} and {found.cpu_seconds} are no durations.")
        verdict = Verdict(found.verdict)
        if (verdict is Verdict.FAILED) != bool(found.evidence):
            raise MalformedMessage(f"The verdict {verdict.value} has {len(found.evidence)} bytes of evidence.")
        if found.evidence:
            self._check_evidence(claim, found.evidence)
        evidence_hash = keccak(found.evidence) if found.evidence else NO_EVIDENCE
        if (signer := recover_address(self._digest(claim, verdict, evidence_hash), found.signature)) != member.node:
            raise Refused(f"The opinion on {claim.audit} is signed by {signer}, not by {member.node}.")
        return make_opinion(
            claim.hash,
            verdict,
            auditor=member.node,
            owner=member.owner,
            account=member.account,
            signature=found.signature,
            evidence_hash=evidence_hash,
        )

    def _digest(self, claim: Claim, verdict: Verdict, evidence_hash: bytes) -> bytes:
        """What whoever has this opinion signs."""
        receipt = opinion_receipt(self.place.model_id, claim.audit, claim.hash, verdict, evidence_hash)
        return receipt.digest(self.place.domain)

    def _check_evidence(self, claim: Claim, text: bytes) -> None:
        """That it is about what was shown; whether it is true shows a replay."""
        evidence = parse_document(FraudEvidence, text)
        due = Commitments.of(claim.report, self.spec.training.microbatches_per_round).model_dump()
        wrong = evidence.contradictions(claim.audit.stage, self.spec.spec_hash)
        if evidence.unit.audit != claim.audit:
            wrong.append(f"it is about {evidence.unit.audit}")
        for name, value in evidence.commitments.model_dump().items():
            if value != due[name]:
                wrong.append(f"its {name} isn't that of the report")
        if wrong:
            raise Refused(f"The evidence that {claim.audit} failed can't be any: {'; '.join(wrong)}."[:500])

    async def _with_disproof(self, line: AuditLine, each: Given, signed: Claim) -> Opinion:
        """The opinion, with the hash of the evidence that it is false, where there is some."""
        standing, evidence = line.standing_of(each.opinion), None
        if each.member is not None and standing is Standing.FALSE:
            evidence = known_bad_evidence(
                spec=self.spec,
                audit=line.audit,
                signed=signed.report,
                shown=each.claim.report,
                auditor=each.opinion.auditor,
                signature=each.opinion.signature,
            )
        elif each.member is not None and standing is Standing.OVERRULED:
            evidence = await self.disputes.disprove(each.member, each.claim)
        if evidence is None:
            return each.opinion
        disproof = await asyncio.to_thread(self.evidence.put, evidence)
        return each.opinion.model_copy(update={"disproof": to_hex(disproof)})
