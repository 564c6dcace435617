"""A spec is one hash; what isn't a spec is refused with a SpecError that says where."""

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import CommonweightError, SpecError
from commonweight.rules.canonical import canonical_json, content_hash
from commonweight.rules.spec import MAX_SPEC_BYTES, ModelSpec, build_spec, parse_spec
from tests.property.strategies import json_values, spec_fields


def paths(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The way to every part of nested objects."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))


def parent_of(fields: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path[:-1]:
        fields = fields[key]
    return fields


def valid_fields() -> dict[str, Any]:
    return copy.deepcopy(FIELDS)


def with_field(path: str, value: Any) -> dict[str, Any]:
    fields, keys = valid_fields(), tuple(path.split("."))
    parent_of(fields, keys)[keys[-1]] = value
    return fields


FIELDS: dict[str, Any] = {
    "format": "commonweight.model/7",
    "name": "example",
    "seed": 0,
    "stages": 2,
    "architecture": {
        "vocab_size": 257,
        "d_model": 24,
        "boundary_dim": 6,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 48,
        "rope_theta": 10_000,
        "norm_eps": "0.00001",
    },
    "training": {
        "sequence_length": 8,
        "microbatch_sequences": 2,
        "microbatches_per_round": 2,
        "compute_dtype": "float32",
        "boundary_dtype": "float32",
        "learning_rate": "0.003",
        "final_learning_rate": "0",
        "warmup_rounds": 0,
        "decay_rounds": 0,
        "beta1": "0.9",
        "beta2": "0.999",
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
        "round_rate": "0.02",
        "microbatch_rate": "0",
        "data_rate": "1",
        "answer_rate": "0.1",
        "known_bad_rate": "0.1",
        "tolerance": "0.00001",
    },
    "data": {"tokenizer": "bytes", "manifest": "0x" + "00" * 32, "tokens": 9},
    "economics": {
        "rounds_per_epoch": 2,
        "max_supply": "4000",
        "initial_emission": "1000",
        "halving_epochs": 2,
        "designer_bps": 500,
        "data_bps": 9500,
    },
}


@given(spec_fields())
def test_survives_the_round_trip(fields: dict[str, Any]) -> None:
    spec = build_spec(fields)
    assert spec.model_dump() == fields
    assert spec.spec_hash == content_hash(fields)
    assert parse_spec(canonical_json(fields)) == spec
    assert parse_spec(json.dumps(fields, indent=2).encode()).spec_hash == spec.spec_hash


@given(spec_fields(), st.data())
def test_every_field_is_needed_and_no_other_is_taken(fields: dict[str, Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(paths(fields))))
    without = copy.deepcopy(fields)
    del parent_of(without, path)[path[-1]]
    with pytest.raises(SpecError, match=path[-1]):
        build_spec(without)
    more = copy.deepcopy(fields)
    parent_of(more, path)["surprise"] = 1
    with pytest.raises(SpecError, match="surprise"):
        build_spec(more)


@given(spec_fields(), json_values, st.data())
def test_another_value_is_another_hash_or_a_spec_error(fields: dict[str, Any], value: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(paths(fields))))
    other = copy.deepcopy(fields)
    parent_of(other, path)[path[-1]] = value
    try:
        spec = build_spec(other)
    except SpecError:
        return
    # True is not 1: both hash differently, and where the schema takes one it refuses the other.
    assert (spec.spec_hash == build_spec(fields).spec_hash) == (canonical_json(other) == canonical_json(fields))


@given(st.binary(max_size=100) | json_values.map(canonical_json))
def test_hostile_texts_bring_out_only_our_errors(data: bytes) -> None:
    with pytest.raises(CommonweightError):
        parse_spec(data)


@given(spec_fields(), st.data())
def test_damaged_texts_bring_out_only_our_errors(fields: dict[str, Any], data: st.DataObject) -> None:
    text = bytearray(canonical_json(fields))
    position = data.draw(st.integers(0, len(text) - 1))
    text[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with suppress(CommonweightError):
        assert isinstance(parse_spec(bytes(text)), ModelSpec)


@pytest.mark.parametrize("value", [None, [], "", 0, 1.5, b"", {1: 2}, object(), [1, {}]])
def test_what_is_no_object_is_a_spec_error(value: Any) -> None:
    with pytest.raises(SpecError):
        build_spec(value)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("architecture.d_model", 26, "even integer"),
        ("architecture.d_model", 12, "even integer"),
        ("architecture.n_kv_heads", 3, "multiple of n_kv_heads"),
        ("architecture.boundary_dim", 25, "over d_model"),
        ("stages", 5, "5 stages need as many layers; there are 4"),
        ("stages", True, "integer"),
        ("stages", "2", "integer"),
        ("stages", 2.0, "integer"),
        ("seed", -1, "seed"),
        ("name", "Example", "name"),
        ("name", "a\n", "name"),
        ("data.tokens", 8, "needs 9"),
        ("data.manifest", "0x" + "AB" * 32, "manifest"),
        ("data.manifest", "0x" + "00" * 32 + "\n", "manifest"),
        ("economics.max_supply", "3999", "over max_supply"),
        ("economics.max_supply", str(2**96 + 1), "2^96"),
        ("economics.max_supply", "9" * 5000, "40"),
        ("economics.max_supply", "٣٣٣٣", "plain decimal"),
        ("economics.initial_emission", "01", "plain decimal"),
        ("economics.initial_emission", "", "plain decimal"),
        ("economics.initial_emission", "-1", "plain decimal"),
        ("economics.designer_bps", 501, "over 10,000"),
        ("training.learning_rate", 0.003, "string"),
        ("training.learning_rate", "3e-3", "plain decimal"),
        ("training.learning_rate", "0.0030", "plain decimal"),
        ("training.learning_rate", ".003", "plain decimal"),
        ("training.learning_rate", "00.003", "plain decimal"),
        ("training.learning_rate", "-0.003", "plain decimal"),
        ("training.learning_rate", "+1", "plain decimal"),
        ("training.learning_rate", "1_0", "plain decimal"),
        ("training.learning_rate", "1.", "plain decimal"),
        ("training.learning_rate", "1\n", "plain decimal"),
        ("training.learning_rate", "٣", "plain decimal"),
        ("training.learning_rate", "NaN", "plain decimal"),
        ("training.learning_rate", "Infinity", "plain decimal"),
        ("training.learning_rate", "1e999999999", "plain decimal"),  # as Decimal: a gigabyte, or Overflow
        ("training.learning_rate", "1E-9999999999999999999", "plain decimal"),
        ("training.learning_rate", "0." + "0" * 50 + "1", "40"),
        ("training.asynchrony", "late", "'none', 'delayed' or 'look_ahead'"),
        ("training.asynchrony", None, "'none', 'delayed' or 'look_ahead'"),
        ("training.beta1", "1", "below 1"),
        ("training.beta2", "1.5", "below 1"),
        ("verification.round_rate", "1.1", "at most 1"),
        ("verification.microbatch_rate", "2", "at most 1"),
        ("verification.data_rate", "-1", "plain decimal"),
        ("verification.data_rate", 1, "string"),
    ],
)
def test_an_inconsistent_spec_is_refused_by_name(path: str, value: Any, why: str) -> None:
    build_spec(FIELDS)
    with pytest.raises(SpecError) as caught:
        build_spec(with_field(path, value))
    assert why in str(caught.value)


@pytest.mark.parametrize("value", ["0", "1", "10", "0.1", "123.456", "0." + "0" * 37 + "1"])
def test_plain_decimals_are_taken(value: str) -> None:
    assert build_spec(with_field("training.learning_rate", value)).training.learning_rate == value


@pytest.mark.parametrize("name", ["round_rate", "microbatch_rate", "data_rate", "answer_rate", "known_bad_rate"])
@pytest.mark.parametrize("value", ["0", "0.5", "1"])
def test_rates_from_never_to_always_are_taken(name: str, value: str) -> None:
    assert getattr(build_spec(with_field(f"verification.{name}", value)).verification, name) == value


def test_a_spec_over_its_limit_is_refused_and_many_faults_make_a_short_message() -> None:
    with pytest.raises(CommonweightError, match=f"at most {MAX_SPEC_BYTES}"):
        parse_spec(b" " * (MAX_SPEC_BYTES + 1))
    with pytest.raises(SpecError) as caught:
        build_spec({f"{i:04}" + "x" * 1000: "y" * 1000 for i in range(1000)})
    assert len(str(caught.value)) < 10_000


def test_a_spec_cant_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        build_spec(FIELDS).stages = 3  # type: ignore[misc]
