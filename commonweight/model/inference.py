"""Generation: stages that only run forwards, one sequence at a time, with keys and values kept between the calls.

A sequence starts with a new cache on every stage. Its tokens are fed in any chunks, first the prompt and then each
chosen token; a code goes from stage to stage, and the last one answers with the logits of what comes next.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256
from typing import Self

import numpy as np
import torch
from torch import Tensor

from commonweight.errors import CheckpointError, ContextExceeded, MalformedMessage, NonFiniteTensor
from commonweight.model.decoder import ALL, LAST, Decoder
from commonweight.model.initial import initial_tensor
from commonweight.model.stage import describe
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_layers


def cache_shape(spec: ModelSpec, stage_index: int, capacity: int) -> tuple[int, ...]:
    """[layers, 2, 1, h_kv, capacity, head_dim]: the keys and the values of one sequence, in the compute dtype."""
    a = spec.architecture
    return len(stage_layers(spec)[stage_index]), 2, 1, a.n_kv_heads, capacity, a.head_dim


def cache_bytes(spec: ModelSpec, stage_index: int, capacity: int) -> int:
    """What a `KVCache` of that stage allocates for `capacity` tokens."""
    return math.prod(cache_shape(spec, stage_index, capacity)) * _compute_dtype(spec).itemsize


class KVCache:
    """The keys and values of one sequence on one stage: room for `capacity` tokens, of which `length` are held.

    All of it is allocated at once. Raises ValueError for a capacity below 1, ContextExceeded for one over the
    model's sequence_length.
    """

    def __init__(self, spec: ModelSpec, stage_index: int, capacity: int, device: str | torch.device = "cpu") -> None:
        if capacity < 1:
            raise ValueError(f"a cache for {capacity} tokens holds nothing: at least 1 is needed")
        if capacity > (limit := spec.training.sequence_length):
            raise ContextExceeded(
                f"A cache for {capacity:,} tokens was asked for; model {spec.name} was trained on at most {limit:,}. "
                "Shorten the prompt, or ask for fewer tokens."
            )
        self.stage_index, self.capacity, self.length = stage_index, capacity, 0
        kept = torch.empty(cache_shape(spec, stage_index, capacity), dtype=_compute_dtype(spec), device=device)
        self.layers = [(keys, values) for keys, values in kept.unbind()]
        """Views by layer, as `Decoder` takes them."""


class InferenceStage:
    """Stage `index` of the model with given weights, for generation only: no gradients, no optimizer.

    `parameters` have the names and shapes of `Decoder.named_parameters` and are float32; they are copied. The
    arithmetic is that of `Stage.forward`, up to the order of sums. Raises CheckpointError where they don't fit, and
    IndexError where the spec has no such stage.
    """

    def __init__(
        self, spec: ModelSpec, index: int, parameters: Mapping[str, Tensor], device: str | torch.device = "cpu"
    ) -> None:
        module = _decoder(spec, index)
        _check_parameters(spec, index, dict(module.named_parameters()), parameters)
        self.spec, self.index, self.device = spec, index, torch.device(device)
        self.is_first, self.is_last = index == 0, index == spec.stages - 1
        self.boundary_dtype: torch.dtype = getattr(torch, spec.training.boundary_dtype)
        self._compute_dtype = _compute_dtype(spec)

        self.module = module.to(self.device, torch.float32).requires_grad_(False)
        prepared = {name: self._prepare(name, tensor) for name, tensor in parameters.items()}
        module.load_state_dict(prepared, assign=True)
        if module.subspace is not None:
            for name, buffer in module.subspace.named_buffers():
                drawn = initial_tensor(spec.architecture, spec.seed, f"subspace.{name}", tuple(buffer.shape))
                setattr(module.subspace, name, self._prepare(name, torch.from_numpy(drawn).to(torch.float32)))

    @classmethod
    def initial(cls, spec: ModelSpec, index: int, device: str | torch.device = "cpu") -> Self:
        """The stage at version 0, which follows from the spec alone."""
        with torch.device("meta"):
            shapes = {name: tuple(p.shape) for name, p in _decoder(spec, index).named_parameters()}
        drawn = {name: initial_tensor(spec.architecture, spec.seed, name, shape) for name, shape in shapes.items()}
        return cls(spec, index, {name: torch.from_numpy(x).to(torch.float32) for name, x in drawn.items()}, device)

    def new_cache(self, capacity: int) -> KVCache:
        """For one sequence of up to `capacity` tokens; raises as `KVCache` does."""
        return KVCache(self.spec, self.index, capacity, self.device)

    def forward(self, ids_1t: Tensor, code_1tk: Tensor | None, cache: KVCache) -> Tensor:
        """Run the next t tokens of the sequence in `cache` through the stage, and add them to it.

        `ids_1t` are int64. `code_1tk`, in the boundary dtype, is the output of the stage before for the same tokens,
        None on the first stage. Returns the code for the next stage [1, t, k], or from the last stage the float32
        logits [v] of what follows the last of these tokens. Raises MalformedMessage for wrong shapes, a wrong dtype
        or a token outside the vocabulary, for both may come from a peer, and ContextExceeded where the cache has too
        little room; the cache is as it was then.
        """
        result = self._run(ids_1t, code_1tk, cache, LAST)
        return result[0] if self.is_last else result

    def forward_all(self, ids_1t: Tensor, code_1tk: Tensor | None, cache: KVCache) -> Tensor:
        """As `forward`, but from the last stage the logits [t, v] of what follows each of these tokens."""
        return self._run(ids_1t, code_1tk, cache, ALL)

    @torch.inference_mode()
    def _run(self, ids_1t: Tensor, code_1tk: Tensor | None, cache: KVCache, rows: slice) -> Tensor:
        self._check_input(ids_1t, code_1tk)
        assert cache.stage_index == self.index, "each stage has a cache of its own"
        start, end = cache.length, cache.length + ids_1t.shape[1]
        if end > cache.capacity:
            raise ContextExceeded(
                f"The sequence has {start:,} tokens and {end - start:,} more were given; there is room for "
                f"{cache.capacity:,}, and model {self.spec.name} was trained on at most "
                f"{self.spec.training.sequence_length:,}. Shorten the prompt, or ask for fewer tokens."
            )
        code = None if code_1tk is None else code_1tk.to(self.device, torch.float32)
        with self._precision():
            result: Tensor = self.module(ids_1t.to(self.device), code, cache.layers, start, rows)
        cache.length = end
        if self.is_last:
            return result[0].to(torch.float32)
        return result.to(self.boundary_dtype).contiguous()

    def _precision(self) -> AbstractContextManager[object]:
        if self._compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._compute_dtype)

    def _prepare(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of a parameter or frozen tensor as it is read fastest.

        Matrices get the dtype that autocast would cast them to at every step, and their longer axis contiguous:
        the same shape and numbers, but with one token at a time MKL's float32 product takes half the time.
        """
        if tensor.ndim == 1 or name == "embedding.E":  # what autocast leaves alone
            return tensor.detach().to(self.device, copy=True)
        matrix = tensor.detach().to(self.device, self._compute_dtype, copy=True)
        is_table = name == "F"  # read by rows
        return matrix if is_table or matrix.shape[0] <= matrix.shape[1] else matrix.T.contiguous().T

    def _check_input(self, ids: Tensor, code: Tensor | None) -> None:
        vocab, k = self.spec.architecture.vocab_size, self.spec.architecture.boundary_dim
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] < 1 or ids.dtype != torch.int64:
            raise MalformedMessage(f"Tokens are {describe(ids)}; expected int64 [1, t], t at least 1.")
        lowest, highest = torch.aminmax(ids)
        if lowest < 0 or highest >= vocab:
            raise MalformedMessage(f"Tokens {int(lowest)} to {int(highest)} aren't all in the vocabulary of {vocab}.")
        if self.is_first:
            assert code is None, "the first stage starts from the embedding"
            return
        shape = (1, ids.shape[1], k)
        if code is None or code.dtype != self.boundary_dtype or tuple(code.shape) != shape:
            found = "missing" if code is None else describe(code)
            expected = describe(torch.empty(shape, dtype=self.boundary_dtype, device="meta"))
            raise MalformedMessage(f"The code for stage {self.index} is {found}; expected {expected}.")


def choose_token(logits_v: Tensor, temperature: float, seed: int, position: int) -> int:
    """The token at `position` of a sequence, given the logits [v] of what follows the one before: a pure function.

    Temperature 0 takes the most likely token, of equals the lowest; any other draws from softmax(logits /
    temperature), in float64, with a uniform number hashed from `seed` and `position`. So processes agree on the token
    wherever their logits are equal, short of a draw within the last bit of exp. Raises NonFiniteTensor for
    logits with NaN or infinity, and ValueError for a temperature that is negative or not finite.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature {temperature} must be a finite number of at least 0")
    assert logits_v.ndim == 1, "of one position"
    logits = logits_v.detach().to("cpu", torch.float64).numpy()
    finite = np.isfinite(logits)
    if not finite.all():
        raise NonFiniteTensor(
            f"{int((~finite).sum())} of {len(logits)} logits for position {position} are NaN or infinite. Nothing can "
            "be chosen; the model diverged in training: take an earlier version of it."
        )
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):  # of -inf / a tiny temperature: exp makes it 0
        summed = np.exp((logits - logits.max()) / temperature).cumsum()
    return int(summed.searchsorted(token_draw(seed, position) * summed[-1], side="right"))


def token_draw(seed: int, position: int) -> float:
    """The uniform number in [0, 1) that chooses the token at `position`, where the temperature isn't 0."""
    digest = sha256(f"commonweight.token/1/{seed}/{position}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def generate(
    stages: Sequence[InferenceStage],
    prompt_ids: Sequence[int],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """The `max_tokens` tokens that follow the prompt, through all stages of a model in this process.

    The reference for the same stages over the wire: the same order, and the same casts at the boundaries. Raises,
    before anything is computed, ValueError for an empty prompt or max_tokens below 1, and ContextExceeded where both
    together don't fit in the model's context; the last token isn't fed and needs no room.
    """
    assert [stage.index for stage in stages] == list(range(stages[0].spec.stages)), "all stages, in order"
    if not prompt_ids or max_tokens < 1:
        raise ValueError(f"{max_tokens} tokens after a prompt of {len(prompt_ids)}: both must be at least 1")
    caches = [stage.new_cache(len(prompt_ids) + max_tokens - 1) for stage in stages]

    def tokens() -> Iterator[int]:
        fed, first = torch.tensor([list(prompt_ids)], dtype=torch.int64), len(prompt_ids)
        for position in range(first, first + max_tokens):
            flowing: Tensor | None = None
            for stage, cache in zip(stages, caches, strict=True):
                flowing = stage.forward(fed, flowing, cache)
            assert flowing is not None
            token = choose_token(flowing, temperature, seed, position)
            yield token
            fed = torch.tensor([[token]], dtype=torch.int64)

    return tokens()


def _compute_dtype(spec: ModelSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.training.compute_dtype)
    return dtype


def _decoder(spec: ModelSpec, index: int) -> Decoder:
    """The stage's layers, without values."""
    if not 0 <= index < spec.stages:
        raise IndexError(f"stage {index} doesn't exist: the model has stages 0 to {spec.stages - 1}")
    length, last = spec.training.sequence_length, index == spec.stages - 1
    return Decoder(spec.architecture, stage_layers(spec)[index], length, first=index == 0, last=last)


def _check_parameters(spec: ModelSpec, index: int, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    faults = [f"{name} is missing, expected {describe(expected[name])}" for name in expected if name not in found]
    faults += [f"{name} is not of this stage" for name in found if name not in expected]
    for name in expected.keys() & found.keys():
        if describe(found[name]) != describe(expected[name]):
            faults.append(f"{name} is {describe(found[name])} instead of {describe(expected[name])}")
    if faults:
        more = f" and {len(faults) - 3} more faults" if len(faults) > 3 else ""
        raise CheckpointError(
            f"The parameters don't fit stage {index} of {spec.name}: {'; '.join(sorted(faults)[:3])}{more}. "
            "Take them from a provider of the same model and stage."
        )
