"""Rounds as a coordinator seals them, for who has to believe it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eth_hash.auto import keccak

from commonweight.identity import NodeIdentity
from commonweight.rules.answer import SESSION_BYTES, answer_leaf
from commonweight.rules.audits import Audit, Kind, draw_audits
from commonweight.rules.beacon import answers_root, blinded, hash_chain, round_beacon, round_root, seal_salt
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.rules.report import report_receipt
from commonweight.rules.statement import to_hex
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import make_certificate
from node.answers import OpenTrace, answers_folder, write_trace
from node.draws import Draws
from node.receipts import Signed
from tests.unit.tiny import tiny_spec
from tools.build_vectors import honest_reports, mark

STAGES, STAGE = 5, 2
RATES: dict[str, Any] = {"round_rate": "0.5", "microbatch_rate": "0.5", "data_rate": "0.5", "answer_rate": "0.5"}
SPEC = tiny_spec(stages=STAGES, n_layers=5, **RATES)
PER_EPOCH, MICROBATCHES = SPEC.economics.rounds_per_epoch, SPEC.training.microbatches_per_round
SEEDS = [keccak(bytes([epoch])) for epoch in range(3)]
CHAINS = [hash_chain(seed, PER_EPOCH) for seed in SEEDS]
MODEL_ID = b"\xaa" * 32
DOMAIN = Domain(31337, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
ASSIGNMENT = pb.Assignment(
    spec=canonical_json(SPEC.model_dump()),
    stage=STAGE,
    model_id=MODEL_ID,
    chain_id=DOMAIN.chain_id,
    settlement=DOMAIN.settlement,
)
AUDITOR = make_certificate(NodeIdentity(b"\x21" * 32))
STRANGER = make_certificate(NodeIdentity(b"\x22" * 32))


def tip_of(round_: int) -> bytes:
    return CHAINS[round_ // PER_EPOCH][0]


def commitments(round_: int) -> list[bytes]:
    reports = honest_reports(STAGES, MICROBATCHES, round_)
    outputs = (report_receipt(MODEL_ID, 1, report, tip_of(round_)).output for report in reports)
    return [blinded(output, salt_of(round_, stage)) for stage, output in enumerate(outputs)]


def salt_of(round_: int, stage: int = STAGE) -> bytes:
    return seal_salt(SEEDS[round_ // PER_EPOCH], round_, stage)


def a_trace(round_: int, number: int) -> OpenTrace:
    """What the holder of STAGE keeps of an answer that is sealed with the round, by the version ready to train it."""
    session, nonce = (mark(what, round_, number)[:SESSION_BYTES] for what in ("session", "nonce"))
    trace = OpenTrace(round_, session, nonce, prompt_tokens=3, temperature=0.5, seed=number)
    trace.take(list(range(7 + number)), b"taken")
    trace.passed += b"passed"
    return trace


def answers(round_: int, count: int = 7) -> list[pb.SealedAnswer]:
    """So many, all by the version that is ready to train `round_`."""

    def one(number: int) -> pb.SealedAnswer:
        own = a_trace(round_, number)
        traces = [mark("trace", round_, number, stage) for stage in range(STAGES)]
        traces[STAGE] = own.answer().trace
        return pb.SealedAnswer(
            session=own.session, round=own.version, prompt_tokens=own.prompt_tokens, fed=own.fed, traces=traces
        )

    return [one(number) for number in range(count)]


def signed(round_: int) -> Signed:
    """What the holder of STAGE has signed."""
    report = honest_reports(STAGES, MICROBATCHES, round_)[STAGE]
    output = report_receipt(MODEL_ID, 1, report, tip_of(round_)).output
    return Signed(generation=1, round=round_, output=to_hex(output))


def sealed(round_: int, retained: Iterable[int] | None = None, **changes: Any) -> pb.RoundSealed:
    """As an honest coordinator says it to the holder of STAGE, without answers; the round is retained unless it is said
    which are.
    """
    fields: dict[str, Any] = {
        "round": round_,
        "beacon": CHAINS[round_ // PER_EPOCH][round_ % PER_EPOCH + 1],
        "commitments": commitments(round_),
        "salt": salt_of(round_),
        "retained": [round_] if retained is None else list(retained),
    }
    return pb.RoundSealed(**(fields | changes))


def drawn(round_: int, answers: Sequence[pb.SealedAnswer] = ()) -> tuple[Audit, ...]:
    """What is drawn in a round that is sealed with these answers."""
    message = sealed(round_, answers=answers)
    leaves = [
        answer_leaf(number, each.round, each.session, each.prompt_tokens, each.fed, each.traces)
        for number, each in enumerate(answers)
    ]
    beacon = round_beacon(message.beacon, round_root(message.commitments))
    return draw_audits(SPEC, round_, beacon, len(answers), answers_root(leaves))


def undrawn(round_: int, stage: int = STAGE) -> Audit:
    """A unit of this stage that the beacon doesn't draw."""
    singles = [Audit(round_, stage, Kind.MICROBATCH, number) for number in range(MICROBATCHES)]
    return next(audit for audit in (Audit(round_, stage, Kind.ROUND), *singles) if audit not in drawn(round_))


def find(stage: int, *kinds: Kind) -> Audit:
    """The first drawn audit of this stage and one of these kinds; without kinds, of any."""
    rounds = range(PER_EPOCH)
    found = (each for round_ in rounds for each in drawn(round_) if each.stage == stage)
    return next(each for each in found if not kinds or each.kind in kinds)


def grant(audit: Audit, auditor: bytes = AUDITOR.der) -> pb.AuditGrant:
    unit = pb.AuditUnit(round=audit.round, stage=audit.stage, kind=audit.kind.value, microbatch=audit.microbatch)
    return pb.AuditGrant(unit=unit, auditor=auditor)


def find_answer(stage: int, *, is_drawn: bool = True) -> Audit:
    """Of a stage's parts of round 0's answers the first that is drawn, or isn't."""
    audits = (Audit(0, stage, Kind.ANSWER, number) for number in range(len(answers(0))))
    return next(each for each in audits if (each in drawn(0, answers(0))) is is_drawn)


def draws_at(directory: Path, *rounds: int, answered: Sequence[int] = ()) -> Draws:
    """Of the holder of STAGE, for whom these rounds were planned, signed, sealed and retained. Those that are
    `answered` were sealed with `answers`, of which it has traces.
    """
    draws = Draws.open(directory, ASSIGNMENT)
    for round_ in rounds:
        sealed_with = answers(round_) if round_ in answered else []
        for number in range(len(sealed_with)):
            write_trace(answers_folder(directory, STAGE), a_trace(round_, number))
        draws.plan(round_, tip_of(round_))
        draws.seal(sealed(round_, rounds, answers=sealed_with), signed(round_))
    return draws
