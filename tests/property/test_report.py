"""Nobody can tell two stories about one unit of work, nor two neighbours different ones."""

from dataclasses import replace
from typing import Any

import pytest
from eth_abi import encode
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.report import HOP_WORDS, NO_TENSOR, Hop, Report, find_mismatch, report_receipt
from tests.property.strategies import divisions, flipped, hashes
from tools.build_vectors import honest_reports

generations, rounds, stages = st.integers(0, 3) | st.integers(0, 2**63), st.integers(0, 3), st.integers(0, 3)
losses = st.floats(allow_nan=False)
MICROBATCHES = 12
hops = st.builds(Hop, st.integers(0, MICROBATCHES - 2), *[hashes] * len(HOP_WORDS), losses)
reports = st.builds(
    Report,
    round=st.integers(0, 2**64 - 1),
    stage=st.integers(0, 2**32 - 1),
    hops=st.lists(hops, min_size=1, max_size=5, unique_by=lambda hop: hop.microbatch).map(tuple),
    gradient_hash=hashes,
    round_gradient_hash=hashes,
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
    told = [
        replace(report, **{name: flipped(getattr(report, name), bit)})
        for name in ("gradient_hash", "round_gradient_hash", "state_before", "state_after")
    ]
    number = data.draw(st.integers(0, len(report.hops) - 1))
    hop = report.hops[number]
    changed = [replace(hop, **{name: flipped(getattr(hop, name), bit)}) for name in HOP_WORDS]
    changed.append(replace(hop, loss=-hop.loss))  # 0.0 and -0.0 are equal and differ in their bits
    changed.append(replace(hop, microbatch=MICROBATCHES - 1))
    told += [replace(report, hops=(*report.hops[:number], other, *report.hops[number + 1 :])) for other in changed]
    told.append(replace(report, hops=(*report.hops, replace(hop, microbatch=MICROBATCHES - 1))))
    told.append(replace(report, hops=(*report.hops[:number], *report.hops[number + 1 :])))
    commitments = [each.commitments(MICROBATCHES) for each in (report, *told)]
    unit = model_id, generation, report.round, report.stage
    receipt, *others = (report_receipt(*unit, each, beacon_tip) for each in commitments)
    others.append(report_receipt(*unit, commitments[0], flipped(beacon_tip, bit)))
    assert all(other == replace(receipt, output=other.output) for other in others)
    assert len({receipt.output, *(other.output for other in others)}) == 1 + len(others)
    assert len({each.claim for each in commitments}) == len(commitments)


@given(hashes, st.tuples(generations, rounds, stages), st.tuples(generations, rounds, stages), reports, hashes)
def test_another_generation_round_or_stage_is_another_unit(
    model_id: bytes, one: tuple[int, int, int], two: tuple[int, int, int], report: Report, beacon_tip: bytes
) -> None:
    """An honest node trains a round again after a fault: that must not look like two stories about one unit."""
    units = []
    for generation, number, stage in (one, two, (one[1], one[0], one[2]), (one[0], one[1], two[2])):
        receipt = report_receipt(model_id, generation, number, stage, report.commitments(MICROBATCHES), beacon_tip)
        assert (receipt.model_id, receipt.stage) == (model_id, stage)
        assert receipt.unit == keccak(encode(["uint256"] * 3, [generation, number, stage]))
        units.append(receipt.unit)
    assert (units[0] == units[1]) == (one == two)
    assert (units[0] == units[2]) == (one[0] == one[1])
    assert (units[0] == units[3]) == (one[2] == two[2])


@given(reports)
def test_the_order_of_the_hops_is_signed(report: Report) -> None:
    """It is the order in which an audit adds their gradients."""
    turned = replace(report, hops=report.hops[::-1])
    assert (turned.hops_root == report.hops_root) == (len(report.hops) == 1)
    assert turned.load == report.load == tuple(sorted(hop.microbatch for hop in report.hops))
    assert all(turned.hops[turned.position(j)] == report.hops[report.position(j)] for j in report.load)


ByStage = list[dict[str, Report]]


@st.composite
def told_rounds(draw: st.DrawFn) -> ByStage:
    """Honest reports of round 7, by stage, then by node."""
    stages, microbatches = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    loads = [draw(divisions(microbatches)) for _ in range(stages)]
    told: ByStage = [{} for _ in range(stages)]
    for report in honest_reports(stages, microbatches, 7, loads):
        told[report.stage][f"node {len(told[report.stage])}"] = report
    return told


def with_report(told: ByStage, stage: int, node: str, **changes: Any) -> ByStage:
    """With something else in one of the reports."""
    changed = {**told[stage], node: replace(told[stage][node], **changes)}
    return [*told[:stage], changed, *told[stage + 1 :]]


@given(told_rounds())
def test_honest_neighbours_agree(told: ByStage) -> None:
    assert find_mismatch(told) is None


@given(told_rounds(), st.data())
def test_any_one_tampered_hash_that_a_neighbour_has_too_is_found(told: ByStage, data: st.DataObject) -> None:
    stage = data.draw(st.integers(0, len(told) - 1))
    node = data.draw(st.sampled_from(sorted(told[stage])))
    hops = told[stage][node].hops
    number = data.draw(st.integers(0, len(hops) - 1))
    # With one stage there is no neighbour who saw the tokens: they follow from the spec, and the audit compares.
    name = data.draw(st.sampled_from(SEEN if len(told) > 1 else SEEN[1:]))
    hop = hops[number]
    lie = data.draw(hashes.filter(lambda value: value != getattr(hop, name)))
    lied = (*hops[:number], replace(hop, **{name: lie}), *hops[number + 1 :])
    why = find_mismatch(with_report(told, stage, node, hops=lied))
    assert why is not None
    assert f"microbatch {hop.microbatch}" in why


@given(told_rounds(), hashes, st.data())
def test_replicas_that_step_otherwise_than_each_other_are_found(told: ByStage, lie: bytes, data: st.DataObject) -> None:
    """Who shadows a round has no microbatch of it, and must come out in the same state all the same."""
    stage = data.draw(st.integers(0, len(told) - 1))
    name = data.draw(st.sampled_from(["round_gradient_hash", "state_after"]))
    shadowed = [{**of_stage, "shadow": replace(of_stage["node 0"], hops=())} for of_stage in told]
    assert find_mismatch(shadowed) is None
    node = data.draw(st.sampled_from(sorted(shadowed[stage])))
    if lie != getattr(told[stage]["node 0"], name):
        why = find_mismatch(with_report(shadowed, stage, node, **{name: lie}))
        assert why is not None
        assert f"{name} of stage {stage}" in why
        assert all(each in why for each in shadowed[stage])
    assert find_mismatch(with_report(told, stage, "node 0", gradient_hash=lie)) is None, "each has its own"


@pytest.mark.parametrize(("name", "stage"), CLOSED)
def test_nothing_crosses_the_outer_sides(name: str, stage: int) -> None:
    told = [{"node": report} for report in honest_reports(3, 1, 0)]
    (hop,) = told[stage]["node"].hops
    assert getattr(hop, name) == NO_TENSOR
    told[stage] = {"node": replace(told[stage]["node"], hops=(replace(hop, **{name: b"\1" * 32}),))}
    assert "outer" in (find_mismatch(told) or "")
