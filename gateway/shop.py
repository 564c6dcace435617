"""What the gateway sells, and what it takes to answer one request."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from commonweight.errors import CommonweightError, ContextExceeded, DataError, NoRoom, NotServed
from commonweight.events import emit
from commonweight.failpoints import failpoint
from commonweight.model.tokenizer import Tokenizer
from commonweight.rules.spec import ModelSpec
from gateway.backend import Backend
from gateway.cashier import Cashier
from gateway.formats import ApiError, Ask, Usage, invalid
from gateway.ledger import Ledger, Order, Overdrawn, Taken
from gateway.payments import OVERDRAWN, USED, PaymentRefused, Terms, check_amount, read_payment
from gateway.pricing import Price
from gateway.text import TextStream
from gateway.till import Collected, Lost, Till

STEP_TOKENS = 16
"""A gateway that is killed loses at most so many delivered tokens; it never charges for one that wasn't."""


@dataclass(frozen=True)
class Limits:
    """How much one gateway does."""

    concurrent: int = 16
    """Requests that are answered at a time."""
    body_bytes: int = 1 << 20
    answer_s: float = 300.0
    """For a whole answer."""
    read_s: float = 10.0
    """For a request's body."""
    collect_s: float = 30.0
    """How long an answer waits for its payment's transaction; after that it says that it is to come."""


@dataclass(frozen=True)
class Job:
    """A request that could be answered."""

    ask: Ask
    ids: tuple[int, ...]
    """The prompt."""
    max_tokens: int
    seed: int
    quote: int
    """The most that it may cost."""


class Shop:
    """One model with its price."""

    def __init__(
        self,
        *,
        backend: Backend,
        tokenizer: Tokenizer,
        price: Price,
        ledger: Ledger,
        till: Till | None,
        limits: Limits,
    ) -> None:
        """`till` may be None where the price is zero."""
        assert till is not None or price.is_free, "who sells needs a till"
        self.backend, self.tokenizer, self.price, self.limits = backend, tokenizer, price, limits
        self.ledger, self.till = ledger, till
        # An answer keeps its place while its charge is collected, so that more is hardly ever to be collected.
        self.cashier = Cashier(ledger, till, backend, limits.concurrent)
        self.closing = asyncio.Event()
        """Set: no new requests."""
        self.cut = asyncio.Event()
        """Set: answers end where they are."""
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def spec(self) -> ModelSpec:
        """Of the model. Raises ApiError 503 while it isn't known: no version has been served yet."""
        if self.backend.spec is None:
            raise api_error(NotServed("No version of the model has been served yet. Try again in a while."))
        return self.backend.spec

    @contextmanager
    def counter(self) -> Iterator[None]:
        """A place among the requests that are answered. Raises ApiError 429 where there is none, 503 while closing."""
        if self.closing.is_set():
            raise ApiError(503, "shutting_down", "This gateway is shutting down.", headers={"Retry-After": "5"})
        if self._busy >= self.limits.concurrent:
            raise ApiError(
                429,
                "too_many_requests",
                f"{self._busy} requests are being answered, which is the limit. Try again in a moment.",
                headers={"Retry-After": "1"},
            )
        self._busy += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._busy -= 1
            if self._busy == 0:
                self._idle.set()

    async def close(self, finish_s: float, collect_s: float) -> None:
        """Take no more requests, let answers finish for `finish_s`, then cut them; collect for `collect_s`."""
        self.closing.set()
        try:
            async with asyncio.timeout(finish_s):
                await self._idle.wait()
        except TimeoutError:
            self.cut.set()
        await self._idle.wait()  # within `Limits.collect_s`: answers that are cut only wait for their receipt
        await self.cashier.drain(collect_s)

    def job(self, ask: Ask) -> Job:
        """The request in tokens, with its price. Raises ApiError 400 and 404."""
        name, context = self.spec.name, self.spec.training.sequence_length
        if ask.model != name:
            raise ApiError(404, "model_not_found", f"{ask.model!r:.80} isn't served here; {name!r} is.", param="model")
        param = "messages" if ask.is_chat else "prompt"
        try:
            ids = tuple(self.tokenizer.encode(ask.prompt)) or (self.tokenizer.end_of_document,)
        except DataError as error:
            raise invalid(_message(error), param) from error
        # The last token of an answer is never fed, so it needs no room.
        room = context + 1 - len(ids)
        max_tokens = max(room, 1) if ask.max_tokens is None else ask.max_tokens
        if max_tokens > room:
            raise invalid(
                f"The prompt has {len(ids):,} tokens and {max_tokens:,} more were asked for; {name} was trained on at "
                f"most {context:,}. Shorten the prompt, or ask for fewer tokens.",
                param,
                "context_length_exceeded",
            )
        seed = secrets.randbits(64) if ask.seed is None else ask.seed % 2**64
        return Job(ask, ids, max_tokens, seed, self.price.cost(len(ids), max_tokens))

    async def take(self, header: str | None, job: Job, request_hash: bytes, url: str) -> "Sale | Stored":
        """The sale that this payment pays for, or the answer that it has paid for already.

        Raises ApiError 402 where there is no payment or one that isn't good, 503 where that can't be told.
        """
        request_id = secrets.token_bytes(16)
        if job.quote == 0:
            return Sale(self, job, request_id, None)
        assert self.till is not None, "who sells has a till"
        terms = self.till.terms
        if header is None:
            raise payment_required(terms, job.quote, url, "payment_required", "This answer has a price; see `accepts`.")
        try:
            payment = read_payment(header, terms)
            known = await asyncio.to_thread(self.ledger.find, payment.from_, payment.nonce)
            if known is not None:
                return _stored(known, request_hash)
            check_amount(payment, job.quote)
            uncollected = await asyncio.to_thread(self.ledger.uncollected, payment.from_)
            verified = await asyncio.to_thread(self.till.verify, payment)
            order = Order(
                request_id=request_id,
                request_hash=request_hash,
                authorization=payment,
                expires=min(payment.valid_before, verified.time + terms.timeout_s),
                prompt_tokens=len(job.ids),
            )
            await asyncio.to_thread(self.ledger.accept, order, verified.balance, uncollected)
            failpoint("gateway.accepted")
        except PaymentRefused as error:
            emit("payment.refused", code=error.code, message=error.message)
            raise payment_required(terms, job.quote, url, error.code, error.message) from error
        except Taken as error:
            raise payment_required(terms, job.quote, url, USED, "This payment has just been taken.") from error
        except Overdrawn as error:
            message = f"{payment.from_} has {verified.balance}, and has signed for more than that here."
            raise payment_required(terms, job.quote, url, OVERDRAWN, message) from error
        except CommonweightError as error:
            emit("payment.unchecked", code=error.code, message=str(error))
            raise ApiError(
                503,
                error.code,
                "The payment can't be checked now, and nothing was taken. Try again in a moment.",
                headers={"Retry-After": "5"},
            ) from error
        return Sale(self, job, request_id, order)


@dataclass(frozen=True)
class Stored:
    """An answer that was paid for, and perhaps lost on its way."""

    order: Order
    answer: dict[str, Any]


def _stored(known: Order, request_hash: bytes) -> Stored:
    if known.answer is not None and known.request_hash == request_hash:
        return Stored(known, known.answer)
    raise PaymentRefused(
        USED, "This payment was taken for a request before. Sign another one; nothing is charged twice."
    )


def payment_required(terms: Terms, quote: int, url: str, code: str, message: str) -> ApiError:
    """The 402 that says how to pay, and why it comes."""
    headers, members = terms.ask(quote, url, code)
    return ApiError(402, code, message, headers=headers, extra=members)


class Sale:
    """One answer, and what is charged for it."""

    def __init__(self, shop: Shop, job: Job, request_id: bytes, order: Order | None) -> None:
        """`order` is None where nothing is charged."""
        self.job, self.id = job, request_id.hex()
        self._shop, self._order = shop, order
        self._text = TextStream(shop.tokenizer, job.ask.stops)
        self._delivered = self._recorded = 0
        self.finish_reason = ""
        """ "stop" or "length", once the answer is complete."""
        self._reason = ""
        self._is_closed = False
        self.collection: asyncio.Task[Collected | Lost] | None = None
        """Under way once it is closed, if anything was charged."""

    @property
    def payer(self) -> str | None:
        """Who pays, if anyone does."""
        return None if self._order is None else self._order.authorization.from_

    @property
    def usage(self) -> Usage:
        """Of what was delivered. A prompt costs nothing where neither a token nor a complete answer came of it."""
        prompt, delivered = len(self.job.ids), self._delivered
        owed = delivered > 0 or self.finish_reason
        return Usage(prompt, delivered, self._shop.price.cost(prompt, delivered) if owed else 0)

    async def text(self) -> AsyncGenerator[str, None]:
        """The answer in pieces that may be sent. Raises what the backend raises."""
        job, text = self.job, self._text
        generation = await self._shop.backend.generate(job.ids, job.max_tokens, job.ask.temperature, job.seed)
        if self._order is not None:
            self._order = replace(self._order, round=generation.round, session=generation.session)
        count, reason = 0, "length"
        async with aclosing(generation.tokens) as tokens:
            async for token in tokens:
                if token == self._shop.tokenizer.end_of_document:
                    reason = "stop"
                    break
                count += 1
                if piece := text.push(token):
                    yield piece
                if text.stopped or count == job.max_tokens:
                    break
        if not text.stopped and (rest := text.flush()):
            yield rest
        self._reason = "stop" if text.stopped else reason

    def complete(self) -> None:
        """All of `text` was delivered, or is about to be kept for whoever paid for it."""
        self._delivered, self.finish_reason = self._text.tokens, self._reason

    async def record_sent(self) -> None:
        """All pieces that `text` has yielded were delivered: what they cost is safe, give or take STEP_TOKENS."""
        failpoint("gateway.sent")
        self._delivered = self._text.tokens
        if self._order is not None and (self._recorded == 0 or self._delivered - self._recorded >= STEP_TOKENS):
            self._recorded = self._delivered
            order = replace(self._order, completion_tokens=self._delivered, charge=self.usage.cost)
            await asyncio.to_thread(self._shop.ledger.record_delivered, order)
            failpoint("gateway.delivered")

    async def close(self, ended: str, answer: dict[str, Any] | None = None) -> None:
        """Fix the charge, and begin to collect it; only the first call does. `ended`: why. `answer`: to be kept."""
        if self._is_closed:
            return
        self._is_closed = True
        usage = self.usage
        emit(
            "answer.ended",
            request=self.id,
            payer=self.payer,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost=str(usage.cost),
            ended=ended,
        )
        if self._order is None:
            return
        order = replace(self._order, completion_tokens=usage.completion_tokens, charge=usage.cost, answer=answer)
        await asyncio.to_thread(self._shop.ledger.close_order, order)
        failpoint("gateway.served")
        if order.charge:
            self.collection = self._shop.cashier.collect(order)
        if order.completion_tokens:
            self._shop.cashier.report(order)


def api_error(error: CommonweightError) -> ApiError:
    """What the buyer is told about an answer that can't begin or go on."""
    if isinstance(error, ContextExceeded):
        return invalid(_message(error), code="context_length_exceeded")
    if isinstance(error, NoRoom):
        return ApiError(429, error.code, _message(error), headers={"Retry-After": "2"})
    return ApiError(503, error.code, _message(error), headers={"Retry-After": "5"})


def _message(error: CommonweightError) -> str:
    """Without the code, which has a field of its own."""
    return str(error.args[0])
