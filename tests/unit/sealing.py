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
from commonweight.rules.load import pack_load
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Report
from commonweight.rules.statement import to_hex
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import audit_to_proto
from commonweight.wire.tls import make_certificate
from node.answers import OpenTrace, answers_folder, write_trace
from node.draws import Draws
from node.receipts import Signed
from tests.unit.tiny import tiny_spec
from tools.build_vectors import honest_reports, mark

STAGES, STAGE, REPLICA = 5, 2, 1
RATES: dict[str, Any] = {"round_rate": "0.5", "microbatch_rate": "0.5", "data_rate": "0.5", "answer_rate": "0.5"}
SPEC = tiny_spec(stages=STAGES, n_layers=5, **RATES)
PER_EPOCH, MICROBATCHES = SPEC.economics.rounds_per_epoch, SPEC.training.microbatches_per_round
LOADS = [[(0, 1, 2)], [(0, 1, 2)], [(1,), (0, 2)], [(0,), (1, 2)], [(0, 1, 2)]]
"""Each round is divided like this; who is tested is one of two replicas of its stage."""
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


def reports(round_: int) -> list[list[Report]]:
    """By stage, then by replica."""
    rest = iter(honest_reports(STAGES, MICROBATCHES, round_, LOADS))
    return [[next(rest) for _ in of_stage] for of_stage in LOADS]


def output_of(round_: int, stage: int, replica: int) -> bytes:
    """Of this replica's receipt."""
    return reports(round_)[stage][replica].commitments(MICROBATCHES).output(tip_of(round_))


def commitments(round_: int) -> list[list[bytes]]:
    return [
        [
            blinded(output_of(round_, stage, replica), salt_of(round_, stage, replica))
            for replica in range(len(of_stage))
        ]
        for stage, of_stage in enumerate(LOADS)
    ]


def stages(round_: int) -> list[pb.SealedStage]:
    """As they are told."""
    return [
        pb.SealedStage(commitments=told, loads=[pack_load(load, MICROBATCHES) for load in loads])
        for told, loads in zip(commitments(round_), LOADS, strict=True)
    ]


def salt_of(round_: int, stage: int = STAGE, replica: int = REPLICA) -> bytes:
    return seal_salt(SEEDS[round_ // PER_EPOCH], round_, stage, replica)


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
            session=own.session,
            round=own.version,
            prompt_tokens=own.prompt_tokens,
            fed=own.fed,
            traces=traces,
            replicas=[REPLICA if stage == STAGE else 0 for stage in range(STAGES)],
        )

    return [one(number) for number in range(count)]


def signed(round_: int) -> Signed:
    """What the tested replica has signed."""
    return Signed(
        generation=1, round=round_, stage=STAGE, output=to_hex(output_of(round_, STAGE, REPLICA)), is_loaded=True
    )


def sealed(round_: int, retained: Iterable[int] | None = None, **changes: Any) -> pb.RoundSealed:
    """As an honest coordinator says it to the holder of STAGE, without answers; the round is retained unless it is said
    which are.
    """
    fields: dict[str, Any] = {
        "round": round_,
        "beacon": CHAINS[round_ // PER_EPOCH][round_ % PER_EPOCH + 1],
        "stages": stages(round_),
        "salt": salt_of(round_),
        "replica": REPLICA,
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
    beacon = round_beacon(message.beacon, round_root([stage.commitments for stage in message.stages]))
    replicas = [each.replicas for each in answers]
    return draw_audits(SPEC, round_, beacon, LOADS, replicas, answers_root(leaves))


def undrawn(round_: int) -> Audit:
    """A unit of the tested replica that the beacon doesn't draw."""
    singles = [Audit(round_, STAGE, Kind.MICROBATCH, number, REPLICA) for number in LOADS[STAGE][REPLICA]]
    whole = Audit(round_, STAGE, Kind.ROUND, None, REPLICA)
    return next(audit for audit in (whole, *singles) if audit not in drawn(round_))


def find(stage: int, *kinds: Kind, replica: int | None = None) -> Audit:
    """The first drawn audit of this stage and one of these kinds; without kinds, of any. Of STAGE it is the tested
    replica's, unless it is said whose.
    """
    wanted = (REPLICA if stage == STAGE else 0) if replica is None else replica
    found = (each for round_ in range(PER_EPOCH) for each in drawn(round_) if each.stage == stage)
    return next(each for each in found if each.replica == wanted and (not kinds or each.kind in kinds))


def grant(audit: Audit, auditor: bytes = AUDITOR.der) -> pb.AuditGrant:
    return pb.AuditGrant(unit=audit_to_proto(audit), auditor=auditor)


def find_answer(stage: int, *, is_drawn: bool = True) -> Audit:
    """Of a stage's parts of round 0's answers the first that is drawn, or isn't."""
    replica = REPLICA if stage == STAGE else 0
    audits = (Audit(0, stage, Kind.ANSWER, number, replica) for number in range(len(answers(0))))
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
