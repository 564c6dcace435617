"""What a proposal to slash may name as its evidence, of whichever kind: read, checked, and told to people."""

from commonweight.chain.records import SlashRecord
from commonweight.cli.place import Place
from commonweight.cli.spec_file import registered_spec
from commonweight.errors import CommonweightError
from commonweight.rules.canonical import parse_json
from commonweight.rules.receipt import Domain
from commonweight.rules.recording import OperatorRecord
from commonweight.rules.statement import to_hex
from commonweight.watch.disputes import MAX_DISPUTE_BYTES, DisputeEvidence
from commonweight.watch.fraud import MAX_EVIDENCE_BYTES, FalseAnswerEvidence, FraudEvidence, parse_document
from commonweight.watch.known_bad import KnownBadEvidence

MAX_BYTES = MAX_DISPUTE_BYTES
"""No kind is longer."""

Evidence = FraudEvidence | FalseAnswerEvidence | KnownBadEvidence | DisputeEvidence
KINDS: dict[str, tuple[type[Evidence], int]] = {
    "commonweight.fraud/3": (FraudEvidence, MAX_EVIDENCE_BYTES),
    "commonweight.false-answer/2": (FalseAnswerEvidence, MAX_EVIDENCE_BYTES),
    "commonweight.known-bad/3": (KnownBadEvidence, MAX_EVIDENCE_BYTES),
    "commonweight.dispute/2": (DisputeEvidence, MAX_DISPUTE_BYTES),
}
"""By format: the form, and how many bytes it has at most."""


def parse_any(text: bytes) -> Evidence:
    """Of the kind that it says it is. Raises MalformedMessage."""
    fields = parse_json(text, "The evidence", MAX_BYTES)
    form = fields.get("format") if isinstance(fields, dict) else None
    kind, limit = KINDS.get(str(form), KINDS["commonweight.fraud/3"])
    return parse_document(kind, text, limit)


def contradictions(place: Place, record: SlashRecord, evidence: Evidence) -> list[str]:
    """Why it can't be evidence for this proposal; empty where it can."""
    stage, spec_hash = record.stage, place.model.spec_hash
    if isinstance(evidence, FraudEvidence | FalseAnswerEvidence):
        return evidence.contradictions(stage, spec_hash)
    domain = Domain(place.chain.chain_id, place.model.settlement)
    found = evidence.contradictions(stage, spec_hash, place.model.model_id, domain)
    if (owner := place.providers.owner_of(evidence.auditor)) != record.owner:
        found.append(f"{owner} answers for the auditor {evidence.auditor}; the proposal is about {record.owner}")
    return found


def meaning(evidence: Evidence) -> str:
    """Of what contradicts neither itself nor the proposal."""
    match evidence:
        case FraudEvidence():
            return (
                "The hash shows that the reporter has committed to this, not that it is true. It is if an epoch's "
                "statement has this report, and a replay of the unit finds this difference."
            )
        case FalseAnswerEvidence():
            return (
                "The hash shows that the reporter has committed to this, not that it is true. It is if an epoch's "
                "statement has this trace in the stage's part of the answer, and a replay of it finds this difference."
            )
        case KnownBadEvidence():
            return (
                "The auditor has signed that what it was shown is right, and it isn't what is named as signed. It "
                "hasn't replayed the unit, then, if an epoch's statement has the report that was signed."
            )
        case DisputeEvidence():
            return (
                "The auditor has signed these hashes of its replay. They are false if whoever runs the operator again, "
                "in this numerics class, finds the referee's outputs."
            )


def evidence_fields(place: Place, evidence: Evidence) -> dict[str, object]:
    """For people. Whoever wrote it chose the texts: they are quoted."""
    match evidence:
        case FraudEvidence():
            return _fraud_fields(evidence)
        case FalseAnswerEvidence():
            return _answer_fields(evidence)
        case KnownBadEvidence():
            return _known_bad_fields(evidence)
        case DisputeEvidence():
            return _dispute_fields(place, evidence)


def _fraud_fields(evidence: FraudEvidence) -> dict[str, object]:
    differs = evidence.difference
    where = "" if differs.microbatch is None else f" of microbatch {differs.microbatch}"
    measured = "not measured" if differs.error is None else differs.error
    allowed = "every bit must be the same" if float(differs.tolerance) == 0 else f"allowed is {differs.tolerance}"
    return {
        "audit": str(evidence.unit.audit),
        "differs": f"{differs.what!r:.80}{where}",
        "signed": f"{differs.signed!r:.80}",
        "found": f"{differs.found!r:.80}" if differs.found else "nothing",
        "error": f"{measured}; {allowed}",
        "provider's numerics": f"{evidence.numerics.provider!r:.220}",
        "auditor's numerics": f"{evidence.numerics.auditor!r:.220}",
        "note": f"{differs.note!r:.400}" if differs.note else "none",
    }


def _answer_fields(evidence: FalseAnswerEvidence) -> dict[str, object]:
    part, differs = evidence.part, evidence.difference
    where = "" if differs.position is None else f" at position {differs.position}"
    measured = "not measured" if differs.error is None else f"{differs.error}; allowed is {differs.tolerance}"
    return {
        "audit": str(evidence.unit.audit),
        "session": part.session,
        "version": f"{part.version}, state root {evidence.version_root}",
        "tokens": f"{part.fed}, {part.prompt_tokens} of them the prompt",
        "trace signed": to_hex(part.answer.trace),
        "differs": f"{differs.what}{where}",
        "error": measured,
        "note": f"{differs.note!r:.400}",
    }


def _known_bad_fields(evidence: KnownBadEvidence) -> dict[str, object]:
    microbatches = ", ".join(str(hop.microbatch) for hop in evidence.shown.hops[:8])
    return {
        "audit": str(evidence.unit.audit),
        "auditor": evidence.auditor,
        "passed": "another report than the one that is named as signed",
        "claim signed": to_hex(evidence.signed.claim),
        "claim shown": to_hex(evidence.shown.claim),
        "microbatches": microbatches or "none",
    }


def _dispute_fields(place: Place, evidence: DisputeEvidence) -> dict[str, object]:
    record, audit = evidence.record, evidence.unit.audit
    fields: dict[str, object] = {
        "audit": str(audit),
        "auditor": evidence.auditor,
        "numerics": f"{evidence.numerics!r:.220}",
        "operator": f"{evidence.index}, the first whose record isn't the referee's",
        "auditor's record": f"0x{evidence.signed.hex()}" if evidence.signed else "none: its replay ended before",
    }
    if record is None:
        return fields | {"referee's record": "none: its replay ended before"}
    where = "the step" if record.microbatch is None else f"the {record.phase} pass of microbatch {record.microbatch}"
    tensors = "not shown: they are too large" if evidence.tensors is None else "in the evidence"
    return fields | {
        "referee's record": to_hex(record.hash),
        "computes": f"{record.operator} of {record.layer}, in {where}",
        "outputs": list(record.outputs[:8]) or "none",
        "tensors": tensors,
        "run again here": "no" if evidence.tensors is None else _run_again(place, evidence, record),
    }


def _run_again(place: Place, evidence: DisputeEvidence, record: OperatorRecord) -> str:
    """Whose record this machine finds on one thread, or why it can't say. `record` is the evidence's."""
    import torch  # takes seconds, and only this needs it

    from commonweight.model.numerics import numerics_class
    from commonweight.model.operators import rerun_operator

    torch.set_num_threads(1)
    try:
        numerics = numerics_class("cpu", registered_spec(place, None))
        if numerics != evidence.numerics:
            return f"no: this machine computes in another class, {numerics!r}"
        found = rerun_operator(record, evidence.tensor_bytes or b"").hash
    except CommonweightError as error:
        return f"no: {error.args[0]}"
    if found == record.hash:
        return "the referee's record is right"
    return "the auditor's record is right" if found == evidence.signed else "neither record is right"
