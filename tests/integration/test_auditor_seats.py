"""Who may audit an epoch: the seats that were held when its tip was first committed, told from the chain's events."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commonweight.chain.auditors import auditor_seats
from commonweight.chain.events import ContractEvent, SeatLeft, SeatTaken
from commonweight.chain.keys import Key
from commonweight.chain.local import LocalChain
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.reverts import ContractReverted
from commonweight.errors import ChainError
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.statement import AuditorSeat
from tests.integration.chain_world import (
    ALICE,
    BOB,
    CAROL,
    COOLDOWN_S,
    SEAT_STAKE,
    STRANGER,
    ChainWorld,
    build_world,
)
from tools.build_vectors import mark

OWNERS, STAGES = (ALICE, BOB), 2
TIP = mark("tip")


@pytest.fixture(scope="module")
def base() -> Iterator[ChainWorld]:
    """Each owner has the stake for many seats."""
    with LocalChain.start("embedded", accounts=12) as local:
        world = build_world(local)
        for key in OWNERS:
            world.give(key, 50 * SEAT_STAKE, world.providers_address)
            world.providers(key).bond(key.address, 50 * SEAT_STAKE)
        yield world


@pytest.fixture
def world(base: ChainWorld) -> Iterator[ChainWorld]:
    snapshot = base.chain.request("evm_snapshot")
    yield base
    base.chain.request("evm_revert", snapshot)


def equivocate(world: ChainWorld, key: Key, stage: int) -> None:
    """What costs the seat at once."""
    domain, unit = Domain(world.chain.chain_id, world.model.settlement), mark("unit", world.chain.block_number())
    receipts = [Receipt(world.model.model_id, stage, unit, output * 32) for output in (b"\x01", b"\x02")]
    one, other = (key.sign_digest(receipt.digest(domain)) for receipt in receipts)
    world.providers(CAROL).slash_equivocation(receipts[0], one, receipts[1], other)


def act(world: ChainWorld, action: str, key: Key, stage: int) -> None:
    providers, model_id = world.providers(key), world.model.model_id
    if action == "take":
        providers.take_seat(model_id, stage)
    elif action == "leave":
        providers.leave_seat(model_id, stage)
    elif action == "slash":
        equivocate(world, key, stage)
    else:
        world.later(COOLDOWN_S)
        providers.release_seat(model_id, key.address, stage)


def held(world: ChainWorld) -> set[tuple[int, str]]:
    """As the contract says now."""
    seated, model_id = world.providers().is_seated, world.model.model_id
    places = [(stage, key.address) for stage in range(STAGES) for key in OWNERS]
    return {(stage, owner) for stage, owner in places if seated(model_id, owner, stage)}


ACTIONS = st.tuples(st.sampled_from(["take", "leave", "slash", "release"]), st.sampled_from(OWNERS), st.integers(0, 1))


@settings(max_examples=settings().max_examples // 10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(ACTIONS, min_size=4, max_size=14))
def test_seats_at_any_block_are_those_that_the_contract_knew_then(
    base: ChainWorld, history: list[tuple[str, Key, int]]
) -> None:
    """Half of the actions aren't allowed: they change nothing."""
    snapshot = base.chain.request("evm_snapshot")
    then: dict[int, set[tuple[int, str]]] = {base.chain.block_number(): held(base)}
    for action, key, stage in history:
        with suppress(ContractReverted):
            act(base, action, key, stage)
        then[base.chain.block_number()] = held(base)
    providers = base.providers()
    assert {block: set(providers.seated_at(base.model.model_id, block)) for block in then} == then
    base.chain.request("evm_revert", snapshot)


def test_a_seat_through_all_that_can_happen_to_it(world: ChainWorld) -> None:
    seen = []
    for action in ("take", "leave", "take", "slash", "release", "take", "leave", "slash"):
        act(world, action, ALICE, 1)
        block = world.chain.block_number()
        found = world.providers().seated_at(world.model.model_id, block)
        assert found == held(world)
        seen.append(bool(found))
    assert seen == [True, False, True, False, False, True, False, False]


def test_events_of_one_block_count_in_their_order(world: ChainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that is a contract can leave and take in one transaction."""
    seat = {"model_id": world.model.model_id, "owner": ALICE.address, "stage": 1, "block_number": 7, "transaction": ""}

    def found(*kinds: str) -> frozenset[tuple[int, str]]:
        events: dict[type[ContractEvent], list[ContractEvent]] = {SeatTaken: [], SeatLeft: []}
        for index, kind in enumerate(kinds):
            if kind == "take":
                events[SeatTaken].append(SeatTaken(**seat, stake=1, log_index=index))
            else:
                events[SeatLeft].append(SeatLeft(**seat, releasable_at=1, log_index=index))
        monkeypatch.setattr(ProviderRegistry, "events", lambda self, kind, **_: events[kind])
        return world.providers().seated_at(world.model.model_id, 7)

    assert found("leave", "take") == found("take", "leave", "take") == {(1, ALICE.address)}
    assert found("take", "leave") == found("leave", "take", "leave") == frozenset()


def test_the_first_commitment_of_the_tip_counts_whoever_made_it(world: ChainWorld) -> None:
    settlement, providers = world.settlement(), world.providers(ALICE)
    providers.take_seat(world.model.model_id, 1)
    world.settlement(BOB).commit_beacon(0, mark("another tip"))
    world.settlement(STRANGER).commit_beacon(1, TIP)
    world.providers(BOB).take_seat(world.model.model_id, 0)
    world.settlement(CAROL).commit_beacon(0, TIP)
    providers.leave_seat(world.model.model_id, 1)
    settlement.commit_beacon(0, TIP)
    alice, bob = AuditorSeat(stage=1, owner=ALICE.address), AuditorSeat(stage=0, owner=BOB.address)
    assert auditor_seats(settlement, world.model, 0, TIP) == {alice, bob}
    assert auditor_seats(settlement, world.model, 0, mark("another tip")) == auditor_seats(
        settlement, world.model, 1, TIP
    )
    with pytest.raises(ChainError, match="doesn't know in which block epoch 2's beacon tip"):
        auditor_seats(settlement, world.model, 2, TIP)


def test_where_no_stake_is_asked_for_nobody_audits_but_the_referee(world: ChainWorld) -> None:
    world.providers(ALICE).take_seat(world.model.model_id, 1)
    world.settlement().commit_beacon(0, TIP)
    free = replace(world.model, terms=replace(world.model.terms, seat_stake=0))
    assert auditor_seats(world.settlement(), free, 0, TIP) == frozenset()
