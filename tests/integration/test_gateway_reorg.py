"""The chain takes a collected payment back: the gateway collects it again, once, as long as that can be done."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from commonweight.chain.events import PaymentCollected
from gateway.ledger import Order, State
from tests.integration.chain_world import STRANGER, ChainWorld
from tests.integration.gateway_market import FUNDS, PRICE, PROMPT, Market, market
from tests.unit.gateway_world import Scripted

pytestmark = pytest.mark.asyncio
COST = PRICE.cost(len(PROMPT), len(Scripted().text))
DEPTH = 2


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cashier's events."""
    said: list[str] = []
    monkeypatch.setattr("gateway.cashier.emit", lambda name, /, **fields: said.append(name))
    return said


async def buy(place: Market) -> str:
    """The payment for an answer whose charge is collected, in the chain's newest block."""
    payment = place.payment()
    assert (await place.post(payment)).status_code == 200
    assert await place.settled() == COST
    assert only(place).state is State.MINED
    return payment


def only(place: Market) -> Order:
    (order,) = place.orders()
    return order


def reorganise(place: Market, before: Any) -> None:
    """The chain has another history since `before`, a snapshot, in which nobody paid."""
    mined = only(place).transaction
    assert mined is not None
    assert place.world.chain.receipt(mined) is not None
    assert place.world.chain.request("evm_revert", before) is True
    assert place.world.chain.receipt(mined) is None
    assert place.spent() == 0


def mine(world: ChainWorld, blocks: int) -> None:
    for _ in range(blocks):
        world.chain.request("evm_mine")


def collections(world: ChainWorld) -> list[int]:
    return [event.charged for event in world.router().events(PaymentCollected)]


async def test_a_collection_counts_once_it_is_deep_enough(
    world: ChainWorld, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market(world, tmp_path, Scripted(), confirmations=DEPTH) as place:
        await buy(place)
        mine(world, DEPTH - 1)
        await place.shop.cashier.look()
        assert only(place).state is State.MINED
        mine(world, 1)
        await place.shop.cashier.look()
        assert only(place).state is State.COLLECTED
        assert told == ["payment.collected", "payment.confirmed"]
        monkeypatch.setattr(place.till, "confirmed_block", lambda: pytest.fail("there is nothing to look at"))
        await place.shop.cashier.look()
        assert len(told) == 2
        assert world.chain.receipt(str(only(place).transaction)) is not None


async def test_what_a_reorganisation_undoes_is_collected_again_and_once(
    world: ChainWorld, tmp_path: Path, told: list[str]
) -> None:
    async with market(world, tmp_path, Scripted(), confirmations=DEPTH) as place:
        before = world.chain.request("evm_snapshot")
        payment = await buy(place)
        reorganise(place, before)
        await place.shop.cashier.look()
        assert await place.settled() == COST
        assert only(place).state is State.MINED
        again = await place.post(payment)
        assert again.json()["usage"]["cost"] == str(COST), "the answer that was paid for, and no other charge"
        mine(world, DEPTH)
        for _ in range(2):
            await place.shop.cashier.look()
            assert await place.settled() == COST
        assert only(place).state is State.COLLECTED
    assert told == ["payment.collected", "payment.reorganised", "payment.collected", "payment.confirmed"]
    assert collections(world) == [COST]


async def test_as_often_as_the_chain_wants(world: ChainWorld, tmp_path: Path, told: list[str]) -> None:
    async with market(world, tmp_path, Scripted(), confirmations=DEPTH) as place:
        before = world.chain.request("evm_snapshot")
        await buy(place)
        for _ in range(3):
            mine(world, DEPTH - 1)
            reorganise(place, before)
            before = world.chain.request("evm_snapshot")
            await place.shop.cashier.look()
            assert await place.settled() == COST
    assert told.count("payment.reorganised") == 3
    assert collections(world) == [COST]


async def test_what_is_to_be_collected_again_counts_against_the_balance(world: ChainWorld, tmp_path: Path) -> None:
    async with market(world, tmp_path, Scripted(), confirmations=DEPTH) as place:
        before = world.chain.request("evm_snapshot")
        await buy(place)
        reorganise(place, before)
        await asyncio.to_thread(place.shop.ledger.record_unmined, only(place).request_id)
        answer = await place.post(place.payment(FUNDS))
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "invalid_exact_evm_insufficient_balance")


async def test_one_that_expired_with_the_other_history_is_written_off(
    world: ChainWorld, tmp_path: Path, told: list[str]
) -> None:
    async with market(world, tmp_path, Scripted(), confirmations=DEPTH) as place:
        before = world.chain.request("evm_snapshot")
        await buy(place)
        reorganise(place, before)
        world.later(10_000)
        await place.shop.cashier.look()
        assert await place.settled() == 0
        assert only(place).state is State.WRITTEN_OFF
    assert told == ["payment.collected", "payment.reorganised", "payment.written_off"]


async def test_one_that_somebody_else_was_faster_with_is_written_off(
    world: ChainWorld, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes put what they had mined back into the queue, so the same transaction is mined again, and reverts."""
    eth, sent = type(world.chain.w3.eth), list[bytes]()
    honest = eth.send_raw_transaction

    def send(self: Any, raw: bytes) -> Any:
        sent.append(bytes(raw))
        return honest(self, raw)

    monkeypatch.setattr(eth, "send_raw_transaction", send)
    async with market(world, tmp_path, Scripted(), confirmations=DEPTH) as place:
        before = world.chain.request("evm_snapshot")
        signed = place.authorization(await buy(place))
        collection = sent[-1]
        reorganise(place, before)
        move = world.usd(STRANGER).action(
            "transferWithAuthorization",
            *(signed.from_, place.till.terms.router, signed.value, signed.valid_after, signed.valid_before),
            *(signed.nonce, signed.signature),
        )
        world.sender(STRANGER).send(move)
        world.chain.request("eth_sendRawTransaction", "0x" + collection.hex())
        deadline = time.monotonic() + 10
        while (again := world.chain.receipt(str(only(place).transaction))) is None:
            assert time.monotonic() < deadline
        assert again["status"] == 0
        await place.shop.cashier.look()
        assert await place.settled() == signed.value
        assert only(place).state is State.WRITTEN_OFF
    assert collections(world) == []
