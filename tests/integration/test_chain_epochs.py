"""An epoch's whole way through the typed client, and what accounts claim from it, on both back-ends."""

from dataclasses import replace
from typing import Any

import pytest

from commonweight.bench.merkle import leaves_of
from commonweight.chain.events import (
    BeaconCommitted,
    EpochChallenged,
    EpochFinalized,
    EpochProposed,
    EpochRejected,
    EpochUpheld,
    SharesClaimed,
    SplitClaimed,
)
from commonweight.chain.keys import Key
from commonweight.chain.records import ClaimArguments, Claimed, FinalEpoch
from commonweight.chain.reverts import ContractReverted
from commonweight.chain.settlement import EpochSettlement
from commonweight.errors import ChainError
from commonweight.rules.merkle import MerkleTree, settlement_leaf
from tests.integration.chain_world import (
    ALICE,
    ARBITRATION_S,
    BOB,
    CAROL,
    CHALLENGER_BOND,
    COMPUTE,
    COORDINATOR,
    DATA,
    DESIGNER,
    DOLLAR,
    EMISSION,
    GENESIS_DATA,
    GENESIS_DESIGNER,
    PROPOSER_BOND,
    STATEMENT,
    STRANGER,
    WINDOW_S,
    ChainWorld,
    Earned,
)

QUARTER = COMPUTE // 4
LINES = {ALICE: Earned(QUARTER, QUARTER), BOB: Earned(3 * QUARTER, 3 * QUARTER, operator=7)}
ROOT = b"\x0d" * 32
TIP = b"\x0f" * 32


def challenge(world: ChainWorld, root: bytes) -> None:
    world.give(CAROL, CHALLENGER_BOND, world.model.settlement)
    world.settlement(CAROL).challenge_epoch(0, root, b"\x0e" * 32, "file:///evidence.json")


def balances(world: ChainWorld) -> tuple[int, int]:
    """The proposer's standing bond, and what the challenger has in all."""
    settlement = world.settlement()
    challenger = settlement.bond_of(CAROL.address) + world.usd().balance_of(CAROL.address)
    return settlement.bond_of(COORDINATOR.address), challenger


# From proposal to finalisation


def test_an_epoch_from_proposal_to_claims(world: ChainWorld) -> None:
    settlement, shares = world.settlement(), world.shares()
    root, claims = world.tree(LINES)
    assert (settlement.next_epoch(), settlement.pending(), settlement.epoch(0)) == (0, None, None)
    world.bond_proposer()

    before = world.chain.timestamp()
    proposal = settlement.propose_epoch(0, root, EMISSION, STATEMENT, "file:///statement.json")
    pending, record = settlement.pending(), settlement.epoch(0)
    assert pending is not None
    assert record is not None
    assert (pending.epoch, pending.root, pending.minted, pending.proposer) == (0, root, EMISSION, COORDINATOR.address)
    assert (pending.challenger, pending.resolvable_until, pending.upheld) == (None, 0, False)
    assert (record.root, record.minted, record.statement_hash) == (root, EMISSION, STATEMENT)
    assert (record.proposer, record.uri) == (COORDINATOR.address, "file:///statement.json")
    assert (record.block_number, record.finalized_block) == (proposal.block_number, None)
    assert (record.finalized, record.accumulator) == (False, 0)
    assert record.finalizable_at == pending.finalizable_at
    assert before + WINDOW_S <= pending.finalizable_at <= world.chain.timestamp() + WINDOW_S
    assert settlement.next_epoch() == 0

    with pytest.raises(ContractReverted) as early:
        settlement.finalize_epoch(0)
    assert early.value.error == "EpochSettlementWindowOpen"
    assert early.value.arguments == {"finalizableAt": pending.finalizable_at}
    assert str(pending.finalizable_at) in str(early.value)

    world.chain.request("evm_increaseTime", WINDOW_S)  # no block: the pending one must know
    assert world.chain.timestamp() >= pending.finalizable_at
    receipt = settlement.finalize_epoch(0)
    assert settlement.epoch(0) == replace(record, finalized=True, finalized_block=receipt.block_number)
    assert settlement.final_epoch(0) == FinalEpoch(root, 0, EMISSION)
    assert (settlement.next_epoch(), settlement.pending()) == (1, None)
    assert shares.balance_of(settlement.address) == EMISSION

    for claim in claims.values():
        assert settlement.leaf(claim) == settlement_leaf(
            world.chain.chain_id,
            settlement.address,
            claim.account,
            claim.cumulative_shares,
            claim.epoch_shares,
            claim.debt_before,
            claim.operator_revenue,
        )
        assert settlement.claimed(claim.account) == Claimed(0, 0)
        assert settlement.claimable(claim).shares == claim.cumulative_shares
        settlement.claim(claim)
        assert shares.balance_of(claim.account) == claim.cumulative_shares
        assert settlement.claimed(claim.account.lower()) == Claimed(claim.cumulative_shares, 0)
    with pytest.raises(ContractReverted, match="EpochSettlementNothingToClaim"):
        settlement.claim(claims[ALICE])

    (proposed,), (finalized,) = settlement.events(EpochProposed), settlement.events(EpochFinalized)
    assert (proposed.epoch, proposed.root, proposed.uri) == (0, root, "file:///statement.json")
    assert (proposed.transaction, proposed.block_number) == (proposal.transaction, proposal.block_number)
    assert (finalized.minted, finalized.root, finalized.accumulator) == (EMISSION, root, 0)
    claimed = settlement.events(SharesClaimed)
    assert [(c.account, c.claimed_shares) for c in claimed] == [
        (claim.account, claim.cumulative_shares) for claim in claims.values()
    ]
    assert settlement.events(SharesClaimed, account=BOB.address) == claimed[1:]
    assert settlement.events(EpochProposed, from_block=proposed.block_number + 1) == []
    assert settlement.events(EpochProposed, epoch=1) == []


def test_a_beacon_is_committed_once_and_is_its_committers_only(world: ChainWorld) -> None:
    settlement = world.settlement()
    coordinator = settlement.sender.address
    assert settlement.beacon_of(1, coordinator) is None
    with pytest.raises(ContractReverted, match="EpochSettlementZeroBeacon"):
        settlement.commit_beacon(1, bytes(32))
    with pytest.raises(ChainError, match="commitBeacon doesn't take these arguments"):
        settlement.commit_beacon(1, TIP + TIP)
    world.settlement(STRANGER).commit_beacon(1, ROOT)
    receipt = settlement.commit_beacon(1, TIP)
    assert (settlement.beacon_of(0, coordinator), settlement.beacon_of(1, coordinator)) == (None, TIP)
    (event,) = settlement.events(BeaconCommitted, coordinator=coordinator)
    assert (event.epoch, event.tip, event.transaction) == (1, TIP, receipt.transaction)
    assert len(settlement.events(BeaconCommitted, epoch=1)) == 2
    with pytest.raises(ContractReverted, match="EpochSettlementBeaconCommitted") as caught:
        settlement.commit_beacon(1, ROOT)
    assert caught.value.arguments == {"epoch": 1}


def test_a_proposal_needs_its_bond(world: ChainWorld) -> None:
    settlement = world.settlement()
    with pytest.raises(ContractReverted, match="EpochSettlementBondTooSmall") as caught:
        settlement.propose_epoch(0, ROOT, 1, STATEMENT, "")
    assert caught.value.arguments == {"bond": 0, "needed": PROPOSER_BOND}
    world.bond_proposer()
    assert settlement.bond_of(COORDINATOR.address) == PROPOSER_BOND
    settlement.propose_epoch(0, ROOT, 1, STATEMENT, "")
    with pytest.raises(ContractReverted, match="EpochSettlementBondLocked"):
        settlement.withdraw_bond(COORDINATOR.address, 1)
    world.later(WINDOW_S)
    settlement.finalize_epoch(0)
    settlement.withdraw_bond(STRANGER.address, PROPOSER_BOND)
    assert world.usd().balance_of(STRANGER.address) == PROPOSER_BOND
    with pytest.raises(ContractReverted, match="EpochSettlementBondTooSmall"):
        settlement.propose_epoch(1, ROOT, 1, STATEMENT, "")


def test_a_challenged_epoch_that_is_upheld_costs_the_challenger(world: ChainWorld) -> None:
    settlement = world.settlement()
    root, claims = world.tree(LINES)
    world.bond_proposer()
    settlement.propose_epoch(0, root, EMISSION, STATEMENT, "")
    challenge(world, root)
    pending = settlement.pending()
    assert pending is not None
    assert pending.challenger == CAROL.address
    assert pending.resolvable_until > world.chain.timestamp() + ARBITRATION_S - 60
    (event,) = settlement.events(EpochChallenged, epoch=0)
    assert (event.challenger, event.uri, event.evidence_hash) == (CAROL.address, "file:///evidence.json", b"\x0e" * 32)
    with pytest.raises(ContractReverted, match="EpochSettlementAlreadyChallenged"):
        settlement.challenge_epoch(0, root, b"\x0e" * 32, "")
    with pytest.raises(ContractReverted, match="EpochSettlementNotArbiter"):
        settlement.resolve_epoch(0, root, pending.resolvable_until, True)

    decision = settlement.action("resolveEpoch", 0, root, pending.resolvable_until, True)
    assert decision.to is not None
    world.decide(decision.to, decision.data)
    upheld = settlement.pending()
    assert upheld is not None
    assert upheld.upheld
    assert balances(world) == (PROPOSER_BOND + CHALLENGER_BOND, 0)
    settlement.finalize_epoch(0)
    settlement.claim(claims[BOB])
    assert world.shares().balance_of(BOB.address) == 3 * QUARTER
    assert [event.root for event in settlement.events(EpochUpheld)] == [root]


def test_a_rejected_epoch_costs_the_proposer_and_is_open_again(world: ChainWorld) -> None:
    settlement = world.settlement()
    world.bond_proposer()
    settlement.propose_epoch(0, ROOT, EMISSION, STATEMENT, "file:///lie.json")
    challenge(world, ROOT)
    (challenged,) = settlement.events(EpochChallenged)
    for until in (challenged.resolvable_until - 1, challenged.resolvable_until + 1):
        other = settlement.action("resolveEpoch", 0, ROOT, until, False)
        assert other.to is not None
        with pytest.raises(ContractReverted, match="EpochSettlementArbitrationOver") as caught:
            world.decide(other.to, other.data)
        assert caught.value.arguments == {"resolvableUntil": challenged.resolvable_until}
    decision = settlement.action("resolveEpoch", 0, ROOT, challenged.resolvable_until, False)
    assert decision.to is not None
    world.decide(decision.to, decision.data)
    assert (settlement.pending(), settlement.epoch(0), settlement.next_epoch()) == (None, None, 0)
    assert balances(world) == (0, CHALLENGER_BOND + PROPOSER_BOND // 2)
    world.settlement(CAROL).withdraw_bond(CAROL.address, settlement.bond_of(CAROL.address))
    assert world.usd().balance_of(CAROL.address) == CHALLENGER_BOND + PROPOSER_BOND // 2
    assert world.usd().balance_of(settlement.address) == PROPOSER_BOND - PROPOSER_BOND // 2

    claims = world.finalise(LINES)
    record = settlement.epoch(0)
    assert record is not None
    assert (record.uri, record.statement_hash) == ("file:///0.json", STATEMENT)
    settlement.claim(claims[ALICE])
    (rejection,) = settlement.events(EpochRejected)
    assert (rejection.epoch, rejection.root, rejection.by_arbiter) == (0, ROOT, True)
    assert [proposal.root for proposal in settlement.events(EpochProposed)] == [ROOT, record.root]


def test_an_arbiter_s_silence_rejects_and_costs_nobody(world: ChainWorld) -> None:
    settlement = world.settlement(STRANGER)
    world.bond_proposer()
    world.settlement().propose_epoch(0, ROOT, EMISSION, STATEMENT, "")
    challenge(world, ROOT)
    with pytest.raises(ContractReverted, match="EpochSettlementArbitrationOpen"):
        settlement.expire_challenge(0)
    world.later(ARBITRATION_S + 1)
    settlement.expire_challenge(0)
    assert settlement.epoch(0) is None
    assert balances(world) == (PROPOSER_BOND, CHALLENGER_BOND)
    assert [event.by_arbiter for event in settlement.events(EpochRejected, epoch=0)] == [False]


def test_an_epoch_in_which_nobody_worked(world: ChainWorld) -> None:
    settlement = world.settlement()
    world.bond_proposer()
    settlement.propose_epoch(0, bytes(32), 0, STATEMENT, "")
    record = settlement.epoch(0)
    assert record is not None
    assert (record.root, record.minted, record.finalized) == (bytes(32), 0, False)
    world.later(WINDOW_S)
    settlement.finalize_epoch(0)
    final = settlement.epoch(0)
    assert final is not None
    assert final.finalized
    assert settlement.claim_split() is not None


def test_an_epoch_of_100_000_providers_costs_what_one_of_ten_does(world: ChainWorld) -> None:
    settlement = world.settlement()
    world.finalise(LINES)  # the first fills slots that later ones find in use

    def gas(epoch: int, providers: int) -> int:
        root = MerkleTree(leaves_of(providers)).root
        minted = settlement.emission_of(2)
        proposed = settlement.propose_epoch(epoch, root, minted, STATEMENT, f"file:///{epoch}.json")
        world.later(WINDOW_S)
        return proposed.gas_used + settlement.finalize_epoch(epoch).gas_used

    zero_bytes = 32 * 12  # of a root: they are cheaper
    assert gas(1, 10) == pytest.approx(gas(2, 100_000), abs=zero_bytes)


# Claims


def second_epoch(
    world: ChainWorld, early: tuple[Key, ...] = ()
) -> tuple[dict[Key, ClaimArguments], dict[Key, ClaimArguments]]:
    """The claims of two final epochs, with revenue between them. Who is `early` claims the first before the second."""
    first = world.finalise(LINES)
    for key in early:
        world.settlement(STRANGER).claim(first[key])
    world.give(STRANGER, 1_000 * DOLLAR, world.model.shares)
    world.shares(STRANGER).deposit_revenue(1_000 * DOLLAR)
    world.later(10_000)
    accumulator = world.settlement().final_epoch(0).accumulator
    lines = {
        key: Earned(2 * line.cumulative, line.shares, line.shares * accumulator, line.operator)
        for key, line in LINES.items()
    }
    return first, world.finalise(lines, epoch=1)


def test_many_claim_in_one_transaction_from_the_last_final_epoch(world: ChainWorld) -> None:
    settlement, shares = world.settlement(STRANGER), world.shares()
    _, second = second_epoch(world, early=(ALICE,))
    both = [second[ALICE], second[BOB]]
    assert world.sender(STRANGER).dry_run(settlement.claim_many_action(both)).gas > 21_000
    settlement.claim_many(both)
    assert shares.balance_of(ALICE.address) == 2 * QUARTER
    assert shares.balance_of(BOB.address) == 6 * QUARTER
    assert settlement.claimed(BOB.address).shares == 6 * QUARTER
    assert settlement.claimed(BOB.address).debt > 0
    with pytest.raises(ContractReverted, match="EpochSettlementNothingToClaim"):
        settlement.claim_many(both)


def test_the_next_final_root_ends_what_the_one_before_promised(world: ChainWorld) -> None:
    first, second = second_epoch(world)
    settlement, router = world.settlement(STRANGER), world.router(STRANGER)
    world.give(STRANGER, 1_000 * DOLLAR, router.address)
    world.usd(STRANGER).transfer(router.address, 1_000 * DOLLAR)
    router.sweep()
    for old in (
        lambda: settlement.claim(first[BOB]),
        lambda: settlement.claim_many([first[ALICE], first[BOB]]),
        lambda: settlement.claimable(first[BOB]),
        lambda: router.pay_operator(first[BOB]),
    ):
        with pytest.raises(ContractReverted, match="EpochSettlementRootReplaced") as caught:
            old()
        assert caught.value.arguments == {"epoch": 0}
    router.pay_operator(second[BOB])
    settlement.claim(second[BOB])
    assert world.usd().balance_of(BOB.address) == 7


def test_who_claims_late_is_owed_what_who_claims_early_is(world: ChainWorld) -> None:
    _, second = second_epoch(world, early=(ALICE,))
    settlement, shares = world.settlement(STRANGER), world.shares()
    settlement.claim(second[ALICE])
    settlement.claim(second[BOB])
    assert shares.owed_scaled(BOB.address) == 3 * shares.owed_scaled(ALICE.address) > 0


def test_designer_and_data_recipient_are_paid_over_epochs(world: ChainWorld) -> None:
    settlement, shares = world.settlement(STRANGER), world.shares()
    assert (settlement.split_claimed_until(), settlement.split_action(), settlement.claim_split()) == (0, None, None)
    second_epoch(world)
    action = settlement.split_action()
    assert action is not None
    assert world.sender(STRANGER).dry_run(action).gas > 21_000
    assert settlement.claim_split() is not None
    assert shares.balance_of(DESIGNER.address) == GENESIS_DESIGNER + 2 * EMISSION // 10
    assert shares.balance_of(DATA.address) == GENESIS_DATA + 2 * EMISSION // 20
    assert (settlement.split_claimed_until(), settlement.claim_split()) == (2, None)
    (event,) = settlement.events(SplitClaimed)
    assert (event.first_epoch, event.end_epoch, event.designer_shares) == (0, 2, 2 * EMISSION // 10)


def test_many_epochs_are_split_in_steps(world: ChainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commonweight.chain.settlement.MAX_SPLIT_EPOCHS", 1)
    second_epoch(world)
    settlement = world.settlement(STRANGER)
    for until in (1, 2):
        assert settlement.claim_split() is not None
        assert settlement.split_claimed_until() == until
    assert settlement.claim_split() is None


@pytest.mark.parametrize("field", ["cumulative_shares", "epoch_shares", "debt_before", "operator_revenue"])
@pytest.mark.parametrize("value", [0, 1, 2**256 - 1])
def test_a_claim_for_other_numbers_is_refused(world: ChainWorld, field: str, value: int) -> None:
    line = Earned(QUARTER, QUARTER // 2, debt_before=5, operator=7)
    claims = world.finalise({ALICE: line, BOB: Earned(QUARTER, QUARTER)})
    lie = replace(claims[ALICE], **{field: value})
    for attempt in (world.settlement().claim, world.settlement().claimable):
        with pytest.raises(ContractReverted) as caught:
            attempt(lie)
        assert caught.value.error == "EpochSettlementInvalidProof"


def test_an_epoch_that_is_not_final_cannot_be_claimed(world: ChainWorld) -> None:
    claims = world.finalise(LINES)
    settlement = world.settlement()
    for epoch in (1, 2**32 - 1, 2**256 - 1):
        with pytest.raises(ChainError, match=f"epoch {epoch} of {settlement.address} isn't final: 1 epochs are"):
            settlement.claim(replace(claims[ALICE], epoch=epoch))
        assert settlement.epoch(epoch) is None
    with pytest.raises(ContractReverted, match="EpochSettlementInvalidProof"):
        settlement.claim(replace(claims[ALICE], proof=[]))
    with pytest.raises(ContractReverted, match="EpochSettlementInvalidProof"):
        settlement.claim(replace(claims[ALICE], account=STRANGER.address))


# When events and storage differ


OTHER_BRANCH: dict[type, dict[str, Any]] = {
    EpochProposed: {"root": b"\x77" * 32},
    EpochFinalized: {"accumulator": 1},
    SharesClaimed: {"claimed_debt": 1},
}
"""What differs in the events of a branch that the chain has left."""


def behind(monkeypatch: pytest.MonkeyPatch, event: type, times: int, *, lost: bool) -> list[int]:
    """An endpoint that, the first `times` times, doesn't know the events of one kind, or those of another branch.

    The list: one entry for each time that it was so.
    """
    honest, wrong = EpochSettlement.events, []

    def events(self: EpochSettlement, kind: Any, *arguments: Any, **indexed: Any) -> Any:
        found = honest(self, kind, *arguments, **indexed)
        if kind is not event or len(wrong) >= times:
            return found
        wrong.append(1)
        return [] if lost else [replace(each, **OTHER_BRANCH[kind]) for each in found]

    monkeypatch.setattr(EpochSettlement, "events", events)
    return wrong


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "of another branch"])
@pytest.mark.parametrize("event", [EpochProposed, EpochFinalized, SharesClaimed])
def test_events_that_do_not_fit_the_storage_are_read_once_more(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch, event: type, lost: bool
) -> None:
    settlement, claim = world.settlement(), world.finalise(LINES)[ALICE]
    settlement.claim(claim)

    def read() -> Any:
        return settlement.epoch(0) if event is EpochProposed else settlement.claim_action(claim)

    expected = read()
    wrong = behind(monkeypatch, event, 1, lost=lost)
    assert read() == expected
    assert len(wrong) == 1
    monkeypatch.undo()
    wrong = behind(monkeypatch, event, 2, lost=lost)
    with pytest.raises(ChainError, match=r"twice: http://127.* lags behind itself"):
        read()
    assert len(wrong) == 2


def test_a_pending_epoch_whose_proposal_is_unknown_is_not_made_up(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bond_proposer()
    world.settlement().propose_epoch(0, ROOT, 1, STATEMENT, "")
    wrong = behind(monkeypatch, EpochProposed, 2, lost=True)
    with pytest.raises(ChainError, match="the last proposal of epoch 0"):
        world.settlement().epoch(0)
    assert len(wrong) == 2


def test_a_final_epoch_is_remembered_once_it_is_deep_and_forgotten_with_its_chain(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bond_proposer()
    snapshot = world.chain.request("evm_snapshot")
    world.finalise(LINES)
    settlement = world.settlement()
    shallow = settlement.epoch(0)
    for _ in range(64):
        world.chain.request("evm_mine")
    assert settlement.epoch(0) == shallow
    wrong = behind(monkeypatch, EpochProposed, 99, lost=True)
    assert settlement.epoch(0) == shallow, "without its events"
    assert not wrong
    monkeypatch.undo()
    world.chain.request("evm_revert", snapshot)
    assert settlement.epoch(0) is None
    world.finalise({ALICE: Earned(1, 1), BOB: Earned(2, 2)})
    other = settlement.epoch(0)
    assert other is not None
    assert shallow is not None
    assert other.root != shallow.root
