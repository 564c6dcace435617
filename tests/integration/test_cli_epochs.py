"""`epochs` and `arbiter` on a real local chain: honest and wrong proposals, challenges and what becomes of them."""

import pytest

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.reverts import ContractReverted
from commonweight.cli.output import format_time
from commonweight.errors import ConfigError, NotAllowed
from commonweight.rules.audits import Verdict
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    ARBITRATION_S,
    BOB,
    CHALLENGER_BOND,
    COORDINATOR,
    DELAY_S,
    JUDGE_0,
    NODE,
    PROPOSER_BOND,
    STRANGER,
    World,
    challenge,
    finalize,
    propose,
    statement_of,
)
from tests.integration.epochs import with_one_unit_more

world = cli_world.world  # pytest finds fixtures by their names here


class TestList:
    def test_each_proposal_with_what_became_of_it(self, world: World) -> None:
        propose(world, statement_of(world, 2))
        assert [each["status"] for each in world.json("epochs", "list")["proposals"]] == ["final", "final", "pending"]
        challenge(world)
        assert world.json("epochs", "list")["proposals"][2]["status"] == "challenged"
        world.later(ARBITRATION_S)
        world.settlement.expire_challenge(2)
        propose(world, world.statements[2])  # the same root again
        found = world.json("epochs", "list")["proposals"]
        assert [(each["epoch"], each["status"]) for each in found[2:]] == [(2, "rejected"), (2, "pending")]
        assert found[2]["rejection"]["by_arbiter"] is False
        assert found[2]["challenge"]["challenger"] == STRANGER.address
        finalize(world)
        lines = world.run("epochs", "list").stdout.splitlines()
        assert [line.split()[1] for line in lines[1:]] == ["final", "final", "rejected", "final"]
        assert f"0x{world.statements[1].hash.hex()}" in lines[2]

    def test_show(self, world: World) -> None:
        text = world.run("epochs", "show", "1").stdout
        assert f"statement  0x{world.statements[1].hash.hex()}" in text
        assert "final: its shares are minted" in text
        assert "1,000,000 shares, 800,000 of them for computing" in text
        assert "389,979.123173277661795407" in text
        assert world.json("epochs", "show", "1")["statement"] == world.statements[1].model_dump(mode="json")
        assert "\naudits       round: 4 passed\n" in text
        with pytest.raises(ConfigError, match="has not been proposed: 2 epochs are final"):
            world.run("epochs", "show", "2")

    def test_show_what_did_not_survive_its_audit(self, world: World) -> None:
        propose(world, statement_of(world, 2, verdict=lambda audit: list(Verdict)[audit.stage]))
        text = world.run("epochs", "show", "2").stdout
        assert "audits       round: 1 failed, 1 passed, 1 undecided, 1 withheld" in text
        assert "unpaid       2 reports" in text
        assert f"convicted    stage 1, node {NODE.address}" in text


class TestArbiter:
    def test_a_wrong_epoch_is_rejected_and_the_challenger_paid(self, world: World) -> None:
        """All by hand: propose, confirm, wait, execute."""
        propose(world, with_one_unit_more(statement_of(world, 2), ALICE.address))
        challenge(world)
        decide = ["arbiter", "resolve-epoch", "2", "--reject"]
        planned = world.run(*decide, "--key", str(world.dir / "judge-0.json"), "--dry-run").stdout
        pending = world.settlement.pending()
        assert pending is not None
        assert f"decision   reject epoch 2 with root {world.statements[2].root}" in planned
        assert f"decided before {format_time(pending.resolvable_until)}" in planned
        assert "this step  propose it; 2 members must confirm" in planned
        proposed = world.json(*decide, *world.key_options("judge-0"))
        assert proposed["step"] == "propose"
        with pytest.raises(NotAllowed, match="has confirmed it already; another member must"):
            world.run(*decide, *world.key_options("judge-0"))
        assert "confirmed by 1 of the 2 members" in world.run("arbiter", "list").stdout
        confirmed = world.json("arbiter", "confirm", proposed["call_id"], *world.key_options("judge-1"))
        assert confirmed["executable_at"] is not None
        assert "can be executed from" in world.run(*decide, *world.key_options("judge-1")).stdout
        with pytest.raises(NotAllowed, match="can't be executed now"):
            world.run("arbiter", "execute", proposed["call_id"], *world.key_options())
        world.later(DELAY_S)
        before = world.settlement.bond_of(STRANGER.address)
        text = world.run("arbiter", "execute", proposed["call_id"], *world.key_options()).stdout
        assert "The decision is executed." in text
        assert world.json("epochs", "list")["proposals"][2]["rejection"]["by_arbiter"] is True
        assert world.settlement.bond_of(STRANGER.address) == before + PROPOSER_BOND // 2 + CHALLENGER_BOND
        assert world.json("arbiter", "list")["calls"][0]["executed"] is True

    def test_one_command_takes_each_step(self, world: World) -> None:
        propose(world, statement_of(world, 2))
        challenge(world)
        decide = ["arbiter", "resolve-epoch", "2", "--accept"]
        steps = [world.json(*decide, *world.key_options(judge))["step"] for judge in ("judge-0", "judge-1")]
        world.later(DELAY_S)
        steps.append(world.json(*decide, *world.key_options())["step"])
        assert steps == ["propose", "confirm", "execute"]
        assert world.json("epochs", "list")["proposals"][2]["status"] == "upheld"
        world.settlement.finalize_epoch(2)
        assert world.settlement.bond_of(COORDINATOR.address) == PROPOSER_BOND + CHALLENGER_BOND

    def test_the_same_decision_about_a_later_challenge_is_another_call(self, world: World) -> None:
        statement = statement_of(world, 2)
        for _ in range(2):
            propose(world, statement)
            challenge(world)
            for judge in ("judge-0", "judge-1"):
                world.run("arbiter", "resolve-epoch", "2", "--reject", *world.key_options(judge))
            world.later(DELAY_S)
            world.run("arbiter", "resolve-epoch", "2", "--reject", *world.key_options())
            world.give(COORDINATOR, PROPOSER_BOND, world.model.settlement)
            world.settlement.deposit_bond(COORDINATOR.address, PROPOSER_BOND)
        assert [each["status"] for each in world.json("epochs", "list")["proposals"][2:]] == ["rejected", "rejected"]

    def test_a_decision_that_lapsed_is_closed_for_good(self, world: World) -> None:
        statement = statement_of(world, 2)
        propose(world, statement)
        challenge(world)
        decide = ["arbiter", "resolve-epoch", "2", "--reject"]
        proposed = world.json(*decide, *world.key_options("judge-0"))
        world.run("arbiter", "confirm", proposed["call_id"], *world.key_options("judge-1"))
        world.later(DELAY_S + 7 * 86_400)
        (call,) = world.json("arbiter", "list")["calls"]
        assert (call["executed"], call["lapsed"]) == (False, True)
        assert "lapsed for good: nobody executed it by" in world.run("arbiter", "list").stdout
        for verb, judge in (("confirm", "judge-0"), ("execute", "judge-1")):
            with pytest.raises(NotAllowed, match=r"is lapsed for good.* proposes it anew"):
                world.run("arbiter", verb, proposed["call_id"], *world.key_options(judge))
        arbiter = Arbiter(world.chain, world.model.terms.arbiter, world.sender(JUDGE_0))
        for closed in (arbiter.confirm, arbiter.revoke):
            with pytest.raises(ContractReverted, match="ArbiterLapsed"):
                closed(bytes.fromhex(proposed["call_id"][2:]))

    def test_a_decision_that_lapsed_can_be_proposed_anew(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a model whose arbiter has more time than seven days; here the one week is a minute."""
        propose(world, statement_of(world, 2))
        challenge(world)
        decide = ["arbiter", "resolve-epoch", "2", "--reject"]
        proposed = world.json(*decide, *world.key_options("judge-0"))
        world.run("arbiter", "confirm", proposed["call_id"], *world.key_options("judge-1"))
        monkeypatch.setattr(Arbiter, "grace_s", lambda _: 60)
        world.later(DELAY_S + 60)
        anew = world.json(*decide, *world.key_options("judge-0"))
        assert anew["step"] == "propose"
        assert anew["call_id"] != proposed["call_id"]
        assert world.json(*decide, *world.key_options("judge-1"))["call_id"] == anew["call_id"]

    def test_a_late_decision_decides_no_later_challenge_of_the_same_root(self, world: World) -> None:
        statement = statement_of(world, 2)
        propose(world, statement)
        challenge(world)
        decide = ["arbiter", "resolve-epoch", "2", "--reject"]
        late = world.json(*decide, *world.key_options("judge-0"))["call_id"]
        world.run("arbiter", "confirm", late, *world.key_options("judge-1"))
        world.later(ARBITRATION_S)
        world.settlement.expire_challenge(2)
        propose(world, statement)
        challenge(world)
        with pytest.raises(ContractReverted, match="EpochSettlementArbitrationOver"):
            world.run("arbiter", "execute", late, *world.key_options())
        assert world.json("epochs", "list")["proposals"][-1]["status"] == "challenged"

    def test_who_can_decide_what_and_when(self, world: World) -> None:
        decide = ["arbiter", "resolve-epoch", "2", "--reject"]
        with pytest.raises(NotAllowed, match="Epoch 2 has not been proposed"):
            world.run(*decide, *world.key_options("judge-0"))
        propose(world, statement_of(world, 2))
        with pytest.raises(NotAllowed, match="Epoch 2 is pending"):
            world.run(*decide, *world.key_options("judge-0"))
        challenge(world)
        with pytest.raises(NotAllowed, match=f"is no member of the arbiter .*{JUDGE_0.address}"):
            world.run(*decide, *world.key_options("alice"))
        world.later(ARBITRATION_S - DELAY_S)
        result = world.run(*decide, *world.key_options("judge-0"))
        assert "it would be too late" in result.stderr
        world.later(DELAY_S)
        with pytest.raises(NotAllowed, match="had until"):
            world.run(*decide, *world.key_options("judge-1"))
        with pytest.raises(NotAllowed, match="knows no call"):
            world.run("arbiter", "confirm", "0x" + 64 * "0", *world.key_options("judge-0"))
        with pytest.raises(ConfigError, match="is not a call's id"):
            world.run("arbiter", "execute", "7", *world.key_options("judge-0"))
        result = world.run("arbiter", "resolve-epoch", "2", *world.key_options("judge-0"))
        assert (result.exit_code, "--accept" in result.stderr) == (2, True)

    def test_a_contested_slash(self, world: World) -> None:
        providers, bond = world.model.terms.providers, world.providers().reporter_bond()
        for key in (STRANGER, ALICE):
            world.give(key, bond, providers)
        world.providers(STRANGER).propose_slash(world.model.model_id, ALICE.address, 0, b"\7" * 32, "https://e.example")
        with pytest.raises(NotAllowed, match="Slash 1 is proposed"):
            world.run("arbiter", "resolve-slash", "1", "--reject", *world.key_options("judge-0"))
        world.providers(ALICE).contest_slash(1, "https://no.example")
        decide = ["arbiter", "resolve-slash", "1", "--reject"]
        assert "reject slash 1" in world.run(*decide, *world.key_options("judge-0")).stdout
        world.run(*decide, *world.key_options("judge-1"))
        world.later(DELAY_S)
        world.run(*decide, *world.key_options())
        assert world.providers().is_seated(world.model.model_id, ALICE.address, 0)
        with pytest.raises(NotAllowed, match="Slash 1 is dropped"):
            world.run(*decide, *world.key_options("judge-0"))
        with pytest.raises(NotAllowed, match="Slash 2 doesn't exist"):
            world.run("arbiter", "resolve-slash", "2", "--reject", *world.key_options("judge-0"))

    def test_another_call_is_shown_as_what_it_is(self, world: World) -> None:
        arbiter = Arbiter(world.chain, world.model.terms.arbiter, world.sender(JUDGE_0))
        arbiter.propose(world.model.settlement, b"\x01\x02\x03\x04\x05")
        arbiter.propose(BOB.address, arbiter.action("setDelay", 1).data)
        texts = [each["what"] for each in world.json("arbiter", "list")["calls"]]
        assert texts[0] == f"call 0x01020304 of {world.model.settlement}, which is no decision about this model"
        assert f"of {BOB.address}, which is no decision" in texts[1]
        absurd = world.settlement.action("resolveEpoch", 2, bytes(32), 2**255, True)
        arbiter.propose(world.model.settlement, absurd.data)
        assert f"to be decided before {2**255} s" in world.json("arbiter", "list")["calls"][2]["what"]
