"""Replay: bit-equal to what was trained, cheap in part, and nothing kept."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from commonweight.errors import CheckpointError, MalformedMessage, NonFiniteTensor
from commonweight.model.hashing import tensors_hash
from commonweight.model.numerics import numerics_class
from commonweight.model.replay import replay, replay_microbatch, step_from
from commonweight.model.stage import Stage, state_parts, train_round
from tests.unit.replay_world import ROUND, again, trained
from tests.unit.tiny import all_stages, random_batches, tiny_spec

torch.set_num_threads(1)


def assert_equal(ours: tuple[Tensor | None, ...], theirs: list[Tensor | None]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@pytest.mark.parametrize("boundary_dim", [6, 16], ids=["factored", "dense"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_replay_is_what_was_trained_bit_for_bit(compute, boundary_dim):
    spec = tiny_spec(
        stages=3, compute_dtype=compute, boundary_dtype=compute, boundary_dim=boundary_dim, grad_clip="0.5"
    )
    batches, traces = trained(spec)
    stages = all_stages(spec)
    for round_ in range(ROUND + 1):
        losses = train_round(stages, random_batches(spec, round_))
    for index, trace in enumerate(traces):
        before = {name: tensor.clone() for name, tensor in trace.state.items()}
        whole = again(spec, index, batches, trace)
        assert_equal(whole.outputs, trace.outputs)
        assert_equal(whole.input_gradients, trace.input_gradients)
        assert list(whole.losses) == trace.losses
        assert whole.round.gradient_hash == trace.gradient_hash
        assert whole.round.next_root == trace.next_root == stages[index].state_root()
        hashes = map(tensors_hash, state_parts(whole.round.next_state))
        assert stages[index].root_of(ROUND + 1, *hashes) == trace.next_root
        assert all(torch.equal(before[name], trace.state[name]) for name in before), "the state given isn't changed"

        for only in ((1,), (2, 0)):
            part = again(spec, index, batches, trace, *only)
            assert part.round is None
            assert_equal(part.outputs, [trace.outputs[i] for i in only])
            assert_equal(part.input_gradients, [trace.input_gradients[i] for i in only])
            assert list(part.losses) == [trace.losses[i] for i in only]
    assert traces[-1].losses == losses


def test_one_blank_stage_serves_many_replays():
    spec = tiny_spec()
    batches, traces = trained(spec)
    stage, trace = Stage(spec, 0, blank=True), traces[0]
    for _ in range(2):
        replay(stage, trace.state, ROUND, batches[:1], trace.inputs[:1], trace.gradients[:1])
        result = replay(stage, trace.state, ROUND, batches, trace.inputs, trace.gradients)
        assert result.round.next_root == trace.next_root


def test_parts_of_a_round_are_all_of_its_gradient():
    spec = tiny_spec()
    batches, traces = trained(spec)
    stage, trace = Stage(spec, 1, blank=True), traces[1]
    replay(stage, trace.state, ROUND, batches[:2], trace.inputs[:2], [None] * 2)
    assert stage.gradient_hash() != trace.gradient_hash
    replay_microbatch(stage, batches[2], trace.inputs[2], None)
    assert stage.gradient_hash() == trace.gradient_hash
    replay(stage, trace.state, ROUND, batches[:1], trace.inputs[:1], [None])
    again(spec, 1, batches, trace)
    assert stage.gradient_hash() != trace.gradient_hash, "a replay begins with none"


@pytest.mark.parametrize("grad_clip", ["0", "0.01"])
def test_a_round_s_gradient_alone_leads_to_its_next_state(grad_clip):
    spec = tiny_spec(grad_clip=grad_clip)
    batches, traces = trained(spec)
    for index, trace in enumerate(traces):
        stage = Stage(spec, index, blank=True)
        stage.load(trace.state, ROUND)
        for given in zip(batches, trace.inputs, trace.gradients, strict=True):
            replay_microbatch(stage, *given)
        gradient = {name: tensor.clone() for name, tensor in stage.gradients().items()}
        stage.load(trace.state, ROUND)
        replay_microbatch(stage, batches[1], trace.inputs[1], trace.gradients[1])  # is no part of it
        root, state = step_from(stage, gradient)
        assert root == trace.next_root == stage.state_root()
        assert stage.root_of(ROUND + 1, *map(tensors_hash, state_parts(state))) == root
        assert tensors_hash(gradient) == trace.gradient_hash, "it isn't clipped in place"
        next(iter(gradient.values())).view(-1)[0] = torch.nan
        with pytest.raises(NonFiniteTensor, match="round 3"):
            step_from(stage, gradient)
        assert stage.state_root() == root


def test_nothing_of_the_state_outlives_the_audit():
    spec = tiny_spec()
    batches, traces = trained(spec)
    trace = traces[1]
    shapes = {tensor.shape for tensor in trace.state.values()}

    def count() -> int:
        # type() and not isinstance: some of what torch keeps pretends to be other things, and warns when asked.
        return sum(issubclass(type(found), Tensor) and found.shape in shapes for found in gc.get_objects())

    gc.collect()
    before = count()
    gc.disable()  # what is freed below is freed by its last reference, not by chance
    try:
        state = {name: tensor.clone() for name, tensor in trace.state.items()}
        stage = Stage(spec, 1, blank=True)
        result = replay(stage, state, ROUND, batches, trace.inputs, trace.gradients)
        assert result.round.next_root == trace.next_root
        holders = (*state.values(), *stage.module.parameters(), *result.round.next_state.values(), stage)
        held = [weakref.ref(holder) for holder in holders]
        assert count() >= before + 2 * len(state)
        del state, stage, result, holders
        assert [ref for ref in held if ref() is not None] == []
        assert count() == before
    finally:
        gc.enable()


def test_blank_stages_share_what_is_public_and_nothing_else():
    spec = tiny_spec()
    one, other, built = Stage(spec, 0, blank=True), Stage(spec, 1, blank=True), Stage(spec, 1)
    assert one.module.subspace.F is other.module.subspace.F
    assert torch.equal(built.module.subspace.U, other.module.subspace.U)
    assert torch.equal(built.module.subspace.F, other.module.subspace.F)
    assert one.frozen_hash == other.frozen_hash == built.frozen_hash
    dense = tiny_spec(boundary_dim=16)
    assert Stage(dense, 0, blank=True).frozen_hash == Stage(dense, 0).frozen_hash != one.frozen_hash
    other.load(built.state(), 0)
    assert other.state_root() == built.state_root()


def test_evidence_that_doesnt_fit_is_refused():
    spec = tiny_spec()
    batches, traces = trained(spec)
    first, last = traces
    with pytest.raises(CheckpointError, match="doesn't fit stage 1"):
        again(spec, 1, batches, first)
    stage = Stage(spec, 1, blank=True)
    with pytest.raises(MalformedMessage, match="code for stage 1"):
        replay(stage, last.state, ROUND, batches[:1], [last.inputs[0].double()], [None])
    with pytest.raises(ValueError, match="argument"):
        replay(stage, last.state, ROUND, batches, last.inputs[:2], [None] * 3)
    huge = [torch.full_like(gradient, torch.inf) for gradient in first.gradients]
    with pytest.raises(NonFiniteTensor, match="stage 0 in round 2"):
        replay(Stage(spec, 0, blank=True), first.state, ROUND, batches, first.inputs, huge)


def test_a_numerics_class_is_one_line_and_tells_what_decides_bits(monkeypatch):
    spec = tiny_spec()
    ours = numerics_class("cpu", spec)
    assert ours == numerics_class("cpu", spec)
    assert ours.startswith(
        f"torch {torch.__version__}, cpu {torch.backends.cpu.get_cpu_capability()}, 1 thread, float32"
    )
    assert len(ours) <= 200
    assert "\n" not in ours
    assert numerics_class("cpu", tiny_spec(compute_dtype="bfloat16")) != ours
    silu = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x: silu(x) * (1 + 2**-23))
    other = numerics_class("cpu", spec)
    assert other.rsplit(" ", 1)[0] == ours.rsplit(" ", 1)[0]
    assert other != ours, "the probe sees what no name says"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_blank_stage_has_the_frozen_tensors_of_an_initialised_one(dtype: torch.dtype) -> None:
    initialised, blank = (Stage(tiny_spec(), 0, dtype=dtype, blank=blank) for blank in (False, True))
    assert blank.frozen_hash == initialised.frozen_hash
