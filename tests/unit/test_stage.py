"""A stage's contract: boundaries, accumulation, the step, and bits that repeat."""

import math
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweight.errors import CheckpointError, MalformedMessage, NonFiniteTensor
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.schedule import learning_rate
from commonweight.model.stage import Stage, state_parts, train_round
from commonweight.rules.state import state_root
from tests.unit.tiny import all_stages, random_batches, tiny_spec

torch.set_num_threads(1)

PRINT_ROOTS = """
import sys
import torch
torch.set_num_threads(1)
from commonweight.model.stage import train_round
from tests.unit.tiny import all_stages, random_batches, tiny_spec
spec = tiny_spec(compute_dtype="bfloat16", boundary_dtype="bfloat16", grad_clip="1")
stages = all_stages(spec)
for round_ in range(2):
    print(train_round(stages, random_batches(spec, round_)), *(s.state_root().hex() for s in stages))
assert "sympy" not in sys.modules, "training imports torch's compiler"
"""


def roots(stages: list[Stage]) -> list[bytes]:
    return [stage.state_root() for stage in stages]


def root_of(stage: Stage, state: dict[str, torch.Tensor], round_: int) -> bytes:
    return stage.root_of(round_, *map(tensors_hash, state_parts(state)))


def test_two_processes_train_the_same_bits():
    runs = [subprocess.Popen([sys.executable, "-c", PRINT_ROOTS], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (run.communicate(timeout=120)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 0]
    assert len(first.split()) > 4
    assert first == second


@given(data=st.data())
def test_any_flipped_bit_changes_the_root(data):
    stage = Stage(tiny_spec(n_layers=1, stages=1), 0)
    state = stage.state()
    assert root_of(stage, state, 0) == stage.state_root()
    name = data.draw(st.sampled_from(sorted(state)))
    changed = state[name].clone()
    flat = changed.view(-1).view(torch.uint8)
    position = data.draw(st.integers(0, len(flat) - 1))
    flat[position] ^= 1 << data.draw(st.integers(0, 7))
    assert root_of(stage, state | {name: changed}, 0) != stage.state_root()


def test_the_root_covers_round_frozen_tensors_names_and_shapes():
    stage = Stage(tiny_spec(), 1)
    assert root_of(stage, stage.state(), 1) != stage.state_root()
    zero = torch.zeros(2, 3)
    hashes = {
        tensors_hash({"a": zero}),
        tensors_hash({"b": zero}),
        tensors_hash({"a": zero.view(3, 2)}),
        tensors_hash({"a": zero.to(torch.float64)}),
        tensors_hash({"a": zero, "b": zero}),
        tensors_hash({}),
    }
    assert len(hashes) == 6
    assert tensors_hash({"a": torch.arange(6).view(2, 3).T}) == tensors_hash(
        {"a": torch.arange(6).view(2, 3).T.contiguous()}
    )
    module = stage.module
    module.subspace.U[0, 0] += 1e-6  # as another machine's LAPACK might
    frozen = tensors_hash(dict(module.subspace.named_buffers()))
    assert frozen != Stage(tiny_spec(), 1).frozen_hash


def test_the_root_is_of_two_parts_and_parameters_are_checked_without_moments():
    stage = Stage(tiny_spec(), 1)
    train = stage.forward(random_batches(tiny_spec())[0], torch.ones(2, 12, 6))
    stage.backward(train, None)
    stage.step()
    parameters, moments = stage.parameters(), stage.moments()
    assert [part.keys() for part in state_parts(stage.state())] == [parameters.keys(), moments.keys()]
    assert len(moments) == 2 * len(parameters)
    parts = stage.frozen_hash, tensors_hash(parameters), tensors_hash(moments)
    assert stage.state_root() == state_root(1, *parts) == sha256(bytes([1]) + bytes(7) + b"".join(parts)).digest()
    served = with_moments_hash(parameters, parts[2])
    assert bytes(served.pop("moments_hash").tolist()) == parts[2]
    assert tensors_hash(served) == parts[1]
    assert len({state_root(*each) for each in ((1, *parts), (2, *parts), (1, parts[0], parts[2], parts[1]))}) == 3


def test_a_blank_stage_has_no_moments_until_it_is_loaded():
    stage, blank = Stage(tiny_spec(), 1), Stage(tiny_spec(), 1, blank=True)
    for without in (blank.moments, blank.state, blank.state_root):
        with pytest.raises(AssertionError, match="no moments until it is loaded"):
            without()
    with pytest.raises(CheckpointError, match=r"moment1\..* is missing"):
        blank.load(stage.parameters(), 0)
    blank.load(stage.state(), 3)
    assert blank.round == 3
    assert blank.moments().keys() == stage.moments().keys()


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_input_gradient_alone_adds_nothing(compute):
    spec = tiny_spec(compute_dtype=compute)
    stage, tokens, code = Stage(spec, 1), random_batches(spec)[0], torch.ones(2, 12, 6)
    alone = stage.input_gradient(stage.forward(tokens, code), None)
    assert all(parameter.grad is None for parameter in stage.module.parameters())
    assert torch.equal(alone, stage.backward(stage.forward(tokens, code), None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_what_crosses_a_boundary_has_its_dtype_and_shape(dtype, compute):
    spec = tiny_spec(stages=3, boundary_dtype=dtype, compute_dtype=compute)
    tokens = random_batches(spec)[0]
    stages, pending, code, gradient = all_stages(spec), [], None, None
    for stage in stages:
        pending.append(stage.forward(tokens, code))
        code = pending[-1].output
    assert isinstance(code, float)
    assert code == pytest.approx(math.log(61), abs=1)
    for forward in pending[:-1]:
        assert forward.output.dtype == getattr(torch, dtype)
        assert forward.output.shape == (2, 12, 6)
        assert forward.output.is_contiguous()
        assert not forward.output.requires_grad
    for stage in reversed(stages):
        gradient = stage.backward(pending.pop(), gradient)
        if stage.is_first:
            assert gradient is None
        else:
            assert gradient.dtype == getattr(torch, dtype)
            assert gradient.shape == (2, 12, 6)
            assert gradient.is_contiguous()
            assert gradient.isfinite().all()


def test_half_precision_boundaries_keep_the_gradient_of_a_large_round():
    def first_gradient(dtype: str) -> torch.Tensor:
        spec = tiny_spec(boundary_dtype=dtype, microbatches_per_round=4096)
        first, last = all_stages(spec)
        tokens = random_batches(tiny_spec())[0]
        forward = first.forward(tokens, None)
        gradient = last.backward(last.forward(tokens, forward.output), None)
        first.backward(forward, gradient)
        return first.gradients()["layers.0.attention.wqkv"]

    exact, half = first_gradient("float32"), first_gradient("float16")
    assert exact.abs().max() < 2**-14, "without scaling these would be subnormal in float16"
    assert (half - exact).norm() / exact.norm() < 2e-3


def test_computing_in_bfloat16_stays_close():
    losses = {}
    for dtype in ("float32", "bfloat16"):
        spec = tiny_spec(compute_dtype=dtype)
        losses[dtype] = train_round(all_stages(spec), random_batches(spec))
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=2e-2)


def test_input_from_a_peer_is_checked():
    spec = tiny_spec()
    first, last = all_stages(spec)
    tokens = random_batches(spec)[0]
    code = first.forward(tokens, None).output
    bad_tokens = [tokens[0], tokens[:, :1], tokens.float(), torch.full_like(tokens, 61), torch.full_like(tokens, -1)]
    bad_tokens.append(torch.zeros(2, 14, dtype=torch.int32))
    for bad in bad_tokens:
        with pytest.raises(MalformedMessage, match="Tokens"):
            first.forward(bad, None)
    for bad in (None, code[:1], code[:, :, :5], code.double(), code.bfloat16()):
        with pytest.raises(MalformedMessage, match=r"code for stage 1 .* expected float32 \[2, 12, 6\]"):
            last.forward(tokens, bad)
    with pytest.raises(MalformedMessage, match="gradient for stage 0 is missing"):
        first.backward(first.forward(tokens, None), None)
    with pytest.raises(IndexError, match="stages 0 to 1"):
        Stage(spec, 2)


def test_gradients_accumulate_over_microbatches_and_can_be_dropped():
    spec = tiny_spec(stages=1)
    stage = Stage(spec, 0)
    batches = random_batches(spec)
    sums: dict[str, torch.Tensor] = {}
    for tokens in batches:
        stage.backward(stage.forward(tokens, None), None)
        for name, gradient in stage.gradients().items():
            sums[name] = sums.get(name, 0) + gradient
        stage.discard_gradients()
    for tokens in batches:
        stage.backward(stage.forward(tokens, None), None)
    for name, gradient in stage.gradients().items():
        assert torch.allclose(gradient, sums[name], rtol=1e-4, atol=1e-7), name
    assert len(stage.gradient_hash()) == 32
    before = stage.gradient_hash()
    stage.discard_gradients()
    for tokens in batches:
        stage.backward(stage.forward(tokens, None), None)
    assert stage.gradient_hash() == before
    assert stage.round == 0


@pytest.mark.parametrize("stages", [1, 4])
def test_each_stage_clips_to_its_share(stages):
    spec = tiny_spec(stages=stages, grad_clip="0.01", learning_rate="0")
    chain = all_stages(spec)
    train_round(chain, random_batches(spec))  # warms nothing up: the first moments are 0.1 of the clipped gradient
    for stage in chain:
        norms = [tensor.norm() * 10 for name, tensor in stage.state().items() if name.startswith("moment1.")]
        assert torch.stack(norms).norm().item() == pytest.approx(0.01 / math.sqrt(stages), rel=1e-5)


def test_decay_spares_norms_and_the_embedding():
    spec = tiny_spec(stages=1, warmup_rounds=0)
    stage = Stage(spec, 0)
    before = {name: p.detach().clone() for name, p in stage.module.named_parameters()}
    for parameter in stage.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert stage.step() == 0
    assert stage.round == 1
    for name, parameter in stage.module.named_parameters():
        kept = name.endswith("scale") or name == "embedding.E"
        factor = 1 if kept else 1 - 0.01 * 0.1
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6), name


def test_the_step_is_torchs_own_adamw_bit_for_bit():
    spec = tiny_spec(stages=1, weight_decay="0.1", warmup_rounds=0, decay_rounds=0)
    stage, twin = Stage(spec, 0), Stage(spec, 0)
    named = dict(twin.module.named_parameters())
    kept = [p for name, p in named.items() if name.endswith("scale") or name == "embedding.E"]
    decayed = [p for name, p in named.items() if not name.endswith("scale") and name != "embedding.E"]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.001, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for round_ in range(3):
        batches = random_batches(spec, round_)
        train_round([stage], batches)
        for tokens in batches:
            twin.backward(twin.forward(tokens, None), None)
        optimizer.step()
        optimizer.zero_grad()
    state = stage.state()
    for name, parameter in named.items():
        assert torch.equal(state[f"parameter.{name}"], parameter), name
        assert torch.equal(state[f"moment2.{name}"], optimizer.state[parameter]["exp_avg_sq"]), name


def test_a_gradient_that_isnt_finite_changes_nothing():
    stage = Stage(tiny_spec(), 0)
    tokens = random_batches(tiny_spec())[0]
    root = stage.state_root()
    stage.backward(stage.forward(tokens, None), torch.full((2, 12, 6), math.inf))
    with pytest.raises(NonFiniteTensor, match="stage 0 in round 0"):
        stage.step()
    assert stage.state_root() == root
    assert stage.round == 0


def test_a_loaded_state_continues_bit_for_bit():
    spec = tiny_spec(grad_clip="1")
    straight, saved = all_stages(spec), None
    for round_ in range(4):
        if round_ == 2:
            saved = [{name: tensor.clone() for name, tensor in s.state().items()} for s in straight]
        train_round(straight, random_batches(spec, round_))
    resumed = all_stages(spec)
    train_round(resumed, random_batches(spec, 99))
    for stage, state in zip(resumed, saved, strict=True):
        stage.load(state, 2)
    for round_ in (2, 3):
        train_round(resumed, random_batches(spec, round_))
    assert roots(resumed) == roots(straight)


def test_a_state_that_doesnt_fit_is_refused_whole():
    stage, other = all_stages(tiny_spec())
    root, state = stage.state_root(), stage.state()
    name = "parameter.layers.0.attention.wqkv"
    wrong = {
        "is missing": {n: t for n, t in state.items() if n != name},
        "is not of this stage": state | {"parameter.extra": torch.zeros(1)},
        r"float32 \[16, 32\] instead of float32 \[32, 16\]": state | {name: state[name].T},
        "float64": state | {name: state[name].double()},
        "more faults": other.state(),
    }
    for message, bad in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            stage.load(bad, 1)
    with pytest.raises(CheckpointError, match="negative"):
        stage.load(state, -1)
    assert stage.state_root() == root


@settings(max_examples=40)
@given(warmup=st.integers(0, 20), decay=st.integers(0, 50), round_=st.integers(0, 100))
def test_the_learning_rate_rises_falls_and_stays(warmup, decay, round_):
    training = tiny_spec(warmup_rounds=warmup, decay_rounds=decay).training
    rate, following = learning_rate(training, round_), learning_rate(training, round_ + 1)
    assert 0 < rate <= 0.01
    if round_ + 1 < warmup:
        assert rate < following
    elif round_ >= warmup + decay:
        assert rate == following == 0.001
    elif round_ >= warmup:
        assert rate > following >= 0.001
    if warmup:
        assert learning_rate(training, warmup - 1) == 0.01
    with pytest.raises(ValueError, match="count from 0"):
        learning_rate(training, -1)
