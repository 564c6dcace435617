"""`earnings` on a real local chain: every number with its source, every zero with its reason."""

import pytest

from commonweight.errors import ConfigError, StatementUnavailable
from commonweight.rules.audits import Audit, Verdict
from commonweight.rules.merkle import verify_proof
from commonweight.rules.statement import Conviction
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    ALICE_AND_BOB,
    ANSWER_TOKENS,
    ARBITRATION_S,
    AUDITORS,
    BOB,
    CAROL,
    NODE,
    SEAT_STAKE,
    STRANGER,
    World,
    account,
    challenge,
    finalize,
    pay,
    propose,
    serving_earned,
    statement_of,
)

world, audited = cli_world.world, cli_world.audited  # pytest finds fixtures by their names here


def test_from_work_to_revenue(world: World) -> None:
    found = world.json("earnings", BOB.address)
    assert found["nodes"] == [BOB.address, NODE.address]
    epoch = found["epochs"][1]
    line = next(line for line in world.statements[1].accounts if line.account == BOB.address)
    assert [(work["stage"], work["node"], work["rounds"]) for work in epoch["work"]] == [
        (1, NODE.address, 1),
        (3, NODE.address, 1),
    ]
    assert (epoch["units"], epoch["shares"]) == (line.units, line.shares)
    assert epoch["served_tokens"] == 2 * 2 * ANSWER_TOKENS  # of two answers, through two stages
    assert epoch["serving_revenue"] == str(serving_earned(world, BOB))
    assert (epoch["status"], epoch["claimed"], epoch["why_nothing"]) == ("final", False, None)
    due = world.json("claim", BOB.address, "--dry-run")
    assert (epoch["shares"], epoch["revenue"]) == (due["shares"], due["revenue"])


def test_one_s_own_account_is_that_of_the_key(world: World) -> None:
    assert world.json("earnings", "--key", str(world.dir / "bob.json")) == world.json("earnings", BOB.address)
    assert "yours" in world.run("seat", "list", "--key", str(world.dir / "bob.json")).stdout
    with pytest.raises(ConfigError, match="whose earnings"):
        world.run("earnings")


def test_what_is_claimed_and_what_all_epochs_bring(world: World) -> None:
    world.run("claim", ALICE.address, *pay(world))
    propose(world, statement_of(world, 2))
    finalize(world)
    epochs = world.json("earnings", ALICE.address)["epochs"]
    assert [(each["status"], each["claimed"]) for each in epochs] == [
        ("final", True),
        ("final", True),
        ("final", False),
        ("open", False),
    ]
    line = next(line for line in world.statements[2].accounts if line.account == ALICE.address)
    assert sum(int(each["shares"]) for each in epochs) == int(line.cumulative_shares)
    assert sum(int(each["serving_revenue"]) for each in epochs) == int(line.operator_revenue)
    text = world.run("earnings", ALICE.address).stdout
    assert "  claimed  " in text
    assert "claimable" in text


def test_each_step_has_its_source(world: World) -> None:
    world.run("claim", BOB.address, *pay(world))
    world.run("revenue", "withdraw", BOB.address, *pay(world))
    (epoch,) = world.json("earnings", BOB.address, "--epoch", "1", "--explain")["epochs"]
    sources = epoch["sources"]
    assert [(each["stage"], each["signer"], each["holds"]) for each in sources["receipts"]] == [
        (1, NODE.address, True),
        (3, NODE.address, True),
    ]
    statement = world.statements[1]
    assert sources["statement"] == f"0x{statement.hash.hex()}"
    proof = sources["proof"]
    assert (statement.accounts[proof["line"]].account, proof["root"], proof["holds"]) == (
        BOB.address,
        statement.root,
        True,
    )
    siblings = [bytes.fromhex(each[2:]) for each in proof["siblings"]]
    assert verify_proof(bytes.fromhex(statement.root[2:]), bytes.fromhex(proof["leaf"][2:]), siblings)
    transactions = [sources[name] for name in ("proposed_in", "finalized_in", "claimed_in")]
    transactions.append(sources["serving_payments"][0]["transaction"])
    assert all(world.chain.receipt(each) is not None for each in transactions)
    assert len(set(transactions)) == 4
    text = world.run("earnings", BOB.address, "--epoch", "1", "--explain").stdout
    for said in (*transactions, "2 receipts in all, each signed by its node", "it leads to the root", proof["leaf"]):
        assert said in text


def test_the_audits_that_touched_the_work(world: World) -> None:
    def withheld(audit: Audit) -> Verdict:
        return Verdict.WITHHELD if audit.stage == 3 else Verdict.PASSED

    propose(world, statement_of(world, 2, verdict=withheld))
    (epoch,) = world.json("earnings", BOB.address, "--epoch", "2", "--explain")["epochs"]
    assert [(work["stage"], work["rounds"], work["unpaid_rounds"]) for work in epoch["work"]] == [(1, 1, 0), (3, 1, 1)]
    audits = [(each["stage"], each["kind"], each["verdict"]) for each in epoch["sources"]["audits"]]
    assert audits == [(1, "round", "passed"), (3, "round", "withheld")]
    why = "what the round audit of round 2, stage 3, replica 0 takes was withheld"
    assert epoch["sources"]["unpaid"] == [{"stage": 3, "node": NODE.address, "rounds": [2], "why": why}]
    assert int(epoch["shares"]) > 0
    text = world.run("earnings", BOB.address, "--epoch", "2", "--explain").stdout
    assert "2, 1 unpaid" in text
    assert f"stage 1, node {NODE.address}: 1 of 1 rounds; round: 1 passed" in text
    assert f"stage 3, node {NODE.address}: round 2, {why}" in text


def test_a_forged_receipt_is_seen(world: World) -> None:
    statement = statement_of(world, 2)
    (sealed,) = statement.rounds
    report = sealed.reports[1].model_copy(update={"signature": sealed.reports[0].signature})
    forged = sealed.model_copy(update={"reports": (sealed.reports[0], report, *sealed.reports[2:])})
    propose(world, statement.model_copy(update={"rounds": (forged,)}))
    text = world.run("earnings", BOB.address, "--epoch", "2", "--explain").stdout
    assert "SIGNED BY 0x" in text
    assert "2 receipts in all, 1 NOT SIGNED by the node that is credited" in text


def test_what_an_auditor_earns(audited: World) -> None:
    """Epoch by epoch, until each has given an opinion."""
    for epoch in range(2, 7):
        propose(audited, statement_of(audited, epoch, seated=AUDITORS))
        finalize(audited)
    for key in AUDITORS:
        epochs = audited.json("earnings", key.address, "--explain")["epochs"][2:7]
        assert any(each["opinions"] for each in epochs)
        for each, statement in zip(epochs, audited.statements[2:], strict=True):
            units = next((line.units for line in statement.accounts if line.account == key.address), "0")
            assert each["units"] == each["audited_units"] == units
            assert sum(int(said["units"]) for said in each["opinions"]) == int(each["units"])
            assert [said["auditor"] for said in each["sources"]["opinions"]] == [key.address] * sum(
                said["opinions"] for said in each["opinions"]
            )
            assert all(said["holds"] and said["standing"] == "paid" for said in each["sources"]["opinions"])
            assert (each["shares"] != "0") == bool(each["opinions"])
        some = next(each for each in epochs if each["opinions"])
        text = audited.run("earnings", key.address, "--epoch", str(some["epoch"]), "--explain").stdout
        assert "opinions in all, each signed by its auditor" in text
        assert f"0 by training, {int(some['units']):,} by audits" in text


def test_why_an_auditor_earns_nothing(audited: World) -> None:
    """It passes whatever it is shown, until it is shown what is known to be bad, and convicted in that stage."""
    epoch, carol = 2, CAROL.address

    def waves(_: Audit, owner: str, __: bool) -> Verdict | None:
        return Verdict.PASSED if owner == carol else None

    while carol not in [each.node for each in audited.statements[-1].convicted]:
        assert epoch < 12, "of ten epochs' audits half are tested"
        propose(audited, statement_of(audited, epoch, seated=AUDITORS, says=waves))
        finalize(audited)
        epoch += 1
    (found,) = audited.json("earnings", carol, "--epoch", str(epoch - 1), "--explain")["epochs"]
    (false,) = (each for each in found["sources"]["opinions"] if each["standing"] == "false")
    assert false["disproof"] in str(found["sources"]["unpaid_opinions"])
    assert audited.statements[-1].convicted == (Conviction(stage=false["stage"], node=carol),)
    assert found["shares"] == "0"
    assert found["why_nothing"].startswith(
        f"none of its work is paid: stage {false['stage']}, auditor {carol}: the round"
    )
    assert "it passes a false report, which was shown to test it; it is disproven by 0x" in found["why_nothing"]
    text = audited.run("earnings", carol, "--epoch", str(epoch - 1), "--explain").stdout
    assert "unpaid opinions  stage" in text
    assert "1, 1 unpaid" in text


class TestZero:
    def reason(self, world: World, address: str, epoch: int) -> str:
        found = world.json("earnings", address, "--epoch", str(epoch))["epochs"][0]
        assert found["shares"] == "0"
        text = world.run("earnings", address, "--epoch", str(epoch)).stdout
        assert f"epoch {epoch}: nothing, because {found['why_nothing']}." in text
        return str(found["why_nothing"])

    def test_never_seated(self, world: World) -> None:
        assert f"{STRANGER.address} never took a seat of this model" in self.reason(world, STRANGER.address, 1)

    def test_seated_too_late(self, world: World) -> None:
        world.bond(CAROL, SEAT_STAKE)
        world.providers(CAROL).take_seat(world.model.model_id, 0)
        assert "stage 0 was taken in block" in self.reason(world, CAROL.address, 1)

    def test_seated_and_not_assigned(self, world: World) -> None:
        reason = self.reason(world, BOB.address, 0)
        assert "no round of it is credited to the account, nor done by its 2 nodes" in reason
        assert f"other nodes were assigned its work: stage 1 by {ALICE.address}, stage 3 by {ALICE.address}" in reason

    def test_credited_to_another_account(self, world: World) -> None:
        propose(world, statement_of(world, 2, [(ALICE, ALICE.address), (NODE, CAROL.address)]))
        finalize(world)
        reason = self.reason(world, BOB.address, 2)
        assert f"1 rounds of stage 1 by node {NODE.address} are credited to {CAROL.address}" in reason

    def test_who_is_paid_for_another_owner_s_work_sees_it(self, world: World) -> None:
        world.providers(BOB).set_payout(CAROL.address)
        propose(world, statement_of(world, 2, [ALICE_AND_BOB[0], (NODE, CAROL.address)]))
        found = world.json("earnings", CAROL.address, "--epoch", "2")
        assert found["nodes"] == [CAROL.address, BOB.address, NODE.address]
        assert int(found["epochs"][0]["shares"]) > 0

    def test_fraud_costs_the_epoch_and_all_that_follow(self, world: World) -> None:
        def cheated(audit: Audit) -> Verdict:
            return Verdict.FAILED if audit.stage in (1, 3) else Verdict.PASSED

        propose(world, statement_of(world, 2, verdict=cheated))
        finalize(world)
        propose(world, statement_of(world, 3))
        evidence = [line.evidence for line in world.statements[2].audits if line.verdict == "failed"]
        for epoch in (2, 3):
            reason = self.reason(world, BOB.address, epoch)
            for stage, proof in zip((1, 3), evidence, strict=True):
                assert (
                    f"stage {stage}, node {NODE.address}: round {epoch}, convicted of fraud in epoch 2: the round "
                    f"audit of round 2, stage {stage}, replica 0 failed, evidence {proof}"
                ) in reason
        assert "provider" in account(world.json("ownership", "show"), BOB.address)["roles"]  # by what it earned before

    def test_an_epoch_that_goes_on(self, world: World) -> None:
        assert "not all of its rounds are sealed yet" in self.reason(world, ALICE.address, 2)

    def test_pending_challenged_and_rejected(self, world: World) -> None:
        propose(world, statement_of(world, 2))
        (pending,) = world.json("earnings", ALICE.address, "--epoch", "2")["epochs"]
        assert (pending["status"], pending["claimed"], int(pending["shares"]) > 0) == ("pending", False, True)
        text = world.run("earnings", ALICE.address, "--epoch", "2", "--explain").stdout
        assert "pending: it can be challenged until" in text
        assert "not minted yet" in text
        challenge(world)
        text = world.run("earnings", ALICE.address, "--epoch", "2", "--explain").stdout
        assert f"challenged by {STRANGER.address}; the arbiter has until" in text
        world.later(ARBITRATION_S)
        world.settlement.expire_challenge(2)
        reason = self.reason(world, ALICE.address, 2)
        assert "rejected because the arbiter was silent: the coordinator has to propose the epoch again" in reason

    def test_a_statement_that_nobody_serves(self, world: World) -> None:
        world.statement_file(0).unlink()
        text = world.run("earnings", ALICE.address).stdout
        assert "epoch 0: unknown, because nobody serves its statement" in text
        assert world.json("earnings", ALICE.address)["epochs"][0]["shares"] is None
        with pytest.raises(StatementUnavailable):
            world.run("earnings", ALICE.address, "--epoch", "0")
