"""x402 v2, scheme `exact` with EIP-3009: what is asked for, what a payment says, and the pure part of checking it.

The only module here that knows the x402 package. Of it we use the messages and their encoding: its middleware holds
back a stream until it is settled, and its settlement moves all that was signed, where ours charges what was delivered.
Reasons for a refusal are x402's own words where it has one.

https://github.com/coinbase/x402, specs/x402-specification-v2.md and specs/schemes/exact/scheme_exact_evm.md.
"""

import re
from dataclasses import dataclass
from typing import Any

from eth_utils.address import is_address, to_checksum_address
from pydantic import ValidationError
from x402.http.constants import PAYMENT_REQUIRED_HEADER, PAYMENT_RESPONSE_HEADER, PAYMENT_SIGNATURE_HEADER
from x402.http.utils import (
    decode_payment_signature_header,
    encode_payment_required_header,
    encode_payment_response_header,
)
from x402.mechanisms.evm.constants import (
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_INSUFFICIENT_BALANCE,
    ERR_INVALID_SIGNATURE,
    ERR_NETWORK_MISMATCH,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_SETTLEMENT_PENDING,
    ERR_TRANSACTION_FAILED,
    ERR_TRANSACTION_SIMULATION_FAILED,
    ERR_UNSUPPORTED_SCHEME,
    ERR_VALID_AFTER_FUTURE,
    ERR_VALID_BEFORE_EXPIRED,
    SCHEME_EXACT,
)
from x402.schemas.payments import PaymentPayload, PaymentRequired, PaymentRequirements, ResourceInfo
from x402.schemas.responses import SettleResponse

from commonweight.chain.authorization import TokenDomain, authorization_digest
from commonweight.chain.records import Authorization
from commonweight.errors import MalformedMessage
from commonweight.identity import recover_address

PAYMENT = PAYMENT_SIGNATURE_HEADER
"""The request's header that holds a payment."""
MALFORMED = "invalid_payload"
WRONG_ASSET = "asset_mismatch"
USED = ERR_NONCE_ALREADY_USED
OVERDRAWN = ERR_INSUFFICIENT_BALANCE
SIMULATION_FAILED = ERR_TRANSACTION_SIMULATION_FAILED

PaymentReceipt = SettleResponse
"""What x402 calls a settlement response."""

_UINT256 = re.compile(r"0|[1-9][0-9]{0,77}")


class PaymentRefused(Exception):
    """A payment that doesn't pay for what is asked. `code`: the reason, for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Terms:
    """Where and how a model's buyers pay."""

    domain: TokenDomain
    """Of the revenue token."""
    router: str
    """The model's RevenueRouter: to whom."""
    serve_s: int
    """The longest that an answer may take."""
    settle_s: int
    """Kept for collecting the payment afterwards."""
    sign_s: int = 60
    """For the buyer between learning the terms and sending the payment."""

    @property
    def network(self) -> str:
        """CAIP-2."""
        return f"eip155:{self.domain.chain_id}"

    @property
    def timeout_s(self) -> int:
        """How long an authorisation should be good for."""
        return self.sign_s + self.serve_s + self.settle_s

    def requirements(self, amount: int) -> PaymentRequirements:
        """What a payment of `amount` must look like."""
        return PaymentRequirements(
            scheme=SCHEME_EXACT,
            network=self.network,
            asset=self.domain.token,
            amount=str(amount),
            pay_to=self.router,
            max_timeout_seconds=self.timeout_s,
            extra={"name": self.domain.name, "version": self.domain.version},
        )

    def ask(self, amount: int, url: str, error: str) -> tuple[dict[str, str], dict[str, Any]]:
        """Headers and JSON members of the 402 that asks for a payment of `amount`; `error` says why."""
        required = PaymentRequired(
            error=error,
            resource=ResourceInfo(url=url, mime_type="application/json"),
            accepts=[self.requirements(amount)],
        )
        members = required.model_dump(by_alias=True, exclude_none=True, mode="json")
        del members["error"]  # in OpenAI's format that is an object
        return {PAYMENT_REQUIRED_HEADER: encode_payment_required_header(required)}, members


def read_payment(header: str, terms: Terms) -> Authorization:
    """The authorisation in a PAYMENT-SIGNATURE header, made out to `terms` and signed by its payer.

    Raises PaymentRefused for any other. What changes with time is left to `check_window` and to the chain.
    """
    payload = _decode(header)
    wanted, given = terms.requirements(0), payload.accepted
    if given.scheme != wanted.scheme or "authorization" not in payload.payload:
        raise PaymentRefused(ERR_UNSUPPORTED_SCHEME, "The only way to pay here is `exact` with EIP-3009.")
    if given.network != wanted.network:
        raise PaymentRefused(ERR_NETWORK_MISMATCH, f"It is for {given.network:.40}; payments are on {wanted.network}.")
    if given.asset.lower() != wanted.asset.lower():
        raise PaymentRefused(WRONG_ASSET, f"It is in the token {given.asset:.42}; asked for is {wanted.asset}.")
    payment, to = _authorization(payload)
    if {given.pay_to.lower(), to.lower()} != {terms.router.lower()}:
        raise PaymentRefused(ERR_RECIPIENT_MISMATCH, f"It pays {to}; asked for is the router {terms.router}.")
    _check_signature(payment, terms)
    return payment


def check_amount(payment: Authorization, quote: int) -> None:
    """Raises PaymentRefused where less is signed for than the request may cost. What is not charged goes back."""
    if payment.value < quote:
        raise PaymentRefused(
            ERR_AUTHORIZATION_VALUE_MISMATCH, f"It is for {payment.value}; this request may cost up to {quote}."
        )


def check_window(payment: Authorization, terms: Terms, now: int) -> None:
    """Raises PaymentRefused unless it is good from `now` (the chain's time) until it has surely been collected."""
    if payment.valid_after >= now:
        raise PaymentRefused(
            ERR_VALID_AFTER_FUTURE, f"It isn't valid before {payment.valid_after}; on the chain it is {now}."
        )
    needed = now + terms.serve_s + terms.settle_s
    if payment.valid_before < needed:
        raise PaymentRefused(
            ERR_VALID_BEFORE_EXPIRED,
            f"It is valid until {payment.valid_before}; answering and collecting may take until {needed}.",
        )


def payment_response(
    terms: Terms, payer: str, charged: int, transaction: str | None, *, is_lost: bool = False
) -> PaymentReceipt:
    """What the buyer learns about the collection: its transaction, or that it is yet to come, or never will."""
    reason = ERR_TRANSACTION_FAILED if is_lost else ERR_SETTLEMENT_PENDING
    return PaymentReceipt(
        success=transaction is not None,
        error_reason=None if transaction else reason,
        payer=payer,
        transaction=transaction or "",
        network=terms.network,
        amount=str(charged),
    )


def response_headers(response: PaymentReceipt) -> dict[str, str]:
    """The PAYMENT-RESPONSE header."""
    return {PAYMENT_RESPONSE_HEADER: encode_payment_response_header(response)}


def response_json(response: PaymentReceipt) -> dict[str, Any]:
    """The same for a stream's last event."""
    return response.model_dump(by_alias=True, exclude_none=True, mode="json")


def _decode(header: str) -> PaymentPayload:
    try:
        payload = decode_payment_signature_header(header)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise PaymentRefused(MALFORMED, f"{PAYMENT} holds no x402 payment: {where}: {fault['msg']}.") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise PaymentRefused(MALFORMED, f"{PAYMENT} is not the base64 of a JSON object.") from error
    if not isinstance(payload, PaymentPayload) or payload.x402_version != 2:
        raise PaymentRefused(MALFORMED, "Only version 2 of x402 is spoken here.")
    return payload


def _authorization(payload: PaymentPayload) -> tuple[Authorization, str]:
    """What was signed, and for whom."""
    fields, signature = payload.payload["authorization"], payload.payload.get("signature")
    try:
        payment = Authorization(
            from_=_address(fields["from"]),
            value=_uint256(fields["value"]),
            valid_after=_uint256(fields["validAfter"]),
            valid_before=_uint256(fields["validBefore"]),
            nonce=_bytes(fields["nonce"], 32),
            signature=_signature(_bytes(signature, 65)),
        )
        return payment, _address(fields["to"])
    except (KeyError, TypeError, ValueError) as error:
        raise PaymentRefused(MALFORMED, f"The authorisation lacks a field or holds a wrong one: {error}.") from error


def _check_signature(payment: Authorization, terms: Terms) -> None:
    digest = authorization_digest(
        terms.domain,
        payment.from_,
        terms.router,
        payment.value,
        payment.valid_after,
        payment.valid_before,
        payment.nonce,
    )
    try:
        signer = recover_address(digest, payment.signature)
    except MalformedMessage as error:
        raise PaymentRefused(ERR_INVALID_SIGNATURE, str(error)) from error
    if signer != payment.from_:
        raise PaymentRefused(
            ERR_INVALID_SIGNATURE,
            f"It isn't signed by {payment.from_} for token {terms.domain.token} ({terms.domain.name!r}, version "
            f"{terms.domain.version!r}) on chain {terms.domain.chain_id}.",
        )


def _address(text: Any) -> str:
    if not is_address(text):
        raise ValueError(f"{text!r:.60} is not an address")
    return str(to_checksum_address(text))


def _uint256(text: Any) -> int:
    if not _UINT256.fullmatch(text) or int(text) >= 2**256:
        raise ValueError(f"{text!r:.90} is not a decimal number below 2^256")
    return int(text)


def _bytes(text: Any, length: int) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"{text!r:.60} is no text")
    value = bytes.fromhex(text.removeprefix("0x"))
    if len(value) != length:
        raise ValueError(f"{length} bytes were expected where {len(value)} are")
    return value


def _signature(rsv: bytes) -> bytes:
    """With v as contracts want it: some wallets write 0 or 1."""
    return rsv[:64] + bytes((rsv[64] + 27,)) if rsv[64] < 2 else rsv
