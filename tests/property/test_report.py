"""What is signed is EIP-712 to the letter, and no two neighbours can tell different stories."""

import re
from dataclasses import replace
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.report import (
    HOP_HASHES,
    NO_TENSOR,
    REPORT_TYPE,
    Domain,
    Hop,
    Report,
    find_mismatch,
    report_digest,
)
from tests.property.strategies import addresses, honest_reports

hashes = st.binary(min_size=32, max_size=32)
losses = st.floats(allow_nan=False)
hops = st.builds(Hop, hashes, hashes, hashes, hashes, hashes, losses)
reports = st.builds(
    Report,
    round=st.integers(0, 2**64 - 1),
    stage=st.integers(0, 2**32 - 1),
    hops=st.lists(hops, min_size=1, max_size=5).map(tuple),
    gradient_hash=hashes,
    state_before=hashes,
    state_after=hashes,
)
domains = st.builds(Domain, st.integers(0, 2**256 - 1), addresses)
CLOSED = (("activation_in", 0), ("gradient_out", 0), ("activation_out", -1), ("gradient_in", -1))


def typed_data(domain: Domain, model_id: bytes, report: Report) -> dict[str, Any]:
    """The same as a wallet is given it; the fields are read off REPORT_TYPE."""
    name, members = re.fullmatch(r"(\w+)\((.*)\)", REPORT_TYPE.decode()).groups()  # type: ignore[union-attr]
    snake = {"modelId": model_id, "hopsRoot": report.hops_root}
    fields = []
    for member in members.split(","):
        kind, field = member.split(" ")
        fields.append({"name": field, "type": kind})
        snake.setdefault(field, getattr(report, re.sub("[A-Z]", lambda m: "_" + m[0].lower(), field), None))
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
        "message": snake,
    }


@given(domains, hashes, reports)
def test_the_digest_is_what_a_wallet_signs(domain: Domain, model_id: bytes, report: Report) -> None:
    signable = encode_typed_data(full_message=typed_data(domain, model_id, report))
    assert report_digest(domain, model_id, report) == _hash_eip191_message(signable)
    assert domain.separator == signable.header


@given(domains, hashes, reports, st.data())
def test_every_changed_field_changes_the_digest(
    domain: Domain, model_id: bytes, report: Report, data: st.DataObject
) -> None:
    digest = report_digest(domain, model_id, report)

    def flipped(value: bytes) -> bytes:
        bit = data.draw(st.integers(0, 255))
        return (int.from_bytes(value, "big") ^ (1 << bit)).to_bytes(32, "big")

    others = [
        report_digest(replace(domain, chain_id=domain.chain_id ^ 1), model_id, report),
        report_digest(replace(domain, settlement=f"0x{int(domain.settlement, 16) ^ 1:040x}"), model_id, report),
        report_digest(domain, flipped(model_id), report),
        report_digest(domain, model_id, replace(report, round=report.round ^ 1)),
        report_digest(domain, model_id, replace(report, stage=report.stage ^ 1)),
        report_digest(domain, model_id, replace(report, hops=(*report.hops, report.hops[0]))),
    ]
    others += [
        report_digest(domain, model_id, replace(report, **{name: flipped(getattr(report, name))}))
        for name in ("gradient_hash", "state_before", "state_after")
    ]
    number = data.draw(st.integers(0, len(report.hops) - 1))
    hop = report.hops[number]
    changed = [replace(hop, **{name: flipped(getattr(hop, name))}) for name in HOP_HASHES]
    changed.append(replace(hop, loss=-hop.loss))  # 0.0 and -0.0 are equal and differ in their bits
    for other in changed:
        hops_after = (*report.hops[:number], other, *report.hops[number + 1 :])
        others.append(report_digest(domain, model_id, replace(report, hops=hops_after)))
    assert digest not in others


@given(reports)
def test_the_order_of_the_hops_is_signed(report: Report) -> None:
    turned = replace(report, hops=report.hops[::-1])
    assert (turned.hops_root == report.hops_root) == (
        [hop.leaf(0) for hop in turned.hops] == [hop.leaf(0) for hop in report.hops]
    )


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 100))
def test_honest_neighbours_agree(stages: int, microbatches: int, number: int) -> None:
    assert find_mismatch(honest_reports(stages, microbatches, number)) is None


@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_any_one_tampered_hop_hash_is_found(stages: int, microbatches: int, data: st.DataObject) -> None:
    honest = honest_reports(stages, microbatches, 7)
    stage = data.draw(st.integers(0, stages - 1))
    number = data.draw(st.integers(0, microbatches - 1))
    # With one stage there is no neighbour who saw the tokens: they follow from the spec, and the audit compares.
    name = data.draw(st.sampled_from(HOP_HASHES if stages > 1 else HOP_HASHES[1:]))
    hop = honest[stage].hops[number]
    lie = data.draw(hashes.filter(lambda value: value != getattr(hop, name)))
    lied = (*honest[stage].hops[:number], replace(hop, **{name: lie}), *honest[stage].hops[number + 1 :])
    told = (*honest[:stage], replace(honest[stage], hops=lied), *honest[stage + 1 :])
    why = find_mismatch(told)
    assert why is not None
    assert f"microbatch {number} in round 7" in why


@pytest.mark.parametrize(("name", "stage"), CLOSED)
def test_nothing_crosses_the_outer_sides(name: str, stage: int) -> None:
    told = list(honest_reports(3, 1, 0))
    assert getattr(told[stage].hops[0], name) == NO_TENSOR
    told[stage] = replace(told[stage], hops=(replace(told[stage].hops[0], **{name: b"\1" * 32}),))
    assert "outer" in (find_mismatch(tuple(told)) or "")
