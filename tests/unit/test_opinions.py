"""What an auditor is told about its opinions, what is counted of everybody's, and why an auditor is convicted."""

from typing import Any, cast

import pytest

from commonweight.cli.audited import Earlier
from commonweight.cli.opinions import Opinions, opinions_in
from commonweight.cli.panels import Panels, count_panels
from commonweight.cli.place import Place
from commonweight.cli.statements import Published
from commonweight.rules.audits import Verdict
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import report_units
from commonweight.rules.statement import AuditLine, Carried, Conviction, EquivocationLine, Opinion, Statement, to_hex
from tests.unit.test_audited import NODE, SEATED, SEATS, SPEC, TESTED, Says, history_of, statement_of, told
from tools.build_vectors import mark

UNITS = report_units(SPEC, 1, SPEC.training.microbatches_per_round)
"""Of a round of stage 1."""
EVEN, ODD = SEATED
"""Of the two, the second may say what isn't so."""


def says(said: Verdict) -> Says:
    return lambda _, owner, __: said if owner == ODD else None


def judged_by(statement: Statement, earlier: Earlier | None = None) -> dict[str, Opinions]:
    """What became of the opinions on stage 1, by auditor."""
    published = Published(cast(Any, None), statement)
    found = opinions_in(published, lambda _: True, earlier or Earlier(cast(Place, None)))
    assert {each.auditor.stage for each in found} <= {1}
    return {each.auditor.node: each for each in found}


def first_of(statement: Statement, auditor: str) -> tuple[AuditLine, Opinion]:
    return next((line, each) for line in statement.audits for each in line.opinions if each.auditor == auditor)


def test_opinions_are_paid_like_the_work_that_they_repeat() -> None:
    """The other seat's holder isn't asked where the first passes the unit."""
    statement = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS)
    found = judged_by(statement)
    said = sum(len(each.lines) for each in found.values())
    assert said > 1
    for each in found.values():
        assert (each.unpaid, each.units) == ((), each.paid * UNITS)
        (line,) = (line for line in statement.accounts if line.account == each.account)
        assert (int(line.units), int(line.shares) > 0) == (each.units, True)
    panels = count_panels(SPEC, statement)
    assert (panels.seats, panels.by_seats, panels.by_referee, panels.passed_over) == (2, said, 18 - said, 0)
    assert "known bad" not in panels.fields()


@pytest.mark.parametrize(
    ("verdict", "said", "why"),
    [
        (Verdict.PASSED, Verdict.UNDECIDED, "it says no more than that the auditor couldn't tell"),
        (Verdict.PASSED, Verdict.WITHHELD, "it says no more than that what it takes was withheld"),
        (Verdict.UNDECIDED, Verdict.FAILED, "it says failed, and the verdict is undecided"),
    ],
)
def test_opinions_that_decide_nothing_are_unpaid(verdict: Verdict, said: Verdict, why: str) -> None:
    statement = statement_of(0, lambda _: verdict, auditors=SEATS, says=says(said))
    check_statement(SPEC, statement, Carried())
    odd = judged_by(statement)[ODD]
    (unpaid,) = odd.unpaid
    assert (odd.paid, odd.units, unpaid.why, len(unpaid.audits)) == (0, 0, why, len(odd.lines))
    assert unpaid.span.startswith("the round audit of round ")
    assert count_panels(SPEC, statement).overruled == 0


def test_what_is_overruled_and_disproven_costs_all_that_the_auditor_said() -> None:
    """Of its opinions the first is wrong: the others, which are right, aren't paid either."""
    honest = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS)
    first, _ = first_of(honest, ODD)
    statement = statement_of(
        0,
        lambda _: Verdict.PASSED,
        auditors=SEATS,
        says=lambda audit, owner, _: Verdict.FAILED if (owner, audit) == (ODD, first.audit) else None,
    )
    check_statement(SPEC, statement, Carried())
    line, opinion = first_of(statement, ODD)
    assert opinion.is_disproven
    odd, even = judged_by(statement)[ODD], judged_by(statement)[EVEN]
    wrong, distrusted = odd.unpaid
    assert wrong.why == f"it says failed, and the verdict is passed; it is disproven by {opinion.disproof}"
    assert distrusted.why == (
        f"convicted of fraud in epoch 0: as an auditor it said failed in {line.audit}, disproof {opinion.disproof}"
    )
    assert (odd.units, len(odd.lines)) == (0, len(judged_by(honest)[ODD].lines))
    assert (even.unpaid, even.units) == ((), even.paid * UNITS)
    panels = count_panels(SPEC, statement)
    assert (panels.overruled, panels.convicted) == (1, (Conviction(stage=1, node=ODD),))
    assert f"stage 1, auditor {ODD}" in str(panels.fields()["disproven"])


def test_known_bad_reports_that_were_caught_and_passed() -> None:
    caught = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS, spec=TESTED)
    panels = count_panels(SPEC, caught)
    shown = panels.known_bad.total()
    assert shown > 1
    assert panels.fields()["known bad"] == f"{shown} shown: {shown} caught, 0 passed"
    assert all(each.unpaid == () for each in judged_by(caught).values())
    passed = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS, spec=TESTED, says=says(Verdict.PASSED))
    check_statement(TESTED, passed, Carried())
    by_odd = sum(line.opinions[0].auditor == ODD for line in passed.audits)
    assert count_panels(SPEC, passed).facts() | {"opinions": None} == {
        "auditor_seats": 2,
        "opinions": None,
        "passed_over": 0,
        "known_bad": {"shown": shown, "caught": shown - by_odd, "passed": by_odd},
        "convicted_auditors": [{"stage": 1, "node": ODD}],
        "equivocations": [],
    }
    reasons = [unpaid.why for unpaid in judged_by(passed)[ODD].unpaid]
    for why in reasons:
        convicted = why.startswith("convicted of fraud in epoch 0: as an auditor it said passed in ")
        assert convicted or why.startswith("it passes a false report, which was shown to test it; it is disp")


def test_who_isn_t_there_is_counted() -> None:
    """The convicted auditor isn't asked in the next epoch; nor is it paid."""
    first = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS, spec=TESTED, says=says(Verdict.PASSED))
    second = statement_of(1, lambda _: Verdict.PASSED, first, auditors=SEATS, spec=TESTED)
    check_statement(TESTED, second, first.carried())
    assert count_panels(SPEC, second).passed_over > 0
    assert ODD not in judged_by(second)


@pytest.mark.parametrize("full", [False, True])
def test_who_comes_after_two_opinions_isn_t_passed_over(full: bool) -> None:
    """Once two have said what decides nothing, the referee is asked, whoever was drawn before it."""
    statement = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS, says=lambda *_: Verdict.UNDECIDED)
    lines = [line for line in statement.audits if len(line.opinions) == 3]
    assert lines
    if not full:  # the first wasn't there
        lines = [line.model_copy(update={"opinions": line.opinions[1:]}) for line in lines]
    panels: Panels = count_panels(SPEC, statement.model_copy(update={"audits": tuple(lines)}))
    assert panels.passed_over == (0 if full else len(lines))


def test_an_opinion_that_nothing_explains_is_told() -> None:
    honest = statement_of(0, lambda _: Verdict.PASSED, auditors=SEATS)

    def robbed(line: AuditLine) -> AuditLine:
        opinions = tuple(opinion.model_copy(update={"units": "0"}) for opinion in line.opinions)
        return line.model_copy(update={"opinions": opinions})

    statement = honest.model_copy(update={"audits": tuple(map(robbed, honest.audits))})
    (unpaid,) = {unpaid.why for each in judged_by(statement).values() for unpaid in each.unpaid}
    assert unpaid.startswith("nothing says why: `commonweight audit`")


def test_a_provider_that_signed_two_results_is_told_so() -> None:
    twice = EquivocationLine(
        stage=1,
        node=NODE.node,
        unit=to_hex(mark("unit")),
        outputs=(to_hex(mark("one")), to_hex(mark("other"))),
        signatures=(to_hex(bytes(65)), to_hex(bytes(65))),
    )
    statement = statement_of(0, lambda _: Verdict.PASSED, equivocations=[twice])
    (unpaid,) = told(statement).unpaid
    why = f"epoch 0: it signed two results of unit {twice.unit}, {twice.outputs[0]} and {twice.outputs[1]}"
    assert (unpaid.span, unpaid.why) == ("rounds 0 to 5", f"convicted of fraud in {why}")
    assert "signed twice" in count_panels(SPEC, statement).fields()


def test_a_conviction_without_proof_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    statements, _, earlier = history_of(monkeypatch, 3, {5: Verdict.WITHHELD})
    slandered = statements[2].model_copy(
        update={
            "convicted": (NODE,),
            "rounds": tuple(
                sealed.model_copy(
                    update={"reports": tuple(line.model_copy(update={"units": "0"}) for line in sealed.reports)}
                )
                for sealed in statements[2].rounds
            ),
        }
    )
    (unpaid,) = told(slandered, earlier).unpaid
    assert unpaid.why == "convicted of fraud in epoch 2, whose statement has no proof of it"
