"""What is replayed follows from the beacon alone, and nobody gains by withholding what was drawn."""

from collections.abc import Mapping, Sequence
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.audits import WORK, Audit, Kind, Verdict, draw_audits, left_outstanding, paid_rounds
from commonweight.rules.beacon import round_beacon, round_root
from commonweight.rules.load import Loads, undivided
from commonweight.rules.spec import ModelSpec, build_spec
from tests.property.strategies import divisions, hashes, rates, specs
from tools.build_vectors import changed, honest_reports, mark, share

RATES = ("round_rate", "microbatch_rate", "data_rate", "answer_rate")
numbers = st.integers(0, 3) | st.integers(0, 2**53 - 1)
counts = st.integers(0, 5)


def with_rates(spec: ModelSpec, *values: str, **parts: int) -> ModelSpec:
    """With other rates (of rounds, microbatches, data and answers); `parts` are fields of its training."""
    fields = spec.model_dump()
    return build_spec(
        fields
        | {
            "verification": fields["verification"] | dict(zip(RATES, values, strict=False)),
            "training": fields["training"] | parts,
        }
    )


Divided = tuple[ModelSpec, Loads]
"""A model, and how a round of it is divided among the replicas of each stage."""


@st.composite
def divided(draw: st.DrawFn) -> Divided:
    spec = draw(specs(4))
    return spec, [draw(divisions(spec.training.microbatches_per_round)) for _ in range(spec.stages)]


def answered(loads: Loads, count: int) -> list[list[int]]:
    """By whom so many answers were given: the replicas of each stage take turns."""
    return [[number % len(of_stage) for of_stage in loads] for number in range(count)]


def alone(spec: ModelSpec) -> Loads:
    return undivided(spec.stages, spec.training.microbatches_per_round)


def all_units(spec: ModelSpec, round_: int, loads: Loads, answers: Sequence[Sequence[int]] = ()) -> set[Audit]:
    """All that can be drawn in a round that is sealed with these answers."""
    units = set()
    for stage, of_stage in enumerate(loads):
        single = Kind.LOSS if stage == spec.stages - 1 else Kind.MICROBATCH
        for replica, load in enumerate(of_stage):
            units.add(Audit(round_, stage, Kind.ROUND, None, replica))
            for kind in (single,) if stage else (single, Kind.DATA):
                units |= {Audit(round_, stage, kind, number, replica) for number in load}
    places = (
        (stage, number, replicas[stage]) for number, replicas in enumerate(answers) for stage in range(len(loads))
    )
    return units | {Audit(round_, stage, Kind.ANSWER, number, replica) for stage, number, replica in places}


@given(divided(), numbers, hashes, counts)
def test_a_draw_is_a_pure_function_and_in_order(case: Divided, round_: int, beacon: bytes, count: int) -> None:
    (spec, loads), answers = case, answered(case[1], count)
    drawn = draw_audits(spec, round_, beacon, loads, answers)
    assert drawn == draw_audits(spec, round_, beacon, loads, answers)
    assert [audit.order for audit in drawn] == sorted({audit.order for audit in drawn})
    assert all_units(spec, round_, loads, answers).issuperset(drawn)
    places = [(audit.stage, audit.replica) for audit in drawn if audit.kind in WORK]
    assert len(places) == len(set(places)), "of a replica's round the whole is replayed, or one microbatch"


@given(divided(), hashes, st.data())
def test_how_others_divide_a_round_changes_nothing_of_one_s_own_audits(
    case: Divided, beacon: bytes, data: st.DataObject
) -> None:
    """But for which of its microbatches is drawn, where its own load is another."""
    spec, loads = case
    other = [data.draw(divisions(spec.training.microbatches_per_round)) for _ in loads]
    one, two = (draw_audits(spec, 3, beacon, each) for each in (loads, other))
    for stage, (of_stage, of_other) in enumerate(zip(loads, other, strict=True)):
        for replica in range(min(len(of_stage), len(of_other))):
            mine, theirs = (
                [audit for audit in each if (audit.stage, audit.replica) == (stage, replica)] for each in (one, two)
            )
            if of_stage[replica] == of_other[replica]:
                assert mine == theirs
            kinds = [[audit.kind for audit in each if audit.kind in WORK] for each in (mine, theirs)]
            assert kinds[0] == kinds[1]


@given(divided(), hashes, hashes, counts, counts, rates)
def test_answers_are_drawn_by_themselves(
    case: Divided, beacon: bytes, root: bytes, count: int, more: int, rate: str
) -> None:
    """However many there are, and whatever is drawn of the training; which they are changes nothing of that."""
    (spec, loads), answers = case, answered(case[1], count)
    drawn = draw_audits(spec, 3, beacon, loads, answers, root)
    of_answers = [audit for audit in drawn if audit.kind is Kind.ANSWER]
    assert [audit for audit in drawn if audit.kind is not Kind.ANSWER] == list(draw_audits(spec, 3, beacon, loads))
    later = draw_audits(spec, 3, beacon, loads, answered(loads, count + more), root)
    longer = [audit for audit in later if audit.kind is Kind.ANSWER]
    assert [audit for audit in longer if (audit.microbatch or 0) < count] == of_answers
    untrained = with_rates(spec, "0", "0", "0", spec.verification.answer_rate)
    assert list(draw_audits(untrained, 3, beacon, loads, answers, root)) == of_answers
    everywhere = with_rates(untrained, "0", "0", "0", "1")
    assert len(draw_audits(everywhere, 3, beacon, loads, answers, root)) == count * spec.stages
    other_rate = set(draw_audits(with_rates(spec, "0", "0", "0", rate), 3, beacon, loads, answers, root))
    assert other_rate <= set(of_answers) or other_rate >= set(of_answers)


@given(divided(), hashes)
def test_rates_of_0_and_1_are_never_and_always(case: Divided, beacon: bytes) -> None:
    spec, loads = case
    units = all_units(spec, 3, loads)
    rounds, texts = ({unit for unit in units if unit.kind is kind} for kind in (Kind.ROUND, Kind.DATA))
    for values, whole, single, data in (
        (("0", "0", "0"), False, False, False),
        (("1", "0", "0"), True, False, False),
        (("1", "1", "1"), True, False, True),
        (("0", "1", "0"), False, True, False),
        (("0", "1", "1"), False, True, True),
        (("0", "0", "1"), False, False, True),
    ):
        drawn = set(draw_audits(with_rates(spec, *values), 3, beacon, loads))
        assert drawn <= units
        assert drawn & rounds == (rounds if whole else set())
        assert drawn & texts == (texts if data else set())
        singles = sorted((audit.stage, audit.replica) for audit in drawn - rounds - texts)
        replicas = [(stage, replica) for stage, of_stage in enumerate(loads) for replica in range(len(of_stage))]
        assert singles == (replicas if single else []), "one in each replica's round"


@given(specs(4), hashes, rates, rates, st.integers(1, 3))
def test_each_kind_is_drawn_by_itself(spec: ModelSpec, beacon: bytes, rate: str, other: str, more: int) -> None:
    """Whatever the rates of other kinds, the number of microbatches, and the round's number."""
    base, loads = with_rates(spec, "0", rate, other), alone(spec)
    drawn = set(draw_audits(base, 3, beacon, loads))
    texts = {audit for audit in drawn if audit.kind is Kind.DATA}
    assert set(draw_audits(with_rates(spec, "0", "0", other), 3, beacon, loads)) == texts
    assert set(draw_audits(with_rates(spec, "0", rate, "0"), 3, beacon, loads)) == drawn - texts
    count = spec.training.microbatches_per_round
    more_of_them = with_rates(base, microbatches_per_round=count + more)
    longer = set(draw_audits(more_of_them, 3, beacon, alone(more_of_them)))
    assert {audit for audit in longer if audit.kind is Kind.DATA and (audit.microbatch or 0) < count} == texts
    assert {audit.stage for audit in longer if audit.kind in WORK} == {audit.stage for audit in drawn - texts}
    assert {each.order[1:] for each in draw_audits(base, 4, beacon, loads)} == {each.order[1:] for each in drawn}


@given(divided(), hashes, rates, rates)
def test_a_round_that_is_drawn_whole_takes_the_place_of_its_microbatch(
    case: Divided, beacon: bytes, whole: str, single: str
) -> None:
    """And changes nothing of the replicas whose isn't."""
    spec, loads = case
    drawn = set(draw_audits(with_rates(spec, whole, single, "0"), 3, beacon, loads))
    rounds = {audit for audit in drawn if audit.kind is Kind.ROUND}
    assert rounds == set(draw_audits(with_rates(spec, whole, "0", "0"), 3, beacon, loads))
    singles = set(draw_audits(with_rates(spec, "0", single, "0"), 3, beacon, loads))
    places = {(each.stage, each.replica) for each in rounds}
    assert drawn - rounds == {audit for audit in singles if (audit.stage, audit.replica) not in places}


@given(divided(), hashes)
def test_a_higher_rate_draws_the_same_and_more(case: Divided, beacon: bytes) -> None:
    spec, loads = case
    steps = [set(draw_audits(with_rates(spec, "0", rate, rate), 0, beacon, loads)) for rate in ("0", "0.1", "0.5", "1")]
    assert steps == sorted(steps, key=len)
    assert all(fewer <= more for fewer, more in zip(steps, steps[1:], strict=False))


@pytest.mark.parametrize("rate", ["0.005", "0.02", "0.3", "0.5", "0.95"])
def test_units_are_drawn_as_often_as_their_rate_says(rate: str) -> None:
    spec, rounds, p = changed(verification=dict.fromkeys(RATES, rate)), 2000, float(rate)
    loads = [share(3, 1), share(3, 2), share(3, 1)]
    answers = [[0, number % 2, 0] for number in range(3)]
    drawn = [set(draw_audits(spec, 0, mark("beacon", rate, number), loads, answers)) for number in range(rounds)]

    def check(count: int, expected: float) -> None:
        assert abs(count - rounds * expected) < 4 * sqrt(rounds * expected * (1 - expected))

    for unit in all_units(spec, 0, loads, answers):
        # One microbatch, each as likely, of the replicas whose round isn't drawn whole.
        single = unit.kind in (Kind.MICROBATCH, Kind.LOSS)
        count = len(loads[unit.stage][unit.replica])
        check(sum(unit in each for each in drawn), p * (1 - p) / count if single else p)
    for pair in (
        {Audit(0, 1, Kind.ROUND), Audit(0, 2, Kind.ROUND)},
        {Audit(0, 1, Kind.ROUND), Audit(0, 1, Kind.ROUND, None, 1)},
        {Audit(0, 0, Kind.DATA, n) for n in (0, 1)},
        {Audit(0, 1, Kind.ANSWER, n) for n in (0, 2)},
        {Audit(0, stage, Kind.ANSWER, 1, stage) for stage in (0, 1)},
        {Audit(0, 0, Kind.ANSWER, 1), Audit(0, 0, Kind.DATA, 1)},
    ):
        check(sum(pair <= each for each in drawn), p * p)


def test_another_output_of_any_stage_draws_anew() -> None:
    """Half of 512 texts and 1,024 rounds at even odds: who changes what it signs can't keep what it was dealt."""
    spec = changed(
        stages=4,
        training={"microbatches_per_round": 2},
        verification={"round_rate": "0", "microbatch_rate": "0.5", "data_rate": "0.5"},
    )
    outputs = [report.commitments(2).output(mark("tip")) for report in honest_reports(4, 2, 0)]
    loads = undivided(4, 2)

    def draw(outputs: Sequence[bytes]) -> set[tuple[int, int, int]]:
        """Round, stage and, of texts, which; of work not which microbatch, so that it is all or nothing."""
        root = round_root([[output] for output in outputs])
        drawn = (each for n in range(256) for each in draw_audits(spec, n, round_beacon(mark("value", n), root), loads))
        return {(each.round, each.stage, -1 if each.kind in WORK else each.microbatch or 0) for each in drawn}

    drawn = draw(outputs)
    assert 0.45 < len(drawn) / 1536 < 0.55
    for stage in range(4):
        other = draw([*outputs[:stage], mark("other"), *outputs[stage + 1 :]])
        assert 0.45 < len(drawn ^ other) / 1536 < 0.55


def test_other_answers_draw_the_audits_of_answers_anew_and_no_others() -> None:
    """Half of 1,024 units at even odds: who changes what it says of one answer can't keep what it was dealt."""
    spec = changed(stages=4, verification=dict.fromkeys(RATES, "0.5"))
    loads = undivided(4, 3)
    answers = answered(loads, 256)
    one, other = (set(draw_audits(spec, 0, mark("beacon"), loads, answers, mark(root))) for root in ("one", "other"))
    assert {audit.kind for audit in one ^ other} == {Kind.ANSWER}
    assert 0.45 < len(one ^ other) / 1024 < 0.55


# One provider's rounds of an epoch, its audits in them, and what is outstanding from before.
Case = tuple[list[int], dict[Audit, Verdict], frozenset[Kind]]
FIRST, LAST, STAGE = 8, 15, 0


outstanding_kinds = st.frozensets(st.sampled_from([Kind.ROUND, Kind.MICROBATCH, Kind.DATA, Kind.ANSWER]))


@st.composite
def cases(draw: st.DrawFn, verdicts: Sequence[Verdict] = tuple(Verdict)) -> Case:
    """At times it had the seat for a part of the epoch only."""
    reported = sorted(draw(st.sets(st.integers(FIRST, LAST), min_size=1)))
    single = ((kind, n) for kind in (Kind.MICROBATCH, Kind.DATA, Kind.ANSWER) for n in (0, 1))
    kinds = st.sampled_from([(Kind.ROUND, None), *single])
    drawn = draw(st.dictionaries(st.tuples(st.sampled_from(reported), kinds), st.sampled_from(verdicts), max_size=12))
    verdicts_of = {Audit(number, STAGE, kind, n): verdict for (number, (kind, n)), verdict in drawn.items()}
    return reported, verdicts_of, draw(outstanding_kinds if Verdict.WITHHELD in verdicts else st.just(frozenset()))


def clears(passed: Audit, withheld: Kind) -> bool:
    """Whether who passed the one has shown what the other would have."""
    return passed.kind is withheld or (passed.kind is Kind.ROUND and withheld in WORK)


def reference(reported: Sequence[int], verdicts: Mapping[Audit, Verdict], outstanding: frozenset[Kind]) -> set[int]:
    """Walks from each withheld audit both ways, round by round, until one clears it."""
    if Verdict.FAILED in verdicts.values():
        return set()
    paid = set(reported)
    withheld = [(audit.round, audit.kind) for audit, verdict in verdicts.items() if verdict is Verdict.WITHHELD]
    for start, kind in [*withheld, *((FIRST - 1, kind) for kind in outstanding)]:
        paid.discard(start)
        for direction in (-1, 1):
            number = start + direction
            while FIRST <= number <= LAST and not any(
                verdict is Verdict.PASSED and audit.round == number and clears(audit, kind)
                for audit, verdict in verdicts.items()
            ):
                paid.discard(number)
                number += direction
    return paid


def without(verdicts: Mapping[Audit, Verdict], verdict: Verdict) -> dict[Audit, Verdict]:
    return {audit: each for audit, each in verdicts.items() if each is not verdict}


@given(cases() | cases([Verdict.PASSED, Verdict.WITHHELD]))
def test_what_is_paid_is_what_no_withheld_audit_reaches(case: Case) -> None:
    paid = paid_rounds(*case)
    assert paid == reference(*case)
    assert paid <= set(case[0])


@given(cases() | cases([Verdict.PASSED, Verdict.WITHHELD]))
def test_outstanding_is_left_what_nothing_that_looks_at_as_much_has_passed_since(case: Case) -> None:
    """So that no round after the epoch would be paid either, if it were longer."""
    reported, verdicts, before = case
    left = left_outstanding(verdicts, before)
    due = [(audit.round, audit.kind) for audit, verdict in verdicts.items() if verdict is Verdict.WITHHELD]
    due += [(FIRST - 1, kind) for kind in before]
    cleared = [audit for audit, verdict in verdicts.items() if verdict is Verdict.PASSED]
    assert left == {
        kind for number, kind in due if not any(audit.round > number and clears(audit, kind) for audit in cleared)
    }
    paid = paid_rounds([*reported, LAST + 1], verdicts, before)
    assert (LAST + 1 in paid) == (not left and Verdict.FAILED not in verdicts.values())


@given(cases(), st.data())
def test_withholding_never_pays_more_than_passing_or_being_undecided(case: Case, data: st.DataObject) -> None:
    reported, verdicts, before = case
    if verdicts:
        audit = data.draw(st.sampled_from(list(verdicts)))
        changed_to = {verdict: verdicts | {audit: verdict} for verdict in Verdict}
        paid = {verdict: paid_rounds(reported, changed, before) for verdict, changed in changed_to.items()}
        assert paid[Verdict.FAILED] <= paid[Verdict.WITHHELD] <= paid[Verdict.UNDECIDED] <= paid[Verdict.PASSED]
        assert audit.round not in paid[Verdict.WITHHELD]
        left = {verdict: left_outstanding(changed, before) for verdict, changed in changed_to.items()}
        assert left[Verdict.WITHHELD] >= left[Verdict.UNDECIDED] >= left[Verdict.PASSED]


@given(cases(), outstanding_kinds)
def test_what_is_outstanding_never_brings_pay(case: Case, more: frozenset[Kind]) -> None:
    reported, verdicts, before = case
    assert paid_rounds(reported, verdicts, before | more) <= paid_rounds(reported, verdicts, before)
    assert left_outstanding(verdicts, before | more) >= left_outstanding(verdicts, before)


@given(cases(), st.integers(FIRST, LAST + 1))
def test_two_epochs_pay_what_one_long_one_would_but_for_what_is_settled(case: Case, cut: int) -> None:
    """What was withheld voids as much of the later epoch as if there were none; of the earlier one nothing."""
    reported, verdicts, before = case
    verdicts = without(verdicts, Verdict.FAILED)
    earlier, later = ([n for n in reported if (n < cut) is side] for side in (True, False))
    first = {audit: verdict for audit, verdict in verdicts.items() if audit.round < cut}
    last = {audit: verdict for audit, verdict in verdicts.items() if audit.round >= cut}
    paid = paid_rounds(earlier, first, before) | paid_rounds(later, last, left_outstanding(first, before))
    long = paid_rounds(reported, verdicts, before)
    assert paid & set(later) == long & set(later)
    assert paid & set(earlier) == paid_rounds(reported, first | without(last, Verdict.WITHHELD), before) & set(earlier)
    assert paid >= long
    assert left_outstanding(last, left_outstanding(first, before)) == left_outstanding(verdicts, before)


@given(cases())
def test_what_the_auditor_couldn_t_decide_is_as_if_it_hadn_t_been_drawn(case: Case) -> None:
    reported, verdicts, before = case
    decided = without(verdicts, Verdict.UNDECIDED)
    assert paid_rounds(*case) == paid_rounds(reported, decided, before)
    assert left_outstanding(verdicts, before) == left_outstanding(decided, before)


@given(cases([Verdict.PASSED, Verdict.UNDECIDED]))
def test_who_serves_what_is_drawn_and_computes_right_is_paid_for_all(case: Case) -> None:
    assert paid_rounds(*case) == set(case[0])
    assert not left_outstanding(*case[1:])


@given(cases(), st.sampled_from([Kind.ROUND, Kind.MICROBATCH, Kind.DATA, Kind.ANSWER]))
def test_fraud_pays_nothing_at_all(case: Case, kind: Kind) -> None:
    reported, verdicts, before = case
    number = None if kind is Kind.ROUND else 0
    assert not paid_rounds(reported, verdicts | {Audit(reported[-1], STAGE, kind, number): Verdict.FAILED}, before)


@given(
    st.dictionaries(st.integers(FIRST, LAST), st.sampled_from([Verdict.PASSED, Verdict.WITHHELD])), outstanding_kinds
)
def test_who_withholds_all_that_it_can_t_show_loses_what_lies_between(
    verdicts: dict[int, Verdict], before: frozenset[Kind]
) -> None:
    """With audits of whole rounds only: paid is each round whose nearest drawn ones, either way, passed."""
    before -= {Kind.DATA, Kind.ANSWER}
    audits = {Audit(n, STAGE, Kind.ROUND): each for n, each in verdicts.items()}
    paid = paid_rounds(range(FIRST, LAST + 1), audits, before)
    drawn = verdicts | ({FIRST - 1: Verdict.WITHHELD} if before else {})
    for number in range(FIRST, LAST + 1):
        nearest = {max((n for n in drawn if n <= number), default=None)}
        nearest.add(min((n for n in drawn if n >= number), default=None))
        assert (number in paid) == all(n is None or drawn[n] is Verdict.PASSED for n in nearest)


ALL_BUT_DATA = [Audit(number, STAGE, kind, n) for number in (9, 13) for kind, n in ((Kind.ROUND, None), (Kind.LOSS, 0))]


@pytest.mark.parametrize("kind", [Kind.ROUND, Kind.MICROBATCH, Kind.LOSS])
def test_right_tokens_show_nothing_about_what_was_made_of_them(kind: Kind) -> None:
    passed = {Audit(number, STAGE, Kind.DATA, 0): Verdict.PASSED for number in range(FIRST, LAST + 1)}
    withheld = Audit(11, STAGE, kind, None if kind is Kind.ROUND else 0)
    assert not paid_rounds(range(FIRST, LAST + 1), passed | {withheld: Verdict.WITHHELD})


def test_nor_does_right_work_show_that_the_tokens_are_those_due() -> None:
    verdicts = dict.fromkeys(ALL_BUT_DATA, Verdict.PASSED) | {Audit(11, STAGE, Kind.DATA, 0): Verdict.WITHHELD}
    assert not paid_rounds(range(FIRST, LAST + 1), verdicts)
