"""`model coordinator` on a real local chain."""

import pytest

from commonweight.errors import ConfigError, NotAllowed
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    COORDINATOR,
    COORDINATOR_DELAY_S,
    World,
    propose,
    statement_of,
)

PROPOSE, ACCEPT = ("model", "coordinator", "propose"), ("model", "coordinator", "accept")

world = cli_world.world  # pytest finds fixtures by their names here


def test_from_one_coordinator_to_another(world: World) -> None:
    """The account that registered this world's model coordinates it, too."""
    before = world.json("model", "coordinator", "show")
    assert (before["registrant"], before["coordinator"]) == (COORDINATOR.address, COORDINATOR.address)
    assert before["proposed"] is None
    height = world.chain.block_number()
    planned = world.run(*PROPOSE, ALICE.address, "--dry-run").stdout  # nobody's key
    assert f"then         {ALICE.address}, which can accept from about 2" in planned
    assert f"propose {ALICE.address} as coordinator: " in planned
    assert world.chain.block_number() == height

    proposed = world.json(*PROPOSE, ALICE.address, *world.key_options("coordinator"))
    assert proposed["proposed"] == ALICE.address
    assert 0 <= world.chain.timestamp() + COORDINATOR_DELAY_S - proposed["acceptable_at"] < 60
    assert f"proposed     {ALICE.address}, which can accept from 2" in world.run("model", "coordinator", "show").stdout
    again = world.json(*PROPOSE, ALICE.address, *world.key_options("coordinator"))
    assert (again["steps"], again["acceptable_at"]) == ([], proposed["acceptable_at"])  # the delay doesn't begin anew

    with pytest.raises(NotAllowed, match=f"{ALICE.address} can accept from 2.*, in .*: try again then"):
        world.run(*ACCEPT, *world.key_options("alice"))
    world.later(COORDINATOR_DELAY_S)
    with pytest.raises(NotAllowed, match=f"is not the model's proposed coordinator, {ALICE.address} is"):
        world.run(*ACCEPT, *world.key_options("bob"))
    assert f"have {ALICE.address} coordinate the model: " in world.run(*ACCEPT, "--dry-run").stdout
    text = world.run(*ACCEPT, *world.key_options("alice")).stdout
    assert f"{ALICE.address} is the coordinator of model 0x{world.model.model_id.hex()}." in text
    assert world.registry.coordinator_of(world.model.model_id) == ALICE.address
    assert "is the coordinator already" in world.run(*ACCEPT, *world.key_options("alice")).stdout


def test_the_old_one_s_bond_comes_back_once_its_last_epoch_is_final(world: World) -> None:
    propose(world, statement_of(world, 2))
    world.run(*PROPOSE, ALICE.address, *world.key_options("coordinator"))
    world.later(COORDINATOR_DELAY_S)
    world.run(*ACCEPT, *world.key_options("alice"))
    withdraw = ["epochs", "bond", "withdraw", "all", *world.key_options("coordinator")]
    with pytest.raises(NotAllowed, match="It is pending: nobody has challenged it, anybody can finalise it"):
        world.run(*withdraw)
    world.settlement.finalize_epoch(2)
    assert world.json(*withdraw)["bond"] == "0"


def test_a_proposal_is_replaced_and_withdrawn(world: World) -> None:
    options = world.key_options("coordinator")
    world.run(*PROPOSE, ALICE.address, *options)
    first = world.json("model", "coordinator", "show")["proposed"]["acceptable_at"]
    world.later(COORDINATOR_DELAY_S)
    replaced = world.json(*PROPOSE, BOB.address, *options)
    assert replaced["proposed_before"] == ALICE.address
    assert replaced["acceptable_at"] >= first + COORDINATOR_DELAY_S
    with pytest.raises(NotAllowed, match=f"is not the model's proposed coordinator, {BOB.address} is"):
        world.run(*ACCEPT, *world.key_options("alice"))
    text = world.run(*PROPOSE, COORDINATOR.address, *options).stdout
    assert "withdraw the proposal of another coordinator: " in text
    assert f"{COORDINATOR.address} stays the coordinator." in text
    assert world.registry.proposed_coordinator(world.model.model_id) is None
    nothing = world.run(*PROPOSE, COORDINATOR.address, *options)
    assert nothing.exit_code == 0
    assert "is the coordinator, and nobody else is proposed" in nothing.stdout
    with pytest.raises(NotAllowed, match=f"Nobody is proposed .*: its registrant {COORDINATOR.address} can"):
        world.run(*ACCEPT, *world.key_options("bob"))


def test_who_can_t_name_whom(world: World) -> None:
    with pytest.raises(NotAllowed, match=f"is not the model's registrant, {COORDINATOR.address} is"):
        world.run(*PROPOSE, ALICE.address, *world.key_options("alice"))
    with pytest.raises(NotAllowed, match="is the model's arbiter, which judges the coordinator"):
        world.run(*PROPOSE, world.model.terms.arbiter, *world.key_options("coordinator"))
    with pytest.raises(ConfigError, match="To withdraw a proposal, name the present coordinator"):
        world.run(*PROPOSE, "0x" + 40 * "0", *world.key_options("coordinator"))
    with pytest.raises(ConfigError, match="give --key FILE"):
        world.run(*PROPOSE, ALICE.address)
    result = world.run(*PROPOSE, ALICE.address, *world.key_options("coordinator")[:-1], input="n\n")
    assert (result.exit_code, "Send it?" in result.stderr) == (1, True)
    assert world.registry.proposed_coordinator(world.model.model_id) is None
