"""What training puts into the ledger before it acts on it. All of it blocks."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.rules import round_events
from commonweight.rules.answer import Answer, find_disagreement
from commonweight.rules.audits import Kind
from commonweight.rules.epoch import answers_per_round, credit_report, credited_receipt
from commonweight.rules.placement import Move
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import report_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import (
    AnswerLine,
    AnswerPart,
    CreditedReport,
    EquivocationLine,
    SealedRound,
    to_hex,
)
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto
from coordinator.answer_ledger import RecordedPart, Reported
from coordinator.draws import Draw, draw
from coordinator.ledger import Ledger
from coordinator.members import Place, Submission, Tips

Numbers = Mapping[tuple[int, str], int]
"""By stage and node, for all that are credited in a round: its number among the stage's."""


@dataclass(frozen=True)
class Recorder:
    """Writes for one model."""

    spec: ModelSpec
    place: Place
    ledger: Ledger
    tips: Tips

    def store(
        self, effects: Iterable[round_events.Effect], accepted: Mapping[str, Submission], versions: Collection[int]
    ) -> Draw | None:
        """Record what must survive. `accepted`: by node, the reports of the round. `versions`: those whose answers may
        be sealed. Of a sealed round: what it draws.
        """
        drawn: Draw | None = None
        for effect in effects:
            match effect:
                case round_events.Seated(node, stage):
                    self.ledger.record_seat(stage, node)
                    failpoint("ledger.seated")
                case Move(node, _, target):
                    self.ledger.move_seat(target, node)
                    failpoint("ledger.moved")
                case round_events.Form(generation):
                    self.ledger.record_generation(generation)
                    failpoint("ledger.formed")
                case round_events.Seal(round_, reports, _):
                    failpoint("ledger.sealing")
                    drawn = self._seal(round_, [accepted[node] for node in reports], versions)
                    failpoint("ledger.sealed")
        return drawn

    def store_equivocation(self, later: Submission, accepted: Submission | None) -> bool:
        """Record that a node has signed two results of one unit, if it has, and once; whether it was recorded.

        `later` was refused, though its node holds the stage; `accepted`: what was taken from that node in the round
        that is being trained.
        """
        report, model_id = later.report, self.place.model_id
        tip = self.tips.tip(report.round)
        assert tip is not None, "its signature was checked"
        receipt = self._receipt(later, tip)
        if accepted is not None and accepted.report.round == report.round:
            first = self._receipt(accepted, tip)
            signature = accepted.signature
        elif (credited := self._credited(later)) is not None:
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

    def _receipt(self, submission: Submission, tip: bytes) -> Receipt:
        report = submission.report
        commitments = report.commitments(self.spec.training.microbatches_per_round)
        return report_receipt(self.place.model_id, submission.generation, report.round, report.stage, commitments, tip)

    def _credited(self, submission: Submission) -> CreditedReport | None:
        """What its node is credited with in the same round and stage."""
        report = submission.report
        lines = (
            line
            for sealed in self.ledger.sealed_rounds(report.round, report.round + 1)
            for line in sealed.replicas(report.stage)
        )
        return next((line for line in lines if line.node == submission.node), None)

    def _seal(self, round_: int, submissions: Iterable[Submission], versions: Collection[int]) -> Draw:
        tip = self.tips.tip(round_)
        assert tip is not None, "the reports are signed over it"
        # Who has only shadowed the round isn't paid for it.
        worked = [submission for submission in submissions if submission.report.hops]
        worked.sort(key=lambda submission: (submission.report.stage, submission.node))
        replicas: dict[int, list[Submission]] = {}
        for submission in worked:
            replicas.setdefault(submission.report.stage, []).append(submission)
        numbers = {
            (stage, each.node): number for stage, of_stage in replicas.items() for number, each in enumerate(of_stage)
        }
        complete = self._complete_answers(numbers, versions)
        sealed = SealedRound(
            round=round_,
            beacon=to_hex(self.tips.value(round_)),
            reports=tuple(self._credit(submission) for submission in worked),
            answers=tuple(line for line, _ in complete),
        )
        drawn = draw(self.spec, sealed, tip, self.tips.seed(round_))
        unaudited = {
            (stage, replica): replicas[stage][replica].message.SerializeToString() for stage, replica in drawn.replicas
        }
        units = [(audit.answer, audit.stage) for audit in drawn.audits if audit.kind is Kind.ANSWER]
        unaudited_parts = {(n, stage): complete[n][1][stage].message for n, stage in units}
        self.ledger.record_round(sealed, unaudited, unaudited_parts)
        for line in sealed.answers:
            emit("answer.sealed", round=round_, session=line.session[2:], version=line.version, fed=line.fed)
        return drawn

    def _complete_answers(
        self, replicas: Numbers, versions: Collection[int]
    ) -> list[tuple[AnswerLine, tuple[RecordedPart, ...]]]:
        """What can be sealed with a round, in order, with the whole parts. What never can is dropped. Answers of others
        than the round's `replicas` wait.
        """
        for reported, stages in self.ledger.drop_versions(versions):
            missing = sorted(set(range(self.spec.stages)) - stages)
            late = "it was reported too late, others were first, or whoever said a part has worked in no round since"
            why = f"stages {missing} haven't said their parts" if missing else late
            _tell_dropped(reported, f"its version isn't kept any more: {why}")
        found: list[tuple[AnswerLine, tuple[RecordedPart, ...]]] = []
        faults: list[tuple[Reported, str]] = []
        limit = answers_per_round(self.spec)
        for reported, parts in self.ledger.complete_answers(self.spec.stages, replicas, limit):
            line = _line_or_fault(reported, parts, replicas)
            if isinstance(line, AnswerLine):
                found.append((line, parts))
            else:
                faults.append((reported, line))
        if faults:
            self.ledger.drop_answers([reported.session for reported, _ in faults])
        for reported, why in faults:
            _tell_dropped(reported, why)
        return found

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


def _line_or_fault(reported: Reported, parts: Sequence[RecordedPart], replicas: Numbers) -> AnswerLine | str:
    """The line of a reported answer of which all stages have said their parts, or why it can't be sealed. Whatever the
    ledger has of it, the round goes on.
    """
    try:
        answers = [answer_from_proto(pb.AnswerPart.FromString(part.message)) for part in parts]
        return _fault(reported, answers) or _line(reported, parts, answers, replicas)
    except (ValueError, DecodeError) as error:
        return f"what the ledger has of it is no answer: {error}"[:500]


def _fault(reported: Reported, answers: Sequence[Answer]) -> str | None:
    if why := find_disagreement(answers):
        return why
    if (version := answers[0].version) != reported.version:
        return f"the gateway reports version {reported.version}, the stages {version}"
    if (prompt := answers[0].prompt_tokens) != reported.prompt_tokens:
        return f"the gateway reports a prompt of {reported.prompt_tokens} tokens, the stages one of {prompt}"
    if (delivered := reported.prompt_tokens + reported.completion_tokens) > answers[0].fed + 1:
        return f"the gateway reports {delivered} tokens; {answers[0].fed} were fed to the stages"
    return None


def _line(
    reported: Reported, parts: Sequence[RecordedPart], answers: Sequence[Answer], replicas: Numbers
) -> AnswerLine:
    return AnswerLine(
        session=to_hex(reported.session),
        version=reported.version,
        fed=answers[0].fed,
        prompt_tokens=reported.prompt_tokens,
        completion_tokens=reported.completion_tokens,
        gateway=reported.gateway,
        signature=to_hex(reported.signature),
        parts=tuple(
            AnswerPart(
                replica=replicas[part.stage, part.node], trace=to_hex(answer.trace), signature=to_hex(part.signature)
            )
            for part, answer in zip(parts, answers, strict=True)
        ),
    )


def _tell_dropped(reported: Reported, why: str) -> None:
    emit(
        "answer.dropped",
        session=reported.session.hex(),
        request_id=reported.request_id.hex(),
        version=reported.version,
        why=why,
    )
