"""Every layer is on one stage, no other cut makes the slowest stage faster, and work is counted right."""

from itertools import combinations, pairwise

from hypothesis import given

from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import (
    head_flops,
    in_flight_limit,
    layer_flops,
    stage_layers,
    stage_parameters,
    stage_units,
)
from tests.property.strategies import specs


def slowest(spec: ModelSpec, sizes: list[int]) -> int:
    """Forward FLOPs of the slowest stage when stage i has sizes[i] layers."""
    costs = [size * layer_flops(spec) for size in sizes]
    costs[-1] += head_flops(spec)
    return max(costs)


def all_cuts(layers: int, stages: int) -> list[list[int]]:
    """Every way to cut `layers` into `stages` that aren't empty."""
    return [[b - a for a, b in pairwise((0, *marks, layers))] for marks in combinations(range(1, layers), stages - 1)]


@given(specs(max_layers=200))
def test_covers_all_layers_once_in_order(spec: ModelSpec) -> None:
    cut = stage_layers(spec)
    assert len(cut) == spec.stages
    assert [layer for layers in cut for layer in layers] == list(range(spec.architecture.n_layers))
    assert all(len(layers) >= 1 for layers in cut)


@given(specs(max_layers=200))
def test_stages_before_the_last_share_evenly_and_the_last_has_no_more(spec: ModelSpec) -> None:
    *others, tail = map(len, stage_layers(spec))
    assert others == sorted(others, reverse=True)
    assert not others or (others[0] - others[-1] <= 1 and tail <= others[0])


@given(specs(max_layers=10))
def test_no_contiguous_cut_has_a_faster_slowest_stage(spec: ModelSpec) -> None:
    sizes = [len(layers) for layers in stage_layers(spec)]
    assert slowest(spec, sizes) == min(
        slowest(spec, other) for other in all_cuts(spec.architecture.n_layers, spec.stages)
    )


@given(specs(max_layers=10))
def test_of_equally_fast_cuts_the_last_stage_keeps_most_of_its_even_share(spec: ModelSpec) -> None:
    sizes = [len(layers) for layers in stage_layers(spec)]
    even_share = spec.architecture.n_layers // spec.stages
    for other in all_cuts(spec.architecture.n_layers, spec.stages):
        if sizes[-1] < other[-1] <= even_share:
            assert slowest(spec, other) > slowest(spec, sizes)


@given(specs())
def test_flops_are_those_of_the_products_written_out(spec: ModelSpec) -> None:
    a, t = spec.architecture, spec.training
    d, k, kv = a.d_model, a.boundary_dim, a.n_kv_heads * (a.d_model // a.n_heads)
    products = [(d, d), (d, kv), (d, kv), (d, k), (d, a.d_ff), (d, a.d_ff), (a.d_ff, k)]
    head = [(d, a.vocab_size)]
    if k != d:
        products += [(k, d), (k, d)]
        head += [(k, d)]
    tokens = t.microbatch_sequences * t.sequence_length
    attention = sum(2 * 2 * a.n_heads * a.head_dim * (position + 1) for position in range(t.sequence_length))
    expected = tokens * sum(2 * m * n for m, n in products) + t.microbatch_sequences * attention
    assert layer_flops(spec) == expected
    assert head_flops(spec) == tokens * sum(2 * m * n for m, n in head)


@given(specs())
def test_units_of_all_stages_are_three_forward_passes_of_the_model(spec: ModelSpec) -> None:
    units = [stage_units(spec, stage) for stage in range(spec.stages)]
    assert sum(units) == 3 * (spec.architecture.n_layers * layer_flops(spec) + head_flops(spec))
    assert min(units) > 0


@given(specs())
def test_the_cut_adds_no_parameters(spec: ModelSpec) -> None:
    whole = spec.model_copy(update={"stages": 1})
    cut = [stage_parameters(spec, stage) for stage in range(spec.stages)]
    assert sum(cut) == stage_parameters(whole, 0)


@given(specs())
def test_earlier_stages_have_more_in_flight_and_never_more_than_a_round(spec: ModelSpec) -> None:
    limits = [in_flight_limit(spec, stage) for stage in range(spec.stages)]
    assert limits == sorted(limits, reverse=True)
    assert all(1 <= limit <= spec.training.microbatches_per_round for limit in limits)
