"""The k-space decoder is the Subspace Network of the paper, whatever the cut."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from commonweight.model.initial import draw
from commonweight.model.stage import Stage, train_round
from tests.unit.tiny import all_stages, random_batches, tiny_spec

torch.set_num_threads(1)


def reference_loss(spec, weights: dict[str, Tensor], tokens: Tensor, cuts=(), *, subtract_f: bool = True) -> Tensor:
    """The unsplit model as the paper writes it: the residual stream is X, in d, and Wo = Zo Uᵀ.

    Before each layer in `cuts` X crosses a boundary: c = (X - F[tok]) U is sent, and X = c Uᵀ + F[tok] rebuilt.
    """
    a = spec.architecture
    U, table = weights["subspace.U"], weights["subspace.F"]
    ids, targets = tokens[:, :-1].long(), tokens[:, 1:].long()
    b, t = ids.shape

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + float(a.norm_eps)).sqrt() * scale

    def rotate(x: Tensor) -> Tensor:  # as complex numbers: pair i with i + half and turn by position * theta_i
        half = a.head_dim // 2
        theta = float(a.rope_theta) ** (-2 * torch.arange(half, dtype=x.dtype) / a.head_dim)
        turn = torch.polar(torch.ones(t, half, dtype=x.dtype), torch.arange(t, dtype=x.dtype)[:, None] * theta)
        z = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn[None, :, None]
        return torch.cat((z.real, z.imag), -1)

    def attention(x: Tensor, name: str) -> Tensor:
        w = weights[f"{name}.wqkv"]
        kv = a.n_kv_heads * a.head_dim
        q, k, v = (x @ part.T for part in w.split((a.d_model, kv, kv)))
        q = rotate(q.reshape(b, t, a.n_heads, a.head_dim))
        k = rotate(k.reshape(b, t, a.n_kv_heads, a.head_dim))
        v = v.reshape(b, t, a.n_kv_heads, a.head_dim)
        heads = []
        for head in range(a.n_heads):
            shared = head // (a.n_heads // a.n_kv_heads)
            scores = q[:, :, head] @ k[:, :, shared].transpose(1, 2) / math.sqrt(a.head_dim)
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[:, :, shared])
        return torch.cat(heads, -1) @ (weights[f"{name}.zo"] @ U.T)

    def swiglu(x: Tensor, name: str) -> Tensor:
        gate, up = (x @ part.T for part in weights[f"{name}.w_gate_up"].chunk(2))
        return (gate / (1 + (-gate).exp()) * up) @ (weights[f"{name}.zd"] @ U.T)

    frozen = table[ids]
    X = frozen + (weights["embedding.E"] @ U.T)[ids]
    for layer in range(a.n_layers):
        if layer in cuts:
            X = (X - frozen) @ U @ U.T + frozen if subtract_f else X @ U @ U.T
        name = f"layers.{layer}.attention"
        X = X + attention(norm(X, weights[f"{name}.norm.scale"]), name)
        name = f"layers.{layer}.ffn"
        X = X + swiglu(norm(X, weights[f"{name}.norm.scale"]), name)
    logits = norm(X, weights["head.norm.scale"]) @ weights["head.weight"].T
    chosen = logits.log_softmax(-1).gather(-1, targets[..., None])
    return -chosen.mean()


def reference_round(spec, stages: list[Stage], batches: list[Tensor], cuts=(), *, subtract_f: bool = True):
    """Losses and gradients of a round of the reference, with the weights of `stages`."""
    weights = {n: p.detach().clone().requires_grad_() for s in stages for n, p in s.module.named_parameters()}
    frozen = {f"subspace.{n}": p for n, p in stages[0].module.subspace.named_buffers()}
    losses = []
    for tokens in batches:
        loss = reference_loss(spec, weights | frozen, tokens, cuts, subtract_f=subtract_f)
        (loss / len(batches)).backward()
        losses.append(loss.item())
    return losses, {name: weight.grad for name, weight in weights.items()}


def chained_round(stages: list[Stage], batches: list[Tensor]):
    """Losses and gradients of a round through the stages, without the step."""
    losses = []
    for tokens in batches:
        pending, code, gradient = [], None, None
        for stage in stages:
            pending.append(stage.forward(tokens, code))
            code = pending[-1].output
        losses.append(code)
        for stage in reversed(stages):
            gradient = stage.backward(pending.pop(), gradient)
    return losses, {name: grad for stage in stages for name, grad in stage.gradients().items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_chained_stages_are_the_papers_model_to_the_last_digits(stages):
    spec = tiny_spec(stages=stages)
    chain, batches = all_stages(spec, torch.float64), random_batches(spec)
    losses, gradients = chained_round(chain, batches)
    for cuts in ((), (1, 2, 3)):
        expected_losses, expected = reference_round(spec, chain, batches, cuts)
        assert losses == pytest.approx(expected_losses, rel=1e-12)
        assert gradients.keys() == expected.keys()
        worst = max(expected, key=lambda name: relative(gradients[name], expected[name]))
        assert relative(gradients[worst], expected[worst]) < 1e-12, worst


def test_a_boundary_that_forgets_the_token_table_is_another_model():
    spec = tiny_spec()
    chain, batches = all_stages(spec, torch.float64), random_batches(spec)
    losses, gradients = chained_round(chain, batches)
    wrong_losses, wrong = reference_round(spec, chain, batches, (2,), subtract_f=False)
    assert min(abs(a - b) for a, b in zip(losses, wrong_losses, strict=True)) > 1e-3
    # All but the head's norm scale and what lies behind it change beyond recognition.
    assert relative(gradients["layers.0.attention.wqkv"], wrong["layers.0.attention.wqkv"]) > 0.1


@settings(max_examples=12)
@given(
    stages=st.integers(2, 4),
    k=st.sampled_from([1, 5, 6, 16]),
    n_kv_heads=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 12),
    sequences=st.integers(1, 3),
)
def test_any_cut_trains_the_same_bits(stages, k, n_kv_heads, length, sequences):
    shape = {
        "boundary_dim": k,
        "n_kv_heads": n_kv_heads,
        "sequence_length": length,
        "microbatch_sequences": sequences,
    }
    unsplit, cut = tiny_spec(stages=1, **shape), tiny_spec(stages=stages, **shape)
    whole, parts = all_stages(unsplit), all_stages(cut)
    for round_ in range(2):
        batches = random_batches(unsplit, round_)
        assert train_round(whole, batches) == train_round(parts, batches)
    state = whole[0].state()
    merged = {name: tensor for part in parts for name, tensor in part.state().items()}
    assert state.keys() == merged.keys()
    assert all(torch.equal(state[name], merged[name]) for name in state)


def test_version_0_doesnt_depend_on_the_cut_but_on_the_seed():
    def weights(**kwargs):
        return {n: p for s in all_stages(tiny_spec(**kwargs)) for n, p in s.module.named_parameters()}

    one, four, other = weights(stages=1), weights(stages=4), weights(stages=1, seed=8)
    assert one.keys() == four.keys()
    assert all(torch.equal(one[name], four[name]) for name in one)
    drawn = [name for name in one if not name.endswith("scale")]
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_the_normal_stream_is_the_one_that_models_were_made_with():
    # If this fails, numpy changed its stream: keep the old numpy, or version 0 of every model changes.
    found = draw(7, "embedding.E", (3,)).astype(np.float32)
    assert found.tolist() == [1.0889328718185425, -1.0159143209457397, -1.4228206872940063]


def test_u_is_orthonormal_and_every_stage_has_the_same():
    first, last = all_stages(tiny_spec(), torch.float64)
    U = first.module.subspace.U
    assert torch.equal(U, last.module.subspace.U)
    assert torch.equal(first.module.subspace.F, last.module.subspace.F)
    assert torch.allclose(U.T @ U, torch.eye(6, dtype=torch.float64), atol=1e-14)


def test_later_tokens_dont_change_earlier_outputs():
    spec = tiny_spec()
    stage = Stage(spec, 0)
    tokens = random_batches(spec)[0]
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 61
    a, b = stage.forward(tokens, None).output, stage.forward(changed, None).output
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.equal(a[:, 8:], b[:, 8:])


def test_training_learns_what_is_there_to_learn():
    spec = tiny_spec(warmup_rounds=2, decay_rounds=40, grad_clip="1")
    stages = all_stages(spec)
    rows = torch.arange(13).repeat(2, 1)
    for round_ in range(40):
        batches = [(rows * 5 + 3 * round_ + m) % 61 for m in range(3)]  # each token is the one before plus 5
        losses = train_round(stages, batches)
    assert max(losses) < math.log(61) / 2
