"""Prices, x402 messages and the pure checks of a payment, against the x402 package's own client and verifier."""

import base64
import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.eip712 import hash_eip3009_authorization
from x402.mechanisms.evm.exact.client import ExactEvmScheme
from x402.mechanisms.evm.types import ExactEIP3009Payload
from x402.schemas.payments import PaymentPayload, PaymentRequired

from commonweight.buyer import Offer, sign
from commonweight.chain.authorization import TokenDomain, authorization_digest
from commonweight.chain.keys import devnet_key
from gateway.payments import PaymentRefused, Terms, check_amount, check_window, read_payment
from gateway.pricing import Price

BUYER, OTHER = devnet_key(1), devnet_key(2)
TOKEN, ROUTER = "0x5FbDB2315678afecb367f032d93F642f64180aa3", "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512"
TERMS = Terms(TokenDomain("Test USD", "2", 31337, TOKEN), ROUTER, serve_s=300, settle_s=600)
"""As the gateway has them."""


def stock_payment(amount: int = 1000, terms: Terms = TERMS) -> PaymentPayload:
    """What the x402 package's client signs for these terms."""
    requirements = terms.requirements(amount)
    payload = ExactEvmScheme(BUYER.account).create_payment_payload(requirements)
    return PaymentPayload(payload=payload, accepted=requirements)


def header(payload: PaymentPayload, **changes: Any) -> str:
    """Its header; `changes` are members of what was signed, or `signature`."""
    fields = payload.model_dump(by_alias=True)
    for name, value in changes.items():
        (fields["payload"] if name == "signature" else fields["payload"]["authorization"])[name] = value
    return base64.b64encode(json.dumps(fields).encode()).decode()


def refused(text: str, terms: Terms = TERMS) -> str:
    with pytest.raises(PaymentRefused) as caught:
        read_payment(text, terms)
    return caught.value.code


def test_the_stock_client_s_payment_is_understood() -> None:
    payment = read_payment(encode_payment_signature_header(stock_payment()), TERMS)
    assert (payment.from_, payment.value, payment.valid_after) == (BUYER.address, 1000, 0)
    check_amount(payment, 1000)
    check_window(payment, TERMS, int(time.time()))


def test_our_buyer_s_payment_is_what_the_package_s_verifier_hashes() -> None:
    requirements = TERMS.requirements(77)
    offer = Offer(77, 31337, TOKEN, ROUTER, 960, TERMS.domain, requirements)
    text = sign(offer, BUYER, now=1_000_000)
    payment = read_payment(text, TERMS)
    assert (payment.value, payment.valid_before) == (77, 1_000_960)
    parsed = ExactEIP3009Payload.from_dict(json.loads(base64.b64decode(text))["payload"]).authorization
    digest = authorization_digest(TERMS.domain, payment.from_, ROUTER, 77, 0, 1_000_960, payment.nonce)
    assert hash_eip3009_authorization(parsed, 31337, TOKEN, "Test USD", "2") == digest


def test_the_terms_are_what_the_stock_client_reads() -> None:
    headers, members = TERMS.ask(1000, "http://gateway/v1/completions", "payment_required")
    required = decode_payment_required_header(headers["PAYMENT-REQUIRED"])
    assert isinstance(required, PaymentRequired)
    (accepted,) = required.accepts
    assert (accepted.scheme, accepted.network, accepted.amount) == ("exact", "eip155:31337", "1000")
    assert (accepted.asset, accepted.pay_to, accepted.max_timeout_seconds) == (TOKEN, ROUTER, 960)
    assert accepted.extra == {"name": "Test USD", "version": "2"}
    assert members["accepts"] == [accepted.model_dump(by_alias=True)]


def test_what_is_signed_for_something_else_is_refused() -> None:
    payment = stock_payment()
    assert refused(header(payment, value="999")) == "invalid_exact_evm_payload_signature"
    assert refused(header(payment, validBefore="99999999999")) == "invalid_exact_evm_payload_signature"
    assert refused(header(payment, to=OTHER.address)) == "invalid_exact_evm_payload_recipient_mismatch"
    assert refused(header(payment, **{"from": OTHER.address})) == "invalid_exact_evm_payload_signature"
    for changed in (replace(TERMS.domain, chain_id=1), replace(TERMS.domain, version="1")):
        signed = stock_payment(terms=replace(TERMS, domain=changed))
        signed.accepted = TERMS.requirements(1000)
        assert refused(header(signed)) == "invalid_exact_evm_payload_signature"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"scheme": "upto"}, "unsupported_scheme"),
        ({"network": "eip155:1"}, "network_mismatch"),
        ({"asset": OTHER.address}, "asset_mismatch"),
        ({"pay_to": OTHER.address}, "invalid_exact_evm_payload_recipient_mismatch"),
    ],
)
def test_another_way_to_pay_is_refused(change: dict[str, str], code: str) -> None:
    payment = stock_payment()
    payment.accepted = payment.accepted.model_copy(update=change)
    assert refused(header(payment)) == code


@pytest.mark.parametrize(
    "change",
    [
        {"value": "-1"},
        {"value": "1e3"},
        {"value": 1000},
        {"value": str(2**256)},
        {"value": "9" * 5000},
        {"value": "٣"},
        {"nonce": "0x00"},
        {"nonce": None},
        {"from": "0x00"},
        {"validAfter": ""},
        {"signature": None},
        {"signature": "0x" + "00" * 64},
        {"signature": "0x" + "zz" * 65},
    ],
)
def test_a_malformed_authorisation_is_refused(change: dict[str, Any]) -> None:
    assert refused(header(stock_payment(), **change)) == "invalid_payload"


@pytest.mark.parametrize(
    "text", ["", "?", "e30=", "bnVsbA==", "W10=", base64.b64encode(b'{"x402Version":1}').decode(), "W1tb" * 5000]
)
def test_a_header_that_holds_no_payment_is_refused(text: str) -> None:
    assert refused(text) == "invalid_payload"


@given(st.binary(max_size=120).map(lambda data: base64.b64encode(data).decode()) | st.text(max_size=40))
def test_no_header_is_worse_than_refused(text: str) -> None:
    assert refused(text) == "invalid_payload"


def test_signatures_of_both_conventions_but_only_low_ones() -> None:
    payment = stock_payment()
    rsv = bytes.fromhex(payment.payload["signature"][2:])
    zero_or_one = rsv[:64] + bytes((rsv[64] - 27,))
    assert read_payment(header(payment, signature="0x" + zero_or_one.hex()), TERMS).signature == rsv
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    high = rsv[:32] + (order - int.from_bytes(rsv[32:64], "big")).to_bytes(32, "big") + bytes((55 - rsv[64],))
    assert refused(header(payment, signature="0x" + high.hex())) == "invalid_exact_evm_payload_signature"
    assert refused(header(payment, signature="0x" + "00" * 65)) == "invalid_exact_evm_payload_signature"


@pytest.mark.parametrize(("value", "enough"), [(0, False), (999, False), (1000, True), (2**256 - 1, True)])
def test_it_must_cover_the_quote(value: int, enough: bool) -> None:
    payment = replace(read_payment(header(stock_payment()), TERMS), value=value)
    if enough:
        check_amount(payment, 1000)
    else:
        with pytest.raises(PaymentRefused, match="may cost up to 1000"):
            check_amount(payment, 1000)


@pytest.mark.parametrize(
    ("valid_after", "valid_before", "fault"),
    [
        (0, 10_900, None),
        (9_999, 10_900, None),
        (10_000, 10_900, "isn't valid before 10000"),
        (0, 10_899, "may take until 10900"),
        (0, 2**256 - 1, None),
        (2**256 - 1, 2**256 - 1, "isn't valid before"),
    ],
)
def test_it_must_be_good_until_it_is_surely_collected(valid_after: int, valid_before: int, fault: str | None) -> None:
    payment = replace(read_payment(header(stock_payment()), TERMS), valid_after=valid_after, valid_before=valid_before)
    if fault is None:
        check_window(payment, TERMS, 10_000)
    else:
        with pytest.raises(PaymentRefused, match=fault):
            check_window(payment, TERMS, 10_000)


COUNT, PRICE = st.integers(0, 10**7), st.integers(0, 10**24)


@given(COUNT, COUNT, PRICE, PRICE)
def test_a_cost_is_rounded_up_once(prompt: int, completion: int, prompt_price: int, completion_price: int) -> None:
    cost = Price(prompt_price, completion_price).cost(prompt, completion)
    millionths = prompt * prompt_price + completion * completion_price
    assert 10**6 * (cost - 1) < millionths <= 10**6 * cost


@given(COUNT, st.integers(0, 100), st.integers(0, 100), PRICE, PRICE)
def test_what_is_delivered_never_costs_more_than_the_quote(
    prompt: int, delivered: int, rest: int, prompt_price: int, completion_price: int
) -> None:
    price = Price(prompt_price, completion_price)
    assert price.cost(prompt, delivered) <= price.cost(prompt, delivered + rest)


def test_prices_arent_negative() -> None:
    with pytest.raises(ValueError, match="-1"):
        Price(0, -1)
    assert Price(0, 0).is_free
    assert not Price(0, 1).is_free
    assert Price(0, 1).cost(5, 1) == 1
