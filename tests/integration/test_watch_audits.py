"""The watcher against statements that lie about audits: each lie is challenged, and named."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from commonweight.rules.audits import NO_EVIDENCE, Audit, Kind, Verdict
from commonweight.rules.epoch import credited_receipt
from commonweight.rules.statement import AuditLine, Carried, Conviction, Statement, to_hex
from commonweight.watch.judge import Own, OwnReceipt
from tests.integration import epochs as world
from tests.integration.epochs import Epochs, challenges, watcher_of
from tools.build_vectors import beacon_chain, mark

epochs, told = world.epochs, world.told  # pytest finds fixtures by their names here

RATES = {"round_rate": "0.45", "microbatch_rate": "0.5", "data_rate": "0.3"}
WHOLE = Audit(1, 1, Kind.ROUND)
"""The beacon draws it: the only replay of a whole round of stage 1 in epoch 0. In epoch 1 that is one of round 4."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochs]:
    with Epochs(tmp_path_factory.mktemp("audited"), RATES) as epochs:
        yield epochs


def found(verdict: Verdict, audit: Audit = WHOLE) -> Callable[[Audit], Verdict]:
    """This verdict on one audit; all others pass."""
    return lambda each: verdict if each == audit else Verdict.PASSED


def verdict_on(statement: Statement, audit: Audit) -> AuditLine:
    (line,) = (line for line in statement.audits if line.audit == audit)
    return line


def changed(statement: Statement, audit: Audit, line: AuditLine | None) -> Sequence[AuditLine]:
    """The statement's verdicts, with another line about one audit, or none."""
    return [new for old in statement.audits if (new := line if old.audit == audit else old) is not None]


def stages_paid(statement: Statement) -> list[tuple[int, int]]:
    """Round and stage of what is paid."""
    return [(each.round, line.stage) for each in statement.rounds for line in each.reports if line.units != "0"]


@pytest.mark.parametrize(
    ("verdict", "paid"),
    [
        (Verdict.PASSED, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]),
        (Verdict.UNDECIDED, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]),
        (Verdict.WITHHELD, [(0, 0), (1, 0), (2, 0)]),
        (Verdict.FAILED, [(0, 0), (1, 0), (2, 0)]),
    ],
)
def test_honest_statements_pass_whatever_the_verdict(
    epochs: Epochs, tmp_path: Path, told: list[Any], verdict: Verdict, paid: list[tuple[int, int]]
) -> None:
    first = epochs.statement(0, verdict=found(verdict))
    assert {line.kind for line in first.audits} == {"round", "microbatch", "loss", "data"}
    assert stages_paid(first) == paid
    epochs.propose(first)
    epochs.finalize(0)
    second = epochs.statement(1, first)
    # What was withheld is outstanding until another whole round of stage 1 has passed.
    later = {Verdict.WITHHELD: [4, 5], Verdict.FAILED: []}.get(verdict, [3, 4, 5])
    assert [round_ for round_, stage in stages_paid(second) if stage == 1] == later
    epochs.propose(second)
    watcher_of(epochs, tmp_path).step()
    assert [name for name, _ in told] == ["epoch.checked"] * 2


def test_a_node_s_receipt_that_is_credited_and_not_paid_is_no_fault_by_itself(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    statement = epochs.statement(0, verdict=found(Verdict.WITHHELD))
    epochs.propose(statement)
    node, mine = epochs.address("node-1"), statement.rounds[1].reports[1]
    receipt = OwnReceipt(round=1, stage=1, generation=1, signature=mine.signature)
    watcher_of(epochs, tmp_path, own=lambda _: Own(node, frozenset({node}), [receipt])).step()
    assert (mine.units, [name for name, _ in told]) == ("0", ["epoch.checked"])


def acquitted_without_the_auditor(epochs: Epochs) -> Statement:
    failed = epochs.statement(0, verdict=found(Verdict.FAILED))
    (opinion,) = verdict_on(failed, WHOLE).opinions
    good = opinion.model_copy(update={"verdict": "passed", "evidence": to_hex(NO_EVIDENCE)})
    line = verdict_on(failed, WHOLE).model_copy(update={"verdict": "passed", "opinions": (good,)})
    return epochs.state(0, Carried(), failed.rounds, changed(failed, WHOLE, line))


def acquitted_by_the_auditor_and_not_paid(epochs: Epochs) -> Statement:
    failed = epochs.statement(0, verdict=found(Verdict.FAILED))
    line = epochs.verdict_line(WHOLE, Verdict.PASSED)
    return failed.model_copy(update={"audits": tuple(changed(failed, WHOLE, line))})


def convicted_without_evidence(epochs: Epochs) -> Statement:
    honest = epochs.statement(0)
    line = epochs.verdict_line(WHOLE, Verdict.FAILED)
    return epochs.state(0, Carried(), honest.rounds, changed(honest, WHOLE, line))


def audited_by_a_node(epochs: Epochs) -> Statement:
    return epochs.statement(0, auditor="node-1")


def with_an_audit_that_was_not_drawn(epochs: Epochs) -> Statement:
    honest = epochs.statement(0)
    slipped_in = epochs.verdict_line(Audit(0, 1, Kind.ROUND), Verdict.PASSED)
    audits = sorted([*honest.audits, slipped_in], key=lambda line: line.audit.order)
    return epochs.state(0, Carried(), honest.rounds, audits)


def with_one_more_at_the_end(epochs: Epochs) -> Statement:
    honest = epochs.statement(0)
    slipped_in = epochs.verdict_line(Audit(2, 1, Kind.ROUND), Verdict.PASSED)
    return epochs.state(0, Carried(), honest.rounds, [*honest.audits, slipped_in])


def without_a_drawn_one(epochs: Epochs) -> Statement:
    withheld = epochs.statement(0, verdict=found(Verdict.WITHHELD))
    return epochs.state(0, Carried(), withheld.rounds, changed(withheld, WHOLE, None))


def paid_what_was_withheld(epochs: Epochs) -> Statement:
    withheld = epochs.statement(0, verdict=found(Verdict.WITHHELD))
    return epochs.statement(0).model_copy(update={"audits": withheld.audits})


def without_the_conviction(epochs: Epochs) -> Statement:
    return epochs.statement(0, verdict=found(Verdict.FAILED)).model_copy(update={"convicted": ()})


def with_a_value_of_its_own(epochs: Epochs) -> Statement:
    """Chosen once the reports were in."""
    honest = epochs.statement(0)
    sealed = honest.rounds[2].model_copy(update={"beacon": to_hex(mark("chosen"))})
    return honest.model_copy(update={"rounds": (*honest.rounds[:2], sealed)})


def signed_for_another_tip(epochs: Epochs) -> Statement:
    honest = epochs.statement(0)
    (sealed, *rest) = honest.rounds
    line = sealed.reports[0]
    signed = epochs.signing("node-0")(credited_receipt(epochs.model.model_id, 0, line, mark("another tip")))
    reports = (line.model_copy(update={"signature": to_hex(signed)}), *sealed.reports[1:])
    return honest.model_copy(update={"rounds": (sealed.model_copy(update={"reports": reports}), *rest)})


LIES: dict[Callable[[Epochs], Statement], str] = {
    acquitted_without_the_auditor: "that the round audit of round 1, stage 1, replica 0 passed is the opinion of 0x",
    acquitted_by_the_auditor_and_not_paid: "on stage 1 with 0 units; by the spec and the audits it is worth",
    convicted_without_evidence: "Fraud has evidence, and nothing else has",
    audited_by_a_node: "is no referee, and gave its opinion on the data audit of round 0, stage 0, replica 0,",
    with_an_audit_that_was_not_drawn: "lists the round audit of round 0, stage 1, replica 0; next to be drawn was the",
    with_one_more_at_the_end: "its beacon values draw",
    without_a_drawn_one: "next to be drawn was the round audit of round 1, stage 1, replica 0",
    paid_what_was_withheld: "by the spec and the audits it is worth 0",
    without_the_conviction: "convicted is ()",
    with_a_value_of_its_own: "Round 2 has the beacon value",
    signed_for_another_tip: "on stage 0; its report is signed by",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_audits_is_challenged(
    epochs: Epochs, tmp_path: Path, told: list[Any], lie: Callable[[Epochs], Statement]
) -> None:
    epochs.propose(lie(epochs))
    watcher_of(epochs, tmp_path).step()
    assert LIES[lie] in told[0][1]["message"]
    assert [name for name, _ in told] == ["epoch.disputed", "epoch.challenged"]
    assert len(challenges(epochs)) == 1


def test_a_tip_that_the_proposer_never_committed_is_challenged(epochs: Epochs, tmp_path: Path, told: list[Any]) -> None:
    by_another = type(epochs.settlement)(epochs.chain, epochs.model.settlement, epochs.sender("node-0"))
    by_another.commit_beacon(0, beacon_chain(epochs.spec, 0)[0])
    epochs.propose(epochs.statement(0), commit=False)
    watcher_of(epochs, tmp_path).step()
    assert "on chain its proposer has committed to none" in told[0][1]["message"]
    assert len(challenges(epochs)) == 1


def test_a_tip_that_is_not_the_committed_one_is_challenged(epochs: Epochs, tmp_path: Path, told: list[Any]) -> None:
    tip = mark("another tip")
    epochs.settlement.commit_beacon(0, tip)
    epochs.propose(epochs.statement(0))
    watcher_of(epochs, tmp_path).step()
    assert f"beacon tip is {to_hex(beacon_chain(epochs.spec, 0)[0])}; on chain it is {to_hex(tip)}" in str(told[0])
    assert len(challenges(epochs)) == 1


@pytest.mark.parametrize("is_paid", [True, False])
def test_a_conviction_that_the_next_epoch_forgets_is_challenged(
    epochs: Epochs, tmp_path: Path, told: list[Any], is_paid: bool
) -> None:
    first = epochs.statement(0, verdict=found(Verdict.FAILED))
    assert first.convicted == (Conviction(stage=1, node=epochs.address("node-1")),)
    epochs.propose(first)
    epochs.finalize(0)
    forgotten = first.model_copy(update={"convicted": ()})
    second = epochs.statement(1, forgotten if is_paid else first)
    epochs.propose(second.model_copy(update={"convicted": ()}))
    watcher_of(epochs, tmp_path).step()
    assert [name for name, _ in told] == ["epoch.checked", "epoch.disputed", "epoch.challenged"]
    assert ("on stage 1 with" if is_paid else "convicted is ()") in told[1][1]["message"]


def test_a_false_verdict_that_its_auditor_signed_is_taken_at_its_word(
    epochs: Epochs, tmp_path: Path, told: list[Any]
) -> None:
    """Only who replays the work can tell; two verdicts by one key about one audit would cost a stake."""
    failed = epochs.statement(0, verdict=found(Verdict.FAILED))
    line = epochs.verdict_line(WHOLE, Verdict.PASSED)
    epochs.propose(epochs.state(0, Carried(), failed.rounds, changed(failed, WHOLE, line)))
    watcher_of(epochs, tmp_path).step()
    assert [name for name, _ in told] == ["epoch.checked"]
