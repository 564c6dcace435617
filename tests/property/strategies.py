"""What the property tests draw from: JSON values, specs."""

from typing import Any

from hypothesis import strategies as st

from commonweight.rules.load import Load
from commonweight.rules.receipt import Domain
from commonweight.rules.spec import ModelSpec, build_spec

ASCII = st.characters(max_codepoint=127)
UNICODE = st.characters(exclude_categories=["Cs"])

json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(UNICODE, max_size=20)
    | st.text(st.characters(max_codepoint=0xFF), max_size=20)
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(ASCII, max_size=8), inner, max_size=5),
    max_leaves=20,
)
addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
hashes = st.binary(min_size=32, max_size=32)
domains = st.builds(Domain, st.integers(0, 2**256 - 1), addresses)
rates = st.sampled_from(["0", "0.1", "0.5", "1"])


@st.composite
def spec_fields(draw: st.DrawFn, max_layers: int = 12) -> dict[str, Any]:
    """The fields of a valid spec, small enough for brute force."""
    n_kv_heads = draw(st.integers(1, 3))
    n_heads = n_kv_heads * draw(st.integers(1, 3))
    d_model = n_heads * 2 * draw(st.integers(1, 8))
    n_layers = draw(st.integers(1, max_layers))
    sequence_length = draw(st.integers(1, 16))
    halving_epochs = draw(st.integers(1, 5))
    initial_emission = draw(st.integers(0, 10**24))
    designer_bps = draw(st.integers(0, 10_000))
    return {
        "format": "commonweight.model/7",
        "name": draw(st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True)),
        "seed": draw(st.integers(0, 2**53 - 1)),
        "stages": draw(st.integers(1, n_layers)),
        "architecture": {
            "vocab_size": draw(st.sampled_from([2, 50, 257, 4096, 2**20])),
            "d_model": d_model,
            "boundary_dim": draw(st.integers(1, d_model)),
            "n_layers": n_layers,
            "n_heads": n_heads,
            "n_kv_heads": n_kv_heads,
            "d_ff": draw(st.integers(1, 128)),
            "rope_theta": 10_000,
            "norm_eps": "0.00001",
        },
        "training": {
            "sequence_length": sequence_length,
            "microbatch_sequences": draw(st.integers(1, 4)),
            "microbatches_per_round": draw(st.integers(1, 4)),
            "compute_dtype": "float32",
            "boundary_dtype": "bfloat16",
            "learning_rate": "0.003",
            "final_learning_rate": "0.0003",
            "warmup_rounds": 10,
            "decay_rounds": 100,
            "beta1": "0.9",
            "beta2": "0.999",
            "adam_eps": "0.00000001",
            "weight_decay": "0.1",
            "grad_clip": "1",
            "asynchrony": draw(st.sampled_from(["none", "delayed", "look_ahead"])),
            "averaging": draw(st.sampled_from(["float32", "int8"])),
            "averaging_rounds": 1,
            "outer_learning_rate": "0.7",
            "outer_momentum": "0.9",
        },
        "verification": {
            "round_rate": draw(rates),
            "microbatch_rate": draw(rates),
            "data_rate": draw(rates),
            "answer_rate": draw(rates),
            "known_bad_rate": draw(rates),
            "tolerance": "0.00001",
        },
        "data": {
            "tokenizer": "bytes",
            "manifest": "0x" + "ab" * 32,
            "tokens": draw(st.integers(sequence_length + 1, 300)),
        },
        "economics": {
            "rounds_per_epoch": draw(st.integers(1, 3)),
            "max_supply": str(2 * initial_emission * halving_epochs + draw(st.integers(0, 100))),
            "initial_emission": str(initial_emission),
            "halving_epochs": halving_epochs,
            "designer_bps": designer_bps,
            "data_bps": draw(st.integers(0, 10_000 - designer_bps)),
        },
    }


@st.composite
def divisions(draw: st.DrawFn, microbatches: int, most: int = 3) -> tuple[Load, ...]:
    """The loads of up to so many replicas, none of them empty, that divide a round."""
    computes = [draw(st.integers(0, most - 1)) for _ in range(microbatches)]
    return tuple(tuple(j for j in range(microbatches) if computes[j] == each) for each in sorted(set(computes)))


def specs(max_layers: int = 12) -> st.SearchStrategy[ModelSpec]:
    """Valid specs."""
    return spec_fields(max_layers).map(build_spec)


def flipped(value: bytes, bit: int) -> bytes:
    """32 bytes with one of their bits turned."""
    return (int.from_bytes(value, "big") ^ (1 << bit)).to_bytes(32, "big")
