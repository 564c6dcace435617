"""The typed client against real chains in other processes, the same for both back-ends."""

import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from commonweight.chain.anvil import find_anvil
from commonweight.chain.contracts import EpochSettlement, ModelRegistry, ModelShares, TestUSD
from commonweight.chain.fees import GWEI, choose_fees
from commonweight.chain.keys import Key, devnet_key
from commonweight.chain.local import LocalChain
from commonweight.chain.records import ClaimArguments, Claimed, ModelTerms, RegisteredModel
from commonweight.chain.reverts import ContractReverted, decode_revert
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Action, Sender
from commonweight.errors import ChainError, InsufficientFunds, RpcUnreachable, TransactionFailed, WrongChain
from commonweight.rules.merkle import MerkleTree, settlement_leaf

COORDINATOR, DESIGNER, DATA, ALICE, BOB, BUYER = (devnet_key(i) for i in range(6))
PAUPER = Key(b"\x07" * 32)
WINDOW_S = 3_600
EMISSION = 1_000 * 10**18
DOLLAR = 10**6


@pytest.fixture(scope="module", params=["anvil", "embedded"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalChain]:
    without = os.environ.get("COMMONWEIGHT_WITHOUT_ANVIL") == "1"
    if request.param == "anvil" and find_anvil() is None and without:
        pytest.skip("COMMONWEIGHT_WITHOUT_ANVIL=1")
    with LocalChain.start(request.param) as chain:
        yield chain


@pytest.fixture(scope="module")
def chain(local: LocalChain) -> Chain:
    return Chain.connect(local.rpc_url, expected_chain_id=local.chain_id)


@dataclass(frozen=True)
class World:
    """A chain with one registered model."""

    chain: Chain
    sender: Sender
    usd: TestUSD
    registry: ModelRegistry
    terms: ModelTerms
    model: RegisteredModel
    settlement: EpochSettlement
    shares: ModelShares

    def later(self, seconds: int) -> None:
        self.chain.request("evm_increaseTime", seconds)
        self.chain.request("evm_mine")


@pytest.fixture(scope="module")
def deployed(chain: Chain) -> World:
    sender = Sender(chain, COORDINATOR)
    usd = TestUSD.deploy(sender)
    registry = ModelRegistry.deploy(sender)
    terms = ModelTerms(
        spec_hash=b"\x01" * 32,
        spec_uri="file:///spec.json",
        name="Tiny model",
        symbol="TINY",
        designer=DESIGNER.address,
        data_recipient=DATA.address,
        coordinator=COORDINATOR.address,
        revenue_token=usd.address,
        max_supply=10**24,
        designer_bps=1_000,
        data_bps=500,
        initial_emission=EMISSION,
        halving_epochs=2,
        window_s=WINDOW_S,
        stages=2,
    )
    model = registry.register_model(terms)
    settlement = EpochSettlement(chain, model.settlement, sender)
    return World(chain, sender, usd, registry, terms, model, settlement, ModelShares(chain, model.shares, sender))


@pytest.fixture
def world(deployed: World) -> Iterator[World]:
    """The model as registered: what a test does is undone after it."""
    snapshot = deployed.chain.request("evm_snapshot")
    yield deployed
    assert deployed.chain.request("evm_revert", snapshot) is True


def epoch_of(world: World, shares: dict[Key, int], epoch: int = 0) -> tuple[bytes, list[ClaimArguments]]:
    """Root and claims of an epoch in which each account earns its first shares."""
    leaves = [
        settlement_leaf(world.chain.chain_id, world.settlement.address, key.address, amount, amount, 0)
        for key, amount in shares.items()
    ]
    tree = MerkleTree(leaves)
    claims = [
        ClaimArguments(epoch, key.address, amount, amount, 0, tree.proof(i))
        for i, (key, amount) in enumerate(shares.items())
    ]
    return tree.root, claims


def finalise_epoch_0(world: World) -> list[ClaimArguments]:
    root, claims = epoch_of(world, {ALICE: EMISSION * 85 // 100 // 4, BOB: EMISSION * 85 // 100 * 3 // 4})
    world.settlement.propose_epoch(0, root, EMISSION, b"\x02" * 32, "file:///statement.json")
    world.later(WINDOW_S)
    world.settlement.finalize_epoch(0)
    return claims


# The story


def test_a_model_is_registered_under_its_terms(world: World) -> None:
    assert world.model.terms == world.terms
    assert world.model.registrant == COORDINATOR.address
    assert world.model.model_id == world.registry.model_id_of(COORDINATOR.address, world.terms.spec_hash)
    assert world.registry.model(world.model.model_id) == world.model
    assert world.model.spec_hash == world.terms.spec_hash
    shares, settlement = world.shares, world.settlement
    assert (shares.name(), shares.symbol(), shares.decimals()) == ("Tiny model", "TINY", 18)
    assert (shares.total_supply(), shares.max_supply()) == (0, 10**24)
    assert (shares.settlement(), shares.revenue_token()) == (settlement.address, world.usd.address)
    assert (settlement.shares(), settlement.window_s()) == (shares.address, WINDOW_S)
    assert settlement.coordinator() == COORDINATOR.address
    assert [settlement.emission_of(e) for e in range(5)] == [
        EMISSION,
        EMISSION,
        EMISSION // 2,
        EMISSION // 2,
        EMISSION // 4,
    ]


def test_an_epoch_from_proposal_to_claims_and_revenue(world: World) -> None:
    settlement, shares = world.settlement, world.shares
    root, claims = epoch_of(world, {ALICE: EMISSION * 85 // 100 // 4, BOB: EMISSION * 85 // 100 * 3 // 4})
    assert (settlement.next_epoch(), settlement.pending(), settlement.epoch(0)) == (0, None, None)

    before = world.chain.timestamp()
    proposal = settlement.propose_epoch(0, root, EMISSION, b"\x02" * 32, "file:///statement.json")
    pending = settlement.epoch(0)
    assert pending is not None
    assert (pending.root, pending.minted, pending.statement_hash) == (root, EMISSION, b"\x02" * 32)
    assert (pending.finalized, pending.accumulator) == (False, 0)
    assert before + WINDOW_S <= pending.finalizable_at <= world.chain.timestamp() + WINDOW_S
    assert (settlement.next_epoch(), settlement.pending()) == (0, 0)

    with pytest.raises(ContractReverted) as early:
        settlement.finalize_epoch(0)
    assert early.value.error == "EpochSettlementWindowOpen"
    assert early.value.arguments == {"finalizableAt": pending.finalizable_at}
    assert str(pending.finalizable_at) in str(early.value)

    world.chain.request("evm_increaseTime", WINDOW_S)  # no block: the pending one must know
    assert world.chain.timestamp() >= pending.finalizable_at
    settlement.finalize_epoch(0)
    final = settlement.epoch(0)
    assert final == replace(pending, finalized=True, finalizable_at=0)
    assert (settlement.next_epoch(), settlement.pending()) == (1, None)
    assert shares.total_supply() == EMISSION
    assert shares.balance_of(DESIGNER.address) == EMISSION // 10
    assert shares.balance_of(DATA.address) == EMISSION // 20

    for claim in claims:
        assert settlement.leaf(claim) == settlement_leaf(
            world.chain.chain_id, settlement.address, claim.account, claim.cumulative_shares, claim.epoch_shares, 0
        )
        assert settlement.claimable(claim).shares == claim.cumulative_shares
        settlement.claim(claim)
        assert shares.balance_of(claim.account) == claim.cumulative_shares
        assert settlement.claimed(claim.account) == Claimed(claim.cumulative_shares, 0)
    with pytest.raises(ContractReverted) as again:
        settlement.claim(claims[0])
    assert again.value.error == "EpochSettlementNothingToClaim"

    buyer = Sender(world.chain, BUYER)
    TestUSD(world.chain, world.usd.address, buyer).mint(BUYER.address, 1_000 * DOLLAR)
    TestUSD(world.chain, world.usd.address, buyer).approve(shares.address, 1_000 * DOLLAR)
    assert world.usd.allowance(BUYER.address, shares.address) == 1_000 * DOLLAR
    ModelShares(world.chain, shares.address, buyer).deposit_revenue(1_000 * DOLLAR)
    due = shares.owed(ALICE.address)
    assert 1_000 * DOLLAR * 85 // 400 - due in (0, 1)
    assert shares.owed_scaled(ALICE.address) >> 96 == due
    assert shares.deposited() == 1_000 * DOLLAR
    assert shares.accumulator() > 0
    shares.withdraw_revenue_for(ALICE.address)
    ModelShares(world.chain, shares.address, Sender(world.chain, BOB)).withdraw_revenue(DESIGNER.address)
    assert world.usd.balance_of(ALICE.address) == due
    assert world.usd.balance_of(DESIGNER.address) > 0
    assert shares.owed(BOB.address) == 0

    (proposed,), (finalized,) = settlement.proposals(), settlement.finalizations()
    assert (proposed.epoch, proposed.root, proposed.uri) == (0, root, "file:///statement.json")
    assert (proposed.transaction, proposed.block_number) == (proposal.transaction, proposal.block_number)
    assert proposed.finalizable_at == pending.finalizable_at
    assert finalized.designer_shares + finalized.data_shares + finalized.compute_shares == EMISSION
    assert [(c.account, c.shares) for c in settlement.claims()] == [(c.account, c.cumulative_shares) for c in claims]
    assert settlement.proposals(from_block=proposed.block_number + 1) == []


def test_a_dry_run_costs_nothing_and_says_what_it_would(world: World) -> None:
    claims = finalise_epoch_0(world)
    before = world.chain.balance_wei(COORDINATOR.address)
    quote = world.sender.dry_run(world.settlement.claim_action(claims[0]))
    assert world.chain.balance_wei(COORDINATOR.address) == before
    receipt = world.settlement.claim(claims[0])
    assert receipt.gas_used <= quote.gas <= receipt.gas_used * 1.1
    assert quote.gas < quote.gas_limit
    assert receipt.fee_wei <= quote.max_fee_wei
    assert before - world.chain.balance_wei(COORDINATOR.address) == receipt.fee_wei
    assert Sender(world.chain, PAUPER).dry_run(world.settlement.claim_action(claims[1])).fee_wei > 0
    with pytest.raises(ContractReverted):
        world.sender.dry_run(world.settlement.claim_action(claims[0]))


# What goes wrong


@pytest.mark.parametrize("how", ["estimate", "dry run", "mined"])
def test_every_revert_is_decoded_alike(world: World, how: str) -> None:
    stranger = Sender(world.chain, ALICE)
    action = world.settlement.action("proposeEpoch", 0, b"\x01" * 32, 1, b"\x02" * 32, "")
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


def test_a_view_that_reverts_is_decoded(world: World) -> None:
    with pytest.raises(ContractReverted, match="ModelRegistryUnknownModel") as caught:
        world.registry.model(b"\x09" * 32)
    assert caught.value.arguments == {"modelId": b"\x09" * 32}
    claims = finalise_epoch_0(world)
    with pytest.raises(ContractReverted, match="EpochSettlementInvalidProof"):
        world.settlement.claimable(replace(claims[0], cumulative_shares=7))


def test_an_error_of_a_library_is_decoded_too(world: World) -> None:
    with pytest.raises(ContractReverted, match="ERC20InsufficientBalance"):
        world.usd.transfer(ALICE.address, 1)


def test_running_out_of_gas_is_said(world: World) -> None:
    action = world.usd.action("mint", ALICE.address, 1)
    with pytest.raises(TransactionFailed, match="ran out of gas"):
        world.sender.send(action, gas_limit=25_000)


def test_solidity_s_own_errors_and_unknown_ones() -> None:
    assert decode_revert(bytes.fromhex("4e487b71") + (0x11).to_bytes(32, "big")) == ("Panic", {"code": 0x11})
    assert decode_revert(b"\xde\xad\xbe\xef") is None
    assert decode_revert(bytes.fromhex("4e487b71")) is None, "cut short"


def test_the_wrong_chain_is_refused(local: LocalChain) -> None:
    with pytest.raises(WrongChain, match=rf"serves chain {local.chain_id}, expected was 1\b"):
        Chain.connect(local.rpc_url, expected_chain_id=1)


def test_an_address_without_our_contract_is_said(world: World) -> None:
    with pytest.raises(ChainError, match="no such contract at"):
        EpochSettlement(world.chain, ALICE.address).next_epoch()
    with pytest.raises(ChainError, match="not an address"):
        EpochSettlement(world.chain, "0x1234")


def test_a_contract_opened_for_reading_cannot_be_written(world: World) -> None:
    with pytest.raises(ChainError, match="needs a key"):
        EpochSettlement(world.chain, world.settlement.address).finalize_epoch(0)


def test_an_account_without_gas_money_learns_who_needs_how_much(world: World) -> None:
    sender = Sender(world.chain, PAUPER)
    with pytest.raises(InsufficientFunds, match=rf"{PAUPER.address} has 0 ETH.*send it") as caught:
        TestUSD(world.chain, world.usd.address, sender).mint(PAUPER.address, 1)
    assert "TestUSD.mint" in str(caught.value)
    with pytest.raises(InsufficientFunds):
        sender.transfer(ALICE.address, 10**18)
    world.sender.transfer(PAUPER.address, 10**17)
    TestUSD(world.chain, world.usd.address, sender).mint(PAUPER.address, 1)
    assert world.usd.balance_of(PAUPER.address) == 1


def test_a_fee_over_the_cap_is_not_paid(world: World) -> None:
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
def test_threads_with_one_key_keep_their_nonces_apart(world: World, senders: str) -> None:
    shared = Sender(world.chain, BOB)
    before = int(world.chain.request("eth_getTransactionCount", BOB.address, "latest"), 16)

    def mint(amount: int) -> int:
        sender = shared if senders == "one sender" else Sender(world.chain, BOB)
        TestUSD(world.chain, world.usd.address, sender).mint(BUYER.address, amount)
        return amount

    with ThreadPoolExecutor(6) as pool:
        total = sum(pool.map(mint, range(1, 25)))
    assert world.usd.balance_of(BUYER.address) == total
    assert int(world.chain.request("eth_getTransactionCount", BOB.address, "latest"), 16) == before + 24


def test_a_nonce_that_somebody_else_used_is_read_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_failure_leaves_no_hole_in_the_nonces(world: World) -> None:
    sender = Sender(world.chain, ALICE)
    with pytest.raises(ContractReverted):
        sender.send(world.settlement.action("finalizeEpoch", 0))
    with pytest.raises(ContractReverted):
        sender.send(world.settlement.action("finalizeEpoch", 0), gas_limit=200_000)
    sender.transfer(BOB.address, 1)
    snapshot = world.chain.request("evm_snapshot")
    sender.transfer(BOB.address, 1)
    world.chain.request("evm_revert", snapshot)
    assert sender.transfer(BOB.address, 1).gas_used == 21_000, "a chain that was rolled back is read anew"


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


def test_a_receipt_that_never_comes_names_the_transaction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender(world.chain, ALICE, receipt_timeout_s=0.05)
    monkeypatch.setattr(Chain, "receipt", lambda *_: None)
    with pytest.raises(ChainError, match=r"sent as 0x[0-9a-f]{64} and had no receipt within 0\.05 s.*look it up"):
        sender.send(Action("transfer", BOB.address, value_wei=1))
    monkeypatch.undo()
    assert sender.transfer(BOB.address, 1)
