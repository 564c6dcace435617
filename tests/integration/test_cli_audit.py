"""`audit` on a real local chain: what it says of honest epochs, and what it names of wrong ones."""

from collections.abc import Callable
from functools import partial

import pytest

from commonweight.errors import SpecError, StatementMismatch, StatementUnavailable
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.epoch import report_units
from commonweight.rules.statement import Statement
from tests.integration import cli_world
from tests.integration.cli_world import ALICE, ANSWER_TOKENS, BOB, NODE, USD, World, finalize, propose, statement_of
from tests.integration.epochs import with_one_unit_more
from tools.build_vectors import mark

world = cli_world.world  # pytest finds fixtures by their names here


def fraud_in_stage_1(audit: Audit) -> Verdict:
    return Verdict.FAILED if audit.stage == 1 else Verdict.PASSED


def test_all_epochs_and_one(world: World) -> None:
    propose(world, statement_of(world, 2))
    text = world.run("audit").stdout.splitlines()
    assert text[3] == "epoch 1: 1 rounds, 4 signed reports, 4 audits, 2 accounts, all as stated"
    assert text[4].split(maxsplit=1) == ["audits", "round: 4 passed"]
    assert text[5].split(maxsplit=1) == [
        "auditors",
        "4 seats: 0 opinions by their holders, 4 by the referee; 0 passed over, 0 overruled",
    ]
    tokens = f"{2 * ANSWER_TOKENS:,}"
    sealed = f"2 sealed, each signed by its gateway and all stages: {tokens} tokens"
    assert text[6].split(maxsplit=1) == ["answers", sealed]
    assert text[7].endswith("all as stated (pending)")
    only = world.json("audit", "1", "--spec", str(world.dir / "spec.json"))["verified"]
    assert [(each["epoch"], each["final"], each["reports"], each["unpaid_reports"]) for each in only] == [
        (1, True, 4, 0)
    ]


def test_what_is_not_paid(world: World) -> None:
    propose(world, statement_of(world, 2, verdict=fraud_in_stage_1))
    finalize(world)
    propose(world, statement_of(world, 3))
    (second, third) = (world.json("audit", epoch)["verified"][0] for epoch in ("2", "3"))
    assert second["audits"] == [
        {"kind": "round", "verdict": "failed", "count": 1},
        {"kind": "round", "verdict": "passed", "count": 3},
    ]
    microbatches = world.spec.training.microbatches_per_round
    for each in (second, third):  # once convicted, always unpaid
        assert (each["unpaid_reports"], each["unpaid_units"]) == (1, str(report_units(world.spec, 1, microbatches)))
        assert each["convicted"] == [{"stage": 1, "node": NODE.address}]
    text = world.run("audit", "3").stdout
    assert "unpaid     1 reports, " in text
    assert f"convicted  stage 1, node {NODE.address}" in text


def test_answers_of_who_is_convicted_are_not_paid(world: World) -> None:
    propose(world, statement_of(world, 2, answers=3, verdict=fraud_in_stage_1))
    (shown,) = world.json("audit", "2")["verified"]
    tokens = 3 * ANSWER_TOKENS
    assert shown["answers"] == {"sealed": 3, "tokens": tokens, "unpaid": [{"stage": 1, "tokens": tokens}]}
    assert f"unpaid answers  stage 1: {tokens} of {tokens} tokens" in " ".join(world.run("audit").stdout.split(" "))
    (epoch,) = world.json("earnings", BOB.address, "--epoch", "2", "--explain")["epochs"]
    assert [(each["stage"], each["tokens"], each["holds"]) for each in epoch["sources"]["answers"]] == [
        (stage, ANSWER_TOKENS, True) for stage in (1, 3) for _ in range(3)
    ]
    (unpaid,) = epoch["sources"]["unpaid_answers"]
    assert (unpaid["stage"], unpaid["rounds"]) == (1, [2])
    assert unpaid["why"].startswith(
        "convicted of fraud in epoch 2: the round audit of round 2, stage 1, replica 0 failed"
    )
    text = world.run("earnings", BOB.address, "--epoch", "2", "--explain").stdout
    assert f"stage 3, node {NODE.address}: 3 sealed, {tokens} tokens" in text
    assert "6 parts credited to the account, each signed by its node" in text
    assert f"stage 1, node {NODE.address}: answers of round 2, convicted of fraud" in text


def test_what_is_outstanding(world: World) -> None:
    """Withheld in one epoch, and not decided in the next: both are unpaid, and both say so."""
    for epoch, verdict in ((2, Verdict.WITHHELD), (3, Verdict.UNDECIDED)):
        propose(world, statement_of(world, epoch, verdict=partial(in_stage_1, verdict)))
        (shown,) = world.json("audit", str(epoch))["verified"]
        assert shown["outstanding"] == [{"stage": 1, "node": NODE.address, "kind": "round"}]
        assert (shown["unpaid_reports"], shown["convicted"]) == (1, [])
        assert f"outstanding  stage 1, node {NODE.address}: a withheld round audit" in world.run("audit").stdout
        finalize(world)
    propose(world, statement_of(world, 4))
    assert "outstanding" not in world.run("audit", "4").stdout
    text = world.run("earnings", BOB.address, "--epoch", "3", "--explain").stdout
    assert f"stage 1, node {NODE.address}: round 3, a round audit is outstanding since an earlier epoch" in text


def in_stage_1(verdict: Verdict, audit: Audit) -> Verdict:
    return verdict if audit.stage == 1 else Verdict.PASSED


def signed_by_nobody(statement: Statement) -> Statement:
    (sealed,) = statement.rounds
    report = sealed.reports[2].model_copy(update={"signature": sealed.reports[1].signature})
    reports = (*sealed.reports[:2], report, *sealed.reports[3:])
    return statement.model_copy(update={"rounds": (sealed.model_copy(update={"reports": reports}),)})


def sold_by_nobody(statement: Statement) -> Statement:
    (sealed,) = statement.rounds
    answer = sealed.answers[0].model_copy(update={"gateway": BOB.address})
    sealed = sealed.model_copy(update={"answers": (answer, *sealed.answers[1:])})
    return statement.model_copy(update={"rounds": (sealed,)})


def undecided_without_the_referee(statement: Statement) -> Statement:
    first, *rest = statement.audits
    (opinion,) = first.opinions
    opinions = (opinion.model_copy(update={"verdict": "undecided"}),)
    changed = first.model_copy(update={"verdict": "undecided", "opinions": opinions})
    return statement.model_copy(update={"audits": (changed, *rest)})


LIES: dict[str, Callable[[Statement], Statement]] = {
    "a line reads": lambda honest: with_one_unit_more(honest, ALICE.address),
    "Round 2 credits node 0x[0-9a-fA-F]* on stage 2": signed_by_nobody,
    f"gateway {BOB.address} is to have delivered": sold_by_nobody,
    "accumulator of the epoch before is 1": lambda honest: honest.model_copy(update={"accumulator_before": "1"}),
    "divides 21000000 among operators": lambda honest: honest.model_copy(update={"operator_pool": str(21 * USD)}),
    "that the round audit of round 2, stage 0, replica 0 undecided": undecided_without_the_referee,
    f"next to be drawn was {Audit(2, 0, Kind.ROUND)}": lambda honest: honest.model_copy(
        update={"audits": honest.audits[1:]}
    ),
}


@pytest.mark.parametrize("named", LIES)
def test_the_first_fault_is_named(world: World, named: str) -> None:
    propose(world, LIES[named](statement_of(world, 2, answers=1)))
    with pytest.raises(StatementMismatch, match=named):
        world.run("audit")
    with pytest.raises(StatementMismatch, match=named):
        world.run("audit", "2")
    assert len(world.json("audit", "1")["verified"]) == 1


def test_a_conviction_that_is_forgotten(world: World) -> None:
    propose(world, statement_of(world, 2, verdict=fraud_in_stage_1))
    finalize(world)
    convicted, world.statements[2] = world.statements[2], world.statements[2].model_copy(update={"convicted": ()})
    forgetful = statement_of(world, 3)
    world.statements[2] = convicted
    propose(world, forgetful)
    with pytest.raises(StatementMismatch, match=r"Round 3 credits .* on stage 1 with [1-9][0-9]* units; .* is worth 0"):
        world.run("audit", "3")


def test_a_beacon_that_was_not_committed(world: World) -> None:
    world.settlement.commit_beacon(2, mark("another tip"))
    propose(world, statement_of(world, 2))
    with pytest.raises(StatementMismatch, match=f"on chain it is 0x{mark('another tip').hex()}"):
        world.run("audit", "2")


def test_a_root_that_isn_t_the_statement_s(world: World) -> None:
    propose(world, statement_of(world, 2), root=bytes(31) + b"\1")
    with pytest.raises(StatementMismatch, match="don't give the root"):
        world.run("audit")


def test_a_statement_that_nobody_serves(world: World) -> None:
    world.statement_file(0).unlink()
    with pytest.raises(StatementUnavailable):
        world.run("audit")


def test_an_epoch_that_isn_t(world: World) -> None:
    with pytest.raises(StatementMismatch, match="Epoch 2 is neither pending nor final"):
        world.run("audit", "2")


def test_the_spec_must_be_the_registered_one(world: World) -> None:
    text = (world.dir / "spec.json").read_text()
    (world.dir / "other.json").write_text(text.replace('"seed":1', '"seed":2'))
    with pytest.raises(SpecError, match="the one registered as"):
        world.run("audit", "--spec", str(world.dir / "other.json"))
