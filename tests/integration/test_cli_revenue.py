"""`revenue` on a real local chain."""

from typing import Any

import pytest

from commonweight.chain.reverts import ContractReverted
from commonweight.chain.router import RevenueRouter
from commonweight.chain.shares import ModelShares
from commonweight.cli.place import find_place
from commonweight.devnet.revenue import read_revenue
from commonweight.errors import ConfigError, NotAllowed, StateError
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    CAROL,
    COORDINATOR,
    DESIGNER,
    STRANGER,
    STREAM_S,
    TREASURY,
    USD,
    World,
    account,
    authorization,
    change_coordinator,
    pay,
    pay_in,
    serving_earned,
)

world = cli_world.world  # pytest finds fixtures by their names here


def in_all_places(found: Any) -> int:
    """What `revenue show` finds again of what came in."""
    shares = found["shares"]
    return sum(
        int(amount)
        for amount in (
            found["unswept"],
            shares["owed"],
            shares["withdrawn"],
            shares["undistributed"],
            *found["operators"].values(),
            *found["treasury"].values(),
        )
    )


class TestShow:
    def test_where_everything_is(self, world: World) -> None:
        found = world.json("revenue", "show")
        assert (found["paid_in"], found["collected"]) == (str(103 * USD), str(3 * USD))
        assert (found["deposited_directly"], found["unswept"]) == (str(100 * USD), str(3 * USD))
        assert found["swept"] == {"shares": str(75 * USD), "operators": str(20 * USD), "treasury": str(5 * USD)}
        assert found["missing_scaled"] == "0"
        assert in_all_places(found) == 203 * USD
        alice, bob = account(found, ALICE.address), account(found, BOB.address)
        assert [int(alice["serving_earned"]), int(bob["serving_earned"])] == [
            serving_earned(world, ALICE),
            serving_earned(world, BOB),
        ]
        assert int(alice["serving_earned"]) + int(bob["serving_earned"]) == 20 * USD
        assert int(alice["unclaimed"]) > int(bob["unclaimed"]) > 0

    def test_it_adds_up_in_mid_stream_and_after_everything_that_can_happen(self, world: World) -> None:
        pay_in(world, 7_777_777)
        world.run("revenue", "sweep", *pay(world))
        world.later(STREAM_S // 3)
        text = world.run("revenue", "show").stdout
        assert "not credited yet, streaming until" in text
        assert "It adds up: 210.777777 tUSD came in" in text.splitlines()[-1]
        for address in (ALICE.address, BOB.address, DESIGNER.address):
            world.run("claim", address, *pay(world))
            world.run("revenue", "withdraw", address, *pay(world))
        pay_in(world, 1)
        found = world.json("revenue", "show")
        assert found["missing_scaled"] == "0"
        assert in_all_places(found) == 210_777_778
        paid = sum(world.usd().balance_of(each.address) for each in (ALICE, BOB, DESIGNER))
        assert paid == int(found["shares"]["withdrawn"]) + int(found["operators"]["paid"])

    def test_it_adds_up_while_money_moves(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between two reads a buyer pays, and somebody splits it."""
        read, moved = ModelShares.undistributed_scaled, []

        def read_later(shares: ModelShares) -> int:
            pay_in(world, 8 * USD)
            world.router.sweep()
            moved.append(world.router.operator_pool())
            return read(shares)

        before = world.json("revenue", "show")
        monkeypatch.setattr(ModelShares, "undistributed_scaled", read_later)
        assert world.json("revenue", "show") == before
        assert moved == [20 * USD + (3 + 8) * USD // 5]

    def test_what_doesn_t_add_up_is_said(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("commonweight.chain.router.RevenueRouter.treasury_pool", lambda _: 5 * USD - 1)
        text = world.run("revenue", "show").stdout
        assert f"IT DOES NOT ADD UP: 203 tUSD came in; {2**96} · 2^-96 units" in text
        with pytest.raises(StateError, match=f"{203 * USD} was paid in; .* is left over"):
            read_revenue(find_place(None, None, None, world.dir)).check()

    def test_a_devnet_reports_the_same_in_mid_stream(self, world: World) -> None:
        world.router.sweep()
        world.run("claim", ALICE.address, *pay(world))
        reported, found = read_revenue(find_place(None, None, None, world.dir)), world.json("revenue", "show")
        reported.check()
        assert reported.paid_in == 203 * USD
        assert dict(reported.owed) == {ALICE.address: int(account(found, ALICE.address)["owed"])}
        assert reported.remainder + reported.owed[0][1] == sum(
            int(found["shares"][part]) for part in ("owed", "undistributed")
        )
        assert found["shares"]["stream_end"] > world.chain.timestamp()

    def test_one_account(self, world: World) -> None:
        text = world.run("revenue", "show", BOB.address).stdout
        earned = f"{serving_earned(world, BOB) / USD:f}"
        assert f"by serving           {earned} tUSD, of that paid 0 tUSD" in text
        assert f"can withdraw         {earned} tUSD" in text
        assert ALICE.address not in text

    def test_without_the_statement_the_rest_is_shown(self, world: World) -> None:
        world.statement_file(1).unlink()
        result = world.run("revenue", "show")
        assert "can't be had" in result.stderr
        designer = next(line for line in result.stdout.splitlines() if line.startswith(DESIGNER.address))
        assert designer.split()[2:4] == ["?", "?"]
        assert "It adds up" in result.stdout


class TestWithdraw:
    def test_both_kinds_to_the_account_whoever_sends(self, world: World) -> None:
        world.run("claim", BOB.address, *pay(world))
        owed = world.shares.owed(BOB.address)
        sent = world.json("revenue", "withdraw", BOB.address, *pay(world))
        earned = serving_earned(world, BOB)
        assert (sent["shares_revenue"], sent["serving_revenue"]) == (str(owed), str(earned))
        assert len(sent["steps"]) == 2
        assert world.usd().balance_of(BOB.address) == owed + earned == int(sent["balance"])
        assert "are paid" in world.run("revenue", "withdraw", BOB.address, *pay(world)).stdout

    def test_nothing_is_explained(self, world: World) -> None:
        text = world.run("revenue", "withdraw", DESIGNER.address, *pay(world)).stdout
        assert (
            "it holds no shares; shares that it hasn't claimed bring 34.999999 tUSD: `commonweight claim` first" in text
        )
        assert "it earned nothing by serving" in text
        assert "it holds no shares" in world.run("revenue", "withdraw", TREASURY.address, "--dry-run").stdout

    def test_a_dry_run_needs_no_key(self, world: World) -> None:
        height = world.chain.block_number()
        text = world.run("revenue", "withdraw", BOB.address, "--dry-run").stdout
        assert f"pay {serving_earned(world, BOB) / USD:f} tUSD that it earned by serving" in text
        assert world.chain.block_number() == height
        with pytest.raises(ConfigError, match="give --key FILE"):
            world.run("revenue", "withdraw", BOB.address)


class TestSweep:
    def test_the_parts(self, world: World) -> None:
        planned = world.run("revenue", "sweep", "--dry-run").stdout
        assert "to the shares    2.25 tUSD, over 10 min" in planned
        sent = world.json("revenue", "sweep", *pay(world))
        assert (sent["to_shares"], sent["to_operators"], sent["to_treasury"]) == ("2250000", "600000", "150000")
        assert world.json("revenue", "show")["swept"] == {
            "shares": "77250000",
            "operators": "20600000",
            "treasury": "5150000",
        }
        assert "Nothing has come" in world.run("revenue", "sweep", *pay(world)).stdout

    def test_without_shares_the_money_waits(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("commonweight.chain.shares.ModelShares.total_supply", lambda _: 0)
        with pytest.raises(NotAllowed, match="3 tUSD wait: there are 0 shares"):
            world.run("revenue", "sweep", *pay(world))


class TestCashier:
    def test_a_gateway_becomes_a_cashier_and_is_dismissed(self, world: World) -> None:
        """The second payment is the one that it can't collect any more."""
        gateway, options = CAROL.address, world.key_options("coordinator")
        world.give(STRANGER, 2 * USD)
        tills = RevenueRouter(world.chain, world.model.router, world.sender(CAROL))
        first, second = (authorization(world, USD, bytes([number]) * 32) for number in (1, 2))
        planned = world.run("revenue", "cashier", gateway, "--dry-run").stdout
        assert "is a cashier  no" in planned
        assert f"let {gateway} collect payments:" in planned
        assert not world.router.is_cashier(gateway)

        assert world.json("revenue", "cashier", gateway, *options)["is_cashier"] is True
        tills.collect(first, USD)
        again = world.json("revenue", "cashier", gateway, *options)
        assert (again["is_cashier"], again["steps"]) == (True, [])
        assert "is a cashier already" in again["why"]

        sent = world.run("revenue", "cashier", gateway, "--remove", *options).stdout
        assert f"{gateway} is no cashier of the router {world.model.router}." in sent
        with pytest.raises(ContractReverted, match="RevenueRouterNotCashier"):
            tills.collect(second, USD)
        unchanged = world.run("revenue", "cashier", gateway, "--remove", *options)
        assert unchanged.exit_code == 0
        assert f"Nothing to change: {gateway} is no cashier" in unchanged.stdout

    def test_only_the_present_coordinator(self, world: World) -> None:
        with pytest.raises(NotAllowed, match=f"is not the model's coordinator, {COORDINATOR.address} is"):
            world.run("revenue", "cashier", CAROL.address, *world.key_options("treasury"))
        change_coordinator(world, TREASURY)
        with pytest.raises(NotAllowed, match=f"is not the model's coordinator, {TREASURY.address} is"):
            world.run("revenue", "cashier", CAROL.address, *world.key_options("coordinator"))
        world.run("revenue", "cashier", CAROL.address, *world.key_options("treasury"))
        assert world.router.is_cashier(CAROL.address)


class TestTreasury:
    def test_its_pool_is_paid_once(self, world: World) -> None:
        options = world.key_options("treasury")
        planned = world.run("revenue", "treasury", "--dry-run").stdout
        assert f"pay 5 tUSD of the treasury to {TREASURY.address}:" in planned
        assert world.usd().balance_of(TREASURY.address) == 0
        sent = world.json("revenue", "treasury", *options)
        assert (sent["amount"], sent["to"], sent["balance"]) == (str(5 * USD), TREASURY.address, str(5 * USD))
        assert world.json("revenue", "show")["treasury"] == {"paid": str(5 * USD), "pool": "0"}
        empty = world.run("revenue", "treasury", *options)
        assert empty.exit_code == 0
        assert "the treasury's pool is empty; 3 tUSD wait for a sweep" in empty.stdout

    def test_to_another_account(self, world: World) -> None:
        sent = world.run("revenue", "treasury", "--to", CAROL.address, *world.key_options("treasury")).stdout
        assert f"{CAROL.address} now has 5 tUSD." in sent
        assert world.usd().balance_of(TREASURY.address) == 0

    def test_only_the_treasury_and_to_nobody_who_would_lose_it(self, world: World) -> None:
        with pytest.raises(NotAllowed, match=f"is not the model's treasury, {TREASURY.address} is"):
            world.run("revenue", "treasury", "--to", STRANGER.address, *pay(world))
        with pytest.raises(NotAllowed, match="nobody could get it out again"):
            world.run("revenue", "treasury", "--to", world.model.shares, *world.key_options("treasury"))
        assert world.router.treasury_pool() == 5 * USD
