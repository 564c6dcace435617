"""Nobody can tell two stories about one unit of work, nor two neighbours different ones."""

from dataclasses import replace

import pytest
from eth_abi import encode
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.report import HOP_WORDS, NO_TENSOR, Hop, Report, find_mismatch, report_receipt
from tests.property.strategies import flipped, hashes
from tools.build_vectors import honest_reports

generations, rounds, stages = st.integers(0, 3) | st.integers(0, 2**63), st.integers(0, 3), st.integers(0, 3)
losses = st.floats(allow_nan=False)
hops = st.builds(Hop, *[hashes] * len(HOP_WORDS), losses)
reports = st.builds(
    Report,
    round=st.integers(0, 2**64 - 1),
    stage=st.integers(0, 2**32 - 1),
    hops=st.lists(hops, min_size=1, max_size=5).map(tuple),
    gradient_hash=hashes,
    state_before=hashes,
    state_after=hashes,
)
SEEN = tuple(name for name in HOP_WORDS if name != "sketch")
"""What a neighbour has, too."""
CLOSED = (("activation_in", 0), ("gradient_out", 0), ("activation_out", -1), ("gradient_in", -1))


@given(hashes, generations, reports, hashes, st.integers(0, 255), st.data())
def test_every_change_of_what_came_of_a_unit_changes_the_output_alone(
    model_id: bytes, generation: int, report: Report, beacon_tip: bytes, bit: int, data: st.DataObject
) -> None:
    """So two stories about one unit are two receipts for it, which convict."""
    receipt = report_receipt(model_id, generation, report, beacon_tip)
    told = [
        replace(report, **{name: flipped(getattr(report, name), bit)})
        for name in ("gradient_hash", "state_before", "state_after")
    ]
    number = data.draw(st.integers(0, len(report.hops) - 1))
    hop = report.hops[number]
    changed = [replace(hop, **{name: flipped(getattr(hop, name), bit)}) for name in HOP_WORDS]
    changed.append(replace(hop, loss=-hop.loss))  # 0.0 and -0.0 are equal and differ in their bits
    told += [replace(report, hops=(*report.hops[:number], other, *report.hops[number + 1 :])) for other in changed]
    told.append(replace(report, hops=(*report.hops, hop)))
    others = [report_receipt(model_id, generation, each, beacon_tip) for each in told]
    others.append(report_receipt(model_id, generation, report, flipped(beacon_tip, bit)))
    assert all(other == replace(receipt, output=other.output) for other in others)
    assert len({receipt.output, *(other.output for other in others)}) == 1 + len(others)


@given(hashes, st.tuples(generations, rounds, stages), st.tuples(generations, rounds, stages), reports, hashes)
def test_another_generation_round_or_stage_is_another_unit(
    model_id: bytes, one: tuple[int, int, int], two: tuple[int, int, int], report: Report, beacon_tip: bytes
) -> None:
    """An honest node trains a round again after a fault: that must not look like two stories about one unit."""
    units = []
    for generation, number, stage in (one, two, (one[1], one[0], one[2]), (one[0], one[1], two[2])):
        receipt = report_receipt(model_id, generation, replace(report, round=number, stage=stage), beacon_tip)
        assert (receipt.model_id, receipt.stage) == (model_id, stage)
        assert receipt.unit == keccak(encode(["uint256"] * 3, [generation, number, stage]))
        units.append(receipt.unit)
    assert (units[0] == units[1]) == (one == two)
    assert (units[0] == units[2]) == (one[0] == one[1])
    assert (units[0] == units[3]) == (one[2] == two[2])


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
def test_any_one_tampered_hash_that_a_neighbour_has_too_is_found(
    stages: int, microbatches: int, data: st.DataObject
) -> None:
    honest = honest_reports(stages, microbatches, 7)
    stage = data.draw(st.integers(0, stages - 1))
    number = data.draw(st.integers(0, microbatches - 1))
    # With one stage there is no neighbour who saw the tokens: they follow from the spec, and the audit compares.
    name = data.draw(st.sampled_from(SEEN if stages > 1 else SEEN[1:]))
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
