"""Whom the coordinator orders to audit, and what it makes of what they say."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from commonweight.errors import MalformedMessage, Refused, UnplannedMessage
from commonweight.identity import recover_address
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import drawn_auditors, make_statement, signed_receipt
from commonweight.rules.panel import known_bad_report, opinion_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine, AuditorSeat, Carried, Conviction, to_hex
from commonweight.watch.disputes import MAX_DISPUTE_BYTES, DisputeEvidence
from commonweight.watch.fraud import parse_document
from commonweight.watch.known_bad import KnownBadEvidence, known_bad_evidence
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import referee_pb2
from coordinator import auditing as auditing_module
from coordinator import auditors as auditors_module
from coordinator import holders
from tests.unit.auditing_world import (
    ANSWERS,
    DEADLINE_S,
    KEY,
    MICROBATCHES,
    NODES,
    PLACE,
    ROUNDS,
    STAGES,
    Auditor,
    Bench,
    Told,
    answer_of,
    drawn_in,
    operators,
    proof_against,
    rounds_with,
    saying,
    signed_report,
    unit_of,
)
from tests.unit.tiny import tiny_spec
from tools.build_vectors import beacon_chain, mark

pytestmark = pytest.mark.asyncio

RATES = {"round_rate": "0.2", "microbatch_rate": "0.8", "data_rate": "0.3", "answer_rate": "0.4"}
FEW = {"round_rate": "0.1", "microbatch_rate": "0.15", "data_rate": "0"}
"""So that there are rounds with one audit."""
SPEC = tiny_spec(stages=3, **FEW)
KNOWN_BAD = tiny_spec(stages=3, **FEW, known_bad_rate="1")
LATE_S = 0.05
PER_EPOCH = SPEC.economics.rounds_per_epoch


AUDITED = rounds_with(SPEC)
SINGLE = [number for number in range(ROUNDS) if len(drawn_in(number, SPEC).audits) == 1]
"""Rounds with one audit; known bad ones are drawn from another seed, and change nothing about that."""


@contextmanager
def bench_of(spec: ModelSpec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(holders, "GRACE_S", 0.05)
    bench = Bench(folder, spec)
    yield bench
    bench.ledger.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with bench_of(SPEC, tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture
def wary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Of a model in which the first opinion of every unit is on what is known to be bad."""
    with bench_of(KNOWN_BAD, tmp_path, monkeypatch) as bench:
        yield bench


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    said: Told = []
    for module in ("auditing", "auditors"):
        monkeypatch.setattr(f"coordinator.{module}.emit", lambda name, /, **fields: said.append((name, fields)))
    return said


def fields_of(told: Told, name: str) -> list[dict[str, object]]:
    return [fields for each, fields in told if each == name]


def ranking(bench: Bench, audit: Audit) -> tuple[str | None, ...]:
    drawn = drawn_in(audit.round, SPEC)
    return drawn_auditors(drawn.sealed, audit, drawn.beacon, bench.chain.seats)


def round_whose_ranking(bench: Bench, *wanted: int | None) -> int:
    """One with a single audit, that ranks these auditors (None: the referee) first, in this order."""
    owners = [None if number is None else Auditor(bench, number).owner for number in wanted]
    rankings = ((number, ranking(bench, drawn_in(number, SPEC).audits[0])) for number in SINGLE)
    return next(number for number, found in rankings if list(found[: len(owners)]) == owners)


def asked(auditors: list[Auditor], audit: Audit) -> set[str]:
    return {each.owner for each in auditors if audit in map(unit_of, each.orders)}


async def the_line(bench: Bench, number: int) -> AuditLine:
    """Of the one audit of this round."""
    bench.join()
    bench.seal(number)
    (line,) = await bench.decide()
    return line


async def test_the_first_of_the_ranking_who_is_there_is_asked_and_its_word_stands(bench: Bench) -> None:
    auditors = bench.seated(4)
    auditors[3].leave()
    bench.join()
    bench.seal(*AUDITED)
    lines = await bench.decide()
    owners = {line.opinions[0].owner for line in lines}
    assert owners == {each.owner for each in auditors[:3]} | {None}, "the referee is drawn, too"
    for line in lines:
        due = next(owner for owner in ranking(bench, line.audit) if owner != auditors[3].owner)
        (opinion,) = line.opinions
        assert opinion.owner == opinion.account == due
        assert asked(auditors, line.audit) == ({due} - {None})
        by_key = {each.owner: each.key.address for each in auditors} | {None: KEY.address}
        assert opinion.auditor == by_key[due]
        assert line.verdict == "passed"


async def test_nodes_let_whom_fetch_who_is_asked(bench: Bench) -> None:
    (auditor,) = bench.seated(1)
    bench.join()
    bench.seal(*AUDITED[:8])
    for line in await bench.decide():
        certificate = b"der" if line.opinions[0].owner is None else auditor.member.certificate
        for stage in range(STAGES):
            grants = [g for g in bench.grants(stage) if unit_of(pb.AuditOrder(unit=g.unit)) == line.audit]
            assert [grant.auditor for grant in grants] == [certificate] * (abs(stage - line.stage) <= 1)
    for order in auditor.orders:
        audit = unit_of(order)
        assert order.report.round == audit.round
        due = [stage for stage in (audit.stage, audit.stage - 1, audit.stage + 1) if 0 <= stage < STAGES]
        assert [source.peer_id for source in order.sources] == [f"peer {stage}" for stage in due]


async def test_answers_are_shown_to_the_referee_alone_and_as_they_were_signed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(stages=3, microbatch_rate="0.8", answer_rate="1", known_bad_rate="1")
    with bench_of(spec, tmp_path, monkeypatch) as bench:
        auditors = bench.seated(3)
        bench.join()
        bench.seal(PER_EPOCH, PER_EPOCH + 1)
        lines = await bench.decide()
        of_answers = [line for line in lines if line.kind == "answer"]
        assert len(of_answers) == 2 * ANSWERS * STAGES
        for line in of_answers:
            (opinion,) = line.opinions
            assert (opinion.owner, opinion.auditor, opinion.claim) == (
                None,
                KEY.address,
                to_hex(answer_of(line.audit).trace),
            )
        asked = [unit_of(order) for order in bench.asked if order.HasField("answer")]
        assert asked == [line.audit for line in of_answers]
        orders = [order for each in auditors for order in each.orders]
        assert orders, "they are asked about training"
        assert not any(order.HasField("answer") or order.unit.kind == "answer" for order in orders)


async def test_who_is_of_the_provider_s_owner_isn_t_asked(bench: Bench) -> None:
    """The provider's node answers for itself here: its owner is its address."""
    (auditor,) = bench.seated(1)
    bench.chain.seats |= {AuditorSeat(stage=stage, owner=NODES[stage]) for stage in range(STAGES)}
    bench.join()
    bench.seal(*AUDITED[:3])
    owners = {opinion.owner for line in await bench.decide() for opinion in line.opinions}
    assert owners <= {auditor.owner, None}


@pytest.mark.parametrize("spoiled", ["signature", "another's", "verdict", "evidence", "no evidence", "seconds"])
async def test_who_says_what_can_t_be_is_hung_up_on_and_passed_over(bench: Bench, told: Told, spoiled: str) -> None:
    liar, honest = bench.seated(2)
    number = round_whose_ranking(bench, 0, 1)

    def spoil(found: pb.AuditOpinion) -> None:
        match spoiled:
            case "signature":
                found.signature = bytes(65)
            case "another's":
                found.signature = honest.opinion(liar.orders[-1], "passed").signature
            case "verdict":
                found.verdict = "fine"
            case "evidence":
                found.evidence = b"{}"
            case "no evidence":
                found.verdict = "failed"
            case "seconds":
                found.seconds = float("nan")

    liar.spoil = spoil
    line = await the_line(bench, number)
    assert [opinion.owner for opinion in line.opinions] == [honest.owner]
    (error,) = liar.refusals
    assert isinstance(error, MalformedMessage | Refused)
    assert fields_of(told, "auditor.lost") == [{"node": liar.key.address}]
    assert bench.auditors.members == (honest.member,)
    liar.spoil = lambda _: None
    liar.join()
    assert bench.auditors.of_owner(liar.owner, number, line.stage, ()) is None, "not about this epoch"
    assert bench.auditors.of_owner(liar.owner, number + PER_EPOCH, line.stage, ()) is liar.member


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("unit", "it is about the"),
        ("commitments", "its gradient_hash isn't that of the report"),
        ("form", "isn't of the form commonweight.fraud/3"),
        ("size", "bytes; at most 65536 are read"),
    ],
)
async def test_evidence_that_is_about_something_else_is_none(bench: Bench, wrong: str, why: str) -> None:
    liar, honest = bench.seated(2)
    number = round_whose_ranking(bench, 0, 1)

    def opinion(order: pb.AuditOrder, verdict: str) -> pb.AuditOpinion:
        other = pb.AuditOrder()
        other.CopyFrom(order)
        if wrong == "unit":
            other.unit.microbatch = (other.unit.microbatch + 1) % MICROBATCHES
        if wrong == "commitments":
            other.report.gradient_hash = mark("another")
        text = proof_against(other, SPEC)
        evidence = {"form": b'{"format":"commonweight.fraud/3"}', "size": text + b" " * (1 << 17)}.get(wrong, text)
        return pb.AuditOpinion(unit=order.unit, verdict="failed", evidence=evidence)

    liar.opinion = opinion  # type: ignore[method-assign]
    line = await the_line(bench, number)
    assert [opinion.owner for opinion in line.opinions] == [honest.owner]
    assert why in liar.refusals[0].args[0]
    assert list(bench.evidence.folder.glob("*")) == []


async def test_who_is_late_isn_t_asked_again_in_the_epoch(
    bench: Bench, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditors_module, "audit_limit_s", lambda spec: LATE_S)
    late, honest = bench.seated(2)
    number = round_whose_ranking(bench, 0, 1)
    late.says = lambda order: None
    line = await the_line(bench, number)
    assert [opinion.owner for opinion in line.opinions] == [honest.owner]
    assert len(late.orders) == 1
    assert fields_of(told, "auditor.late") == [
        {"node": late.key.address, "round": number, "stage": line.stage, "limit_s": 0.1}
    ]
    assert bench.auditors.of_owner(late.owner, number, line.stage, ()) is None
    assert bench.auditors.of_owner(late.owner, number + PER_EPOCH, line.stage, ()) is late.member
    bench.auditors.answer(late.member, late.opinion(late.orders[0], "passed"))  # it comes too late, and harms nothing
    assert late.refusals == []


async def test_who_goes_away_during_its_audit_is_passed_over_at_once(bench: Bench) -> None:
    gone, honest = bench.seated(2)
    number = round_whose_ranking(bench, 0, 1)

    def says(order: pb.AuditOrder) -> None:
        bench.later(gone.leave)

    gone.says = says
    line = await the_line(bench, number)
    assert [opinion.owner for opinion in line.opinions] == [honest.owner]


async def test_fraud_that_two_have_seen_counts_when_the_referee_has(bench: Bench, told: Told) -> None:
    auditors = bench.seated(3)
    number = round_whose_ranking(bench, 2, 0)
    for each in auditors:
        each.says = lambda order: "failed"

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        return pb.AuditOpinion(unit=order.unit, verdict="failed", evidence=proof_against(order, SPEC), seconds=0.5)

    bench.answer = answer
    line = await the_line(bench, number)
    assert [opinion.owner for opinion in line.opinions] == [auditors[2].owner, auditors[0].owner, None]
    assert (line.verdict, auditors[1].orders) == ("failed", [])
    assert bench.evidence.get(bytes.fromhex(line.evidence[2:])) == proof_against(bench.asked[0], SPEC)
    assert bench.frauds == 1
    (convicted,) = fields_of(told, "provider.convicted")
    assert convicted["node"] == NODES[line.stage]
    (decided,) = fields_of(told, "audit.decided")
    seated = [(auditors[2].key.address, auditors[2].owner), (auditors[0].key.address, auditors[0].owner)]
    assert decided["auditors"] == [
        {"auditor": auditor, "owner": owner, "verdict": "failed", "known_bad": False}
        for auditor, owner in (*seated, (line.opinions[-1].auditor, None))
    ]
    assert decided["seconds"] > 0.5, "of all three"
    assert bench.ledger.convicted() == {Conviction(stage=line.stage, node=NODES[line.stage])}


async def test_two_in_league_can_t_convict_the_honest(bench: Bench) -> None:
    auditors = bench.seated(3)
    number = round_whose_ranking(bench, 2, 0)
    for each in auditors:
        each.says = lambda order: "failed"
    line = await the_line(bench, number)
    assert [opinion.verdict for opinion in line.opinions] == ["failed", "failed", "passed"]
    assert (line.verdict, bench.frauds) == ("passed", 0)


async def test_two_who_disagree_are_decided_by_the_referee(bench: Bench) -> None:
    auditors = bench.seated(3)
    number = round_whose_ranking(bench, 2, 0)
    auditors[2].says = lambda order: "failed"
    line = await the_line(bench, number)
    assert [(opinion.owner, opinion.verdict) for opinion in line.opinions] == [
        (auditors[2].owner, "failed"),
        (auditors[0].owner, "passed"),
        (None, "passed"),
    ]
    assert (line.verdict, bench.frauds) == ("passed", 0)
    assert auditors[1].orders == []
    assert line.opinions[0].disproof == to_hex(NO_EVIDENCE), "it doesn't say by which operators"
    assert len(auditors[2].asked_to_record) == 1


async def test_without_a_second_auditor_the_referee_decides(bench: Bench) -> None:
    (auditor,) = bench.seated(1)
    number = round_whose_ranking(bench, 0, None)
    auditor.says = lambda order: "withheld"
    line = await the_line(bench, number)
    assert [(opinion.owner, opinion.verdict) for opinion in line.opinions] == [
        (auditor.owner, "withheld"),
        (None, "passed"),
    ]


async def test_a_provider_who_is_gone_has_withheld_whoever_was_to_audit(bench: Bench) -> None:
    (auditor,) = bench.seated(1)
    bench.seal(round_whose_ranking(bench, 0))
    (line,) = await bench.decide()
    assert [(opinion.owner, opinion.verdict) for opinion in line.opinions] == [(None, "withheld")]
    assert auditor.orders == []


async def test_a_provider_who_goes_away_meanwhile_is_audited_again_by_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "GRACE_S", DEADLINE_S)
    (auditor,) = bench.seated(1)
    number = round_whose_ranking(bench, 0)
    bounced: list[int] = []

    def says(order: pb.AuditOrder) -> str:
        if bounced:
            return "passed"
        bounced.append(order.unit.stage)
        bench.leave(order.unit.stage)
        bench.join(order.unit.stage)
        return "withheld"

    auditor.says = says
    line = await the_line(bench, number)
    assert [(opinion.owner, opinion.verdict) for opinion in line.opinions] == [(auditor.owner, "passed")]
    assert len(auditor.orders) == 2


# Known bad


async def test_who_replays_what_is_known_to_be_bad_says_so_and_the_next_decides(wary: Bench) -> None:
    auditors = wary.seated(3)
    wary.join()
    wary.seal(*AUDITED)
    shown = 0
    for line in await wary.decide():
        assert line.verdict == "passed"
        if line.opinions[0].owner is None:
            assert len(line.opinions) == 1
            continue
        first, second = line.opinions
        assert (first.verdict, second.verdict) == ("failed", "passed")
        assert line.is_known_bad(first)
        assert second.claim == to_hex(signed_report(line.round, line.stage).commitments(MICROBATCHES).claim)
        assert wary.evidence.get(bytes.fromhex(first.evidence[2:])) is not None
        assert first.disproof == to_hex(NO_EVIDENCE)
        shown += 1
    assert shown > 6
    assert wary.frauds == 0
    assert sum(len(each.orders) for each in auditors) > shown


async def test_who_passes_what_is_known_to_be_bad_is_disproven(wary: Bench, told: Told) -> None:
    lazy, honest = wary.seated(2)
    lazy.says = lambda order: "passed"
    number = round_whose_ranking(wary, 0, 1)
    line = await the_line(wary, number)
    first, second = line.opinions
    assert (first.owner, first.verdict, second.owner) == (lazy.owner, "passed", honest.owner)
    text = wary.evidence.get(bytes.fromhex(first.disproof[2:]))
    assert text is not None
    evidence = parse_document(KnownBadEvidence, text)
    where = (line.stage, KNOWN_BAD.spec_hash, PLACE.model_id, PLACE.domain)
    assert evidence.contradictions(*where) == []
    assert (evidence.auditor, evidence.unit.audit) == (lazy.key.address, line.audit)
    claims = [to_hex(side.claim) for side in (evidence.shown, evidence.signed)]
    assert claims == [first.claim, second.claim]
    assert fields_of(told, "auditor.convicted") == [
        {
            "node": lazy.key.address,
            "stage": line.stage,
            "round": number,
            "disproof": first.disproof,
            "why": "known bad",
        }
    ]
    assert wary.frauds == 1
    assert line.verdict == "passed", "of the provider nothing is said by it"
    (fraud,) = wary.ledger.frauds()
    assert (fraud.node, fraud.evidence) == (lazy.key.address, first.disproof)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("auditor", "hasn't passed what was shown"),
        ("signature", "hasn't passed what was shown"),
        ("shown", "aren't in the report that was shown"),
        ("another field", "isn't what was signed with two results exchanged"),
        ("state", "isn't what was signed with two results exchanged"),
        ("signed", "aren't in the report that was signed"),
        ("stage", "the proposal about stage"),
        ("same", "what was shown is what was signed"),
    ],
)
async def test_evidence_of_a_known_bad_audit_that_was_changed_shows_it(wary: Bench, change: str, words: str) -> None:
    lazy, _ = wary.seated(2)
    lazy.says = lambda order: "passed"
    line = await the_line(wary, round_whose_ranking(wary, 0, 1))
    text = wary.evidence.get(bytes.fromhex(line.opinions[0].disproof[2:]))
    evidence = parse_document(KnownBadEvidence, text or b"")
    stage = line.stage
    match change:
        case "auditor":
            evidence = evidence.model_copy(update={"auditor": NODES[0]})
        case "signature":
            evidence = evidence.model_copy(update={"signature": line.opinions[1].signature})
        case "another field":
            hops = tuple(hop.model_copy(update={"gradient_in": to_hex(mark("x"))}) for hop in evidence.signed.hops)
            evidence = evidence.model_copy(update={"shown": evidence.shown.model_copy(update={"hops": hops})})
        case "state":
            other = evidence.shown.commitments.model_copy(update={"state_before": to_hex(mark("x"))})
            evidence = evidence.model_copy(update={"shown": evidence.shown.model_copy(update={"commitments": other})})
        case "shown":
            hops = tuple(hop.model_copy(update={"tokens": to_hex(mark("x"))}) for hop in evidence.shown.hops)
            evidence = evidence.model_copy(update={"shown": evidence.shown.model_copy(update={"hops": hops})})
        case "signed":
            hops = tuple(hop.model_copy(update={"tokens": to_hex(mark("x"))}) for hop in evidence.signed.hops)
            evidence = evidence.model_copy(update={"signed": evidence.signed.model_copy(update={"hops": hops})})
        case "stage":
            stage = (stage + 1) % STAGES
        case "same":
            evidence = evidence.model_copy(update={"signed": evidence.shown})
    assert words in "; ".join(evidence.contradictions(stage, KNOWN_BAD.spec_hash, PLACE.model_id, PLACE.domain))


async def test_who_replayed_one_microbatch_isn_t_disproven_by_what_was_exchanged_beside_it(wary: Bench) -> None:
    auditor, signed = Auditor(wary, 0), signed_report(3, 1)
    shown = known_bad_report(Audit(3, 1, Kind.MICROBATCH, 0), signed, bytes(32), is_last=False)
    (same,) = (number for number in range(MICROBATCHES) if shown.hops[number] == signed.hops[number])
    found, claim = {}, shown.commitments(MICROBATCHES).claim
    for unit in (Audit(3, 1, Kind.MICROBATCH, number) for number in range(MICROBATCHES)):
        said = opinion_receipt(PLACE.model_id, unit, claim, Verdict.PASSED, NO_EVIDENCE)
        text = known_bad_evidence(
            spec=KNOWN_BAD,
            audit=unit,
            signed=signed,
            shown=shown,
            auditor=auditor.key.address,
            signature=to_hex(auditor.key.sign_digest(said.digest(PLACE.domain))),
        )
        evidence = parse_document(KnownBadEvidence, text)
        found[unit.microbatch] = evidence.contradictions(1, KNOWN_BAD.spec_hash, PLACE.model_id, PLACE.domain)
    assert [number for number, why in found.items() if why] == [same]
    assert found[same] == [f"{Audit(3, 1, Kind.MICROBATCH, same)} doesn't look at what was exchanged"]


async def test_who_was_convicted_is_passed_over_in_that_stage(wary: Bench) -> None:
    lazy = wary.seated(2)[0]
    lazy.says = lambda order: "passed"
    wary.join()
    wary.seal(*AUDITED)
    lines = await wary.decide()
    convicted = [line for line in lines if line.opinions[0].is_disproven]
    assert len(convicted) > 1
    assert len({line.stage for line in convicted}) == len(convicted), "once for each stage"
    for first in convicted:
        later = [line for line in lines if line.stage == first.stage and line.audit.order > first.audit.order]
        assert lazy.owner not in {opinion.owner for line in later for opinion in line.opinions}
    again = Bench(wary.folder, KNOWN_BAD)
    assert {each.node for each in again.ledger.convicted()} == {lazy.key.address}
    again.ledger.close()


# Disputes


def overruled(bench: Bench) -> tuple[Auditor, int]:
    """An auditor who says that the work of this round failed, and the referee will not."""
    auditor, other = bench.seated(2)
    auditor.says = lambda order: "failed"
    other.says = lambda order: "undecided"
    auditor.recorded = operators("one", "2", "three")
    return auditor, round_whose_ranking(bench, 0, 1, None)


async def test_the_first_operator_that_differs_disproves_who_was_overruled(bench: Bench, told: Told) -> None:
    auditor, number = overruled(bench)
    line = await the_line(bench, number)
    assert [opinion.verdict for opinion in line.opinions] == ["failed", "undecided", "passed"]
    text = bench.evidence.get(bytes.fromhex(line.opinions[0].disproof[2:]))
    assert text is not None
    evidence = parse_document(DisputeEvidence, text, MAX_DISPUTE_BYTES)
    assert evidence.contradictions(line.stage, SPEC.spec_hash, PLACE.model_id, PLACE.domain) == []
    assert (evidence.auditor, evidence.index) == (auditor.key.address, 1)
    assert evidence.record == bench.recorded[1]
    assert evidence.tensor_bytes == b"safetensors"
    assert evidence.claim == line.opinions[0].claim
    (convicted,) = fields_of(told, "auditor.convicted")
    assert (convicted["node"], convicted["why"]) == (auditor.key.address, "overruled")
    assert bench.frauds == 1
    assert [opinion.disproof for opinion in line.opinions[1:]] == [to_hex(NO_EVIDENCE)] * 2


async def test_who_passed_fraud_is_disproven_likewise(bench: Bench) -> None:
    """It is asked second: the first is never overruled by passing."""
    first, second = bench.seated(2)
    number = round_whose_ranking(bench, 0, 1, None)
    first.says = lambda order: "undecided"
    second.recorded = operators("one", "two")
    bench.answer = lambda order: saying("failed", proof_against(order, SPEC))(order)
    line = await the_line(bench, number)
    assert [opinion.verdict for opinion in line.opinions] == ["undecided", "passed", "failed"]
    text = bench.evidence.get(bytes.fromhex(line.opinions[1].disproof[2:])) or b""
    evidence = parse_document(DisputeEvidence, text, MAX_DISPUTE_BYTES)
    assert evidence.index == 2, "its recording ends before the referee's"
    assert evidence.contradictions(line.stage, SPEC.spec_hash, PLACE.model_id, PLACE.domain) == []


@pytest.mark.parametrize("why", ["silent", "equal", "another class", "nothing", "forged", "no referee"])
async def test_without_proof_who_was_overruled_is_only_unpaid(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    auditor, number = overruled(bench)
    match why:
        case "silent":
            monkeypatch.setattr(auditors_module, "audit_limit_s", lambda spec: LATE_S)
            auditor.recorded = None
        case "equal":
            auditor.recorded = bench.recorded
        case "another class":
            auditor.class_ = "torch 2, cuda"
        case "nothing":
            auditor.recorded = []
        case "forged":
            recording = auditor.recording
            auditor.recording = lambda order: forged(recording(order))  # type: ignore[method-assign]
        case "no referee":

            async def record(order: pb.AuditOrder, tensors_of: int | None = None) -> referee_pb2.Recording:
                return referee_pb2.Recording(failure="no memory")

            monkeypatch.setattr(bench, "record", record)
    line = await the_line(bench, number)
    assert len(auditor.asked_to_record) == 1
    assert [opinion.disproof for opinion in line.opinions] == [to_hex(NO_EVIDENCE)] * 3
    assert bench.frauds == 0
    assert bool(auditor.refusals) == (why == "forged")


def forged(found: pb.AuditRecording) -> pb.AuditRecording:
    found.operators = found.operators[:-32] + bytes(32)
    return found


# The roster


async def test_an_auditor_is_told_whose_work_it_audits(bench: Bench, told: Told) -> None:
    (auditor,) = bench.seated(1)
    (enlisted,) = auditor.enlisted
    assert (enlisted.model_id, enlisted.chain_id, enlisted.settlement) == (
        PLACE.model_id,
        PLACE.domain.chain_id,
        PLACE.domain.settlement,
    )
    with pytest.raises(Refused, match="already connected"):
        auditor.join()
    assert fields_of(told, "auditor.joined") == [
        {"node": auditor.key.address, "owner": auditor.owner, "stages": [0, 1, 2]}
    ]
    bench.auditors.say_finished()
    assert auditor.finished == 1


async def test_an_answer_that_nobody_asked_for_is_refused(bench: Bench) -> None:
    auditor, other = bench.seated(2)
    number = round_whose_ranking(bench, 0, 1)
    line = await the_line(bench, number)
    (order,) = auditor.orders
    with pytest.raises(UnplannedMessage):
        bench.auditors.answer(other.member, other.opinion(order, "passed"))
    with pytest.raises(UnplannedMessage):
        bench.auditors.answer(auditor.member, auditor.opinion(order, "passed"))  # once was enough
    assert line.verdict == "passed"


# What survives, and what follows


async def test_opinions_of_a_unit_that_wasn_t_recorded_are_asked_for_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the opinions and the record, and again behind it."""
    number = next(number for number in AUDITED if len(drawn_in(number, SPEC).audits) > 1)

    class Killed(BaseException):
        pass

    def kill_at(wanted: str) -> None:
        def failpoint(name: str) -> None:
            if name == wanted:
                raise Killed

        monkeypatch.setattr(auditing_module, "failpoint", failpoint)

    async def run_into(bench: Bench, name: str) -> None:
        kill_at(name)
        bench.join()
        with pytest.raises(Killed):
            await bench.auditing.run(bench.planned)

    for each in bench.seated(2):
        each.says = lambda order: "failed"
    bench.seal(number)
    async with asyncio.timeout(DEADLINE_S):
        await run_into(bench, "audit.deciding")
    assert bench.ledger.verdicts(0, 10**6) == ()

    second = Bench(bench.folder, SPEC)
    for each in second.seated(2):
        each.says = lambda order: "failed"
    await second.auditing.resume()
    async with asyncio.timeout(DEADLINE_S):
        await run_into(second, "audit.decided")
    (line,) = second.ledger.verdicts(0, 10**6)
    assert line.audit == drawn_in(number, SPEC).audits[0]

    third = Bench(bench.folder, SPEC)
    auditors = third.seated(2)
    for each in auditors:
        each.says = lambda order: "failed"
    await third.auditing.resume()
    third.join()
    monkeypatch.setattr(auditing_module, "failpoint", lambda name: None)
    lines = await third.decide()
    assert [line.audit for line in lines] == list(drawn_in(number, SPEC).audits)
    assert lines[0] == line
    assert line.audit not in [unit_of(order) for each in auditors for order in each.orders]
    for each in (second, third):
        each.ledger.close()


@pytest.mark.parametrize("known_bad_rate", ["0", "0.4"])
@pytest.mark.parametrize(("seed", "replicas"), [(0, 1), (1, 2), (2, 1)])
async def test_whatever_auditors_do_the_epoch_s_statement_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_bad_rate: str, seed: int, replicas: int
) -> None:
    monkeypatch.setattr(auditors_module, "audit_limit_s", lambda spec: LATE_S)
    spec = tiny_spec(stages=3, **RATES, known_bad_rate=known_bad_rate)
    bench, chance = Bench(tmp_path, spec, replicas), random.Random(seed)
    auditors = bench.seated(5)
    truth = ["passed"] * 4 + ["failed", "withheld", "undecided"]
    word: list[str | None] = ["passed", "failed", "withheld", "undecided"]

    async def answer(order: pb.AuditOrder) -> pb.AuditOpinion:
        verdict = chance.choice(truth)
        return await saying(verdict, proof_against(order, spec) if verdict == "failed" else b"")(order)

    bench.answer = answer
    for number, each in enumerate(auditors):
        weights = [8, 6, 3, 2, 0.3 if number == 0 else 0]
        each.says = lambda order, weights=weights: chance.choices([*word, None], weights)[0]  # type: ignore[misc]
        each.recorded = chance.choice([None, operators("one", "2"), bench.recorded])
    bench.join()
    bench.seal(*range(PER_EPOCH, 2 * PER_EPOCH))
    lines = await bench.decide()
    assert "answer" in {line.kind for line in lines}
    owners = {opinion.owner for line in lines for opinion in line.opinions}
    assert len(owners) > 3
    statement = make_statement(
        spec,
        chain_id=PLACE.domain.chain_id,
        settlement=PLACE.domain.settlement,
        model_id=PLACE.model_id,
        epoch=1,
        beacon_seed=mark("seed", 1),
        auditors=bench.chain.seats,
        rounds=bench.ledger.sealed_rounds(PER_EPOCH, 2 * PER_EPOCH),
        audits=lines,
        operator_earned=0,
        before=Carried(),
        accumulator_before=0,
    )
    check_statement(spec, statement, Carried())
    assert {(each.stage, each.node) for each in statement.convicted} == {
        (each.stage, each.node) for each in bench.ledger.frauds()
    }
    for line in lines:
        for opinion in line.opinions:
            digest = signed_receipt(PLACE.model_id, line.audit, opinion).digest(PLACE.domain)
            assert recover_address(digest, bytes.fromhex(opinion.signature[2:])) == opinion.auditor
            for text in (opinion.evidence, opinion.disproof):
                assert text == to_hex(NO_EVIDENCE) or bench.evidence.get(bytes.fromhex(text[2:]))
    assert statement.beacon_tip == to_hex(beacon_chain(spec, 1)[0])
    bench.ledger.close()
