"""The typed client against real chains in other processes, the same for both back-ends."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import requests
from web3.exceptions import Web3RPCError

from commonweight.chain.events import ModelRegistered
from commonweight.chain.fees import GWEI, Fees, choose_fees, choose_replacement
from commonweight.chain.keys import Key
from commonweight.chain.local import LocalChain
from commonweight.chain.records import NOBODY, Checkpoint
from commonweight.chain.reverts import ContractReverted, decode_revert
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Action, Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.token import TestUSD
from commonweight.errors import (
    ChainError,
    InsufficientFunds,
    RpcUnreachable,
    TransactionFailed,
    TransactionUnconfirmed,
    WrongChain,
)
from tests.integration.chain_world import (
    ALICE,
    ARBITRATION_S,
    BOB,
    BUYER,
    COMPUTE,
    COORDINATOR,
    DESIGNER,
    EMISSION,
    GENESIS_DATA,
    GENESIS_DESIGNER,
    WINDOW_S,
    ChainWorld,
    Earned,
)

PAUPER = Key(b"\x07" * 32)


# Registration


def test_a_model_is_registered_under_its_terms(world: ChainWorld) -> None:
    registry, model = world.registry(), world.model
    assert model.terms == world.terms
    assert (model.registrant, model.coordinator, model.retired) == (COORDINATOR.address, COORDINATOR.address, False)
    assert model.model_id == registry.model_id_of(COORDINATOR.address, world.terms.spec_hash)
    assert registry.model(model.model_id) == model
    assert model.spec_hash == world.terms.spec_hash
    assert registry.is_allowed_token(world.usd_address)
    assert not registry.is_allowed_token(ALICE.address)
    shares, settlement, router = world.shares(), world.settlement(), world.router()
    assert (shares.name(), shares.symbol(), shares.decimals()) == ("Tiny model", "TINY", 18)
    assert (shares.total_supply(), shares.max_supply()) == (GENESIS_DESIGNER + GENESIS_DATA, 10**24)
    assert shares.balance_of(DESIGNER.address) == GENESIS_DESIGNER
    assert (shares.settlement(), shares.revenue_token()) == (settlement.address, world.usd_address)
    assert shares.stream_period_s() == world.terms.stream_period_s
    assert (settlement.shares(), settlement.window_s(), settlement.arbitration_s()) == (
        shares.address,
        WINDOW_S,
        ARBITRATION_S,
    )
    assert settlement.terms().bond_token == world.usd_address
    assert settlement.terms().proposer_bond == world.terms.proposer_bond
    assert (router.terms().settlement, router.terms().operator_bps) == (settlement.address, world.terms.operator_bps)
    halves = [EMISSION, EMISSION, EMISSION // 2, EMISSION // 2, EMISSION // 4]
    assert [settlement.emission_of(e) for e in range(5)] == halves


def test_its_registration_is_found_by_its_id(world: ChainWorld) -> None:
    registry = world.registry()
    (event,) = registry.events(ModelRegistered, model_id=world.model.model_id)
    assert (event.settlement, event.router, event.spec_uri) == (
        world.model.settlement,
        world.model.router,
        world.terms.spec_uri,
    )
    assert event.block_number == registry.registration_block(world.model.model_id)
    other = registry.register_model(replace(world.terms, spec_hash=b"\x0a" * 32))
    assert registry.registration_block(other.model_id) > event.block_number
    assert len(registry.events(ModelRegistered)) == 2
    with pytest.raises(ChainError, match="no registration of model 0x09"):
        registry.registration_block(b"\x09" * 32)


def test_the_coordinator_changes_in_two_steps_with_days_between(world: ChainWorld) -> None:
    registry, model_id = world.registry(), world.model.model_id
    assert registry.proposed_coordinator(model_id) is None
    registry.propose_coordinator(model_id, ALICE.address)
    proposed = registry.proposed_coordinator(model_id)
    assert proposed is not None
    assert proposed[0] == ALICE.address
    with pytest.raises(ContractReverted, match="ModelRegistryTimelockActive"):
        world.registry(ALICE).accept_coordinator(model_id)
    world.later(proposed[1] - world.chain.timestamp())
    world.registry(ALICE).accept_coordinator(model_id)
    assert registry.coordinator_of(model_id) == registry.model(model_id).coordinator == ALICE.address
    assert registry.coordinator_of(bytes(32)) == NOBODY
    with pytest.raises(ContractReverted, match="EpochSettlementNotCoordinator"):
        world.settlement(COORDINATOR).propose_epoch(0, b"\x01" * 32, 1, b"\x02" * 32, "")


def test_a_checkpoint_is_published_and_a_model_retired(world: ChainWorld) -> None:
    registry, model_id = world.registry(), world.model.model_id
    assert registry.checkpoint(model_id) is None
    checkpoint = Checkpoint(3, b"\x0b" * 32, b"\x0c" * 32)
    registry.publish_checkpoint(model_id, checkpoint)
    assert registry.checkpoint(model_id) == checkpoint
    with pytest.raises(ContractReverted, match="ModelRegistryVersionNotIncreasing"):
        registry.publish_checkpoint(model_id, checkpoint)
    registry.retire(model_id)
    assert registry.model(model_id).retired


def test_a_dry_run_costs_nothing_and_says_what_it_would(world: ChainWorld) -> None:
    claims = world.finalise({ALICE: Earned(COMPUTE // 4, COMPUTE // 4), BOB: Earned(COMPUTE // 2, COMPUTE // 2)})
    before = world.chain.balance_wei(COORDINATOR.address)
    action = world.settlement().claim_action(claims[ALICE])
    quote = world.sender().dry_run(action)
    assert world.chain.balance_wei(COORDINATOR.address) == before
    receipt = world.settlement().claim(claims[ALICE])
    assert receipt.gas_used <= quote.gas <= receipt.gas_used * 1.1
    assert quote.gas < quote.gas_limit
    assert receipt.fee_wei <= quote.max_fee_wei
    assert before - world.chain.balance_wei(COORDINATOR.address) == receipt.fee_wei
    assert Sender(world.chain, PAUPER).dry_run(world.settlement().claim_action(claims[BOB])).fee_wei > 0
    with pytest.raises(ContractReverted, match="EpochSettlementStaleClaim"):
        world.sender().dry_run(action)
    with pytest.raises(ContractReverted, match="EpochSettlementNothingToClaim"):
        world.sender().dry_run(world.settlement().claim_action(claims[ALICE]))


def test_what_takes_money_can_be_quoted_once_it_is_approved(world: ChainWorld) -> None:
    amount, usd = 10**6, world.usd(ALICE)
    usd.mint(ALICE.address, amount)
    bond = world.settlement(ALICE).action("depositBond", ALICE.address, amount)
    with pytest.raises(ContractReverted, match="ERC20InsufficientAllowance"):
        world.sender(ALICE).dry_run(bond)
    approval = usd.approve_action(world.model.settlement, amount)
    assert world.sender(ALICE).dry_run(approval).gas > 21_000
    assert world.usd().allowance(ALICE.address, world.model.settlement) == 0
    world.sender(ALICE).send(approval)
    assert world.sender(ALICE).dry_run(bond).gas > 21_000


# What goes wrong


@pytest.mark.parametrize("how", ["estimate", "dry run", "mined"])
def test_every_revert_is_decoded_alike(world: ChainWorld, how: str) -> None:
    stranger = Sender(world.chain, ALICE)
    action = world.settlement().action("proposeEpoch", 0, b"\x01" * 32, 1, b"\x02" * 32, "")
    nonce_before = world.chain.request("eth_getTransactionCount", ALICE.address, "latest")
    attempts = {
        "estimate": stranger.send,
        "dry run": stranger.dry_run,
        "mined": lambda action: stranger.send(action, gas_limit=300_000),
    }
    with pytest.raises(ContractReverted) as caught:
        attempts[how](action)
    assert caught.value.error == "EpochSettlementNotCoordinator"
    assert caught.value.arguments["caller"].lower() == ALICE.address.lower()
    assert isinstance(caught.value, TransactionFailed)
    sent = world.chain.request("eth_getTransactionCount", ALICE.address, "latest") != nonce_before
    assert sent == (how == "mined") == (caught.value.transaction is not None)


def test_a_view_that_reverts_is_decoded(world: ChainWorld) -> None:
    with pytest.raises(ContractReverted, match="ModelRegistryUnknownModel") as caught:
        world.registry().model(b"\x09" * 32)
    assert caught.value.arguments == {"modelId": b"\x09" * 32}
    claims = world.finalise({ALICE: Earned(COMPUTE, COMPUTE)})
    with pytest.raises(ContractReverted, match="EpochSettlementInvalidProof"):
        world.settlement().claimable(replace(claims[ALICE], cumulative_shares=7))


def test_an_error_of_a_library_is_decoded_too(world: ChainWorld) -> None:
    with pytest.raises(ContractReverted, match="ERC20InsufficientBalance"):
        world.usd().transfer(ALICE.address, 1)


def test_running_out_of_gas_is_said(world: ChainWorld) -> None:
    action = world.usd().action("mint", ALICE.address, 1)
    with pytest.raises(TransactionFailed, match="ran out of gas"):
        world.sender().send(action, gas_limit=25_000)


def test_solidity_s_own_errors_and_unknown_ones() -> None:
    assert decode_revert(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big")) == ("Panic", {"code": 0x11})
    assert decode_revert(b"\xde\xad\xbe\xef") is None
    assert decode_revert(bytes.fromhex("4e487b71")) is None, "cut short"


def test_the_wrong_chain_is_refused(chain_backend: LocalChain) -> None:
    with pytest.raises(WrongChain, match=rf"serves chain {chain_backend.chain_id}, expected was 1\b"):
        Chain.connect(chain_backend.rpc_url, expected_chain_id=1)


def test_an_address_without_our_contract_is_said(world: ChainWorld) -> None:
    with pytest.raises(ChainError, match="no such contract at"):
        EpochSettlement(world.chain, ALICE.address).next_epoch()
    with pytest.raises(ChainError, match="not an address"):
        EpochSettlement(world.chain, "0x1234")


def test_a_contract_opened_for_reading_cannot_be_written(world: ChainWorld) -> None:
    with pytest.raises(ChainError, match="needs a key"):
        EpochSettlement(world.chain, world.model.settlement).finalize_epoch(0)


HUGE = 2**256 - 1


def test_arguments_that_no_contract_takes_are_refused_here(world: ChainWorld) -> None:
    settlement, usd = world.settlement(), world.usd()
    for attempt in (
        lambda: settlement.propose_epoch(2**32, b"\x01" * 32, 1, b"\x02" * 32, ""),
        lambda: settlement.propose_epoch(-1, b"\x01" * 32, 1, b"\x02" * 32, ""),
        lambda: settlement.propose_epoch(0, b"\x01" * 33, 1, b"\x02" * 32, ""),
        lambda: settlement.emission_of(HUGE),
        lambda: settlement.events(ModelRegistered),
        lambda: usd.mint(ALICE.address, HUGE + 1),
        lambda: world.providers().take_seat(world.model.model_id, HUGE),
        lambda: world.registry().model(b"short"),
        lambda: world.registry().registration(replace(world.terms, window_s=2**32)),
        lambda: world.registry().registration_block(b"\x01" * 33),
    ):
        with pytest.raises(ChainError) as caught:
            attempt()
        assert caught.type is ChainError, caught.value


def test_the_largest_numbers_are_refused_by_name(world: ChainWorld) -> None:
    settlement, usd = world.settlement(), world.usd()
    world.bond_proposer()
    with pytest.raises(ContractReverted, match="EpochSettlementEmissionExceeded"):
        settlement.propose_epoch(0, b"\x01" * 32, HUGE, b"\x02" * 32, "")
    with pytest.raises(ContractReverted, match="ERC20InsufficientBalance"):
        usd.transfer(ALICE.address, HUGE)
    usd.approve(world.providers_address, HUGE)
    with pytest.raises(ContractReverted, match="ERC20InsufficientBalance"):
        world.providers().bond(ALICE.address, HUGE)
    with pytest.raises(ContractReverted, match=r"ERC20Insufficient|ModelShares"):
        world.shares().deposit_revenue(HUGE)
    for refused in ({"max_supply": HUGE}, {"genesis_data": HUGE}, {"initial_emission": HUGE}, {"window_s": 0}):
        with pytest.raises(ContractReverted) as caught:
            world.registry().register_model(replace(world.terms, spec_hash=b"\x0f" * 32, **refused))
        assert caught.value.error is not None, refused


def test_logs_are_asked_for_in_parts_where_the_endpoint_wants_that(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for amount in range(1, 4):
        world.usd().mint(ALICE.address, amount)
        for _ in range(30):
            world.chain.request("evm_mine")
    contract = world.chain.contract("TestUSD", world.usd_address)
    eth = type(world.chain.w3.eth)
    honest, asked = eth.get_logs, []

    def refuse(error: Exception) -> Any:
        def get_logs(self: Any, parameters: Any) -> Any:
            blocks = parameters["toBlock"] - parameters["fromBlock"] + 1
            asked.append(blocks)
            if blocks > 25:
                raise error
            return honest(self, parameters)

        return get_logs

    def minted(**arguments: Any) -> list[int]:
        found = world.chain.events(contract, "Transfer", world.registered_in, arguments=arguments)
        return [log["args"]["value"] for log in found]

    response = requests.Response()
    response.status_code = 413
    refusals = (Web3RPCError("too many blocks"), requests.HTTPError(response=response))
    monkeypatch.setattr("commonweight.chain.rpc._MAX_LOG_BLOCKS", 24)
    for error in refusals:
        asked.clear()
        monkeypatch.setattr(eth, "get_logs", refuse(error))
        assert minted(to=ALICE.address) == [1, 2, 3]
        assert asked[0] > 90, "what is filtered is first asked for at once"
        assert len(asked) >= 4
    asked.clear()
    assert minted() == [1, 2, 3]
    assert max(asked) == 24
    assert minted(to=BOB.address) == []
    assert minted(to=[BOB.address, ALICE.address]) == [1, 2, 3]


def test_a_block_is_as_deep_as_others_lie_on_it(world: ChainWorld) -> None:
    receipt = world.usd().mint(ALICE.address, 1)
    assert world.chain.confirmed_block(0) == receipt.block_number
    assert world.chain.confirmed_block(2) < receipt.block_number
    for _ in range(2):
        world.chain.request("evm_mine")
    assert world.chain.confirmed_block(2) == receipt.block_number
    assert world.chain.confirmed_block(10**9) < 0


def test_an_account_without_gas_money_learns_who_needs_how_much(world: ChainWorld) -> None:
    sender = Sender(world.chain, PAUPER)
    with pytest.raises(InsufficientFunds, match=rf"{PAUPER.address} has 0 ETH.*send it") as caught:
        TestUSD(world.chain, world.usd_address, sender).mint(PAUPER.address, 1)
    assert "TestUSD.mint" in str(caught.value)
    with pytest.raises(InsufficientFunds):
        sender.transfer(ALICE.address, 10**18)
    world.sender().transfer(PAUPER.address, 10**17)
    TestUSD(world.chain, world.usd_address, sender).mint(PAUPER.address, 1)
    assert world.usd().balance_of(PAUPER.address) == 1


def test_a_fee_over_the_cap_is_not_paid(world: ChainWorld) -> None:
    with pytest.raises(ChainError, match="cap"):
        Sender(world.chain, COORDINATOR, max_fee_wei=1).transfer(ALICE.address, 1)


def test_fees_follow_the_history() -> None:
    history: dict[str, Any] = {
        "baseFeePerGas": [10 * GWEI, 20 * GWEI],
        "gasUsedRatio": [0.5, 0.0, 0.9],
        "reward": [[2 * GWEI], [99 * GWEI], [4 * GWEI]],
    }
    fees = choose_fees(history)
    assert (fees.tip_wei, fees.max_fee_wei, fees.expected_wei) == (3 * GWEI, 43 * GWEI, 23 * GWEI)
    assert choose_fees(history, cap_wei=30 * GWEI).max_fee_wei == 30 * GWEI
    assert choose_fees({**history, "reward": [[10**12]] * 3}).tip_wei == 5 * GWEI
    with pytest.raises(ChainError, match=r"20\.0 gwei"):
        choose_fees(history, cap_wei=19 * GWEI)


# Nonces


@pytest.mark.parametrize("senders", ["one sender", "a sender each"])
def test_threads_with_one_key_keep_their_nonces_apart(world: ChainWorld, senders: str) -> None:
    shared = Sender(world.chain, BOB)
    before = int(world.chain.request("eth_getTransactionCount", BOB.address, "latest"), 16)

    def mint(amount: int) -> int:
        sender = shared if senders == "one sender" else Sender(world.chain, BOB)
        TestUSD(world.chain, world.usd_address, sender).mint(BUYER.address, amount)
        return amount

    with ThreadPoolExecutor(6) as pool:
        total = sum(pool.map(mint, range(1, 25)))
    assert world.usd().balance_of(BUYER.address) == total
    assert int(world.chain.request("eth_getTransactionCount", BOB.address, "latest"), 16) == before + 24


def test_a_nonce_that_somebody_else_used_is_read_anew(world: ChainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process with the same key sends between our reading the nonce and our sending."""
    sender = Sender(world.chain, ALICE)
    eth = type(world.chain.w3.eth)
    honest, stolen = eth.get_transaction_count, []

    def count(self: Any, *arguments: Any) -> int:
        nonce = honest(self, *arguments)
        if not stolen:
            stolen.append(nonce)
            fields = {"type": 2, "chainId": world.chain.chain_id, "nonce": nonce, "gas": 21_000, "value": 1}
            fees = {"maxFeePerGas": 3 * GWEI, "maxPriorityFeePerGas": GWEI}
            signed = ALICE.account.sign_transaction({**fields, **fees, "to": BUYER.address})
            world.chain.request("eth_sendRawTransaction", "0x" + bytes(signed.raw_transaction).hex())
            deadline = time.monotonic() + 10
            while world.chain.receipt("0x" + bytes(signed.hash).hex()) is None:
                assert time.monotonic() < deadline
        return nonce

    monkeypatch.setattr(eth, "get_transaction_count", count)
    receipt = sender.transfer(BOB.address, 1)
    used = world.chain.request("eth_getTransactionByHash", receipt.transaction)
    assert int(used["nonce"], 16) == stolen[0] + 1


def test_a_failure_leaves_no_hole_in_the_nonces(world: ChainWorld) -> None:
    sender = Sender(world.chain, ALICE)
    with pytest.raises(ContractReverted):
        sender.send(world.settlement().action("finalizeEpoch", 0))
    with pytest.raises(ContractReverted):
        sender.send(world.settlement().action("finalizeEpoch", 0), gas_limit=200_000)
    sender.transfer(BOB.address, 1)
    snapshot = world.chain.request("evm_snapshot")
    sender.transfer(BOB.address, 1)
    world.chain.request("evm_revert", snapshot)
    assert sender.transfer(BOB.address, 1).gas_used == 21_000, "a chain that was rolled back is read anew"


@pytest.fixture
def dropping(monkeypatch: pytest.MonkeyPatch, world: ChainWorld) -> Iterator[threading.Event]:
    """A node that says that it took the first transaction, and loses it. The event: it has."""
    eth = type(world.chain.w3.eth)
    honest, dropped = eth.send_raw_transaction, threading.Event()

    def send(self: Any, raw: bytes) -> Any:
        if dropped.is_set():
            return honest(self, raw)
        dropped.set()
        return b""

    monkeypatch.setattr(eth, "send_raw_transaction", send)
    return dropped


def test_a_transaction_that_was_dropped_ends_at_the_deadline(world: ChainWorld, dropping: threading.Event) -> None:
    sender = Sender(world.chain, ALICE, receipt_timeout_s=0.2)
    with pytest.raises(TransactionUnconfirmed, match=r"sent as 0x[0-9a-f]{64} and had no receipt"):
        sender.transfer(BOB.address, 1)
    assert dropping.is_set()
    assert sender.transfer(BOB.address, 1).gas_used == 21_000, "its nonce is used by the next"


def test_a_transaction_that_a_node_forgets_is_handed_over_again(
    world: ChainWorld, dropping: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commonweight.chain.sender._HAND_OVER_S", 0.05)
    before = world.chain.balance_wei(PAUPER.address)
    assert world.sender(ALICE).transfer(PAUPER.address, 1).gas_used == 21_000
    assert dropping.is_set()
    assert world.chain.balance_wei(PAUPER.address) == before + 1


@pytest.fixture
def by_hand(world: ChainWorld, chain_backend: LocalChain) -> Iterator[Chain]:
    """A chain with a mempool, that mines when it is told to, and is cheap."""
    if chain_backend.backend != "anvil":
        pytest.skip("the embedded chain mines each transaction when it comes")
    world.chain.request("evm_setAutomine", False)
    world.chain.request("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    world.chain.request("evm_mine")
    yield world.chain
    world.chain.request("evm_setAutomine", True)
    world.chain.request("evm_mine")


@pytest.fixture
def mining(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on each question for a receipt mines a block with this base fee, in gwei, before it is answered."""
    honest = Chain.receipt

    def mine(base_fee_gwei: int) -> None:
        def receipt(self: Chain, transaction: str) -> Any:
            self.request("anvil_setNextBlockBaseFeePerGas", hex(base_fee_gwei * GWEI))
            self.request("evm_mine")
            return honest(self, transaction)

        monkeypatch.setattr(Chain, "receipt", receipt)

    return mine


def test_what_is_repeated_while_it_is_on_its_way_happens_once(
    world: ChainWorld, by_hand: Chain, mining: Callable[[int], None]
) -> None:
    """A coordinator that has waited in vain asks the contract, sees nothing there, and sends again."""
    before = by_hand.balance_wei(PAUPER.address)
    for _ in range(3):
        with pytest.raises(TransactionUnconfirmed):
            Sender(by_hand, ALICE, receipt_timeout_s=0.1).transfer(PAUPER.address, 1)
    mining(1)
    assert Sender(by_hand, ALICE).transfer(PAUPER.address, 1).gas_used == 21_000
    by_hand.request("evm_mine")
    assert by_hand.balance_wei(PAUPER.address) == before + 1
    Sender(by_hand, ALICE).transfer(PAUPER.address, 1)
    assert by_hand.balance_wei(PAUPER.address) == before + 2, "what is mined is not waited for any more"


@pytest.mark.parametrize("given_up", [False, True], ids=["waited for", "given up"])
def test_what_the_chain_has_become_too_dear_for_is_offered_more(
    world: ChainWorld,
    by_hand: Chain,
    mining: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    given_up: bool,
) -> None:
    """Also what nobody waits for any more: nothing that is sent later can be mined before it."""
    monkeypatch.setattr("commonweight.chain.sender._HAND_OVER_S", 0.05)
    before = by_hand.balance_wei(PAUPER.address)
    if given_up:
        with pytest.raises(TransactionUnconfirmed):
            Sender(by_hand, ALICE, receipt_timeout_s=0.01).transfer(PAUPER.address, 1)
    mining(100)
    receipt = Sender(by_hand, ALICE, receipt_timeout_s=30).transfer(PAUPER.address, 2)
    assert receipt.fee_wei >= 21_000 * 100 * GWEI
    assert by_hand.balance_wei(PAUPER.address) == before + (3 if given_up else 2)


def test_a_replacement_offers_more_of_both_and_stays_under_the_cap() -> None:
    sent = Fees(30 * GWEI, GWEI, 15 * GWEI)
    assert choose_replacement(sent, Fees(58 * GWEI, GWEI, 29 * GWEI)) is None, "it still pays for the next block"
    dearer = choose_replacement(sent, Fees(81 * GWEI, GWEI, 41 * GWEI))
    assert dearer is not None
    assert dearer.max_fee_wei == 81 * GWEI
    assert 1.125 * GWEI < dearer.tip_wei < 1.14 * GWEI
    assert choose_replacement(sent, Fees(33 * GWEI, GWEI, 33 * GWEI), cap_wei=33 * GWEI) is None
    assert choose_replacement(sent, Fees(34 * GWEI, GWEI, 34 * GWEI), cap_wei=34 * GWEI) is not None


def test_one_behind_a_dropped_one_ends_at_the_deadline_too(world: ChainWorld, dropping: threading.Event) -> None:
    """The second one gets the following nonce. Some nodes keep it for when the gap is filled, some refuse it."""
    before = world.chain.balance_wei(PAUPER.address)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(Sender(world.chain, ALICE, receipt_timeout_s=1.0).transfer, PAUPER.address, 1)
        assert dropping.wait(10)
        with suppress(TransactionUnconfirmed):
            Sender(world.chain, ALICE, receipt_timeout_s=0.2).transfer(PAUPER.address, 2)
        with pytest.raises(TransactionUnconfirmed):
            lost.result(20)
    Sender(world.chain, ALICE).transfer(PAUPER.address, 4)
    deadline = time.monotonic() + 10
    while (arrived := world.chain.balance_wei(PAUPER.address) - before) != 6:
        assert time.monotonic() < deadline, arrived


def test_an_endpoint_that_refuses_to_tell_the_receipt_is_outlasted(
    world: ChainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, refused = Chain.receipt, []

    def receipt(self: Chain, transaction: str) -> Any:
        if len(refused) < 2:
            refused.append(transaction)
            raise ChainError("rate limit exceeded")
        return honest(self, transaction)

    monkeypatch.setattr(Chain, "receipt", receipt)
    assert world.sender(ALICE).transfer(BOB.address, 1).transaction == refused[1]


# Endpoints that don't answer


@contextmanager
def serving(answer: bytes, status: int = 200) -> Iterator[str]:
    """An HTTP server that answers everything alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_nobody_there() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RpcUnreachable, match=rf"can't reach {url} .*refused.*is the node running"):
            Chain.connect(url)


def test_silence_ends_at_the_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(RpcUnreachable, match=r"didn't answer eth_chainId within 0\.3 s"):
            Chain.connect(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (b"<html>hello</html>", 200, "doesn't speak JSON-RPC"),
        (b"[]", 200, "doesn't speak JSON-RPC"),
        (b'{"jsonrpc": "2.0", "id": 0}', 200, "doesn't speak JSON-RPC"),
        (b'{"jsonrpc": "2.0", "id": 0, "result": "zz"}', 200, "chain id is 'zz'"),
        (b"", 200, "doesn't speak JSON-RPC"),
        (b"no", 403, "HTTP 403"),
        (b"no", 502, "HTTP 502"),
    ],
)
def test_something_else_there(answer: bytes, status: int, words: str) -> None:
    with serving(answer, status) as url, pytest.raises(RpcUnreachable, match=words):
        Chain.connect(url)


@pytest.mark.parametrize("url", ["", "localhost:8545", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(RpcUnreachable):
        Chain.connect(url)


def test_the_key_in_an_rpc_url_is_not_shown() -> None:
    with serving(b"no", 401) as url:
        host = url.removeprefix("http://")
        for secret_url in (f"{url}/v3/s3cret", f"{url}?key=s3cret", f"http://user:s3cret@{host}"):
            with pytest.raises(RpcUnreachable, match="HTTP 401") as caught:
                Chain.connect(secret_url)
            assert "s3cret" not in str(caught.value)
            assert host in str(caught.value)
    for secret_url in (f"{url}/v3/s3cret", "http:///v3/s3cret", "http://[::1/s3cret"):
        with pytest.raises(RpcUnreachable) as caught:
            Chain.connect(secret_url)
        assert "s3cret" not in str(caught.value)


def test_a_receipt_that_never_comes_names_the_transaction(world: ChainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(world.chain, ALICE, receipt_timeout_s=0.05)
    monkeypatch.setattr(Chain, "receipt", lambda *_: None)
    with pytest.raises(ChainError, match=r"sent as 0x[0-9a-f]{64} and had no receipt within 0\.05 s.*look it up"):
        sender.send(Action("transfer", BOB.address, value_wei=1))
    monkeypatch.undo()
    assert sender.transfer(BOB.address, 1)
