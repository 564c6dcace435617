"""`claim` on a real local chain, with statements that the rules made."""

import pytest

from commonweight.errors import ConfigError, StatementMismatch, StatementUnavailable, TransactionFailed
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    DESIGNER,
    SHARE,
    STRANGER,
    World,
    account,
    finalize,
    pay,
    propose,
    serving_earned,
    statement_of,
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


def earned(world: World, epoch: int) -> int:
    """Alice's shares up to the epoch."""
    lines = world.statements[epoch].accounts
    return next(int(line.cumulative_shares) for line in lines if line.account == ALICE.address)


def test_what_there_is_and_after_another_epoch_the_rest(world: World) -> None:
    world.run("claim", ALICE.address, *pay(world))
    assert world.shares.balance_of(ALICE.address) == earned(world, 1)
    settle(world)
    world.run("claim", ALICE.address, *pay(world))
    assert world.shares.balance_of(ALICE.address) == earned(world, 2)


def settle(world: World) -> None:
    """One epoch more."""
    propose(world, statement_of(world, len(world.statements)))
    finalize(world)


def epochs_that_become_final_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """While the first `count` questions wait for their answer; the questions."""
    asked: list[str] = []

    def answer(question: str) -> bool:
        asked.append(question)
        if len(asked) <= count:
            settle(world)
        return True

    monkeypatch.setattr("commonweight.cli.money.confirm", answer)
    return asked


def test_a_claim_that_a_later_epoch_overtakes_is_made_once_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = epochs_that_become_final_meanwhile(world, monkeypatch, 1)
    result = world.run("claim", ALICE.address, *pay(world)[:-1])
    assert "A later epoch than 1 became final meanwhile" in result.stderr
    assert "claim what was earned by computing in epochs 0 to 2" in result.stdout
    assert world.shares.balance_of(ALICE.address) == earned(world, 2)
    assert len(asked) == 2


def test_a_claim_that_is_overtaken_again_says_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs_that_become_final_meanwhile(world, monkeypatch, 2)
    with pytest.raises(TransactionFailed, match=r"A later epoch than 2 became final .* for the second time: try again"):
        world.run("claim", ALICE.address, *pay(world)[:-1])
    assert world.shares.balance_of(ALICE.address) == 0


def test_operators_are_paid_by_the_last_root_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run("claim", BOB.address, *pay(world))
    epochs_that_become_final_meanwhile(world, monkeypatch, 1)
    owed = world.shares.owed(BOB.address)
    assert owed > 0
    result = world.run("revenue", "withdraw", BOB.address, *pay(world)[:-1])
    assert "A later epoch than 1 became final meanwhile" in result.stderr
    assert world.usd().balance_of(BOB.address) == owed + serving_earned(world, BOB)


def test_a_statement_with_a_number_that_no_contract_holds_is_a_wrong_one(world: World) -> None:
    honest = statement_of(world, 2)
    first, *rest = honest.accounts
    forged = honest.model_copy(update={"accounts": (first.model_copy(update={"cumulative_shares": "9" * 78}), *rest)})
    propose(world, forged)
    finalize(world)
    with pytest.raises(StatementMismatch, match="its accounts don't give"):
        world.run("claim", ALICE.address, "--dry-run")


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
