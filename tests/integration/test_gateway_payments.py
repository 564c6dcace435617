"""Answers are paid for on a real chain: what is delivered is charged, no more, and nothing that isn't."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from x402.http.utils import decode_payment_response_header

from commonweight.buyer import Answered, Offer, ask
from commonweight.chain.events import PaymentCollected
from commonweight.chain.local import LocalChain
from commonweight.chain.sender import Action
from commonweight.errors import ConfigError, CostAboveLimit, LedgerError, StageLost
from gateway import app, cashier
from gateway.ledger import Ledger, Order, State
from gateway.pricing import Price
from gateway.run import open_till
from gateway.shop import Limits
from gateway.till import Verified
from tests.integration.chain_world import ALICE, BUYER, COORDINATOR, STRANGER, ChainWorld, build_world
from tests.integration.gateway_market import (
    CASHIER,
    FUNDS,
    PRICE,
    PROMPT,
    QUOTE,
    REQUEST,
    Market,
    config_of,
    market,
    open_market,
)
from tests.unit.gateway_world import SPEC, LongPieces, Scripted, stalled_buyer

pytestmark = pytest.mark.asyncio
HELLO = "Hello, world."
COST = PRICE.cost(len(PROMPT), len(HELLO))
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def registered_world() -> Iterator[ChainWorld]:
    """One back-end is enough here."""
    with LocalChain.start("embedded", accounts=12) as local:
        yield build_world(local)


def events_of(text: str) -> list[tuple[str, Any]]:
    """(event, data) of a stream that has ended."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        data = fields["data"]
        found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def openai_client(place: Market, http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0, http_client=http)  # type: ignore[arg-type]  # the package takes clients of httpx, too


async def test_the_openai_client_pays_with_the_x402_client(world: ChainWorld, tmp_path: Path) -> None:
    async with market(world, tmp_path, Scripted()) as place, place.http() as http:
        buyer = openai_client(place, http)
        raw = await buyer.completions.with_raw_response.create(**REQUEST)
        answer = raw.parse()
        receipt = decode_payment_response_header(raw.headers["PAYMENT-RESPONSE"])
        assert await place.settled() == COST
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (HELLO, "stop")
    assert answer.usage is not None
    assert answer.usage.model_dump()["cost"] == str(COST)
    assert (receipt.success, receipt.amount, receipt.payer) == (True, str(COST), BUYER.address)
    (collected,) = world.router().events(PaymentCollected)
    assert (collected.transaction, collected.value, collected.charged) == (receipt.transaction, QUOTE, COST)


async def test_a_paid_stream(world: ChainWorld, tmp_path: Path) -> None:
    async with market(world, tmp_path, Scripted()) as place, place.http() as http:
        buyer = openai_client(place, http)
        stream = await buyer.chat.completions.create(
            model=SPEC.name, messages=[{"role": "user", "content": "Hi"}], max_tokens=40, **STREAMED
        )
        chunks = [chunk async for chunk in stream]
        cost = chunks[-1].usage.model_dump()["cost"]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == HELLO
        assert str(await place.settled()) == cost == str(PRICE.cost(len("User: Hi\n\nAssistant:"), len(HELLO)))


async def test_a_stream_ends_with_its_receipt(world: ChainWorld, tmp_path: Path) -> None:
    async with market(world, tmp_path, Scripted()) as place:
        answer = await place.post(place.payment(), **STREAMED)
        assert await place.settled() == COST
    events = events_of(answer.text)
    assert [event for event, _ in events if event] == ["payment"]
    assert events[-2][1] == "[DONE]"
    receipt = events[-1][1]
    assert (receipt["success"], receipt["amount"], receipt["network"]) == (True, str(COST), "eip155:31337")
    assert world.chain.receipt(receipt["transaction"]) is not None


async def test_our_buyer(world: ChainWorld, tmp_path: Path) -> None:
    def buy(place: Market, refuse: bool = False) -> tuple[Answered, list[str]]:
        pieces: list[str] = []

        def pay(offer: Offer) -> str:
            assert (offer.amount, offer.pay_to, offer.token) == (QUOTE, world.model.router, world.usd_address)
            if refuse:
                raise CostAboveLimit("Too much.")
            return place.payment(offer.amount)

        return ask(place.url, REQUEST, pay, pieces.append), pieces

    async with market(world, tmp_path, Scripted()) as place:
        answered, pieces = await asyncio.to_thread(buy, place)
        with pytest.raises(CostAboveLimit):
            await asyncio.to_thread(buy, place, refuse=True)
        assert await place.settled() == COST
    assert pieces == [*HELLO, ""]
    assert (answered.text, answered.cost, answered.completion_tokens) == (HELLO, COST, len(HELLO))
    assert answered.transaction is not None
    assert world.chain.receipt(answered.transaction) is not None


async def test_what_came_is_swept(world: ChainWorld, tmp_path: Path) -> None:
    async with market(world, tmp_path, Scripted()) as place:
        for _ in range(3):
            assert (await place.post(place.payment())).status_code == 200
        assert await place.settled() == 3 * COST
    router = world.router()
    router.sweep()
    assert router.unswept() == 0
    in_shares = world.usd().balance_of(world.model.shares)
    assert in_shares + router.operator_pool() + router.treasury_pool() == 3 * COST


async def test_no_payment_is_answered_with_the_terms(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted()
    async with market(world, tmp_path, backend) as place:
        answer = await place.post()
        listed = (await place.get("/v1/models")).json()["data"][0]["pricing"]
    assert answer.status_code == 402
    assert answer.json()["error"]["type"] == "payment_required"
    (accepted,) = answer.json()["accepts"]
    assert (accepted["amount"], accepted["payTo"]) == (str(QUOTE), world.model.router)
    assert listed == {
        "prompt_per_mtok": "2000000",
        "completion_per_mtok": "3000000",
        "network": "eip155:31337",
        "asset": world.usd_address,
        "pay_to": world.model.router,
    }
    assert backend.asked == []


async def test_bad_payments_buy_nothing(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted()
    async with market(world, tmp_path, backend) as place:
        terms, now = place.till.terms, world.chain.timestamp()
        elsewhere = replace(terms.domain, chain_id=1)
        bad = {
            "underpaid": (place.payment(QUOTE - 1), "authorization_value_mismatch"),
            "nothing": (place.payment(0), "authorization_value_mismatch"),
            "more than there is": (place.payment(2**256 - 1), "insufficient_balance"),
            "without money": (place.payment(key=STRANGER), "insufficient_balance"),
            "expired": (place.payment(now=now - 10_000), "valid_before"),
            "expires while it is served": (place.payment(timeout_s=terms.serve_s), "valid_before"),
            "for another chain": (place.payment(domain=elsewhere), "payload_signature"),
            "for somebody else": (place.payment(pay_to=STRANGER.address), "recipient_mismatch"),
            "in another token": (
                place.payment(requirements=terms.requirements(QUOTE).model_copy(update={"asset": STRANGER.address})),
                "asset_mismatch",
            ),
            "on another network": (
                place.payment(requirements=terms.requirements(QUOTE).model_copy(update={"network": "eip155:1"})),
                "network_mismatch",
            ),
            "no payment": ("e30=", "invalid_payload"),
        }
        for what, (payment, code) in bad.items():
            for changes in ({}, {"stream": True}):
                answer = await place.post(payment, **changes)
                assert answer.status_code == 402, what
                assert answer.json()["error"]["code"].endswith(code), what
                assert "PAYMENT-REQUIRED" in answer.headers
        answer = await place.post(place.payment(), prompt="a" * 1000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert await place.settled() == 0
        assert place.orders() == []
    assert backend.asked == []


async def test_a_payment_that_isn_t_valid_yet(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted()
    async with market(world, tmp_path, backend) as place:
        later = world.chain.timestamp() + 100
        signed = world.authorize(BUYER, QUOTE, valid_after=later, valid_before=later + 5_000)
        payment = _header(place, signed)
        answer = await place.post(payment)
        assert (answer.status_code, answer.json()["error"]["code"][-11:]) == (402, "valid_after")
        assert backend.asked == []
        world.later(101)
        assert (await place.post(payment)).status_code == 200
        assert await place.settled() == COST


def _header(place: Market, signed: Any) -> str:
    import base64

    fields = json.loads(base64.b64decode(place.payment(signed.value)))
    fields["payload"] = {
        "authorization": {
            "from": signed.from_,
            "to": place.till.terms.router,
            "value": str(signed.value),
            "validAfter": str(signed.valid_after),
            "validBefore": str(signed.valid_before),
            "nonce": "0x" + signed.nonce.hex(),
        },
        "signature": "0x" + signed.signature.hex(),
    }
    return base64.b64encode(json.dumps(fields).encode()).decode()


async def test_a_payment_buys_one_answer(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted()
    async with market(world, tmp_path, backend) as place:
        payment = place.payment()
        assert (await place.post(payment, **STREAMED)).status_code == 200
        assert await place.settled() == COST
        for changes in (STREAMED, {}, {"prompt": "other"}):
            again = await place.post(payment, **changes)
            assert (again.status_code, again.json()["error"]["code"]) == (402, "invalid_exact_evm_nonce_already_used")
        assert await place.settled() == COST
    assert len(backend.asked) == 1


async def test_at_the_same_time_too(world: ChainWorld, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(0)
    backend = Scripted(gate=gate)
    async with market(world, tmp_path, backend) as place:
        payment = place.payment()
        posts = [asyncio.create_task(place.post(payment, **STREAMED)) for _ in range(4)]
        waiting = set(posts)
        while len(waiting) > 1:
            _, waiting = await asyncio.wait(waiting, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        for _ in HELLO:
            gate.release()
        assert sorted([answer.status_code for answer in await asyncio.gather(*posts)]) == [200, 402, 402, 402]
        assert await place.settled() == COST
    assert len(backend.asked) == 1


async def test_a_lost_answer_can_be_asked_for_again(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted()
    async with market(world, tmp_path, backend) as place:
        payment = place.payment()
        first, again = await place.post(payment), await place.post(payment)
        assert again.json() == first.json()
        assert again.headers["PAYMENT-RESPONSE"] == first.headers["PAYMENT-RESPONSE"]
        other = await place.post(payment, prompt="Say other: ")
        assert other.status_code == 402
        assert await place.settled() == COST
    assert len(backend.asked) == 1


async def test_until_its_payment_expires(world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = asyncio.Event()
    loop, forget = asyncio.get_running_loop(), Ledger.forget_answers

    def forget_later(ledger: Ledger, now: int) -> None:
        forget(ledger, now + 10_000)
        loop.call_soon_threadsafe(forgotten.set)

    monkeypatch.setattr(Ledger, "forget_answers", forget_later)
    async with market(world, tmp_path, Scripted()) as place:
        payment = place.payment()
        assert (await place.post(payment)).status_code == (await place.post(payment)).status_code == 200
        looking = asyncio.create_task(place.shop.cashier.keep_looking())
        async with asyncio.timeout(10):
            await forgotten.wait()
        looking.cancel()
        assert [(order.state, order.answer) for order in place.orders()] == [(State.COLLECTED, None)]
        assert (await place.post(payment)).status_code == 402


async def test_with_what_became_of_its_payment(world: ChainWorld, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(0)
    backend = Scripted(gate=gate)
    async with market(world, tmp_path, backend) as place:
        payment = place.payment()
        buying = asyncio.create_task(place.post(payment))
        await backend.begun.wait()
        send_directly(place, payment)
        for _ in HELLO:
            gate.release()
        first, again = await buying, await place.post(payment)
        assert again.json() == first.json()
        for answer in (first, again):
            receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
            assert (receipt.success, receipt.error_reason) == (False, "transaction_failed")


async def test_an_answer_that_cost_nothing_has_no_receipt(world: ChainWorld, tmp_path: Path) -> None:
    async with market(world, tmp_path, Scripted(b"")) as place:
        place.shop.price = Price(0, 3_000_000)
        payment = place.payment()
        first, again = await place.post(payment), await place.post(payment)
        assert (first.status_code, again.json()) == (200, first.json())
        assert "PAYMENT-RESPONSE" not in first.headers
        assert "PAYMENT-RESPONSE" not in again.headers
        assert await place.settled() == 0
        assert [order.state for order in place.orders()] == [State.VOID]


async def test_more_is_not_signed_for_at_a_time_than_there_is(world: ChainWorld, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(0)
    backend = Scripted(gate=gate)
    async with market(world, tmp_path, backend) as place:
        open_ = asyncio.create_task(place.post(place.payment(FUNDS)))
        await backend.begun.wait()
        answer = await place.post(place.payment())
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "invalid_exact_evm_insufficient_balance")
        for _ in HELLO:
            gate.release()
        assert (await open_).status_code == 200
        assert await place.settled() == COST, "all was signed for, and what wasn't charged is back"


async def test_nor_where_one_is_collected_while_another_is_checked(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The balance may be from before, and the ledger from after it."""
    gate = asyncio.Semaphore(0)
    backend = Scripted(gate=gate)
    async with market(world, tmp_path, backend) as place:
        first = asyncio.create_task(place.post(place.payment(FUNDS - COST)))
        await backend.begun.wait()
        verify, loop = place.till.verify, asyncio.get_running_loop()

        async def collect_first() -> None:
            for _ in HELLO:
                gate.release()
            assert (await first).headers["PAYMENT-RESPONSE"]

        def verify_meanwhile(payment: Any) -> Verified:
            verified = verify(payment)
            asyncio.run_coroutine_threadsafe(collect_first(), loop).result(20)
            return verified

        monkeypatch.setattr(place.till, "verify", verify_meanwhile)
        answer = await place.post(place.payment(FUNDS - COST + 1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (402, "invalid_exact_evm_insufficient_balance")
        assert await place.settled() == COST
    assert len(backend.asked) == 1


async def test_a_buyer_that_reads_no_further_pays_for_what_was_handed_over(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SEND_S", 0.2)
    tokens = 60
    backend = Scripted([1] * tokens)
    async with market(world, tmp_path, backend) as place:
        place.shop.tokenizer = LongPieces()
        payment = place.payment(PRICE.cost(len(PROMPT), tokens))
        request = REQUEST | STREAMED | {"max_tokens": tokens}
        async with stalled_buyer(place.url, request, f"PAYMENT-SIGNATURE: {payment}\r\n"), asyncio.timeout(20):
            await backend.begun.wait()
            await place.shop.close(finish_s=20, collect_s=20)
        (order,) = place.orders()
        assert (order.state, order.charge) == (State.COLLECTED, PRICE.cost(len(PROMPT), order.completion_tokens))
        assert 0 < order.completion_tokens < tokens
        assert place.spent() == order.charge


async def test_a_buyer_that_hangs_up_pays_for_what_came(world: ChainWorld, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(4)
    backend = Scripted(gate=gate)
    async with market(world, tmp_path, backend) as place:
        async with (
            httpx.AsyncClient(timeout=30) as http,
            http.stream(
                "POST",
                f"{place.url}/v1/completions",
                json=REQUEST | STREAMED,
                headers={"PAYMENT-SIGNATURE": place.payment()},
            ) as answer,
        ):
            read = ""
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    read += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if read == "Hell":
                    break
        await place.shop.close(finish_s=20, collect_s=20)
        assert place.spent() == PRICE.cost(len(PROMPT), 4)
        (order,) = place.orders()
        assert (order.state, order.completion_tokens) == (State.COLLECTED, 4)
    assert backend.ended == 1
    assert [(served.prompt_tokens, served.completion_tokens) for served in backend.reports] == [(len(PROMPT), 4)]


async def test_a_buyer_that_hangs_up_before_anything_came_pays_nothing(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted(gate=asyncio.Semaphore(0))
    async with market(world, tmp_path, backend) as place:
        waiting = asyncio.create_task(place.post(place.payment(), **STREAMED))
        await backend.begun.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await place.shop.close(finish_s=20, collect_s=20)
        assert place.spent() == 0
        assert [order.state for order in place.orders()] == [State.VOID]
    assert backend.reports == []


async def test_a_stage_that_dies_in_mid_answer_costs_what_was_delivered(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted(b"Hel", failure=StageLost("Stage 2 is gone."))
    async with market(world, tmp_path, backend) as place:
        events = events_of((await place.post(place.payment(), **STREAMED)).text)
        assert events[-2][1]["error"]["code"] == "WIRE_STAGE_LOST"
        cost = PRICE.cost(len(PROMPT), 3)
        assert (events[-1][0], events[-1][1]["amount"]) == ("payment", str(cost))
        assert await place.settled() == cost
        whole = await place.post(place.payment())
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "WIRE_STAGE_LOST")
        backend.refusal = StageLost("Stage 0 is gone.")
        none = await place.post(place.payment(), **STREAMED)
        assert none.status_code == 503
        assert await place.settled() == cost, "neither delivered anything"
        assert [order.state for order in place.orders()] == [State.COLLECTED, State.VOID, State.VOID]


async def test_who_is_no_cashier_doesn_t_open(world: ChainWorld, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"revenue cashier {CASHIER.address}"):
        await asyncio.to_thread(open_till, config_of(world, tmp_path))
    await asyncio.to_thread(open_market, world)
    await asyncio.to_thread(open_till, config_of(world, tmp_path))


async def test_a_cashier_that_was_dismissed_takes_no_money(world: ChainWorld, tmp_path: Path) -> None:
    backend = Scripted()
    async with market(world, tmp_path, backend) as place:
        world.router(COORDINATOR).set_cashier(CASHIER.address, False)
        answer = await place.post(place.payment())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CHAIN_REVERTED")
        assert await place.settled() == 0
    assert backend.asked == []


async def test_without_gas_nothing_is_sold(world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr("gateway.shop.emit", lambda name, /, **fields: told.append((name, fields.get("message", ""))))
    backend, sender = Scripted(), world.sender(CASHIER)
    async with market(world, tmp_path, backend) as place:
        transfer = Action("transfer", STRANGER.address)
        spare_wei = world.chain.balance_wei(CASHIER.address) - sender.dry_run(transfer).max_fee_wei
        sender.transfer(STRANGER.address, spare_wei)
        payment = place.payment()
        answer = await place.post(payment)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CHAIN_NO_FUNDS")
        ((name, message),) = told
        assert (name, CASHIER.address in message) == ("payment.unchecked", True)
        assert (place.orders(), backend.asked, place.spent()) == ([], [], 0)
        world.sender(STRANGER).transfer(CASHIER.address, spare_wei // 2)
        assert (await place.post(payment)).status_code == 200
        assert await place.settled() == COST


async def test_one_payment_at_two_gateways_is_in_the_books_of_one(world: ChainWorld, tmp_path: Path) -> None:
    """Both have checked it before either collects: the token moves it once, and the other answer was free."""
    gate = asyncio.Semaphore(0)
    backends = Scripted(gate=gate), Scripted(gate=gate)
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    async with (
        market(world, folders[0], backends[0]) as one,
        market(world, folders[1], backends[1], key=ALICE) as two,
    ):
        payment = one.payment()
        posts = [asyncio.create_task(place.post(payment, prompt="Ask: ")) for place in (one, two)]
        await asyncio.gather(*(backend.begun.wait() for backend in backends))
        for _ in 2 * HELLO:
            gate.release()
        answers = await asyncio.gather(*posts)
        receipts = [decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"]) for answer in answers]
        assert sorted(receipt.success for receipt in receipts) == [False, True]
        assert await one.settled() == await two.settled() == COST
        orders: list[Order] = [*one.orders(), *two.orders()]
        assert sorted(order.state for order in orders) == [State.COLLECTED, State.WRITTEN_OFF]
        assert sum(order.charge for order in orders if order.state is State.COLLECTED) == world.router().unswept()


async def test_charges_are_collected_while_the_coordinator_is_away(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cashier, "REPORTS_AT_ONCE", 1)
    backend = Scripted(coordinator=asyncio.Event())
    async with market(world, tmp_path, backend, limits=Limits(concurrent=1, collect_s=5)) as place:
        for _ in range(3):
            answer = await place.post(place.payment())
            assert decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"]).success
        assert (await asyncio.to_thread(place.spent), backend.reports) == (3 * COST, [])
        assert backend.coordinator is not None
        backend.coordinator.set()
        assert await place.settled() == 3 * COST
    assert sorted(served.session for served in backend.reports) == sorted(backend.sessions)


@pytest.mark.parametrize("confirmations", [0, 1])
async def test_what_the_ledger_could_not_record_is_recorded_later_and_charged_once(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confirmations: int
) -> None:
    monkeypatch.setattr(cashier, "FIRST_RETRY_S", 0.01)
    told: list[str] = []
    monkeypatch.setattr(cashier, "emit", lambda name, /, **fields: told.append(name))
    name = "record_mined" if confirmations else "record_collected"
    record, failures = getattr(Ledger, name), [LedgerError("The disk is full."), LedgerError("It still is.")]

    def fail_first(ledger: Ledger, request: bytes, transaction: str) -> None:
        if failures:
            raise failures.pop()
        record(ledger, request, transaction)

    monkeypatch.setattr(Ledger, name, fail_first)
    async with market(world, tmp_path, Scripted(), confirmations=confirmations) as place:
        answer = await place.post(place.payment())
        assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, HELLO)
        receipt = decode_payment_response_header(answer.headers["PAYMENT-RESPONSE"])
        assert (receipt.success, receipt.amount) == (True, str(COST))
        assert await place.settled() == COST
        (order,) = place.orders()
        assert (order.state, order.transaction) == (
            State.MINED if confirmations else State.COLLECTED,
            receipt.transaction,
        )
    assert told == ["payment.failed", "payment.failed", "payment.collected"]


def send_directly(place: Market, payment: str) -> None:
    """Anybody who sees an authorisation can hand it to the token; then all of it is on the router."""
    signed = place.authorization(payment)
    move = place.world.usd(STRANGER).action(
        "transferWithAuthorization",
        *(signed.from_, place.till.terms.router, signed.value, signed.valid_after, signed.valid_before),
        *(signed.nonce, signed.signature),
    )
    place.world.sender(STRANGER).send(move)


async def test_a_payment_that_somebody_else_sent_is_written_off(world: ChainWorld, tmp_path: Path) -> None:
    gate = asyncio.Semaphore(1)
    backend = Scripted(gate=gate)
    async with market(world, tmp_path, backend) as place:
        payment = place.payment()
        buying = asyncio.create_task(place.post(payment, **STREAMED))
        await backend.begun.wait()
        send_directly(place, payment)
        for _ in HELLO:
            gate.release()
        receipt = events_of((await buying).text)[-1][1]
        assert (receipt["success"], receipt["errorReason"]) == (False, "transaction_failed")
        assert await place.settled() == QUOTE
        assert [order.state for order in place.orders()] == [State.WRITTEN_OFF]


async def test_the_chain_is_away_for_a_while(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cashier, "FIRST_RETRY_S", 0.05)
    gate = asyncio.Semaphore(1)
    backend, limits = Scripted(gate=gate), Limits(collect_s=0.2)
    async with (
        Proxy(world.chain.rpc_url) as proxy,
        market(world, tmp_path, backend, rpc_url=proxy.url, limits=limits) as place,
    ):
        buying = asyncio.create_task(place.post(place.payment(), **STREAMED))
        await backend.begun.wait()
        await proxy.down()
        for _ in HELLO:
            gate.release()
        events = events_of((await buying).text)
        assert "".join(data["choices"][0]["text"] for _, data in events[:-3]) == HELLO, "work goes on"
        assert events[-1][1]["errorReason"] == "settlement_pending"
        assert [order.state for order in place.orders()] == [State.SERVED]
        answer = await place.post(place.payment())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "CHAIN_UNREACHABLE")
        health = await place.get("/healthz")
        assert (health.status_code, health.json()["chain_reachable"]) == (503, False)
        assert world.usd().balance_of(BUYER.address) == FUNDS
        await proxy.up()
        assert await place.settled() == COST


async def test_the_chain_is_away_while_a_collection_is_looked_after(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cashier, "LOOK_S", 0.05)
    told: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(cashier, "emit", lambda name, /, **fields: told.put_nowait(name))
    async with (
        Proxy(world.chain.rpc_url) as proxy,
        market(world, tmp_path, Scripted(), rpc_url=proxy.url, confirmations=1) as place,
    ):
        assert (await place.post(place.payment())).status_code == 200
        assert await told.get() == "payment.collected"
        await proxy.down()
        looking = asyncio.create_task(place.shop.cashier.keep_looking())
        assert await told.get() == "payment.unconfirmed"
        assert [order.state for order in place.orders()] == [State.MINED]
        world.chain.request("evm_mine")
        await proxy.up()
        async with asyncio.timeout(30):
            while await told.get() != "payment.confirmed":
                pass
        looking.cancel()
        assert [order.state for order in place.orders()] == [State.COLLECTED]
        assert place.spent() == COST


async def test_a_payment_that_expired_meanwhile_is_written_off(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cashier, "FIRST_RETRY_S", 0.05)
    gate = asyncio.Semaphore(1)
    backend, limits = Scripted(gate=gate), Limits(collect_s=0.2)
    async with (
        Proxy(world.chain.rpc_url) as proxy,
        market(world, tmp_path, backend, rpc_url=proxy.url, limits=limits) as place,
    ):
        buying = asyncio.create_task(place.post(place.payment(), **STREAMED))
        await backend.begun.wait()
        await proxy.down()
        for _ in HELLO:
            gate.release()
        await buying
        world.later(10_000)
        await proxy.up()
        assert await place.settled() == 0
        assert [order.state for order in place.orders()] == [State.WRITTEN_OFF]


class Proxy:
    """The way to a chain, which can be closed."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        self._chain = host, int(port)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> "Proxy":
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(*self._chain)
        self._writers |= {writer, there_writer}
        await asyncio.gather(self._copy(reader, there_writer), self._copy(there_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other direction was closed
        writer.close()
        self._writers.discard(writer)
