"""What is simulated: the swarm, its links, the model, and how the coordinator leads it."""

import math
from dataclasses import dataclass, fields

from commonweight.errors import ConfigError
from commonweight.rules.spec import ModelSpec, build_spec

LAYERS_PER_STAGE = 4


@dataclass(frozen=True)
class SimOptions:
    """Raises ConfigError where an option makes no sense."""

    providers: int = 10_000
    """At the start, and on average. Each runs one node."""
    stages: int = 8
    hours: float = 3.0
    seed: int = 0
    churn_per_hour: float = 0.2
    """How many leave in an hour, without a word, as a part of all; as many come."""
    round_s: float = 400.0
    """What a round's microbatches would take the providers of the start, if nothing were lost."""
    gradient_bytes: float = 0.1
    """Per parameter, as replicas send it to be averaged. bfloat16 would be 2; PowerSGD of rank 64 (arXiv 1905.13727)
    needs a twentieth of it for matrices of these sizes.
    """
    shadow: bool = True
    """Whether newcomers replay microbatches of the round in which they arrive, and so are measured when the next is
    planned; otherwise `assign` gives them one microbatch of it.
    """
    redivide: bool = True
    """Whether what isn't begun late in a round is divided once more, by the pace of that very round."""
    rebalance: bool = True
    """Whether replicas move from strong stages to weak ones."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, bool) or (0 <= value < math.inf)):
                raise ConfigError(f"{field.name} is {value}; it must be a number that isn't negative.")
        if self.stages < 1 or self.providers < self.stages:
            raise ConfigError(f"{self.providers} providers can't hold {self.stages} stages: every stage needs one.")
        if not (self.hours and self.round_s and self.gradient_bytes):
            raise ConfigError("hours, round_s and gradient_bytes must be more than 0.")


def simulated_spec(stages: int) -> ModelSpec:
    """30 M parameters a layer, four layers a stage: 1.0 B in eight stages. Sequences of 2,048, one in a microbatch.

    How many microbatches a round has isn't taken from it: `SimOptions.round_s` says.
    """
    return build_spec(
        {
            "format": "commonweight.model/7",
            "name": "simulated",
            "seed": 0,
            "stages": stages,
            "architecture": {
                "vocab_size": 32_768,
                "d_model": 2048,
                "boundary_dim": 32,
                "n_layers": LAYERS_PER_STAGE * stages,
                "n_heads": 16,
                "n_kv_heads": 4,
                "d_ff": 5632,
                "rope_theta": 10_000,
                "norm_eps": "0.00001",
            },
            "training": {
                "sequence_length": 2048,
                "microbatch_sequences": 1,
                "microbatches_per_round": 4096,
                "compute_dtype": "bfloat16",
                "boundary_dtype": "bfloat16",
                "learning_rate": "0.0003",
                "final_learning_rate": "0.00003",
                "warmup_rounds": 100,
                "decay_rounds": 10_000,
                "beta1": "0.9",
                "beta2": "0.95",
                "adam_eps": "0.00000001",
                "weight_decay": "0.1",
                "grad_clip": "1",
                "asynchrony": "none",
                "averaging": "float32",
                "averaging_rounds": 1,
                "outer_learning_rate": "0.7",
                "outer_momentum": "0.9",
            },
            "verification": {
                "round_rate": "0.001",
                "microbatch_rate": "0.1",
                "data_rate": "0.001",
                "answer_rate": "0.1",
                "known_bad_rate": "0.1",
                "tolerance": "0.00001",
            },
            "data": {"tokenizer": "bytes", "manifest": "0x" + "00" * 32, "tokens": 2**40},
            "economics": {
                "rounds_per_epoch": 5,
                "max_supply": str(10**27),
                "initial_emission": str(10**24),
                "halving_epochs": 200,
                "designer_bps": 500,
                "data_bps": 500,
            },
        }
    )
