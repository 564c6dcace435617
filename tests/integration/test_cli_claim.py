"""`claim` on a real local chain, with statements that the rules made."""

import pytest

from commonweight.errors import ConfigError
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    STRANGER,
    World,
    account,
    pay,
)

built, world = cli_world.built, cli_world.world  # pytest finds fixtures by their names here


def test_a_stranger_pays_and_the_account_gets_its_shares(world: World) -> None:
    due = int(account(world.json("ownership", "show"), ALICE.address)["claimable"])
    result = world.run("claim", ALICE.address, *pay(world))
    assert "transaction 0x" in result.stdout
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
    assert "gas " in result.stdout
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


def test_nobody_to_ask_is_an_error(world: World) -> None:
    with pytest.raises(ConfigError, match="--yes"):
        world.run("claim", ALICE.address, *pay(world)[:-1], input="")


def test_json(world: World) -> None:
    report = world.json("claim", ALICE.address, *pay(world))
    assert report["account"] == ALICE.address
    assert report["balance"] == report["shares"] == str(world.shares.balance_of(ALICE.address))
    assert world.chain.receipt(report["transaction"]) is not None
    assert world.json("claim", ALICE.address, *pay(world))["transaction"] is None


def test_a_claim_without_its_statement_says_where_it_looked(world: World) -> None:
    world.statement_file(1).unlink()
    with pytest.raises(ConfigError, match="can't be read at"):
        world.run("claim", ALICE.address, "--dry-run")


def test_a_claim_needs_a_key_or_a_dry_run(world: World) -> None:
    with pytest.raises(ConfigError, match="--key FILE, or --dry-run"):
        world.run("claim", ALICE.address)
    with pytest.raises(ConfigError, match="whose shares"):
        world.run("claim", "--dry-run")
