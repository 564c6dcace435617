"""Why a provider's rounds are unpaid, as its owner is told."""

from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from eth_hash.auto import keccak

from commonweight.cli.answers import count_answers
from commonweight.cli.audited import Audited, Earlier, audited_work
from commonweight.cli.place import Place
from commonweight.cli.statements import Published
from commonweight.errors import StatementUnavailable
from commonweight.identity import NodeIdentity
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import credit_report, make_statement
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AnswerLine, AuditorSeat, Carried, Conviction, EquivocationLine, Statement
from tools.build_vectors import (
    SETTLEMENT,
    address,
    answer_line,
    changed,
    honest_answer,
    honest_reports,
    judged,
    mark,
    seal,
    share,
)

SPEC = changed(
    economics={"rounds_per_epoch": 6}, verification={"round_rate": "1", "data_rate": "0", "known_bad_rate": "0"}
)
"""The round of every stage is replayed, every time."""
MODEL_ID = keccak(b"model")
AUDITOR = NodeIdentity(keccak(b"auditor"))
ANSWERS = changed(
    economics={"rounds_per_epoch": 6},
    verification={"round_rate": "0", "microbatch_rate": "0", "data_rate": "0", "answer_rate": "1"},
)
"""There, each stage's part of every answer is."""
TESTED = changed(
    economics={"rounds_per_epoch": 6}, verification={"round_rate": "1", "data_rate": "0", "known_bad_rate": "1"}
)
"""There, each first auditor with a seat is shown a false report."""
NODE = Conviction(stage=1, node=address("node 1"))


SEATED = {key.address: key for key in (NodeIdentity(keccak(b"seat 0")), NodeIdentity(keccak(b"seat 1")))}
SEATS = tuple(AuditorSeat(stage=1, owner=owner) for owner in sorted(SEATED))
"""Both may audit stage 1."""
Says = Callable[[Audit, str, bool], Verdict | None]


def signing(key: NodeIdentity) -> Callable[[Receipt], bytes]:
    return lambda receipt: key.sign_digest(receipt.digest(Domain(31337, SETTLEMENT)))


def statement_of(
    epoch: int,
    verdict: Callable[[Audit], Verdict],
    before: Statement | None = None,
    *,
    auditors: Sequence[AuditorSeat] = (),
    says: Says = lambda *_: None,
    equivocations: Sequence[EquivocationLine] = (),
    spec: ModelSpec = SPEC,
    answered: Collection[int] = (),
    others: Collection[str] = (),
) -> Statement:
    """Audited by those of `auditors` who aren't convicted, all of whom answer; without, by the referee. With each of
    the rounds `answered` an answer of 7 tokens is sealed. Stage 1 has the replicas `others`, too; those of its replicas
    take turns with answers.
    """
    nodes = [[address(f"node {stage}")] for stage in range(SPEC.stages)]
    nodes[1] = sorted([*nodes[1], *others])
    loads = [share(SPEC.training.microbatches_per_round, len(of_stage)) for of_stage in nodes]
    carried = before.carried() if before else Carried()
    rounds = [
        seal(
            SPEC,
            number,
            [
                credit_report(
                    SPEC,
                    report,
                    node=node,
                    owner=node,
                    account=address("owner"),
                    generation=1,
                    signature=bytes(65),
                )
                for node, report in zip(
                    (node for of_stage in nodes for node in of_stage),
                    honest_reports(SPEC.stages, SPEC.training.microbatches_per_round, number, loads),
                    strict=True,
                )
            ],
            [answer_in(number, number % len(nodes[1]))] if number in answered else [],
        )
        for number in range(6 * epoch, 6 * epoch + 6)
    ]
    return make_statement(
        spec,
        chain_id=31337,
        settlement=SETTLEMENT,
        model_id=MODEL_ID,
        epoch=epoch,
        beacon_seed=mark("seed", epoch),
        auditors=auditors,
        rounds=rounds,
        audits=judged(
            spec,
            rounds,
            MODEL_ID,
            auditor=AUDITOR.address,
            sign=signing(AUDITOR),
            verdict=verdict,
            auditors=auditors,
            seated={owner: signing(key) for owner, key in SEATED.items()},
            says=says,
            before=carried,
        ),
        equivocations=equivocations,
        operator_earned=0,
        before=carried,
        accumulator_before=0,
    )


def answer_in(round_: int, replica: int = 0) -> AnswerLine:
    return answer_line(
        MODEL_ID,
        honest_answer(SPEC.stages, 6, mark("session", round_)[:16], 4, 6),
        completion_tokens=3,
        gateway=address("gateway"),
        served=lambda _: bytes(65),
        signs=[lambda _: bytes(65)] * SPEC.stages,
        replicas=[0, replica, 0],
    )


def told(statement: Statement, earlier: Earlier | None = None, provider: Conviction = NODE) -> Audited:
    published = Published(cast(Any, None), statement)
    return audited_work(published, provider, earlier or Earlier(cast(Place, None)))


def test_all_passed() -> None:
    found = told(statement_of(0, lambda _: Verdict.PASSED))
    assert (found.rounds, found.audited_rounds, found.unpaid) == ((0, 1, 2, 3, 4, 5), 6, ())
    assert found.counts == {("round", "passed"): 6}


def test_what_was_withheld_voids_a_span_up_to_the_audits_that_passed() -> None:
    withheld = {2, 3}
    found = told(statement_of(0, lambda audit: Verdict.WITHHELD if audit.round in withheld else Verdict.PASSED))
    (unpaid,) = found.unpaid
    assert (unpaid.span, unpaid.rounds) == ("rounds 2 to 3", (2, 3))
    assert unpaid.why == "what the round audit of round 2, stage 1, replica 0 takes was withheld, and 1 more like it"


@pytest.mark.parametrize("spec", [SPEC, ANSWERS])
def test_each_replica_is_told_of_its_own_work_and_audits(spec: ModelSpec) -> None:
    """Of two of stage 1, who both report each round, the second withholds all that is drawn of it."""
    other = Conviction(stage=1, node=address("another node"))
    providers = sorted([NODE, other], key=lambda each: each.node)
    statement = statement_of(
        1,
        lambda audit: Verdict.WITHHELD if audit.replica else Verdict.PASSED,
        spec=spec,
        answered=range(6, 12),
        others=[other.node],
    )
    check_statement(spec, statement, Carried())
    first, second = (told(statement, provider=each) for each in providers)
    assert first.rounds == second.rounds == tuple(range(6, 12))
    assert (first.unpaid, first.unpaid_answers) == ((), ())
    assert (first.answers, second.answers, first.answer_tokens, second.answer_tokens) == (3, 3, 21, 21)
    kind, count = ("round", 6) if spec is SPEC else ("answer", 3)
    assert first.counts[kind, "passed"] == second.counts[kind, "withheld"] == count
    (unpaid,) = second.unpaid if spec is SPEC else second.unpaid_answers
    assert unpaid.rounds == (tuple(range(6, 12)) if spec is SPEC else (7, 9, 11))
    assert "stage 1, replica 1" in unpaid.why


def test_a_statement_that_names_a_replica_that_there_isn_t_is_told_all_the_same() -> None:
    """`commonweight audit` finds what is wrong with it."""
    honest = statement_of(1, lambda _: Verdict.PASSED, answered=[7], others=[address("another node")])
    audits = [line.model_copy(update={"replica": 9}) for line in honest.audits]
    found = told(honest.model_copy(update={"audits": tuple(audits)}))
    assert (found.rounds, found.audits) == (tuple(range(6, 12)), ())


def test_each_span_has_its_own_reason() -> None:
    verdicts = {0: Verdict.WITHHELD, 1: Verdict.UNDECIDED, 5: Verdict.WITHHELD}
    found = told(statement_of(0, lambda audit: verdicts.get(audit.round, Verdict.PASSED)))
    assert [unpaid.span for unpaid in found.unpaid] == ["rounds 0 to 1", "round 5"]


def answering(*verdicts: Verdict, first: int = 6, before: Statement | None = None) -> Statement:
    """Epoch 1, or the one that begins with `first`: with each of the first rounds an answer, whose audits come out so
    at stage 1, elsewhere well.
    """
    by_round = dict(enumerate(verdicts, first))
    return statement_of(
        first // 6,
        lambda audit: by_round[audit.round] if audit.stage == 1 else Verdict.PASSED,
        before,
        spec=ANSWERS,
        answered=by_round,
    )


PASSED, WITHHELD, UNDECIDED = Verdict.PASSED, Verdict.WITHHELD, Verdict.UNDECIDED


def test_answers_whose_trace_was_withheld_are_unpaid_and_the_rounds_aren_t() -> None:
    statement = answering(PASSED, UNDECIDED, WITHHELD, PASSED, PASSED)
    found = told(statement)
    assert (found.answers, found.answer_tokens, found.unpaid) == (5, 35, ())
    assert found.counts == {("answer", "passed"): 3, ("answer", "withheld"): 1, ("answer", "undecided"): 1}
    (unpaid,) = found.unpaid_answers
    assert (unpaid.span, unpaid.rounds) == ("rounds 7 to 8", (7, 8))
    assert unpaid.why == "what the answer audit of round 8, stage 1, replica 0, answer 0 takes was withheld"
    counted = count_answers(statement)
    assert (counted.sealed, counted.tokens, counted.unpaid) == (5, 35, {1: 14})
    assert counted.fields()["unpaid answers"] == ["stage 1: 14 of 35 tokens"]


def test_answers_unpaid_since_an_earlier_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    before = answering(PASSED, WITHHELD)
    monkeypatch.setattr("commonweight.cli.audited.find_statement", lambda *_: Published(cast(Any, None), before))
    place = SimpleNamespace(settlement=SimpleNamespace(epoch=lambda number: SimpleNamespace(epoch=number)))
    found = told(answering(UNDECIDED, PASSED, first=12, before=before), Earlier(cast(Place, place)))
    (unpaid,) = found.unpaid_answers
    assert unpaid.rounds == (12,)
    assert unpaid.why.startswith("an answer audit is outstanding since an earlier epoch")


def test_a_false_answer_costs_all_work_of_the_stage() -> None:
    statement = answering(PASSED, Verdict.FAILED)
    found = told(statement, cast(Earlier, SimpleNamespace(conviction=lambda *_: "convicted")))
    assert [(unpaid.span, unpaid.why) for unpaid in found.unpaid] == [("rounds 6 to 11", "convicted")]
    assert [(unpaid.span, unpaid.why) for unpaid in found.unpaid_answers] == [("rounds 6 to 7", "convicted")]
    assert count_answers(statement).unpaid == {1: 14}


def test_units_that_no_audit_explains_are_told() -> None:
    honest = statement_of(0, lambda _: Verdict.PASSED)
    robbed = [
        sealed.model_copy(update={"reports": tuple(line.model_copy(update={"units": "0"}) for line in sealed.reports)})
        for sealed in honest.rounds
    ]
    (unpaid,) = told(honest.model_copy(update={"rounds": tuple(robbed)})).unpaid
    assert unpaid.span == "rounds 0 to 5"
    assert unpaid.why.startswith("no audit says why")


History = tuple[list[Any], list[int], Earlier]
"""Statements, which of them were fetched, and what fetches them."""


@pytest.fixture
def convicted(monkeypatch: pytest.MonkeyPatch) -> History:
    """Nine epochs, convicted in epoch 3."""
    return history_of(monkeypatch, 9, {20: Verdict.FAILED})


def history_of(monkeypatch: pytest.MonkeyPatch, epochs: int, verdicts: dict[int, Verdict]) -> History:
    """`verdicts`: by round; the other audits passed."""
    statements: list[Any] = []
    for epoch in range(epochs):
        last = statements[-1] if statements else None
        statements.append(statement_of(epoch, lambda audit: verdicts.get(audit.round, Verdict.PASSED), last))
    fetched: list[int] = []

    def find(_: Place, record: Any) -> Published:
        fetched.append(record.epoch)
        if statements[record.epoch] is None:
            raise StatementUnavailable("Nobody has it.")
        return Published(record, statements[record.epoch])

    monkeypatch.setattr("commonweight.cli.audited.find_statement", find)
    place = SimpleNamespace(settlement=SimpleNamespace(epoch=lambda number: SimpleNamespace(epoch=number)))
    return statements, fetched, Earlier(cast(Place, place))


def test_the_epoch_of_a_conviction_is_found_in_few_steps_and_once(
    convicted: History,
) -> None:
    statements, fetched, earlier = convicted
    (line,) = (line for line in statements[3].audits if line.verdict == "failed" and line.stage == 1)
    audit = "the round audit of round 20, stage 1, replica 0"
    why = f"convicted of fraud in epoch 3: {audit} failed, evidence {line.evidence}"
    for epoch in (8, 3, 4):
        (unpaid,) = told(statements[epoch], earlier).unpaid
        assert (unpaid.span, unpaid.why) == (f"rounds {6 * epoch} to {6 * epoch + 5}", why)
    assert len(fetched) <= 5
    assert told(statements[2], earlier).unpaid == ()


def test_a_conviction_whose_statement_nobody_has(convicted: History) -> None:
    statements, _, earlier = convicted
    statements[4] = None
    (unpaid,) = told(statements[8], earlier).unpaid
    assert "in an epoch whose statement can't be had: Nobody has it." in unpaid.why


def test_what_is_outstanding_since_an_earlier_epoch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Withheld in the last round of epoch 0, undecided in the first two of epoch 1, and withheld later on."""
    verdicts = {5: Verdict.WITHHELD, 6: Verdict.UNDECIDED, 7: Verdict.UNDECIDED, 10: Verdict.WITHHELD}
    statements, fetched, earlier = history_of(monkeypatch, 3, verdicts)
    since, later = told(statements[1], earlier).unpaid
    assert since.span == "rounds 6 to 7"
    assert since.why.startswith("a round audit is outstanding since an earlier epoch, in which what it takes was withh")
    assert later.span == "round 10"
    assert later.why == "what the round audit of round 10, stage 1, replica 0 takes was withheld"
    assert fetched == [0]
    assert told(statements[0], earlier).unpaid[0].span == "round 5"
    assert told(statements[2], earlier).unpaid == ()
    assert fetched == [0], "nobody is asked where the epoch's own statement says it all"


def test_what_is_outstanding_since_an_epoch_whose_statement_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    statements, _, earlier = history_of(monkeypatch, 2, {5: Verdict.WITHHELD, 6: Verdict.UNDECIDED})
    statements[0] = None
    (unpaid,) = told(statements[1], earlier).unpaid
    assert unpaid.why.endswith("says why, and the statement before it can't be had: Nobody has it.")
