"""Buying an answer from a gateway: OpenAI's completions over HTTP, paid with x402 v2, scheme `exact` with EIP-3009.

The only module on the buyer's side that knows the x402 package; the signing is ours, so that nothing is ever signed but
a transfer that the caller has seen.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from x402.http.constants import PAYMENT_REQUIRED_HEADER, PAYMENT_SIGNATURE_HEADER
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.schemas.payments import PaymentPayload, PaymentRequired, PaymentRequirements

from commonweight.chain.authorization import TokenDomain, sign_authorization
from commonweight.chain.keys import Key
from commonweight.errors import (
    CommonweightError,
    MalformedMessage,
    MessageTooLarge,
    PeerUnreachable,
    Refused,
    error_with_code,
)

CONNECT_S = 10.0
READ_S = 120.0
"""Between two pieces of an answer; the first may wait behind others, the last for a transaction."""
ANSWER_S = 600.0
"""For all of an answer, however it trickles in; gateways give theirs half of that."""
MAX_TIMEOUT_S = 3600
"""A payment is never signed for longer."""
MAX_ANSWER_BYTES = 64 << 20
MAX_REFUSAL_BYTES = 64 << 10


@dataclass(frozen=True)
class Offer:
    """What a gateway asks for before it answers. All of it is the gateway's word until it has been checked."""

    amount: int
    """At most so much will be charged, in the token's smallest unit; the rest comes back."""
    chain_id: int
    token: str
    pay_to: str
    timeout_s: int
    domain: TokenDomain
    """As the gateway says it is; a wrong one makes a signature that is good for nothing."""
    requirements: PaymentRequirements
    """The same in x402's form."""


Pay = Callable[[Offer], str]
"""Returns the PAYMENT-SIGNATURE header for an offer, or raises."""


@dataclass(frozen=True)
class Answered:
    """How an answer ended."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost: int
    """In the token's smallest unit. Like the rest, the gateway's word."""
    transaction: str | None
    """That collected the cost; None where that is yet to come, or nothing was charged."""


def sign(offer: Offer, key: Key, now: int) -> str:
    """The payment for an offer, as a header: `key` lets `offer.pay_to` take `offer.amount`, from now on, once."""
    payment = sign_authorization(
        key,
        offer.domain,
        offer.pay_to,
        value=offer.amount,
        valid_after=0,
        valid_before=now + offer.timeout_s,
        nonce=secrets.token_bytes(32),
    )
    authorization = {
        "from": payment.from_,
        "to": offer.pay_to,
        "value": str(payment.value),
        "validAfter": str(payment.valid_after),
        "validBefore": str(payment.valid_before),
        "nonce": "0x" + payment.nonce.hex(),
    }
    payload = {"authorization": authorization, "signature": "0x" + payment.signature.hex()}
    return encode_payment_signature_header(PaymentPayload(payload=payload, accepted=offer.requirements))


def ask(url: str, request: Mapping[str, Any], pay: Pay, show: Callable[[str], None]) -> Answered:
    """The gateway's answer to a request in the form of /v1/completions; `show` gets its text as it comes.

    `pay` is asked once, where the gateway wants money. Raises PeerUnreachable where nobody answers, Refused where the
    gateway refuses, and the error that it names where an answer breaks off; what was delivered until then is charged.
    """
    answered = asyncio.run(_post(url, request, None, show))
    if isinstance(answered, Offer):
        answered = asyncio.run(_post(url, request, pay(answered), show))
    assert isinstance(answered, Answered), "there is no offer for who has paid"
    return answered


async def _post(
    url: str, request: Mapping[str, Any], payment: str | None, show: Callable[[str], None]
) -> Answered | Offer:
    """The answer, or what it costs where there is no `payment`."""
    body = {**request, "stream": True, "stream_options": {"include_usage": True}}
    headers = {} if payment is None else {PAYMENT_SIGNATURE_HEADER: payment}
    timeout = httpx.Timeout(READ_S, connect=CONNECT_S)
    with _reaching(url):
        async with (
            asyncio.timeout(ANSWER_S),
            httpx.AsyncClient(timeout=timeout, trust_env=False) as http,
            http.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as response,
        ):
            if payment is None and response.status_code == httpx.codes.PAYMENT_REQUIRED:
                return _offer(response)
            return await _read(response, show)


def _offer(response: httpx.Response) -> Offer:
    """The first way to pay that we know. Raises MalformedMessage, and Refused where there is none."""
    try:
        required = decode_payment_required_header(response.headers.get(PAYMENT_REQUIRED_HEADER, ""))
        accepts = required.accepts if isinstance(required, PaymentRequired) else []
        for each in accepts:
            method = each.extra.get("assetTransferMethod", "eip3009")
            if each.scheme == "exact" and each.network.startswith("eip155:") and method == "eip3009":
                chain_id = int(each.network.removeprefix("eip155:"))
                domain = TokenDomain(str(each.extra["name"]), str(each.extra["version"]), chain_id, each.asset)
                if not 0 < each.max_timeout_seconds <= MAX_TIMEOUT_S:
                    raise Refused(
                        f"The gateway wants a payment that is good for {each.max_timeout_seconds} s; at most "
                        f"{MAX_TIMEOUT_S} s are signed for. Ask another one."
                    )
                return Offer(
                    int(each.amount), chain_id, each.asset, each.pay_to, each.max_timeout_seconds, domain, each
                )
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        raise MalformedMessage(f"The gateway asks for a payment in a form that is none: {error}.") from error
    raise Refused("The gateway takes no payment of a kind that is known here: x402's `exact` with EIP-3009.")


async def _read(response: httpx.Response, show: Callable[[str], None]) -> Answered:
    if response.status_code != httpx.codes.OK:
        raise await _refusal(response)
    text, finish_reason = "", ""
    usage: Mapping[str, Any] = {}
    payment: Mapping[str, Any] = {}
    failure: CommonweightError | None = None
    try:
        async for event, data in _events(response):
            fields = {} if data == "[DONE]" else _object(data)
            if event == "payment":
                payment = fields
            elif "error" in fields:
                failure = error_with_code(str(fields["error"]["code"]), _printable(fields["error"]["message"]))
            else:
                usage = fields.get("usage") or usage
                for choice in fields.get("choices", ()):
                    piece = str(choice["text"])
                    text += piece
                    finish_reason = str(choice["finish_reason"] or "")
                    show(_printable(piece))
        answered = Answered(
            text,
            finish_reason,
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            completion_tokens=int(usage.get("completion_tokens", 0)),
            cost=int(usage.get("cost", 0)),
            transaction=_printable(str(payment.get("transaction") or "")) or None,
        )
    except CommonweightError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise MalformedMessage(f"The gateway sent what is no answer in OpenAI's format: {error!r:.200}.") from error
    if failure is not None:
        raise failure
    if not finish_reason:
        raise PeerUnreachable("The gateway hung up in the middle of the answer. What came of it is charged.")
    return answered


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """(event, data) of each server-sent event; a gateway's have one line of data each."""
    event, total, line_start = "", 0, b""
    async for part in response.aiter_bytes():
        total += len(part)
        if total > MAX_ANSWER_BYTES:
            raise MessageTooLarge(f"The gateway's answer has over {MAX_ANSWER_BYTES} bytes; it was not read further.")
        *lines, line_start = (line_start + part).split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                yield event, value
                event = ""


def _object(text: str) -> dict[str, Any]:
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise TypeError(f"{text[:60]!r} is no object")
    return fields


async def _refusal(response: httpx.Response) -> Refused:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_REFUSAL_BYTES:
            break
    try:
        error = _object(body.decode())["error"]
        said = f"{error['message']} ({error['code']})"
    except (ValueError, KeyError, TypeError, RecursionError):
        said = repr(body)
    return Refused(f"The gateway answered {response.status_code}: {_printable(said)[:500]}")


def _printable(text: str) -> str:
    """A stranger's text without what would move the cursor, or worse."""
    return "".join(each for each in text if each.isprintable() or each in "\n\t")


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise PeerUnreachable(
            f"The gateway {url} didn't end its answer within {ANSWER_S:g} s. What came of it is charged."
        ) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        what = str(error) or type(error).__name__
        raise PeerUnreachable(f"The gateway {url} can't be reached, or hung up: {what}.") from error
