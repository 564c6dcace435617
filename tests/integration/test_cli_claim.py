"""`claim` on a real local chain, with statements that the rules made."""

import pytest

from commonweight.errors import ConfigError, StatementUnavailable
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    DESIGNER,
    SHARE,
    STRANGER,
    World,
    account,
    pay,
)

world = cli_world.world  # pytest finds fixtures by their names here


def test_a_stranger_pays_and_the_account_gets_its_shares(world: World) -> None:
    due = int(account(world.json("ownership", "show"), ALICE.address)["claimable"])
    result = world.run("claim", ALICE.address, *pay(world))
    assert "Transaction 0x" in result.stdout
    assert f"{ALICE.address} now holds" in result.stdout
    assert "secret-password" not in result.output
    after = account(world.json("ownership", "show"), ALICE.address)
    assert (int(after["held"]), after["claimable"]) == (due, "0")
    assert world.shares.balance_of(STRANGER.address) == 0


def test_revenue_comes_with_the_shares(world: World) -> None:
    before = account(world.json("ownership", "show"), ALICE.address)
    world.run("claim", ALICE.address, *pay(world))
    after = account(world.json("ownership", "show"), ALICE.address)
    assert int(before["claimable_revenue"]) > 0
    assert after["owed"] == before["claimable_revenue"]


def test_an_older_epoch_and_then_the_rest(world: World) -> None:
    world.run("claim", ALICE.address, "--epoch", "0", *pay(world))
    assert world.shares.balance_of(ALICE.address) == int(world.statements[0].accounts[0].shares)
    world.run("claim", ALICE.address, *pay(world))
    line = next(line for line in world.statements[1].accounts if line.account == ALICE.address)
    assert world.shares.balance_of(ALICE.address) == int(line.cumulative_shares)


def test_the_designer_s_and_the_data_recipient_s_parts(world: World) -> None:
    assert "400,000 shares, of designer and data recipient" in world.run("claim", DESIGNER.address, "--dry-run").stdout
    due = account(world.json("ownership", "show"), DESIGNER.address)
    world.run("claim", DESIGNER.address, *pay(world))
    after = account(world.json("ownership", "show"), DESIGNER.address)
    assert int(after["held"]) == int(due["claimable"]) == 400_000 * SHARE
    assert (after["claimable"], after["owed"]) == ("0", due["claimable_revenue"])
    assert "Nothing to claim" in world.run("claim", DESIGNER.address, *pay(world)).stdout


def test_nothing_to_claim_is_no_error(world: World) -> None:
    world.run("claim", ALICE.address, *pay(world))
    result = world.run("claim", ALICE.address, *pay(world))
    assert result.exit_code == 0
    assert "is claimed" in result.stdout
    assert "earned nothing" in world.run("claim", "--dry-run", "--key", pay(world)[1]).stdout
    assert "isn't final; 2 epochs are" in world.run("claim", ALICE.address, "--epoch", "7", "--dry-run").stdout


def test_a_dry_run_needs_no_key_and_sends_nothing(world: World) -> None:
    height = world.chain.block_number()
    result = world.run("claim", ALICE.address, "--dry-run")
    assert " gas\n" in result.stdout
    assert "ETH, at most" in result.stdout
    assert "Nothing was sent" in result.stdout
    assert world.chain.block_number() == height


def test_it_asks_before_sending(world: World) -> None:
    height = world.chain.block_number()
    result = world.run("claim", ALICE.address, *pay(world)[:-1], input="n\n")
    assert result.exit_code == 1
    assert "Nothing was sent." in result.stderr
    assert world.chain.block_number() == height
    assert "now holds" in world.run("claim", ALICE.address, *pay(world)[:-1], input="y\n").stdout


def test_it_shows_what_it_asks_about_beside_json_too(world: World) -> None:
    result = world.run("claim", ALICE.address, "--json", *pay(world)[:-1], input="n\n")
    assert "to claim      1,189,979.123173277661795407 shares" in result.stderr
    assert "{" not in result.stdout


def test_nobody_to_ask_is_an_error(world: World) -> None:
    with pytest.raises(ConfigError, match="--yes"):
        world.run("claim", ALICE.address, *pay(world)[:-1], input="")


def test_json(world: World) -> None:
    report = world.json("claim", ALICE.address, *pay(world))
    assert report["account"] == ALICE.address
    assert report["balance"] == report["shares"] == str(world.shares.balance_of(ALICE.address))
    (step,) = report["steps"]
    assert world.chain.receipt(step["transaction"]) is not None
    assert world.json("claim", ALICE.address, *pay(world))["steps"] == []


def test_a_claim_without_its_statement_says_where_it_looked(world: World) -> None:
    world.statement_file(1).unlink()
    with pytest.raises(StatementUnavailable, match=world.statement_file(1).name):
        world.run("claim", ALICE.address, "--dry-run")
    # The designer's part needs none.
    result = world.run("claim", DESIGNER.address, *pay(world))
    assert "can't be claimed now" in result.stderr
    assert "now holds 400,000 shares" in result.stdout


def test_a_claim_needs_a_key_or_a_dry_run(world: World) -> None:
    with pytest.raises(ConfigError, match="give --key FILE"):
        world.run("claim", BOB.address)
    with pytest.raises(ConfigError, match="whose account"):
        world.run("claim", "--dry-run")
