"""The model that a devnet trains: small enough for two cores, shaped like a big one."""

from commonweight.rules.spec import ModelSpec, build_spec

NAME = "devnet"
"""Of the model, as a gateway lists it."""
SHARE = 10**18
"""Base units of one share."""
ROUNDS_PER_EPOCH = 40
"""Short enough to see epochs end; the fewer there are, the more of each round must be audited."""


def devnet_spec(
    stages: int,
    seed: int,
    manifest_hash: str,
    tokens: int,
    *,
    rounds_per_epoch: int = ROUNDS_PER_EPOCH,
    asynchrony: str = "none",
    averaging: str = "float32",
    averaging_rounds: int = 1,
) -> ModelSpec:
    """1.2 M parameters over bytes, 8,192 tokens a round. Raises SpecError where there are more stages than layers, or
    for another `asynchrony`, `averaging` or `averaging_rounds` than a spec's.

    `manifest_hash` (0x…) and `tokens` are those of the packed corpus. A boundary carries a quarter of the numbers
    that a dense model's would.
    """
    return build_spec(
        {
            "format": "commonweight.model/7",
            "name": NAME,
            "seed": seed,
            "stages": stages,
            "architecture": {
                "vocab_size": 256,
                "d_model": 128,
                "boundary_dim": 32,
                "n_layers": 8,
                "n_heads": 4,
                "n_kv_heads": 2,
                "d_ff": 352,
                "rope_theta": 10_000,
                "norm_eps": "0.00001",
            },
            "training": {
                "sequence_length": 256,
                "microbatch_sequences": 2,
                "microbatches_per_round": 16,
                "compute_dtype": "float32",
                "boundary_dtype": "float32",
                "learning_rate": "0.006",
                "final_learning_rate": "0.0006",
                "warmup_rounds": 10,
                "decay_rounds": 80,
                "beta1": "0.9",
                "beta2": "0.95",
                "adam_eps": "0.00000001",
                "weight_decay": "0.1",
                "grad_clip": "1",
                "asynchrony": asynchrony,
                "averaging": averaging,
                "averaging_rounds": averaging_rounds,
                "outer_learning_rate": "0.7",
                "outer_momentum": "0.9",
            },
            "verification": {
                "round_rate": "0.001",
                "microbatch_rate": "0.23",
                "data_rate": "0.015",
                "answer_rate": "0.5",
                "known_bad_rate": "0.1",
                "tolerance": "0.00001",
            },
            "data": {"tokenizer": "bytes", "manifest": manifest_hash, "tokens": tokens},
            "economics": {
                "rounds_per_epoch": rounds_per_epoch,
                "max_supply": str(10_000_000 * SHARE),
                "initial_emission": str(1_000_000 * SHARE),
                "halving_epochs": 4,
                "designer_bps": 1_000,
                "data_bps": 1_000,
            },
        }
    )
