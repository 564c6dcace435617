"""The gateway's HTTP: OpenAI's endpoints, with x402 before them. Plain ASGI, so that a stream is a stream."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from eth_hash.auto import keccak
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from commonweight.errors import ChainError, CommonweightError
from gateway.formats import ApiError, Ask, Format, parse_chat, parse_completion, sse
from gateway.ledger import Order, State
from gateway.payments import PAYMENT, PaymentReceipt, payment_response, response_headers, response_json
from gateway.shop import Sale, Shop, Stored, api_error
from gateway.till import Collected, Lost

HEALTH_S = 5.0
"""For the chain and the coordinator to show that they are there."""
SEND_S = 10.0
"""For a buyer to take a piece of a stream; one that doesn't is taken for gone."""
ENDS = {
    "disconnected": (499, "The buyer hung up."),
    "shutting_down": (503, "This gateway is shutting down, and the answer ends here."),
    "answer_too_slow": (504, "The answer didn't end within the time that this gateway gives it."),
}
"""Why an answer ends that the model could go on with."""


def ended(why: str) -> ApiError:
    """One of `ENDS`."""
    status, message = ENDS[why]
    return ApiError(status, why, message)


def make_app(shop: Shop) -> Starlette:
    """The ASGI application that sells `shop`'s model."""
    started, health = int(time.time()), Health(shop)

    async def models(_request: Request) -> Response:
        known = [] if shop.backend.spec is None else [model_json(shop, started)]
        return JSONResponse({"object": "list", "data": known})

    async def model(request: Request) -> Response:
        if request.path_params["model"] != shop.spec.name:
            raise ApiError(404, "model_not_found", f"Only {shop.spec.name!r} is served here.", param="model")
        return JSONResponse(model_json(shop, started))

    return Starlette(
        routes=[
            Route("/v1/completions", Answers(shop, parse_completion), methods=["POST"]),
            Route("/v1/chat/completions", Answers(shop, parse_chat), methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model}", model, methods=["GET"]),
            Route("/healthz", health.answer, methods=["GET"]),
        ],
        exception_handlers={ApiError: _answer_api_error, HTTPException: _answer_http_error, 500: _answer_bug},
    )


def model_json(shop: Shop, created: int) -> dict[str, Any]:
    """The model as /v1/models lists it: OpenAI's four fields, and what a buyer needs to know."""
    pricing: dict[str, Any] = {
        "prompt_per_mtok": str(shop.price.prompt_per_mtok),
        "completion_per_mtok": str(shop.price.completion_per_mtok),
    }
    if shop.till is not None:
        terms = shop.till.terms
        pricing |= {"network": terms.network, "asset": terms.domain.token, "pay_to": terms.router}
    return {
        "id": shop.spec.name,
        "object": "model",
        "created": created,
        "owned_by": "commonweight",
        "context_length": shop.spec.training.sequence_length,
        "pricing": pricing,
    }


class Health:
    """Which version is served, and whether payments can be taken."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._asking: asyncio.Task[bool] | None = None

    async def answer(self, _request: Request) -> Response:
        """For GET."""
        is_closing, sells = self._shop.closing.is_set(), self._shop.till is not None
        round_ = await self._served_round()
        reachable = await self._chain_reachable() if sells else None
        ready = round_ is not None and reachable is not False and not is_closing
        state = {
            "status": "ok" if ready else "unavailable",
            "round": round_,
            "chain_reachable": reachable,
            "closing": is_closing,
        }
        return JSONResponse(state, 200 if ready else 503)

    async def _served_round(self) -> int | None:
        try:
            async with asyncio.timeout(HEALTH_S):
                return await self._shop.backend.served_round()
        except (CommonweightError, TimeoutError):
            return None

    async def _chain_reachable(self) -> bool:
        # One question at a time, however many want to know: a slow chain would take all threads.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask_chain())
        done, _ = await asyncio.wait({asking := self._asking}, timeout=HEALTH_S)
        return bool(done) and asking.result()

    async def _ask_chain(self) -> bool:
        assert self._shop.till is not None, "the caller looked"
        try:
            await asyncio.to_thread(self._shop.till.time)
        except ChainError:
            return False
        return True


class Answers:
    """One of the endpoints that answer."""

    def __init__(self, shop: Shop, parse: Callable[[bytes], Ask]) -> None:
        self._shop, self._parse = shop, parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        request = Request(scope, receive)
        try:
            body = await read_body(request, self._shop.limits.body_bytes, self._shop.limits.read_s)
        except ClientDisconnect:
            return
        with self._shop.counter():
            job = await asyncio.to_thread(self._shop.job, self._parse(body))
            request_hash = keccak(scope["path"].encode() + b"\0" + body)
            sold = await self._shop.take(request.headers.get(PAYMENT), job, request_hash, str(request.url))
            outgoing = _Outgoing(send)
            if isinstance(sold, Stored):
                headers = self._headers_of(sold.order)
                await JSONResponse(sold.answer, headers=headers)(scope, receive, outgoing)
                return
            try:
                if job.ask.stream:
                    await self._stream(sold, receive, outgoing)
                else:
                    await self._whole(sold, scope, receive, outgoing)
            finally:
                await sold.close("error")  # nothing is left to do unless something unforeseen was raised

    async def _stream(self, sale: Sale, receive: Receive, send: "_Outgoing") -> None:
        form, events, buyer = _format(sale), _EventStream(send), _Buyer(receive)

        async def content() -> None:
            async with aclosing(sale.text()) as pieces:
                async for piece in pieces:
                    await events.send(form.chunk(piece, is_first=not events.started))
                    # A server drops what it is given once the connection is lost. It has told the buyer's task then,
                    # which runs first.
                    await asyncio.sleep(0)
                    if buyer.is_gone or send.stalled:
                        raise ended("disconnected")
                    await sale.record_sent()

        failure = await self._until_ended(buyer, content())
        if failure is None:
            sale.complete()
        await sale.close(_how(sale, failure))
        if failure is not None and not events.started:
            raise failure
        if failure is not None:
            await events.send(failure.body())
        else:
            await events.send(form.chunk("", is_first=not events.started, finish_reason=sale.finish_reason))
            if sale.job.ask.include_usage:
                await events.send(form.usage(sale.usage))
            await events.send("[DONE]")
        if sale.collection is not None:
            await events.send(response_json(await self._receipt(sale)), event="payment")
        await events.end()

    async def _whole(self, sale: Sale, scope: Scope, receive: Receive, send: Send) -> None:
        pieces: list[str] = []

        async def content() -> None:
            async with aclosing(sale.text()) as text:
                pieces.extend([piece async for piece in text])

        failure = await self._until_ended(_Buyer(receive), content())
        if failure is not None:
            await sale.close(_how(sale, failure))
            raise failure
        sale.complete()
        answer = _format(sale).whole("".join(pieces), sale.finish_reason, sale.usage)
        await sale.close(_how(sale, None), answer)
        headers = {} if sale.collection is None else response_headers(await self._receipt(sale))
        await JSONResponse(answer, headers=headers)(scope, receive, send)

    async def _until_ended(self, buyer: "_Buyer", content: Coroutine[Any, Any, None]) -> ApiError | None:
        """Run `content`; returns why it ended early, if it did.

        It does where the model can't go on, the buyer hangs up, the gateway shuts down, or the deadline passes.
        """
        work = asyncio.ensure_future(content)
        gone = asyncio.ensure_future(buyer.hang_up())
        cut = asyncio.ensure_future(self._shop.cut.wait())
        tasks = {work, gone, cut}
        try:
            await asyncio.wait(tasks, timeout=self._shop.limits.answer_s, return_when=asyncio.FIRST_COMPLETED)
            why = "disconnected" if gone.done() else "shutting_down" if cut.done() else "answer_too_slow"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if work.cancelled():
            return ended(why)
        try:
            work.result()
        except ApiError as error:
            return error
        except CommonweightError as error:
            return api_error(error)
        return None

    def _headers_of(self, order: Order) -> dict[str, str]:
        """What became of the payment for an answer that is sent again."""
        if not order.charge:
            return {}
        assert self._shop.till is not None, "it was paid for"
        terms, payer, is_lost = self._shop.till.terms, order.authorization.from_, order.state is State.WRITTEN_OFF
        return response_headers(payment_response(terms, payer, order.charge, order.transaction, is_lost=is_lost))

    async def _receipt(self, sale: Sale) -> PaymentReceipt:
        """Of the sale's collection, which is given some time."""
        assert self._shop.till is not None, "nothing is collected without one"
        assert sale.collection is not None, "the caller asked"
        assert sale.payer is not None, "somebody pays"
        done, _ = await asyncio.wait({sale.collection}, timeout=self._shop.limits.collect_s)
        outcome = sale.collection.result() if done else None
        transaction = outcome.transaction if isinstance(outcome, Collected) else None
        is_lost = isinstance(outcome, Lost)
        return payment_response(self._shop.till.terms, sale.payer, sale.usage.cost, transaction, is_lost=is_lost)


class _Buyer:
    """The other end of a request whose body has been read."""

    def __init__(self, receive: Receive) -> None:
        self.is_gone = False
        self._receive = receive

    async def hang_up(self) -> None:
        """Returns when the connection is lost."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True


class _Outgoing:
    """ASGI's `send`, for a buyer that may stop reading: then the rest is dropped, as after a lost connection."""

    def __init__(self, send: Send) -> None:
        self.stalled = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if self.stalled:
            return
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except TimeoutError:
            self.stalled = True


class _EventStream:
    """A response of server-sent events, which starts with the first of them."""

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send

    async def send(self, data: dict[str, Any] | str, event: str | None = None) -> None:
        """On return it has been handed to the network."""
        if not self.started:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            self.started = True
        await self._send({"type": "http.response.body", "body": sse(data, event), "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def read_body(request: Request, max_bytes: int, deadline_s: float) -> bytes:
    """The request's body. Raises ApiError 413 and 408, and ClientDisconnect."""
    body = bytearray()
    try:
        async with asyncio.timeout(deadline_s):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise ApiError(413, "body_too_large", f"A request has at most {max_bytes} bytes.")
    except TimeoutError as error:
        raise ApiError(408, "body_too_slow", f"The request's body didn't come within {deadline_s:g} s.") from error
    return bytes(body)


def _format(sale: Sale) -> Format:
    prefix = "chatcmpl-" if sale.job.ask.is_chat else "cmpl-"
    return Format(sale.job.ask, prefix + sale.id, int(time.time()))


def _how(sale: Sale, failure: ApiError | None) -> str:
    return sale.finish_reason if failure is None else failure.code


async def _answer_api_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for it"
    return error.response()


async def _answer_http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it"
    return ApiError(error.status_code, "no_such_endpoint", error.detail, headers=error.headers).response()


async def _answer_bug(_request: Request, _error: Exception) -> Response:
    return ApiError(
        500, "internal_error", "Something unforeseen happened here; nothing undelivered is charged."
    ).response()
