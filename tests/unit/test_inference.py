"""Generation with kept keys and values is the model that was trained, whatever the cut and the chunks."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from commonweight.errors import CheckpointError, ContextExceeded, MalformedMessage, NonFiniteTensor
from commonweight.model.inference import InferenceStage, KVCache, cache_bytes, choose_token, generate
from commonweight.model.stage import Stage, train_round
from commonweight.rules.spec import ModelSpec
from tests.unit.tiny import all_stages, random_batches, tiny_spec

torch.set_num_threads(1)

LENGTH = 72
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8]
NEW = LENGTH - len(PROMPT) + 1  # the last one isn't fed
SHAPES = {
    "subspace, grouped queries": {},
    "dense": {"boundary_dim": 16},
    "subspace, one head of keys": {"n_kv_heads": 1},
    "dense, as many keys as queries": {"boundary_dim": 16, "n_kv_heads": 4},
}
TOLERANCE = {"float32": 5e-5, "bfloat16": 0.2}
"""Of logits of about unit variance; the largest found were 4e-6 and 0.08."""


def spec_of(*, stages: int = 1, dtype: str = "float32", boundary: str = "float32", **shape: int) -> ModelSpec:
    return tiny_spec(stages=stages, sequence_length=LENGTH, compute_dtype=dtype, boundary_dtype=boundary, **shape)


def inference_stages(spec: ModelSpec) -> list[InferenceStage]:
    return [InferenceStage.initial(spec, index) for index in range(spec.stages)]


def uncached_logits(stages: list[Stage], ids: list[int]) -> Tensor:
    """[t, v] by the decoder as it is trained: the whole sequence at once, nothing kept."""
    ids_1t, flowing = torch.tensor([ids]), None
    for stage in stages:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=stage._autocast):
            flowing = stage.module(ids_1t, None if flowing is None else flowing.to(stage.boundary_dtype).float())
    return flowing[0].float()


def cached_logits(stages: list[InferenceStage], ids: list[int], chunks: list[int]) -> Tensor:
    """[chunks, v]: after each chunk, all fed to one cache per stage."""
    caches, rows = [stage.new_cache(len(ids)) for stage in stages], []
    assert sum(chunks) == len(ids)
    for chunk in torch.tensor([ids]).split(chunks, dim=1):
        flowing = None
        for stage, cache in zip(stages, caches, strict=True):
            flowing = stage.forward(chunk, flowing, cache)
        rows.append(flowing)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_generation_takes_the_tokens_of_the_uncached_model(shape):
    spec = spec_of(**shape)
    new = list(generate(inference_stages(spec), PROMPT, NEW))
    assert len(new) == NEW >= 50
    expected = uncached_logits(all_stages(spec), PROMPT + new[:-1])[len(PROMPT) - 1 :]
    # Each was the most likely one after those before it, so by induction the uncached model generates the same.
    assert new == expected.argmax(-1).tolist()


@pytest.mark.parametrize("boundary", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_are_those_of_the_uncached_model(shape, dtype, boundary):
    spec = spec_of(stages=2, dtype=dtype, boundary=boundary, **shape)
    ids = torch.randint(61, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    found = cached_logits(inference_stages(spec), ids, [8] + [1] * (LENGTH - 8))
    expected = uncached_logits(all_stages(spec), ids)[7:]
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    tolerance = TOLERANCE["bfloat16" if boundary == "bfloat16" else dtype]
    assert (found - expected).abs().max() < tolerance


def test_in_bfloat16_a_token_is_the_most_likely_one_up_to_rounding():
    spec = spec_of(dtype="bfloat16")
    new = list(generate(inference_stages(spec), PROMPT, NEW))
    logits = uncached_logits(all_stages(spec), PROMPT + new[:-1])[len(PROMPT) - 1 :]
    chosen = logits.gather(1, torch.tensor(new)[:, None])[:, 0]
    assert ((logits.amax(-1) - chosen) < TOLERANCE["bfloat16"]).all()
    assert (logits.argmax(-1) == torch.tensor(new)).float().mean() > 0.8


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_cut_generates_the_same_tokens(dtype, temperature):
    def tokens(stages: int) -> list[int]:
        stages_ = inference_stages(spec_of(stages=stages, dtype=dtype))
        return list(generate(stages_, PROMPT, NEW, temperature, seed=5))

    unsplit = tokens(1)
    assert len(set(unsplit)) > 5, "or the test would see little"
    assert tokens(2) == tokens(4) == unsplit


def test_trained_weights_are_taken_over_and_kept_apart_from_training():
    spec = spec_of(stages=2)
    trained = all_stages(spec)
    train_round(trained, random_batches(spec))
    stages = [InferenceStage(spec, i, dict(stage.module.named_parameters())) for i, stage in enumerate(trained)]
    expected = uncached_logits(trained, PROMPT)[-1:]
    train_round(trained, random_batches(spec, 1))
    assert (cached_logits(stages, PROMPT, [len(PROMPT)]) - expected).abs().max() < TOLERANCE["float32"]
    assert not any(p.requires_grad for stage in stages for p in stage.module.parameters())
    for stage, counterpart in zip(stages, all_stages(spec), strict=True):
        for name in ("U", "F"):
            assert torch.equal(getattr(stage.module.subspace, name), getattr(counterpart.module.subspace, name))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_weights_cast_once_give_the_bits_of_autocast(shape):
    spec = spec_of(dtype="bfloat16", **shape)
    stage, trained = InferenceStage.initial(spec, 0), Stage(spec, 0)
    cache, other = stage.new_cache(LENGTH), stage.new_cache(LENGTH)
    for chunk in ([PROMPT], *([[i]] for i in range(20)), [PROMPT]):
        ids = torch.tensor(chunk)
        found = stage.forward(ids, None, cache)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            expected = trained.module(ids, None, other.layers, other.length)[0, 0].float()
        other.length = cache.length
        assert torch.equal(found, expected), other.length


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 7], [1, 11], [11, 1], [4, 4, 4], [3, 1, 6, 2]])
def test_a_prompt_in_chunks_is_the_prompt_at_once(chunks, dtype):
    stages, ids = inference_stages(spec_of(stages=2, dtype=dtype)), (PROMPT * 2)[:12]
    once, chunked = cached_logits(stages, ids, [12])[-1], cached_logits(stages, ids, chunks)[-1]
    assert (once - chunked).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stages", [1, 3])
def test_a_cache_allocates_what_was_computed_and_never_again(stages, dtype):
    spec = spec_of(stages=stages, dtype=dtype)
    for index, stage in enumerate(inference_stages(spec)):
        for capacity in (1, 7, LENGTH):
            cache = stage.new_cache(capacity)
            storages = {keys.untyped_storage().data_ptr(): keys.untyped_storage().nbytes() for keys, _ in cache.layers}
            assert list(storages.values()) == [cache_bytes(spec, index, capacity)]
            code = torch.zeros(1, capacity, 6) if index else None
            stage.forward(torch.zeros(1, capacity, dtype=torch.int64), code, cache)
            assert [keys.untyped_storage().data_ptr() for keys, _ in cache.layers] == list(storages) * len(cache.layers)
    layers, kv_heads, head_dim = 4, 2, 4
    itemsize = {"float32": 4, "bfloat16": 2}[dtype]
    total = sum(cache_bytes(spec, index, 10) for index in range(stages))
    assert total == layers * 2 * kv_heads * head_dim * 10 * itemsize


@pytest.mark.parametrize("boundary", ["float32", "bfloat16", "float16"])
def test_what_goes_on_has_its_dtype_and_shape(boundary):
    first, last = inference_stages(spec_of(stages=2, boundary=boundary))
    ids = torch.tensor([PROMPT])
    code = first.forward(ids, None, first.new_cache(LENGTH))
    assert code.shape == (1, len(PROMPT), 6)
    assert code.dtype == getattr(torch, boundary)
    assert code.is_contiguous()
    logits = last.forward(ids, code, last.new_cache(LENGTH))
    assert logits.shape == (61,)
    assert logits.dtype == torch.float32


def test_input_from_a_peer_is_checked_and_changes_nothing():
    first, last = inference_stages(spec_of(stages=2))
    ids = torch.tensor([PROMPT])
    caches = [stage.new_cache(LENGTH) for stage in (first, last)]
    code = first.forward(ids, None, first.new_cache(LENGTH))
    bad_ids = [ids[0], ids[:, :0], ids.int(), ids.float(), ids.repeat(2, 1), ids + 61, ids - 61]
    for bad in bad_ids:
        with pytest.raises(MalformedMessage, match="Tokens"):
            first.forward(bad, None, caches[0])
    for bad in (None, code[0], code[:, 1:], code[:, :, 1:], code.double(), code.bfloat16()):
        with pytest.raises(MalformedMessage, match=r"code for stage 1 .* expected float32 \[1, 8, 6\]"):
            last.forward(ids, bad, caches[1])
    assert [cache.length for cache in caches] == [0, 0]


def test_a_sequence_ends_where_its_room_does():
    (stage,) = inference_stages(spec_of())
    cache = stage.new_cache(10)
    stage.forward(torch.tensor([PROMPT]), None, cache)
    with pytest.raises(ContextExceeded, match=r"has 8 tokens and 3 more .* room for 10, .* at most 72\. Shorten"):
        stage.forward(torch.tensor([[1, 2, 3]]), None, cache)
    assert cache.length == 8
    stage.forward(torch.tensor([[1, 2]]), None, cache)
    with pytest.raises(ContextExceeded, match="has 10 tokens and 1 more"):
        stage.forward(torch.tensor([[1]]), None, cache)
    with pytest.raises(ContextExceeded, match=r"73 tokens was asked for; .* at most 72"):
        stage.new_cache(LENGTH + 1)
    with pytest.raises(ValueError, match="a cache for 0 tokens"):
        KVCache(stage.spec, 0, 0)
    with pytest.raises(ContextExceeded, match="73 tokens"):  # at once, not with the first token
        generate([stage], PROMPT, NEW + 1)
    for prompt, new in (([], 1), (PROMPT, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            generate([stage], prompt, new)
    assert len(list(generate([stage], PROMPT, NEW))) == NEW


def test_parameters_that_dont_fit_are_refused():
    spec = spec_of(stages=2)
    good = dict(Stage(spec, 0).module.named_parameters())
    name = "layers.0.attention.wqkv"
    wrong = {
        rf"{name} is missing, expected float32 \[32, 16\]": {n: t for n, t in good.items() if n != name},
        "extra is not of this stage": good | {"extra": torch.zeros(1)},
        r"float32 \[16, 32\] instead of float32 \[32, 16\]": good | {name: good[name].T},
        r"bfloat16 \[32, 16\] instead of float32": good | {name: good[name].bfloat16()},
        "more faults": dict(Stage(spec, 1).module.named_parameters()),
    }
    for message, bad in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            InferenceStage(spec, 0, bad)
    with pytest.raises(IndexError, match="stages 0 to 1"):
        InferenceStage.initial(spec, 2)


def test_the_most_likely_token_and_of_equals_the_lowest():
    assert choose_token(torch.tensor([0.5, 2.0, -1.0, 2.0, 2.0]), 0, 1, 2) == 1
    assert choose_token(torch.zeros(1000), 0.0, 1, 2) == 0
    logits = torch.tensor([0.0, 3.0, 2.999])
    assert {choose_token(logits, 1e-320, 9, position) for position in range(50)} == {1}


def test_tokens_are_drawn_from_the_softmax():
    logits, temperature, draws = torch.tensor([2.0, -1.0, 0.0, 0.5, -40.0, 1.0]), 1.7, 4000
    expected = (logits.double() / temperature).softmax(0) * draws
    # The 99.9 % quantile of chi-square with 4 degrees of freedom: that of logit -40 is expected never.
    for where in (lambda i: (11, i), lambda i: (i, 11)):  # over positions, over seeds
        counts = torch.zeros(6, dtype=torch.float64)
        for i in range(draws):
            counts[choose_token(logits, temperature, *where(i))] += 1
        assert counts[4] == 0
        kept = expected > 1
        assert ((counts - expected)[kept].square() / expected[kept]).sum() < 18.47


CHOOSE = """
import torch
from commonweight.model.inference import choose_token
logits = torch.randn(300, generator=torch.Generator().manual_seed(3))
print([choose_token(logits, 0.9, 2**60 + 1, position) for position in range(64)])
"""


def test_another_process_draws_the_same_tokens():
    other = subprocess.run([sys.executable, "-c", CHOOSE], capture_output=True, text=True, timeout=120, check=True)
    logits = torch.randn(300, generator=torch.Generator().manual_seed(3))
    drawn = [choose_token(logits, 0.9, 2**60 + 1, position) for position in range(64)]
    assert other.stdout.strip() == str(drawn)
    assert len(set(drawn)) > 20
    assert drawn != [choose_token(logits, 0.9, 2**60 + 2, position) for position in range(64)]


def test_the_draw_is_the_one_that_sequences_were_made_with():
    assert [choose_token(torch.zeros(1000), 1.0, 7, position) for position in range(4)] == [302, 435, 448, 439]


def test_what_cant_be_chosen_from():
    for bad in (math.nan, math.inf, -math.inf):
        for temperature in (0.0, 1.0):
            with pytest.raises(NonFiniteTensor, match="1 of 3 logits for position 4"):
                choose_token(torch.tensor([0.0, bad, 1.0]), temperature, 0, 4)
    for temperature in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature {temperature} must be"):
            choose_token(torch.zeros(3), temperature, 0, 0)
