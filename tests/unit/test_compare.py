"""Comparison across numerics classes: honest differences pass, cheating doesn't."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from commonweight.model.compare import (
    Deviation,
    compare_loss,
    compare_round,
    compare_sketch,
    compare_travelled,
    relative_error,
    worst,
)
from commonweight.model.replay import Replayed, replay
from commonweight.model.schedule import learning_rate
from commonweight.model.sketch import pack_sketch
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec
from tests.unit.replay_world import ROUND, Trace, again, trained
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

STAGE = 1
State = dict[str, Tensor]


def compared(spec: ModelSpec, trace: Trace, claimed: State, replayed: State) -> list[Deviation]:
    return compare_round(spec, ROUND, trace.state, claimed, replayed)


def failed(deviations: list[Deviation]) -> set[str]:
    """What was found, without the names of tensors."""
    return {deviation.what.split()[0] for deviation in deviations if not deviation.passed}


def naive_attention(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
    assert attn_mask is None
    assert is_causal
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1).to(v.dtype) @ v


@pytest.fixture(params=["float32", "bfloat16"])
def compute(request):
    return request.param


@pytest.fixture
def spec(compute):
    return tiny_spec(compute_dtype=compute, grad_clip="0.5", tolerance="0.00001" if compute == "float32" else "0.02")


@pytest.fixture
def round_(spec):
    batches, traces = trained(spec)
    trace = traces[STAGE]
    return batches, trace, again(spec, STAGE, batches, trace)


def foreign(spec: ModelSpec, batches: list[Tensor], trace: Trace, kind: str, monkeypatch) -> Replayed:
    """The same round on a machine of another class."""
    if kind == "attention":
        monkeypatch.setattr(F, "scaled_dot_product_attention", naive_attention)
        return again(spec, STAGE, batches, trace)
    if kind == "threads":
        torch.set_num_threads(2)
        try:
            return again(spec, STAGE, batches, trace)
        finally:
            torch.set_num_threads(1)
    # Every microbatch in halves: the same means, summed in another order.
    training = spec.training.model_copy(update={"microbatches_per_round": 2 * len(batches)})
    halved = spec.model_copy(update={"training": training})

    def halves(tensors: list[Tensor | None], factor: float = 1) -> list[Tensor | None]:
        return [None if t is None else half * factor for t in tensors for half in ([t] if t is None else t.chunk(2))]

    gradients = [None] * len(halves(trace.inputs))
    return replay(
        Stage(halved, STAGE, blank=True), trace.state, ROUND, halves(batches), halves(trace.inputs), gradients
    )


@pytest.mark.parametrize("kind", ["attention", "threads", "microbatches"])
def test_honest_machines_of_other_classes_agree(spec, round_, kind, monkeypatch):
    batches, trace, ours = round_
    theirs = foreign(spec, batches, trace, kind, monkeypatch)
    if kind == "attention":
        assert theirs.round.next_root != ours.round.next_root, "this fault changes bits"
    found = compared(spec, trace, theirs.round.next_state, ours.round.next_state)
    assert failed(found) == set(), worst(found)
    if kind == "microbatches":
        return
    for index, (claimed, replayed) in enumerate(zip(theirs.input_gradients, ours.input_gradients, strict=True)):
        assert compare_travelled(f"input gradient {index}", claimed, replayed, spec).passed
    for index, (claimed, replayed) in enumerate(zip(theirs.losses, ours.losses, strict=True)):
        assert compare_loss(f"loss {index}", claimed, replayed, spec).passed


def test_sketches_are_as_near_as_what_they_are_of(spec, round_):
    tolerance = float(spec.verification.tolerance)
    _, trace, _ = round_
    gradient = {name.removeprefix("moment1."): moment for name, moment in trace.state.items() if "moment1." in name}
    stage = Stage(spec, STAGE, blank=True)
    generator = torch.Generator().manual_seed(0)
    replayed = stage.sketched(gradient)

    def deviation(error: float, size: float = replayed.norm) -> Deviation:
        noise = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in gradient.items()}
        length = error * replayed.norm / stage.sketched(noise).norm
        claimed = {name: tensor + length * noise[name] for name, tensor in gradient.items()}
        sums = stage.sketched(claimed).sums
        return compare_sketch("sketch", pack_sketch(sums), replayed.sums, size, spec)

    assert all(deviation(tolerance).passed for _ in range(100))
    assert not any(deviation(20 * tolerance).passed for _ in range(100))
    assert deviation(100 * tolerance, 1000 * replayed.norm).passed, "parts that cancel leave their errors"
    same, zero = pack_sketch(replayed.sums), torch.zeros(8, dtype=torch.float64)
    assert compare_sketch("sketch", same, replayed.sums, replayed.norm, spec).error < 1e-6
    assert compare_sketch("sketch", bytes(32), zero, 0.0, spec).passed
    for bad in (math.nan, math.inf):
        assert compare_sketch("sketch", pack_sketch(zero + bad), replayed.sums, replayed.norm, spec).error == math.inf
        assert compare_sketch("sketch", same, zero + bad, math.nan, spec).error == math.inf
    assert compare_sketch("sketch", same, zero, math.inf, spec).passed, "a size that overflows takes a neighbour"


def test_a_half_precision_boundary_may_round_the_other_way(monkeypatch):
    for boundary in ("bfloat16", "float16"):
        spec = tiny_spec(boundary_dtype=boundary)
        generator = torch.Generator().manual_seed(0)
        tensor, noise = torch.randn(2, 2**16, generator=generator)
        nudged = tensor * (1 + 3e-6 * noise)
        dtype = getattr(torch, boundary)
        deviation = compare_travelled("activation", nudged.to(dtype), tensor.to(dtype), spec)
        assert 0 < deviation.error <= deviation.tolerance < 1e-3
        cheap = compare_travelled("activation", (tensor * (1 + 3e-3)).to(dtype), tensor.to(dtype), spec)
        assert not cheap.passed


def test_computing_in_bfloat16_isnt_float32():
    spec = tiny_spec(grad_clip="0.5")
    batches, traces = trained(spec)
    trace = traces[STAGE]
    ours = again(spec, STAGE, batches, trace)
    cheap = Stage(spec, STAGE, blank=True)
    cheap._autocast = True
    theirs = replay(cheap, trace.state, ROUND, batches, trace.inputs, trace.gradients)
    found = compared(spec, trace, theirs.round.next_state, ours.round.next_state)
    assert found[0].what == "gradient"
    assert found[0].error > 100 * found[0].tolerance
    for claimed, replayed in zip(theirs.input_gradients, ours.input_gradients, strict=True):
        assert not compare_travelled("input gradient", claimed, replayed, spec).passed


def cheating_step(spec: ModelSpec, batches: list[Tensor], trace: Trace, **training: str) -> State:
    """The state after a round by a stage that steps with other numbers than the spec's."""
    other = spec.model_copy(update={"training": spec.training.model_copy(update=training)})
    return again(other, STAGE, batches, trace).round.next_state


def scaled(spec: ModelSpec, trace: Trace, state: State, factor: float) -> State:
    """The state had the gradient been scaled, stepped properly from there."""
    stage = Stage(spec, STAGE, blank=True)
    stage.load(trace.state, ROUND)
    for name, parameter in stage.module.named_parameters():
        old, new = trace.state[f"moment1.{name}"].double(), state[f"moment1.{name}"].double()
        parameter.grad = (factor * (new - 0.9 * old) / 0.1).float()
    stage._parameters = dict(stage.module.named_parameters())
    stage.spec = spec.model_copy(update={"training": spec.training.model_copy(update={"grad_clip": "0"})})
    stage.step()
    return stage.state()


def test_what_a_gradient_isnt(spec, round_):
    _, trace, ours = round_
    state = ours.round.next_state
    honest = scaled(spec, trace, state, 1)
    assert failed(compared(spec, trace, honest, state)) == set()
    factor = 1 + 2 * float(spec.verification.tolerance)
    assert failed(compared(spec, trace, scaled(spec, trace, state, factor), state)) == {"gradient"}
    assert not compared(spec, trace, scaled(spec, trace, state, -1), state)[1].passed, "it moves the other way"
    if spec.training.compute_dtype == "float32":
        assert failed(compared(spec, trace, scaled(spec, trace, state, 1.001), state)) == {"gradient"}
    assert "gradient" in failed(compared(spec, trace, trace.state, state)), "the step was skipped"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"weight_decay": "0"}, {"parameter"}),
        ({"weight_decay": "0.11"}, {"parameter"}),
        ({"learning_rate": "0.01001"}, {"parameter"}),
        ({"adam_eps": "0.00001"}, {"parameter"}),
        ({"beta2": "0.951"}, {"moment2"}),
        ({"beta1": "0.91"}, {"gradient"}),
        ({"grad_clip": "0"}, {"gradient"}),
    ],
)
def test_a_step_that_isnt_the_specs(spec, round_, change, parts):
    batches, trace, ours = round_
    found = failed(compared(spec, trace, cheating_step(spec, batches, trace, **change), ours.round.next_state))
    assert parts <= found


def test_a_bias_on_top_of_an_honest_step(spec, round_):
    _, trace, ours = round_
    name = "layers.2.attention.wqkv"
    for part, size in (("parameter", 1e-5), ("moment2", 1e-4)):
        biased = dict(ours.round.next_state)
        biased[f"{part}.{name}"] = biased[f"{part}.{name}"] * (1 + size)
        found = compared(spec, trace, biased, ours.round.next_state)
        assert not next(deviation for deviation in found if deviation.what == f"{part} {name}").passed


def test_gradients_that_are_all_but_zero_cant_hide_a_movement():
    spec = tiny_spec(vocab_size=509)
    batches, traces = trained(spec)
    trace = traces[0]
    ours = again(spec, 0, batches, trace).round.next_state
    idle = ours["moment2.embedding.E"] == 0
    assert idle.any(), "some tokens haven't occurred yet"
    theirs = {name: tensor.clone() for name, tensor in ours.items()}
    # So small that nobody sees it in the gradient; AdamW makes whole steps of it.
    tiny = 1e-6 * theirs["moment1.embedding.E"].norm() / idle.sum().sqrt()
    theirs["moment1.embedding.E"][idle] += tiny
    theirs["moment2.embedding.E"][idle] += 0.05 * (tiny / 0.1) ** 2
    step = (
        learning_rate(spec.training, ROUND)
        * (tiny / (1 - 0.9**3))
        / ((theirs["moment2.embedding.E"][idle] / (1 - 0.95**3)).sqrt() + 1e-8)
    )
    theirs["parameter.embedding.E"][idle] -= step
    assert failed(compared(spec, trace, theirs, ours)) == {"movement"}


def test_what_cant_be_compared_is_infinitely_wrong(spec, round_):
    _, trace, ours = round_
    state = ours.round.next_state
    name = "parameter.layers.2.ffn.zd"
    bad = (state[name].T, state[name].double(), torch.full_like(state[name], math.nan))
    for tensor in bad:
        assert compared(spec, trace, state | {name: tensor}, state) == [Deviation(f"state {name}", math.inf, 8.0)]
    missing = {n: t for n, t in state.items() if n != name}
    assert not worst(compared(spec, trace, missing, state)).passed

    one, zero = torch.ones(3), torch.zeros(3)
    assert relative_error(zero, zero) == 0
    assert relative_error(one, zero) == math.inf
    assert relative_error(zero, one) == 1
    assert relative_error(one, one.double()) == math.inf
    assert relative_error(one[:2], one) == math.inf
    for number in (math.nan, math.inf):
        assert relative_error(one * number, one) == math.inf
        assert relative_error(one, one * number) == math.inf
        assert compare_loss("loss", number, 1.0, spec).error == math.inf
    assert compare_loss("loss", 0.0, 1e-9, spec).passed
    assert dataclasses.asdict(Deviation("loss", 1.0, 0.5)) == {"what": "loss", "error": 1.0, "tolerance": 0.5}
