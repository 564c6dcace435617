"""Model specs small enough to train in milliseconds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from commonweight.model.stage import Stage
from commonweight.rules.answer import NONCE_BYTES, pack_ids, session_id
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.wire.generated import decode_pb2 as pb

ARCHITECTURE = {
    "vocab_size": 61,
    "d_model": 16,
    "boundary_dim": 6,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "d_ff": 24,
    "rope_theta": 10_000,
    "norm_eps": "0.00001",
}
TRAINING = {
    "sequence_length": 12,
    "microbatch_sequences": 2,
    "microbatches_per_round": 3,
    "compute_dtype": "float32",
    "boundary_dtype": "float32",
    "learning_rate": "0.01",
    "final_learning_rate": "0.001",
    "warmup_rounds": 2,
    "decay_rounds": 10,
    "beta1": "0.9",
    "beta2": "0.95",
    "adam_eps": "0.00000001",
    "weight_decay": "0.1",
    "grad_clip": "0",
    "asynchrony": "none",
    "averaging": "float32",
    "averaging_rounds": 1,
    "outer_learning_rate": "0.7",
    "outer_momentum": "0.9",
}
VERIFICATION = {
    "round_rate": "0",
    "microbatch_rate": "0",
    "data_rate": "0",
    "answer_rate": "0",
    "known_bad_rate": "0",
    "tolerance": "0.00001",
}
DATA = {"tokenizer": "bytes", "manifest": "0x" + "00" * 32, "tokens": 10_000}
ECONOMICS = {
    "rounds_per_epoch": 10,
    "max_supply": "1000000",
    "initial_emission": "1000",
    "halving_epochs": 10,
    "designer_bps": 0,
    "data_bps": 0,
}
PARTS = {
    "architecture": ARCHITECTURE,
    "training": TRAINING,
    "verification": VERIFICATION,
    "data": DATA,
    "economics": ECONOMICS,
}


def tiny_spec(*, stages: int = 2, seed: int = 7, **changes: Any) -> ModelSpec:
    """A tiny spec; `changes` are fields of any of its parts."""
    fields: dict[str, Any] = {"format": "commonweight.model/7", "name": "tiny", "seed": seed, "stages": stages}
    for part, defaults in PARTS.items():
        fields[part] = defaults | {name: value for name, value in changes.items() if name in defaults}
    unknown = [name for name in changes if not any(name in part for part in PARTS.values())]
    assert not unknown, f"no such fields: {unknown}"
    return build_spec(fields)


def all_stages(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> list[Stage]:
    """Every stage of the model, at version 0."""
    return [Stage(spec, index, dtype=dtype) for index in range(spec.stages)]


def random_batches(spec: ModelSpec, round_: int = 0) -> list[Tensor]:
    """One round of random microbatches [b, t + 1]."""
    generator = torch.Generator().manual_seed(round_)
    shape = (spec.training.microbatch_sequences, spec.training.sequence_length + 1)
    high = spec.architecture.vocab_size
    return [
        torch.randint(high, shape, generator=generator, dtype=torch.int32)
        for _ in range(spec.training.microbatches_per_round)
    ]


def open_session(
    prompt: Sequence[int], *, nonce: bytes = b"n" * NONCE_BYTES, temperature: float = 0.0, seed: int = 0, **fields: Any
) -> pb.SessionOpen:
    """What opens the session that answers this prompt, with room for no more than that unless `fields` say so."""
    right = {"session": session_id(nonce, pack_ids(prompt), temperature, seed), "nonce": nonce}
    right |= {"prompt_tokens": len(prompt), "capacity": len(prompt), "temperature": temperature, "seed": seed}
    return pb.SessionOpen(**(right | fields))
