"""Stakes, seats, slashes and the arbiter through the typed client, on both back-ends."""

from collections.abc import Callable

import pytest

from commonweight.chain.events import (
    CallProposed,
    SeatLeft,
    SeatReleased,
    SeatTaken,
    SlashContested,
    SlashDropped,
    Slashed,
    SlashProposed,
)
from commonweight.chain.keys import Key
from commonweight.chain.records import NOBODY, ArbiterCall, Seat, SlashStatus
from commonweight.chain.reverts import ContractReverted
from commonweight.rules.receipt import Domain, Receipt
from tests.integration.chain_world import (
    ALICE,
    ARBITRATION_S,
    BOB,
    CAROL,
    COOLDOWN_S,
    COORDINATOR,
    DELAY_S,
    DOLLAR,
    JUDGE_0,
    JUDGE_1,
    JUDGE_2,
    JUDGES,
    REPORTER_BOND,
    SEAT_STAKE,
    STRANGER,
    TREASURY,
    WINDOW_S,
    ChainWorld,
)

NODE = Key(b"\x11" * 32)
"""The key of a machine that ALICE owns."""
HUGE = 2**256 - 1


def bond(world: ChainWorld, key: Key = ALICE, amount: int = SEAT_STAKE) -> None:
    world.give(key, amount, world.providers_address)
    world.providers(key).bond(key.address, amount)


def seat(world: ChainWorld, key: Key = ALICE, stage: int = 1) -> None:
    bond(world, key)
    world.providers(key).take_seat(world.model.model_id, stage)


def refused(error: str, attempt: Callable[..., object], *arguments: object) -> ContractReverted:
    with pytest.raises(ContractReverted) as caught:
        attempt(*arguments)
    assert caught.value.error == error
    return caught.value


# Stake and seats


def test_free_stake_comes_and_goes(world: ChainWorld) -> None:
    providers = world.providers(ALICE)
    assert (providers.bond_token(), providers.reporter_bond()) == (world.usd_address, REPORTER_BOND)
    bond(world, amount=10 * DOLLAR)
    assert providers.free_stake_of(ALICE.address) == 10 * DOLLAR
    providers.withdraw(BOB.address, 4 * DOLLAR)
    assert world.usd().balance_of(BOB.address) == 4 * DOLLAR
    error = refused("ProviderRegistryInsufficientStake", providers.withdraw, BOB.address, HUGE)
    assert error.arguments == {"free": 6 * DOLLAR, "needed": HUGE}
    refused("ProviderRegistryZeroAmount", providers.withdraw, BOB.address, 0)
    refused("ProviderRegistryNothingReceived", providers.bond, ALICE.address, 0)
    refused("ProviderRegistryInvalidPayee", providers.withdraw, NOBODY, 1)


def test_a_seat_from_taking_to_release(world: ChainWorld) -> None:
    providers, model_id = world.providers(ALICE), world.model.model_id
    refused("ProviderRegistryInsufficientStake", providers.take_seat, model_id, 1)
    assert providers.seats_of(model_id, ALICE.address) == []
    bond(world, amount=2 * SEAT_STAKE)
    providers.take_seat(model_id, 1)
    assert providers.is_seated(model_id, ALICE.address, 1)
    assert not providers.is_seated(model_id, ALICE.address, 0)
    held = Seat(stage=1, stake=SEAT_STAKE, releasable_at=0, open_slashes=0, slashed=False)
    assert providers.seats_of(model_id, ALICE.address) == [held]
    assert (providers.free_stake_of(ALICE.address), providers.locked_stake_of(ALICE.address)) == (
        SEAT_STAKE,
        SEAT_STAKE,
    )
    refused("ProviderRegistryAlreadySeated", providers.take_seat, model_id, 1)
    refused("ProviderRegistryCustodyCap", providers.take_seat, model_id, 2)
    refused("ProviderRegistryUnknownStage", providers.take_seat, model_id, 3)

    providers.leave_seat(model_id, 1)
    (left,) = providers.seats_of(model_id, ALICE.address)
    assert left.releasable_at > world.chain.timestamp() + COOLDOWN_S - 60
    assert not providers.is_seated(model_id, ALICE.address, 1)
    refused("ProviderRegistryCustodyCap", providers.take_seat, model_id, 2)
    refused("ProviderRegistryTooEarly", providers.release_seat, model_id, ALICE.address, 1)
    world.later(COOLDOWN_S)
    world.providers(STRANGER).release_seat(model_id, ALICE.address, 1)
    assert providers.free_stake_of(ALICE.address) == 2 * SEAT_STAKE
    assert providers.seats_of(model_id, ALICE.address) == []
    providers.take_seat(model_id, 2)
    owner = {"owner": ALICE.address}
    assert [event.stage for event in providers.events(SeatTaken, model_id=model_id, **owner)] == [1, 2]
    assert [event.releasable_at for event in providers.events(SeatLeft, **owner)] == [left.releasable_at]
    assert [event.stake for event in providers.events(SeatReleased, stage=1)] == [SEAT_STAKE]


def test_no_seat_in_a_retired_or_unknown_model(world: ChainWorld) -> None:
    bond(world)
    refused("ModelRegistryUnknownModel", world.providers(ALICE).take_seat, b"\x09" * 32, 0)
    world.registry().retire(world.model.model_id)
    refused("ProviderRegistryModelRetired", world.providers(ALICE).take_seat, world.model.model_id, 0)


def test_a_node_s_key_is_bound_with_its_consent(world: ChainWorld) -> None:
    providers = world.providers(ALICE)
    consent = NODE.sign_digest(providers.binding_digest(ALICE.address))
    assert providers.owner_of(NODE.address) == NODE.address
    refused("ProviderRegistryBadSignature", world.providers(BOB).bind_signer, NODE.address, consent)
    refused("ProviderRegistryBadSignature", providers.bind_signer, NODE.address, b"")
    providers.bind_signer(NODE.address, consent)
    assert providers.owner_of(NODE.address) == ALICE.address
    refused("ProviderRegistrySignerTaken", providers.bind_signer, NODE.address, consent)
    assert providers.payout_of(ALICE.address) == ALICE.address
    providers.set_payout(CAROL.address)
    assert providers.payout_of(ALICE.address) == CAROL.address
    providers.set_payout(NOBODY)
    assert providers.payout_of(ALICE.address) == ALICE.address


# Equivocation


def receipts(world: ChainWorld, stage: int = 1) -> tuple[Receipt, Receipt]:
    unit = b"\x21" * 32
    return tuple(Receipt(world.model.model_id, stage, unit, output * 32) for output in (b"\x01", b"\x02"))  # type: ignore[return-value]


def test_two_outputs_for_one_unit_cost_the_seat_at_once(world: ChainWorld) -> None:
    providers, model_id = world.providers(ALICE), world.model.model_id
    seat(world)
    providers.bind_signer(NODE.address, NODE.sign_digest(providers.binding_digest(ALICE.address)))
    a, b = receipts(world)
    domain = Domain(world.chain.chain_id, world.model.settlement)
    assert providers.receipt_digest(a) == a.digest(domain)
    signed_a, signed_b = (NODE.sign_digest(receipt.digest(domain)) for receipt in (a, b))
    slash = world.providers(CAROL).slash_equivocation
    refused("ProviderRegistryNotEquivocation", slash, a, signed_a, a, signed_a)
    refused("ProviderRegistryBadSignature", slash, a, signed_a, b, signed_a)
    refused("ProviderRegistryBadSignature", slash, a, b"", b, signed_b)
    slash(a, signed_a, b, signed_b)
    (lost,) = providers.seats_of(model_id, ALICE.address)
    assert (lost.stake, lost.slashed) == (0, True)
    assert not providers.is_seated(model_id, ALICE.address, 1)
    assert providers.locked_stake_of(ALICE.address) == 0
    assert providers.free_stake_of(CAROL.address) == SEAT_STAKE // 2
    assert providers.free_stake_of(TREASURY.address) == SEAT_STAKE // 2
    (event,) = providers.events(Slashed, owner=ALICE.address)
    assert (event.stage, event.amount, event.reporter, event.model_id) == (1, SEAT_STAKE, CAROL.address, model_id)
    for pair in ((a, signed_a, b, signed_b), (b, signed_b, a, signed_a)):
        refused("ProviderRegistryEvidenceUsed", slash, *pair)


def test_receipts_are_good_for_their_model_s_settlement_only(world: ChainWorld) -> None:
    seat(world)
    a, b = receipts(world)
    elsewhere = Domain(world.chain.chain_id, world.model.shares)
    signed = [ALICE.sign_digest(receipt.digest(elsewhere)) for receipt in (a, b)]
    with pytest.raises(ContractReverted, match="ProviderRegistry"):
        world.providers(CAROL).slash_equivocation(a, signed[0], b, signed[1])
    assert world.providers().is_seated(world.model.model_id, ALICE.address, 1)


# Slashes that need a judge


def report(world: ChainWorld) -> int:
    """CAROL proposes to slash ALICE; the proposal's id."""
    providers = world.providers(CAROL)
    world.give(CAROL, REPORTER_BOND, providers.address)
    providers.propose_slash(world.model.model_id, ALICE.address, 1, b"\x31" * 32, "file:///evidence.json")
    return providers.events(SlashProposed, owner=ALICE.address)[-1].slash_id


def contest(world: ChainWorld, slash_id: int) -> None:
    """ALICE's friend BOB contests."""
    world.give(BOB, REPORTER_BOND, world.providers_address)
    world.providers(BOB).contest_slash(slash_id, "file:///alibi.json")


def test_a_slash_that_nobody_contests_is_executed(world: ChainWorld) -> None:
    providers = world.providers(STRANGER)
    assert providers.slash(1).status is SlashStatus.NONE
    seat(world)
    slash_id = report(world)
    record = providers.slash(slash_id)
    assert (record.status, record.owner, record.stage, record.reporter, record.contester) == (
        SlashStatus.PROPOSED,
        ALICE.address,
        1,
        CAROL.address,
        NOBODY,
    )
    assert providers.seats_of(world.model.model_id, ALICE.address)[0].open_slashes == 1
    refused("ProviderRegistryTooEarly", providers.execute_slash, slash_id)
    world.later(WINDOW_S)
    refused("ProviderRegistryTooLate", world_contest(world), slash_id)
    providers.execute_slash(slash_id)
    assert providers.slash(slash_id).status is SlashStatus.EXECUTED
    assert providers.free_stake_of(CAROL.address) == REPORTER_BOND + SEAT_STAKE // 2
    refused("ProviderRegistryWrongStatus", providers.execute_slash, slash_id)
    refused("ProviderRegistryWrongStatus", providers.execute_slash, HUGE)


def world_contest(world: ChainWorld) -> Callable[[int], object]:
    world.give(BOB, REPORTER_BOND, world.providers_address)
    return lambda slash_id: world.providers(BOB).contest_slash(slash_id, "")


@pytest.mark.parametrize("uphold", [True, False])
def test_the_arbiter_decides_a_contested_slash(world: ChainWorld, uphold: bool) -> None:
    providers = world.providers(STRANGER)
    seat(world)
    slash_id = report(world)
    contest(world, slash_id)
    (event,) = providers.events(SlashContested, slash_id=slash_id)
    assert (event.contester, event.uri) == (BOB.address, "file:///alibi.json")
    assert providers.slash(slash_id).deadline == event.deadline
    refused("ProviderRegistryNotArbiter", providers.resolve_slash, slash_id, uphold)
    decision = providers.action("resolveSlash", slash_id, uphold)
    assert decision.to is not None
    world.decide(decision.to, decision.data)
    status = providers.slash(slash_id).status
    assert status is (SlashStatus.EXECUTED if uphold else SlashStatus.DROPPED)
    assert providers.is_seated(world.model.model_id, ALICE.address, 1) is not uphold
    reporter, contester = (providers.free_stake_of(key.address) for key in (CAROL, BOB))
    half = REPORTER_BOND // 2
    assert (reporter, contester) == (
        (REPORTER_BOND + half + SEAT_STAKE // 2, 0) if uphold else (0, REPORTER_BOND + half)
    )
    total = sum(
        providers.free_stake_of(key.address) + providers.locked_stake_of(key.address)
        for key in (ALICE, BOB, CAROL, TREASURY)
    )
    assert total == SEAT_STAKE + 2 * REPORTER_BOND == world.usd().balance_of(providers.address)


def test_an_arbiter_s_silence_drops_a_contested_slash(world: ChainWorld) -> None:
    providers = world.providers(STRANGER)
    seat(world)
    slash_id = report(world)
    refused("ProviderRegistryWrongStatus", providers.drop_slash, slash_id)
    contest(world, slash_id)
    refused("ProviderRegistryTooEarly", providers.drop_slash, slash_id)
    world.later(ARBITRATION_S)
    providers.drop_slash(slash_id)
    assert providers.is_seated(world.model.model_id, ALICE.address, 1)
    assert providers.free_stake_of(CAROL.address) == providers.free_stake_of(BOB.address) == REPORTER_BOND
    assert [event.by_arbiter for event in providers.events(SlashDropped)] == [False]


# The arbiter


def test_a_call_needs_two_judges_and_time(world: ChainWorld) -> None:
    arbiter = world.arbiter(JUDGE_0)
    assert arbiter.members() == [judge.address for judge in JUDGES]
    assert (arbiter.threshold(), arbiter.delay_s()) == (2, DELAY_S)
    mint = world.usd().action("mint", ALICE.address, 5)
    assert mint.to is not None
    call_id = arbiter.call_id_of(mint.to, mint.data)
    assert arbiter.call_of(call_id) is None
    refused("ArbiterNotMember", world.arbiter(STRANGER).propose, mint.to, mint.data)
    refused("ArbiterUnknownCall", arbiter.confirm, call_id)
    arbiter.propose(mint.to, mint.data)
    refused("ArbiterAlreadyConfirmed", arbiter.confirm, call_id)
    (event,) = arbiter.events(CallProposed, target=mint.to)
    assert (event.call_id, "0x" + event.data.hex()) == (call_id, mint.data)
    assert arbiter.call_of(call_id) == ArbiterCall(mint.to, bytes.fromhex(mint.data[2:]), 1, 0, False)
    refused("ArbiterNotQueued", arbiter.execute, call_id)
    world.arbiter(JUDGE_1).confirm(call_id)
    queued = arbiter.call_of(call_id)
    assert queued is not None
    assert (queued.confirmations, queued.executed) == (2, False)
    refused("ArbiterTooEarly", arbiter.execute, call_id)
    world.arbiter(JUDGE_0).revoke(call_id)
    world.later(DELAY_S)
    refused("ArbiterNotQueued", arbiter.execute, call_id)
    world.arbiter(JUDGE_2).confirm(call_id)
    world.later(DELAY_S)
    world.arbiter(STRANGER).execute(call_id)
    assert world.usd().balance_of(ALICE.address) == 5
    refused("ArbiterAlreadyExecuted", arbiter.execute, call_id)
    arbiter.propose(mint.to, mint.data, salt=b"\x01" * 32)
    assert len(arbiter.events(CallProposed)) == 2


def test_why_the_arbiter_s_call_failed_is_told_by_its_target_s_name(world: ChainWorld) -> None:
    decision = world.settlement().action("resolveEpoch", 0, b"\x01" * 32, 2**40, True)
    assert decision.to is not None
    with pytest.raises(ContractReverted, match=r"Arbiter\.execute reverted.*EpochSettlementNotPending"):
        world.decide(decision.to, decision.data)


def test_the_members_change_by_their_own_call_only(world: ChainWorld) -> None:
    arbiter = world.arbiter(JUDGE_0)
    change = arbiter.action("setMembers", [COORDINATOR.address, BOB.address], 2)
    refused("ArbiterNotSelf", world.sender(JUDGE_0).send, change)
    world.decide(arbiter.address, change.data)
    assert arbiter.members() == [COORDINATOR.address, BOB.address]
    refused("ArbiterNotMember", arbiter.propose, arbiter.address, change.data)
