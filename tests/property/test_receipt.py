"""What a provider's key signs is EIP-712 to the letter, so that a contract and a wallet read the same."""

import re
from dataclasses import replace
from typing import Any

from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.receipt import RECEIPT_TYPE, Domain, Receipt
from tests.property.strategies import domains, flipped, hashes

receipts = st.builds(Receipt, model_id=hashes, stage=st.integers(0, 2**32 - 1), unit=hashes, output=hashes)


def typed_data(domain: Domain, receipt: Receipt) -> dict[str, Any]:
    """The same as a wallet is given it; the fields are read off RECEIPT_TYPE."""
    name, members = re.fullmatch(r"(\w+)\((.*)\)", RECEIPT_TYPE.decode()).groups()  # type: ignore[union-attr]
    fields, message = [], {}
    for member in members.split(","):
        kind, field = member.split(" ")
        fields.append({"name": field, "type": kind})
        message[field] = getattr(receipt, re.sub("[A-Z]", lambda m: "_" + m[0].lower(), field))
    return {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            name: fields,
        },
        "primaryType": name,
        "domain": {
            "name": "Commonweight",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.settlement,
        },
        "message": message,
    }


@given(domains, receipts)
def test_the_digest_is_what_a_wallet_signs(domain: Domain, receipt: Receipt) -> None:
    signable = encode_typed_data(full_message=typed_data(domain, receipt))
    assert receipt.digest(domain) == _hash_eip191_message(signable)
    assert domain.separator == signable.header


@given(domains, receipts, st.integers(0, 255))
def test_every_changed_field_changes_the_digest(domain: Domain, receipt: Receipt, bit: int) -> None:
    settlement = f"0x{int(domain.settlement, 16) ^ 1 << bit % 160:040x}"
    others = [
        receipt.digest(replace(domain, chain_id=domain.chain_id ^ 1 << bit)),
        receipt.digest(replace(domain, settlement=settlement)),
        replace(receipt, stage=receipt.stage ^ 1 << bit % 32).digest(domain),
        replace(receipt, model_id=flipped(receipt.model_id, bit)).digest(domain),
        replace(receipt, unit=flipped(receipt.unit, bit)).digest(domain),
        replace(receipt, output=flipped(receipt.output, bit)).digest(domain),
    ]
    assert receipt.digest(domain) not in others
    assert len(set(others)) == len(others)


@given(domains, receipts)
def test_no_field_can_stand_in_for_another(domain: Domain, receipt: Receipt) -> None:
    turned = replace(receipt, unit=receipt.output, output=receipt.unit)
    assert (turned.digest(domain) == receipt.digest(domain)) == (receipt.unit == receipt.output)
