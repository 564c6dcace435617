"""What training puts into the ledger before it acts on it. All of it blocks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules import rounds
from commonweight.rules.epoch import credit_report, credited_receipt
from commonweight.rules.report import report_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import CreditedReport, EquivocationLine, SealedRound, to_hex
from coordinator.draws import Draw, draw
from coordinator.ledger import Ledger
from coordinator.members import Place, Submission, Tips


@dataclass(frozen=True)
class Recorder:
    """Writes for one model."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    tips: Tips

    def store(self, effects: Iterable[rounds.Effect], accepted: Mapping[int, Submission]) -> Draw | None:
        """Record what must survive. `accepted`: by stage, the reports of the round. Of a sealed one: what it draws."""
        drawn: Draw | None = None
        for effect in effects:
            match effect:
                case rounds.Seated(node, stage):
                    self.ledger.record_seat(stage, node)
                    failpoint("ledger.seated")
                case rounds.Form(generation, _):
                    self.ledger.record_generation(generation)
                    failpoint("ledger.formed")
                case rounds.Seal(round_, reports):
                    failpoint("ledger.sealing")
                    drawn = self._seal(round_, [accepted[report.stage] for report in reports])
                    failpoint("ledger.sealed")
        return drawn

    def store_equivocation(self, later: Submission, accepted: Submission | None) -> bool:
        """Record that a node has signed two results of one unit, if it has, and once; whether it was recorded.

        `later` was refused, though its node holds the stage; `accepted`: what was taken for that stage in the round
        that is being trained.
        """
        report, model_id = later.report, self.place.model_id
        tip = self.tips.tip(report.round)
        assert tip is not None, "its signature was checked"
        receipt = report_receipt(model_id, later.generation, report, tip)
        if accepted is not None and accepted.report.round == report.round:
            first = report_receipt(model_id, accepted.generation, accepted.report, tip)
            signature = accepted.signature
        elif sealed := self.ledger.sealed_rounds(report.round, report.round + 1):
            credited = sealed[0].reports[report.stage]
            first = credited_receipt(model_id, report.round, credited, tip)
            signature = bytes.fromhex(credited.signature[2:])
        else:
            return False
        if first.unit != receipt.unit or first.output == receipt.output:
            return False
        line = EquivocationLine(
            stage=report.stage,
            node=later.node,
            unit=to_hex(receipt.unit),
            outputs=(to_hex(first.output), to_hex(receipt.output)),
            signatures=(to_hex(signature), to_hex(later.signature)),
        )
        new = self.ledger.record_equivocation(line)
        if new:
            emit("provider.equivocated", node=later.node, stage=report.stage, round=report.round)
        return new

    def _seal(self, round_: int, submissions: list[Submission]) -> Draw:
        tip = self.tips.tip(round_)
        assert tip is not None, "the reports are signed over it"
        sealed = SealedRound(
            round=round_,
            beacon=to_hex(self.tips.value(round_)),
            reports=tuple(self._credit(submission) for submission in submissions),
        )
        drawn = draw(self.spec, sealed, tip)
        unaudited = {stage: submissions[stage].message.SerializeToString() for stage in drawn.stages}
        self.ledger.record_round(sealed, unaudited)
        return drawn

    def _credit(self, submission: Submission) -> CreditedReport:
        return credit_report(
            self.spec,
            submission.report,
            node=submission.node,
            owner=submission.owner,
            account=submission.account,
            generation=submission.generation,
            signature=submission.signature,
        )
