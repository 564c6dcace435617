"""`epochs bond` on a real local chain: what coordinator and challengers have standing with the settlement."""

from typing import Any

import pytest

from commonweight.errors import ConfigError, InsufficientFunds, NotAllowed
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    ARBITRATION_S,
    CAROL,
    CHALLENGER_BOND,
    COORDINATOR,
    DELAY_S,
    PROPOSER_BOND,
    STRANGER,
    USD,
    World,
    challenge,
    change_coordinator,
    finalize,
    propose,
    statement_of,
)

world = cli_world.world  # pytest finds fixtures by their names here


def stranger_wins(world: World) -> None:
    """The arbiter rejects epoch 2, which a stranger has challenged."""
    propose(world, statement_of(world, 2))
    challenge(world)
    for judge in ("judge-0", "judge-1"):
        world.run("arbiter", "resolve-epoch", "2", "--reject", *world.key_options(judge))
    world.later(DELAY_S)
    world.run("arbiter", "resolve-epoch", "2", "--reject", *world.key_options())


def shown(world: World, *arguments: str) -> dict[str, tuple[int, int, bool]]:
    """By account: what stands, what is posted, whether it is locked."""
    accounts: Any = world.json("epochs", "bond", "show", *arguments)["accounts"]
    return {each["account"]: (int(each["bond"]), int(each["posted"]), each["locked"]) for each in accounts}


class TestShow:
    def test_bonds_through_a_challenge_until_the_arbiter_decides(self, world: World) -> None:
        assert shown(world) == {COORDINATOR.address: (PROPOSER_BOND, 0, False)}
        propose(world, statement_of(world, 2))
        assert shown(world) == {COORDINATOR.address: (PROPOSER_BOND, 0, True)}
        challenge(world)
        assert shown(world) == {
            COORDINATOR.address: (PROPOSER_BOND, 0, True),
            STRANGER.address: (0, CHALLENGER_BOND, False),
        }
        text = world.run("epochs", "bond", "show").stdout
        assert f"undecided     epoch 2, challenged by {STRANGER.address}; the arbiter has until 2" in text
        lines = [" ".join(line.split()) for line in text.splitlines()[-2:]]
        assert lines == [
            f"{COORDINATOR.address} 100 tUSD 0 tUSD not before that epoch is final or rejected",
            f"{STRANGER.address} 0 tUSD 50 tUSD",
        ]
        for judge in ("judge-0", "judge-1"):
            world.run("arbiter", "resolve-epoch", "2", "--accept", *world.key_options(judge))
        world.later(DELAY_S)
        world.run("arbiter", "resolve-epoch", "2", "--accept", *world.key_options())
        assert shown(world) == {COORDINATOR.address: (PROPOSER_BOND + CHALLENGER_BOND, 0, True)}
        finalize(world)
        found = world.json("epochs", "bond", "show")
        assert (found["undecided"], found["accounts"][0]["locked"]) == (None, False)

    def test_a_rejected_epoch_leaves_half_of_its_bond_to_the_challenger(self, world: World) -> None:
        stranger_wins(world)
        assert shown(world) == {
            COORDINATOR.address: (0, 0, False),
            STRANGER.address: (PROPOSER_BOND // 2 + CHALLENGER_BOND, 0, False),
        }
        burnt = PROPOSER_BOND - PROPOSER_BOND // 2
        assert world.usd().balance_of(world.model.settlement) == PROPOSER_BOND // 2 + CHALLENGER_BOND + burnt
        text = world.run("epochs", "bond", "show").stdout
        assert "undecided     no epoch" in text
        assert text.splitlines()[-1].split() == [STRANGER.address, "100", "tUSD", "0", "tUSD", "at", "once"]

    def test_who_deposited_before_taking_over_is_listed(self, world: World) -> None:
        world.give(CAROL, PROPOSER_BOND)
        world.run("epochs", "bond", "deposit", "100", *world.key_options("carol"))
        propose(world, statement_of(world, 2))
        change_coordinator(world, CAROL)
        assert shown(world) == {
            CAROL.address: (PROPOSER_BOND, 0, False),
            COORDINATOR.address: (PROPOSER_BOND, 0, True),
        }

    def test_one_account_also_without_a_bond(self, world: World) -> None:
        assert shown(world, ALICE.address) == {ALICE.address: (0, 0, False)}
        found = world.json("epochs", "bond", "show", ALICE.address)
        assert (found["proposer_bond"], found["challenger_bond"]) == (str(PROPOSER_BOND), str(CHALLENGER_BOND))
        with pytest.raises(ConfigError, match="is not an address"):
            world.run("epochs", "bond", "show", "me")


class TestDeposit:
    def test_two_transactions_and_then_one(self, world: World) -> None:
        world.give(COORDINATOR, 100 * USD)
        before = world.usd().balance_of(COORDINATOR.address)
        key, height = ["--key", str(world.dir / "coordinator.json"), "--dry-run"], world.chain.block_number()
        text = world.run("epochs", "bond", "deposit", "60", *key).stdout
        assert "stands      100 tUSD, then 160 tUSD" in text
        assert f"to propose  {COORDINATOR.address} must have 100 tUSD standing" in text
        assert world.chain.block_number() == height
        first = world.json("epochs", "bond", "deposit", "60", *world.key_options("coordinator"))
        assert [step["what"].split(" 0x")[0] for step in first["steps"]] == [
            "allow the settlement",
            "add 60 tUSD to the bond",
        ]
        assert (first["bond_before"], first["bond"]) == (str(100 * USD), str(160 * USD))
        assert world.usd().balance_of(COORDINATOR.address) == before - 60 * USD
        world.usd().approve(world.model.settlement, 50 * USD)
        again = world.run("epochs", "bond", "deposit", "0.5", *world.key_options("coordinator")).stdout
        assert "allow" not in again
        assert f"{COORDINATOR.address} now has a bond of 160.5 tUSD standing." in again
        assert world.settlement.bond_of(COORDINATOR.address) == 160_500_000

    @pytest.mark.parametrize("name", ["carol", "coordinator"])  # a first bond, and more of one
    def test_the_estimates_are_not_far_from_what_it_takes(self, world: World, name: str) -> None:
        world.give(cli_world.KEY_FILES[name], 10 * USD)
        deposit = ["epochs", "bond", "deposit", "10"]
        planned = world.json(*deposit, "--key", str(world.dir / f"{name}.json"), "--dry-run")["steps"]
        sent = world.json(*deposit, *world.key_options(name))["steps"]
        for plan, step in zip(planned, sent, strict=True):
            assert step["gas"] <= plan["gas"] <= 1.5 * step["gas"], step

    def test_more_than_there_is(self, world: World) -> None:
        with pytest.raises(InsufficientFunds, match=r"has 0 tUSD, 5 tUSD are needed: send it 5 tUSD"):
            world.run("epochs", "bond", "deposit", "5", *world.key_options("carol"))
        with pytest.raises(ConfigError, match="above 0"):
            world.run("epochs", "bond", "deposit", "0", *world.key_options("carol"))


class TestWithdraw:
    def test_the_winner_of_a_challenge_takes_part_and_then_all(self, world: World) -> None:
        stranger_wins(world)
        before = world.usd().balance_of(STRANGER.address)
        height = world.chain.block_number()
        planned = world.run("epochs", "bond", "withdraw", "all", "--key", str(world.dir / "stranger.json"), "--dry-run")
        assert f"pay 100 tUSD of the bond to {STRANGER.address}: " in planned.stdout
        assert world.chain.block_number() == height
        part = world.json("epochs", "bond", "withdraw", "50.5", "--to", ALICE.address, *world.key_options())
        assert (part["amount"], part["bond"]) == ("50500000", "49500000")
        assert world.usd().balance_of(ALICE.address) == 50_500_000
        text = world.run("epochs", "bond", "withdraw", "all", *world.key_options()).stdout
        assert f"{STRANGER.address} now has a bond of 0 tUSD standing." in text
        assert world.usd().balance_of(STRANGER.address) == before + 49_500_000
        nothing = world.run("epochs", "bond", "withdraw", "all", *world.key_options())
        assert nothing.exit_code == 0
        assert f"No bond of {STRANGER.address} stands with the settlement." in nothing.stdout

    def test_the_proposer_s_is_locked_until_its_epoch_is_final_or_rejected(self, world: World) -> None:
        withdraw = ["epochs", "bond", "withdraw", "all", *world.key_options("coordinator")]
        propose(world, statement_of(world, 2))
        with pytest.raises(
            NotAllowed, match=r"until epoch 2, which it proposed, .* It is pending: it can be challenged"
        ):
            world.run(*withdraw)
        challenge(world)
        with pytest.raises(NotAllowed, match=r"It is challenged by .*; the arbiter has until 2"):
            world.run(*withdraw)
        world.later(ARBITRATION_S)
        world.settlement.expire_challenge(2)
        assert world.json(*withdraw)["amount"] == str(PROPOSER_BOND)
        assert world.json("epochs", "bond", "withdraw", "all", *world.key_options())["amount"] == str(CHALLENGER_BOND)

    def test_what_is_posted_doesn_t_stand_yet(self, world: World) -> None:
        propose(world, statement_of(world, 2))
        challenge(world)
        found = world.json("epochs", "bond", "withdraw", "all", *world.key_options())
        assert found["steps"] == []
        assert "stands with the settlement; 50 tUSD are posted for a challenge that isn't decided" in found["why"]
        with pytest.raises(InsufficientFunds, match=r"has 0 tUSD standing .* 5 tUSD were asked for; 50 tUSD are"):
            world.run("epochs", "bond", "withdraw", "5", *world.key_options())

    def test_more_than_stands_and_to_whom_not(self, world: World) -> None:
        key = world.key_options("coordinator")
        with pytest.raises(
            InsufficientFunds, match=r"has 100 tUSD standing .* 100\.000001 tUSD were asked for: take less"
        ):
            world.run("epochs", "bond", "withdraw", "100.000001", *key)
        with pytest.raises(NotAllowed, match="nobody could get it out again"):
            world.run("epochs", "bond", "withdraw", "1", "--to", world.model.settlement, *key)
        with pytest.raises(ConfigError, match="above 0"):
            world.run("epochs", "bond", "withdraw", "0", *key)
        assert world.settlement.bond_of(COORDINATOR.address) == PROPOSER_BOND

    def test_a_no_sends_nothing(self, world: World) -> None:
        options = world.key_options("coordinator")[:-1]
        result = world.run("epochs", "bond", "withdraw", "all", *options, input="n\n")
        assert (result.exit_code, "Send it?" in result.stderr) == (1, True)
        assert world.settlement.bond_of(COORDINATOR.address) == PROPOSER_BOND
