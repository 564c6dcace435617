"""Rounds as a coordinator seals them, for who has to believe it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eth_hash.auto import keccak

from commonweight.identity import NodeIdentity
from commonweight.rules.audits import Audit, Kind, draw_audits
from commonweight.rules.beacon import hash_chain, round_beacon, round_root
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.rules.report import report_receipt
from commonweight.rules.statement import to_hex
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import make_certificate
from node.draws import Draws
from node.receipts import Signed
from tests.unit.tiny import tiny_spec
from tools.build_vectors import honest_reports

STAGES, STAGE = 5, 2
SPEC = tiny_spec(stages=STAGES, n_layers=5, round_rate="0.5", microbatch_rate="0.5", data_rate="0.5")
PER_EPOCH, MICROBATCHES = SPEC.economics.rounds_per_epoch, SPEC.training.microbatches_per_round
CHAINS = [hash_chain(keccak(bytes([epoch])), PER_EPOCH) for epoch in range(3)]
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


def outputs(round_: int) -> list[bytes]:
    reports = honest_reports(STAGES, MICROBATCHES, round_)
    return [report_receipt(MODEL_ID, 1, report, tip_of(round_)).output for report in reports]


def signed(round_: int) -> Signed:
    """What the holder of STAGE has signed."""
    report = honest_reports(STAGES, MICROBATCHES, round_)[STAGE]
    digest = report_receipt(MODEL_ID, 1, report, tip_of(round_)).digest(DOMAIN)
    return Signed(generation=1, round=round_, digest=to_hex(digest))


def sealed(round_: int, retained: Iterable[int] | None = None, **changes: Any) -> pb.RoundSealed:
    """As an honest coordinator says it; the round is retained unless it is said which are."""
    fields = {
        "round": round_,
        "beacon": CHAINS[round_ // PER_EPOCH][round_ % PER_EPOCH + 1],
        "outputs": outputs(round_),
        "retained": [round_] if retained is None else list(retained),
    }
    return pb.RoundSealed(**(fields | changes))


def drawn(round_: int) -> tuple[Audit, ...]:
    message = sealed(round_)
    return draw_audits(SPEC, round_, round_beacon(message.beacon, round_root(message.outputs)))


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


def draws_at(folder: Path, *rounds: int) -> Draws:
    """Of the holder of STAGE, for whom these rounds were planned, signed, sealed and retained."""
    draws = Draws.open(folder, ASSIGNMENT)
    for round_ in rounds:
        draws.plan(round_, tip_of(round_))
        draws.seal(sealed(round_, rounds), signed(round_))
    return draws
