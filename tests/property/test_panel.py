"""Who audits follows from the beacon, what they say is settled by one rule, and passing what is false is found out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from eth_abi import encode
from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.errors import StatementMismatch
from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.epoch import convictions, drawn_auditors, sealed_beacon
from commonweight.rules.load import Load
from commonweight.rules.panel import (
    MAX_SEATED,
    Owner,
    Standing,
    is_in_order,
    is_known_bad,
    known_bad_report,
    opinion_receipt,
    opinion_standing,
    rank_auditors,
    recording_receipt,
    settled_verdict,
)
from commonweight.rules.report import HOP_WORDS
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.statement import AuditLine, AuditorSeat, Carried, Conviction, EquivocationLine
from tests.property.histories import (
    AUDITORS,
    FEWER,
    NODES,
    Epoch,
    altered,
    build,
    histories,
    make_epoch,
    remake,
    sealed_rounds,
)
from tests.property.strategies import divisions, hashes, specs
from tests.property.test_statement_audits import audited
from tools.build_vectors import SPECS, honest_reports, mark

OWNERS = [to_checksum_address(mark("owner of a seat", number)[:20]) for number in range(6)]
numbers = st.integers(0, 5)
replicas = st.integers(0, 2)
units = st.builds(Audit, numbers, numbers, st.just(Kind.ROUND), st.none(), replicas) | st.builds(
    Audit, numbers, numbers, st.sampled_from([Kind.MICROBATCH, Kind.LOSS, Kind.DATA, Kind.ANSWER]), numbers, replicas
)
owners = st.lists(st.sampled_from(OWNERS), unique=True)
verdicts = st.sampled_from(Verdict)


@given(hashes, units, owners, st.randoms(use_true_random=False))
def test_a_ranking_is_of_those_with_seats_and_ends_with_the_referee(
    beacon: bytes, audit: Audit, seated: list[str], random: object
) -> None:
    ranking = rank_auditors(beacon, audit, seated)
    assert ranking == rank_auditors(beacon, audit, seated[::-1])
    assert ranking[-1] is None
    assert None not in ranking[:-1]
    assert set(ranking[:-1]) <= set(seated)
    assert len(set(ranking)) == len(ranking)
    if audit.kind in (Kind.DATA, Kind.ANSWER):
        assert ranking == (None,)


@pytest.mark.parametrize("count", [1, 3])
def test_each_who_may_audit_is_first_equally_often(count: int) -> None:
    firsts = [
        rank_auditors(mark("beacon", number), Audit(number, 0, Kind.ROUND), OWNERS[:count])[0] for number in range(4000)
    ]
    due = len(firsts) / (count + 1)
    for owner in (None, *OWNERS[:count]):
        assert abs(firsts.count(owner) - due) < 4 * due**0.5


@given(st.lists(st.sampled_from([*OWNERS, None]), unique=True), st.data())
def test_only_who_is_passed_over_may_be_missing(ranking: list[Owner], data: st.DataObject) -> None:
    asked = [owner for owner in ranking if data.draw(st.booleans())]
    assert is_in_order(asked, ranking)
    if len(asked) > 1:
        assert not is_in_order(asked[::-1], ranking)
    assert not is_in_order([*asked, "somebody else"], ranking)


@given(st.lists(verdicts, min_size=2, max_size=2), verdicts)
def test_two_seat_holders_and_the_referee_always_settle_it(seated: list[Verdict], last: Verdict) -> None:
    """The first who passes it does; after any other opinion only the referee's word counts."""
    one, two = [(owner, verdict) for owner, verdict in zip(OWNERS, seated, strict=False)]
    first = settled_verdict([one])
    assert first == (Verdict.PASSED if seated[0] is Verdict.PASSED else None)
    assert settled_verdict([one, two]) is None
    assert settled_verdict([one, two, (None, last)]) is settled_verdict([one, (None, last)]) is last
    assert settled_verdict([(None, last)]) is last
    assert settled_verdict([]) is None


@given(verdicts, verdicts)
def test_an_opinion_is_paid_if_it_agrees_and_says_something(opinion: Verdict, decided: Verdict) -> None:
    standing = opinion_standing(opinion, decided, known_bad=False)
    says = opinion in (Verdict.PASSED, Verdict.FAILED)
    assert (standing is Standing.PAID) == (says and opinion is decided)
    assert (standing is Standing.OVERRULED) == ({opinion, decided} == {Verdict.PASSED, Verdict.FAILED})
    false = opinion_standing(opinion, decided, known_bad=True)
    assert (false is Standing.FALSE) == (opinion is decided is Verdict.PASSED)
    assert (false is Standing.PAID) == (opinion is Verdict.FAILED)
    assert false is not Standing.OVERRULED


@FEWER
@given(specs(4), hashes, st.data())
def test_a_known_bad_claim_is_another_with_the_same_tensors(spec: ModelSpec, seed: bytes, data: st.DataObject) -> None:
    count = spec.training.microbatches_per_round
    assume(count > 1 and spec.stages > 1)
    stage = data.draw(st.integers(0, spec.stages - 1))
    loads = data.draw(divisions(count, 2).filter(lambda loads: max(map(len, loads)) > 1))
    replica = data.draw(st.sampled_from([n for n, load in enumerate(loads) if len(load) > 1]))
    report = honest_reports(spec.stages, count, 7, [loads] * spec.stages)[len(loads) * stage + replica]
    single = Kind.LOSS if stage == spec.stages - 1 else Kind.MICROBATCH
    audits = [Audit(7, stage, Kind.ROUND), *(Audit(7, stage, single, n) for n in report.load)]
    audit = replace(data.draw(st.sampled_from(audits)), replica=replica)
    false = known_bad_report(audit, report, seed, is_last=stage == spec.stages - 1)
    assert false.commitments(count).claim != report.commitments(count).claim
    assert false.load == report.load
    assert false == known_bad_report(audit, report, seed, is_last=stage == spec.stages - 1)
    for field in (*HOP_WORDS, "loss"):
        assert sorted(getattr(hop, field) for hop in false.hops) == sorted(getattr(hop, field) for hop in report.hops)
    changed = [own.microbatch for own, other in zip(report.hops, false.hops, strict=True) if own != other]
    assert len(changed) == 2
    assert audit.microbatch is None or audit.microbatch in changed


def test_known_bads_are_drawn_at_their_rate_from_the_seed() -> None:
    fields = audited(SPECS["tiny"]).model_dump()
    fields["verification"] |= {"known_bad_rate": "0.1"}
    spec = build_spec(fields)

    def shown(seed: str, load: Load = (0, 2), count: int = 4000, **unit: Any) -> list[bool]:
        units = (Audit(number, 0, **({"kind": Kind.ROUND} | unit)) for number in range(count))
        return [is_known_bad(spec, mark(seed), each, load) for each in units]

    drawn = shown("seed")
    assert abs(sum(drawn) - 400) < 80
    assert shown("seed", (0, 1, 2)) == drawn  # whatever the load is
    assert drawn not in (shown("another"), shown("seed", replica=1))
    assert not any(shown("seed", (1,)))  # nothing can change places
    for kind in (Kind.DATA, Kind.ANSWER):
        assert not any(shown("seed", count=400, kind=kind, microbatch=0))


@given(hashes, units, units, hashes, verdicts)
def test_what_an_auditor_signs_says_all_and_never_equivocates(
    model_id: bytes, one: Audit, two: Audit, claim: bytes, verdict: Verdict
) -> None:
    """A second look may honestly come out otherwise."""
    receipts = [
        opinion_receipt(model_id, unit, shown, said, proof)
        for unit in {one, two}
        for shown in {claim, mark("another claim")}
        for said in Verdict
        for proof in (NO_EVIDENCE, mark("proof"))
    ]
    assert len({receipt.unit for receipt in receipts}) == len(receipts)
    assert all(receipt.unit == receipt.output for receipt in receipts)
    recording = recording_receipt(model_id, one, claim, mark("operators"))
    assert recording.unit not in {receipt.unit for receipt in receipts}
    for report in ((0, 0, 0), (1, one.round, one.stage)):
        unit = keccak(encode(["uint256"] * 3, report))
        assert unit not in {receipt.unit for receipt in [*receipts, recording]}


def panel_epoch(
    says: object = None, *, seated: Sequence[str] = AUDITORS, known_bad_rate: str = "0", before: Carried | None = None
) -> Epoch:
    """Every round of every stage replayed whole, with three seats in stage 1."""
    fields = audited(SPECS["tiny"], rounds_per_epoch=8).model_dump()
    fields["verification"] |= {"known_bad_rate": known_bad_rate}
    spec = build_spec(fields)
    return make_epoch(
        spec,
        0,
        before or Carried(),
        sealed_rounds(spec, 0),
        verdict=lambda _: Verdict.PASSED,
        auditors=[AuditorSeat(stage=1, owner=owner) for owner in AUDITORS],
        seated=seated,
        says=says or (lambda *_: None),  # type: ignore[arg-type]
    )


def by_seated(epoch: Epoch) -> list[AuditLine]:
    return [line for line in epoch.statement.audits if line.opinions[0].owner is not None]


def test_seat_holders_are_paid_for_what_they_repeat_out_of_the_compute_shares() -> None:
    with_panel, alone = panel_epoch(), panel_epoch(seated=())
    assert with_panel.statement.minted == alone.statement.minted
    assert not by_seated(alone)
    lines, accounts = by_seated(with_panel), {line.account: line for line in with_panel.statement.accounts}
    assert lines
    for line in lines:
        (opinion,) = line.opinions
        worth = with_panel.statement.rounds[0].reports[line.stage].units
        assert opinion.units == worth != "0"
    audited_units = sum(int(line.opinions[0].units) for line in lines)
    assert audited_units == sum(int(accounts[owner].units) for owner in AUDITORS if owner in accounts)
    assert all(int(accounts[line.opinions[0].owner or ""].shares) > 0 for line in lines)


def test_who_passes_what_is_known_to_be_bad_is_convicted_unpaid_and_not_asked_again() -> None:
    waving = by_seated(panel_epoch(known_bad_rate="1"))[0].opinions[0].auditor
    epoch = panel_epoch(lambda _, owner, bad: Verdict.PASSED if bad and owner == waving else None, known_bad_rate="1")
    epoch.check(epoch.statement)
    assert epoch.statement.convicted == (Conviction(stage=1, node=waving),)
    opinions = [(line, opinion) for line in epoch.statement.audits for opinion in line.opinions]
    assert all(opinion.units == "0" for _, opinion in opinions if opinion.auditor == waving)
    assert all(line.verdict == "passed" for line in epoch.statement.audits)  # the provider isn't harmed
    caught = [opinion for line, opinion in opinions if line.is_known_bad(opinion) and opinion.auditor != waving]
    assert caught
    assert all(opinion.verdict == "failed" and opinion.units != "0" for opinion in caught)
    later = replace(epoch, before=Carried(convicted=frozenset(epoch.statement.convicted)))
    with pytest.raises(StatementMismatch, match="isn't asked any more"):
        later.check(epoch.statement)


@FEWER
@given(st.data())
def test_a_third_seat_holder_s_opinion_on_the_claim_is_noticed(data: st.DataObject) -> None:
    """It would be paid for agreeing; nothing else is wrong with it."""
    epoch = panel_epoch(lambda *_: Verdict.FAILED)
    epoch.check(epoch.statement)
    audits, tip = list(epoch.statement.audits), bytes.fromhex(epoch.statement.beacon_tip[2:])
    seed = bytes.fromhex(epoch.statement.beacon_seed[2:])
    beacons = [sealed_beacon(epoch.spec, sealed, tip, seed) for sealed in epoch.statement.rounds]
    rankings = [
        drawn_auditors(epoch.statement.rounds[line.round], line.audit, beacons[line.round], epoch.statement.auditors)
        for line in audits
    ]
    place = data.draw(st.sampled_from([n for n, ranking in enumerate(rankings) if len(ranking) > MAX_SEATED + 1]))
    *seated, referee = audits[place].opinions
    third = data.draw(st.sampled_from([seated[0], referee]))  # overruled and disproven, or paid
    who = dict.fromkeys(("auditor", "owner", "account"), rankings[place][MAX_SEATED])
    opinions = (*seated, third.model_copy(update=who), referee)
    audits[place] = audits[place].model_copy(update={"opinions": opinions})
    with pytest.raises(StatementMismatch, match="3 seat holders"):
        epoch.check(remake(epoch, audits=audits))


def test_a_false_alarm_is_overruled_and_doesn_t_harm_the_provider() -> None:
    liar = by_seated(panel_epoch())[0].opinions[0].auditor
    epoch = panel_epoch(lambda _, owner, bad: Verdict.FAILED if owner == liar else None)
    epoch.check(epoch.statement)
    alarms = [line for line in epoch.statement.audits if liar in [each.auditor for each in line.opinions]]
    assert any(line.opinions[0].auditor == liar for line in alarms)
    assert {line.verdict for line in epoch.statement.audits} == {"passed"}
    assert all(report.units != "0" for sealed in epoch.statement.rounds for report in sealed.reports)
    assert epoch.statement.convicted == (Conviction(stage=1, node=liar),)


@given(histories(1), st.data())
def test_every_change_of_an_opinion_or_of_who_gave_it_is_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[0]
    fields = epoch.fields
    assume(fields["audits"])
    place = data.draw(st.integers(0, len(fields["audits"]) - 1))
    line = fields["audits"][place]
    opinions = line["opinions"]
    which = data.draw(st.integers(0, len(opinions) - 1))
    path, opinion = ("audits", place, "opinions", which), opinions[which]
    flip = "0x" + "5a" * 32
    others = [
        altered(fields, ("audits", place, "opinions"), [*opinions, opinions[-1]]),
        altered(fields, (*path, "units"), str(int(opinion["units"]) + 1)),
        altered(fields, (*path, "evidence"), flip if opinion["verdict"] != "failed" else "0x" + "00" * 32),
        altered(fields, (*path, "owner"), NODES[3] if opinion["owner"] is None else None),
        altered(fields, (*path, "account"), NODES[3] if opinion["account"] is None else None),
    ]
    if len(opinions) > 1:
        others.append(altered(fields, ("audits", place, "opinions"), opinions[::-1]))
    if opinion["owner"] is None:
        others.append(altered(fields, (*path, "disproof"), flip))
    for other in others:
        with pytest.raises(StatementMismatch):
            epoch.check(build(other))


@FEWER
@given(histories(1), st.data())
def test_other_seats_another_seed_and_false_claims_are_noticed(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[0]
    fields, flip = epoch.fields, "0x" + "5a" * 32
    others = [altered(fields, ("beacon_seed",), flip)]
    if fields["audits"]:
        place = data.draw(st.integers(0, len(fields["audits"]) - 1))
        last = len(fields["audits"][place]["opinions"]) - 1
        others.append(altered(fields, ("audits", place, "opinions", last, "claim"), flip))
    if len(fields["auditors"]) > 1:
        others.append(altered(fields, ("auditors",), fields["auditors"][::-1]))
    for other in others:
        with pytest.raises(StatementMismatch):
            epoch.check(build(other))


@FEWER
@given(histories(), st.data())
def test_an_equivocation_convicts_once(history: list[Epoch], data: st.DataObject) -> None:
    epoch = history[-1]
    report = data.draw(st.sampled_from(epoch.statement.rounds[0].reports))
    stage, node = report.stage, report.node
    line = EquivocationLine(
        stage=stage,
        node=node,
        unit="0x" + "11" * 32,
        outputs=("0x" + "12" * 32, "0x" + "13" * 32),
        signatures=("0x" + "14" * 65, "0x" + "15" * 65),
    )
    statement = remake(epoch, equivocations=[line, line])
    assert Conviction(stage=stage, node=node) in statement.convicted
    lines = [each for sealed in statement.rounds for each in sealed.reports if (each.stage, each.node) == (stage, node)]
    assert all(each.units == "0" for each in lines)
    epoch.check(statement)
    again = remake(epoch, equivocations=[line], before=statement.carried())
    assert again.equivocations == ()
    if statement.equivocations:
        fields = Epoch(epoch.spec, statement, epoch.before, 0).fields
        same = altered(fields, ("equivocations", 0, "outputs"), ["0x" + "12" * 32] * 2)
        with pytest.raises(StatementMismatch, match="signed two results"):
            epoch.check(build(same))
        if Conviction(stage=stage, node=node) not in convictions(statement.rounds, statement.audits, ()):
            with pytest.raises(StatementMismatch):
                epoch.check(build(altered(fields, ("equivocations",), [])))
