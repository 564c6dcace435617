"""`bond`, `unbond` and `seat` on a real local chain."""

import re

import pytest
from typer.testing import CliRunner

from commonweight.chain.reverts import ContractReverted
from commonweight.chain.sender import Action, Receipt, Sender
from commonweight.cli.main import app
from commonweight.errors import ConfigError, InsufficientFunds, KeyStoreError, NotAllowed, RpcUnreachable
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    CAROL,
    COOLDOWN_S,
    NODE,
    SEAT_STAKE,
    STRANGER,
    USD,
    World,
)

world = cli_world.world  # pytest finds fixtures by their names here


class TestBond:
    def test_two_transactions_and_then_one(self, world: World) -> None:
        world.give(CAROL, 100 * USD)
        first = world.json("bond", "60", *world.key_options("carol"))
        assert [step["what"].split()[0] for step in first["steps"]] == ["allow", "bond"]
        assert (first["free"], world.usd().balance_of(CAROL.address)) == (str(60 * USD), 40 * USD)
        world.usd(CAROL).approve(world.model.terms.providers, 50 * USD)
        again = world.json("bond", "0.5", *world.key_options("carol"))
        assert [step["what"] for step in again["steps"]] == ["bond 0.5 tUSD"]
        assert world.providers().free_stake_of(CAROL.address) == 60_500_000

    def test_it_goes_on_where_it_was_interrupted(self, world: World) -> None:
        world.give(CAROL, 10 * USD)
        world.usd(CAROL).approve(world.model.terms.providers, 10 * USD)  # and then the machine went down
        result = world.run("bond", "10", *world.key_options("carol"))
        assert "allow" not in result.stdout
        assert "now has 10 tUSD of free stake" in result.stdout

    def test_what_was_sent_before_a_failure_is_said_and_not_sent_again(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.give(CAROL, 10 * USD)
        send = Sender.send
        sent: list[str] = []

        def fail_the_second(sender: Sender, action: Action) -> Receipt:
            if sent:
                raise RpcUnreachable("the line is cut")
            sent.append(action.what)
            return send(sender, action)

        with monkeypatch.context() as cut:
            cut.setattr(Sender, "send", fail_the_second)
            result = CliRunner().invoke(app, ["bond", "10", *world.key_options("carol"), "--dir", str(world.dir)])
        assert isinstance(result.exception, RpcUnreachable)
        assert "Sent: allow the provider registry" in result.stdout
        assert world.providers().free_stake_of(CAROL.address) == 0
        again = world.json("bond", "10", *world.key_options("carol"))
        assert [step["what"] for step in again["steps"]] == ["bond 10 tUSD"]

    def test_a_dry_run_needs_no_password_and_sends_nothing(self, world: World) -> None:
        world.give(CAROL, 10 * USD)
        height = world.chain.block_number()
        result = world.run("bond", "10", "--key", str(world.dir / "carol.json"), "--dry-run")
        assert "allow the provider registry" in result.stdout
        assert "bond 10 tUSD: about " in result.stdout
        assert "Nothing was sent" in result.stdout
        assert world.chain.block_number() == height

    def test_the_estimates_are_not_far_from_what_it_takes(self, world: World) -> None:
        world.give(CAROL, 10 * USD)
        planned = world.json("bond", "10", "--key", str(world.dir / "carol.json"), "--dry-run")["steps"]
        sent = world.json("bond", "10", *world.key_options("carol"))["steps"]
        for plan, step in zip(planned, sent, strict=True):
            assert step["gas"] <= plan["gas"] <= 1.5 * step["gas"], step

    def test_one_question_for_both(self, world: World) -> None:
        world.give(CAROL, 10 * USD)
        height = world.chain.block_number()
        result = world.run("bond", "10", *world.key_options("carol")[:-1], input="n\n")
        assert (result.exit_code, "Send these 2 transactions?" in result.stderr) == (1, True)
        assert world.chain.block_number() == height

    @pytest.mark.parametrize(
        ("amount", "said"),
        [
            ("0", "must be above 0"),
            ("1,000", "plain decimal number"),
            ("1e3", "plain decimal number"),
            ("all", "plain decimal number"),
            ("0.0000001", "has 7 decimals; tUSD has 6"),
            ("1" + 80 * "0", "must be above 0 and fit"),
        ],
    )
    def test_what_is_no_amount(self, world: World, amount: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            world.run("bond", amount, *world.key_options("carol"))

    def test_a_negative_amount_is_no_option(self, world: World) -> None:
        result = world.run("bond", "-1", *world.key_options("carol"))
        assert (result.exit_code, "No such option: -1" in result.stderr) == (2, True)

    def test_more_than_there_is(self, world: World) -> None:
        with pytest.raises(InsufficientFunds, match=r"has 0 tUSD, 5 tUSD are needed: send it 5 tUSD"):
            world.run("bond", "5", *world.key_options("carol"))

    def test_a_wrong_password(self, world: World) -> None:
        world.give(CAROL, 5 * USD)
        (world.dir / "password").write_text("another\n")
        height = world.chain.block_number()
        try:
            with pytest.raises(KeyStoreError, match="wrong password"):
                world.run("bond", "5", *world.key_options("carol"))
        finally:
            (world.dir / "password").write_text("secret-password\n")
        assert world.chain.block_number() == height


class TestUnbond:
    def test_part_and_then_all(self, world: World) -> None:
        world.run("unbond", "400", *world.key_options("alice"))
        assert world.usd().balance_of(ALICE.address) == 400 * USD
        result = world.run("unbond", "all", *world.key_options("alice"))
        assert "now has 0 tUSD of free stake" in result.stdout
        assert world.usd().balance_of(ALICE.address) == SEAT_STAKE

    def test_locked_stake_is_listed_with_its_reason(self, world: World) -> None:
        text = world.run("unbond", "all", "--key", str(world.dir / "alice.json"), "--dry-run").stdout
        assert "1,000 tUSD in stage 0, which is held: `commonweight seat leave 0`" in text
        assert "1,000 tUSD in stage 2, left, free from 2" in text
        with pytest.raises(InsufficientFunds, match=r"1,000 tUSD of free stake, 1,001 tUSD were asked for; locked: "):
            world.run("unbond", "1001", *world.key_options("alice"))

    def test_a_seat_whose_cool_down_is_over_is_released_first(self, world: World) -> None:
        world.later(COOLDOWN_S)
        planned = world.json("unbond", "all", "--key", str(world.dir / "alice.json"), "--dry-run")["steps"]
        sent = world.json("unbond", "all", *world.key_options("alice"))
        assert [step["what"] for step in sent["steps"]] == [
            "release the seat of stage 2, 1,000 tUSD",
            f"pay 2,000 tUSD to {ALICE.address}",
        ]
        for plan, step in zip(planned, sent["steps"], strict=True):
            assert step["gas"] <= plan["gas"] <= 1.5 * step["gas"], step
        assert world.usd().balance_of(ALICE.address) == 2 * SEAT_STAKE
        assert [lock["stage"] for lock in sent["locked"]] == [0]

    def test_nothing_free_is_no_error(self, world: World) -> None:
        result = world.run("unbond", "all", *world.key_options("bob"))
        assert result.exit_code == 0
        assert "has no free stake. Locked: 1,000 tUSD in stage 1, which is held" in result.stdout
        assert "It has bonded nothing" in world.run("unbond", "all", *world.key_options("carol")).stdout

    def test_zero_is_no_amount(self, world: World) -> None:
        with pytest.raises(ConfigError, match="above 0"):
            world.run("unbond", "0", *world.key_options("alice"))


class TestSeats:
    def test_the_list_has_every_stage(self, world: World) -> None:
        lines = world.run("seat", "list", ALICE.address).stdout.splitlines()
        table = [line.split() for line in lines[lines.index("") + 2 :]]
        assert [row[:2] for row in table] == [
            ["0", ALICE.address],
            ["1", BOB.address],
            ["2", ALICE.address],
            ["3", BOB.address],
        ]
        assert [row[-1] == "yours" for row in table] == [True, False, True, False]
        assert "left, counts until 2" in lines[-2]
        assert "custody cap   2 of 4 stages for one owner" in lines
        found = world.json("seat", "list", ALICE.address)
        assert found["owner"]["locked"] == str(2 * SEAT_STAKE)
        assert [(each["held"], each["free_at"] is None) for each in found["seats"]] == [
            (True, True),
            (True, True),
            (False, False),
            (True, True),
        ]

    def test_take_and_leave(self, world: World) -> None:
        world.bond(CAROL, SEAT_STAKE)
        text = world.run("seat", "take", "2", *world.key_options("carol")).stdout
        assert re.search(r"locks +1,000 tUSD", text)
        assert re.search(r"custody cap +2 stages for one owner", text)
        assert f"{CAROL.address} holds stage 2." in text
        assert world.providers().is_seated(world.model.model_id, CAROL.address, 2)
        assert "holds stage 2 already" in world.run("seat", "take", "2", *world.key_options("carol")).stdout
        left = world.json("seat", "leave", "2", *world.key_options("carol"))
        assert abs(left["free_at"] - world.chain.timestamp() - COOLDOWN_S) < 60
        assert "is not in it: left" in world.run("seat", "leave", "2", *world.key_options("carol")).stdout

    def test_a_seat_that_was_left_is_taken_again_without_stake(self, world: World) -> None:
        free = world.providers().free_stake_of(ALICE.address)
        sent = world.json("seat", "take", "2", *world.key_options("alice"))
        assert (sent["locks"], len(sent["steps"])) == ("0", 1)
        assert world.providers().free_stake_of(ALICE.address) == free

    def test_the_custody_cap_counts_what_was_left_until_its_cool_down_is_over(self, world: World) -> None:
        with pytest.raises(NotAllowed, match=r"cap is 2 .* has 2: stage 0, held; stage 2, left, counts until 2\d{3}-"):
            world.run("seat", "take", "1", *world.key_options("alice"))
        world.later(COOLDOWN_S)
        planned = world.json("seat", "take", "1", "--key", str(world.dir / "alice.json"), "--dry-run")["steps"]
        sent = world.json("seat", "take", "1", *world.key_options("alice"))["steps"]
        assert [step["what"] for step in sent] == [
            "release the seat of stage 2, whose cool-down is over",
            "take stage 1",
        ]
        assert sent[1]["gas"] <= planned[1]["gas"] <= 1.5 * sent[1]["gas"]
        assert world.providers().is_seated(world.model.model_id, ALICE.address, 1)

    def test_taking_needs_stake(self, world: World) -> None:
        with pytest.raises(InsufficientFunds, match="has 0 tUSD of free stake; a seat locks 1,000 tUSD"):
            world.run("seat", "take", "0", *world.key_options("carol"))

    def test_what_can_t_be_taken_or_left(self, world: World) -> None:
        with pytest.raises(ConfigError, match="stages 0 to 3; there is no stage 4"):
            world.run("seat", "take", "4", *world.key_options("carol"))
        with pytest.raises(NotAllowed, match="holds no seat of stage 0"):
            world.run("seat", "leave", "0", *world.key_options("carol"))
        world.registry.retire(world.model.model_id)
        with pytest.raises(NotAllowed, match="is retired"):
            world.run("seat", "take", "0", *world.key_options("carol"))

    def test_a_bound_key_takes_no_seat(self, world: World) -> None:
        """Evidence against it would be evidence against its owner, and leave its own seat alone."""
        world.bond(NODE, SEAT_STAKE)
        with pytest.raises(NotAllowed, match=f"{NODE.address} is bound to {BOB.address} as a node's key, for good"):
            world.run("seat", "take", "0", *world.key_options("node"))
        with pytest.raises(ContractReverted, match="ProviderRegistrySignerTaken") as caught:
            world.providers(NODE).take_seat(world.model.model_id, 0)
        assert caught.value.arguments == {"signer": NODE.address.lower(), "owner": BOB.address.lower()}

    def test_a_node_s_key_is_bound_with_its_consent(self, world: World) -> None:
        node = ["--node-key", str(world.dir / "stranger.json"), "--node-password-file", str(world.dir / "password")]
        result = world.run("seat", "bind", *node, *world.key_options("alice"))
        assert f"{STRANGER.address} answers to {ALICE.address}." in result.stdout
        assert "secret-password" not in result.output
        assert world.providers().owner_of(STRANGER.address) == ALICE.address
        assert "already" in world.run("seat", "bind", *node, *world.key_options("alice")).stdout
        with pytest.raises(NotAllowed, match=f"is bound to {BOB.address}, for good"):
            world.run("seat", "bind", "--node-key", str(world.dir / "node.json"), *world.key_options("alice"))
        assert world.providers().owner_of(NODE.address) == BOB.address

    def test_who_is_paid(self, world: World) -> None:
        world.run("seat", "payout", CAROL.address, *world.key_options("alice"))
        assert world.providers().payout_of(ALICE.address) == CAROL.address
        assert "already" in world.run("seat", "payout", CAROL.address, *world.key_options("alice")).stdout
        with pytest.raises(ConfigError, match="zero address"):
            world.run("seat", "payout", "0x" + 40 * "0", *world.key_options("alice"))
        with pytest.raises(ConfigError, match="is not an address"):
            world.run("seat", "payout", "me", *world.key_options("alice"))
