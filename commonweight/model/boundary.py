"""What crosses the boundary between two stages: dtype and shape of each tensor of a microbatch."""

import torch

from commonweight.model.data import token_id_dtype
from commonweight.rules.spec import ModelSpec


def tokens_plan(spec: ModelSpec) -> tuple[torch.dtype, tuple[int, ...]]:
    """Of the token ids: [b, t + 1]."""
    training = spec.training
    return token_id_dtype(spec), (training.microbatch_sequences, training.sequence_length + 1)


def boundary_plan(spec: ModelSpec) -> tuple[torch.dtype, tuple[int, ...]]:
    """Of the code that goes down, and of its gradient that comes back: [b, t, k]."""
    training = spec.training
    shape = (training.microbatch_sequences, training.sequence_length, spec.architecture.boundary_dim)
    return getattr(torch, training.boundary_dtype), shape
