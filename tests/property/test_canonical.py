"""One byte string per value, and nothing but our own errors from hostile text."""

import json
import random
import sys
from contextlib import suppress
from typing import Any

import pytest
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import CommonweightError, MalformedMessage
from commonweight.rules.canonical import MAX_DEPTH, MAX_INTEGER, canonical_json, content_hash, parse_json
from tests.property.strategies import json_values

ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def encode(value: Any) -> str:
    """RFC 8785 once more, by hand: shares no code with json.dumps."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(ESCAPES.get(c) or (c if c >= " " else f"\\u{ord(c):04x}") for c in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(encode, value)) + "]"
    return "{" + ",".join(f"{encode(key)}:{encode(value[key])}" for key in sorted(value, key=str.encode)) + "}"


def shuffled(value: Any, rng: random.Random) -> Any:
    """The same value with its keys in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(item, rng) for item in value] if isinstance(value, list) else value


def read(data: bytes | str) -> Any:
    return parse_json(data.encode() if isinstance(data, str) else data, "the text", 1_000_000)


@given(json_values)
def test_equals_an_independent_encoder(value: Any) -> None:
    assert canonical_json(value) == encode(value).encode()
    assert content_hash(value) == keccak(encode(value).encode())


@given(json_values)
def test_survives_the_round_trip(value: Any) -> None:
    again = read(canonical_json(value))
    assert again == value
    assert canonical_json(again) == canonical_json(value)  # == alone takes True for 1


@given(json_values, st.integers(0, 2**32))
def test_neither_order_nor_layout_matters(value: Any, seed: int) -> None:
    other = shuffled(value, random.Random(seed))
    assert canonical_json(other) == canonical_json(value)
    for layout in (json.dumps(other), json.dumps(other, indent=3, ensure_ascii=False)):
        assert content_hash(read(layout)) == content_hash(value)


@given(json_values, json_values)
def test_two_values_have_two_encodings(one: Any, other: Any) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (encode(one) == encode(other))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1.0", "1.0"),
        ("1e3", "1e3"),
        ("[-0.0]", "-0.0"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ('{"a":1,"a":1}', "repeats a key"),
        ('[{"b":{"a":1,"c":2,"\\u0061":3}}]', "repeats a key"),
        ('{"é":1}', "ASCII"),
        (str(MAX_INTEGER + 1), "2^53"),
        (str(-MAX_INTEGER - 1), "2^53"),
        ("9" * 5000, "digits"),
        ('"\\ud800"', "surrogates"),
        ('["\\udc00\\ud800"]', "surrogates"),
        ('{"\\ud800":1}', "ASCII"),
        (b'"\xed\xa0\x80"', "decode"),
        (b"\xff", "decode"),
        ('{"a":1}'.encode("utf-16"), "decode"),
        ("[1]".encode("utf-16-le"), "JSON"),
        (b"\xef\xbb\xbf[1]", "BOM"),
        ("[" * (MAX_DEPTH + 1) + "1" + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ("[" * 100_000, "not canonical"),
        ('{"a":' * 100_000, "not canonical"),
        ("[" * 100_000 + "]" * 100_000, "not canonical"),
        ("", "JSON"),
        ("[1,]", "JSON"),
        ("[1] 2", "JSON"),
        ("'a'", "JSON"),
        ('"\n"', "JSON"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_text_without_a_canonical_form_is_refused(text: bytes | str, why: str) -> None:
    with pytest.raises(MalformedMessage, match="the text is not canonical JSON") as caught:
        read(text)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), b"", {1}, {1: 2}, {"é": 1}, {None: 1}, "\ud800", MAX_INTEGER + 1, 10**5000, object(), [[1.5]]],
    ids=lambda value: type(value).__name__,
)
def test_values_without_a_canonical_form_are_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested deeper"):
        canonical_json(loop)


@pytest.mark.parametrize("opening", ["[", '{"a":', '["]",', '["\\"]",', '{"\\\\":'])
def test_depth_is_refused_before_anything_recurses(opening: str) -> None:
    """With a raised recursion limit, as torch and hypothesis set it, json.loads would overflow the C stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        with pytest.raises(MalformedMessage, match="nested deeper"):
            read(opening * 120_000)
    finally:
        sys.setrecursionlimit(limit)
    assert read('["' + "[" * 1000 + '","\\"' + "{" * 1000 + '"]') == ["[" * 1000, '"' + "{" * 1000]


def test_unclosed_strings_are_refused_in_linear_time() -> None:
    with pytest.raises(MalformedMessage):
        read('"' + '\\"' * 300_000)


def test_the_deepest_and_the_largest_are_read() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert canonical_json(read(deep)) == deep.encode()
    assert read(f"[{MAX_INTEGER},{-MAX_INTEGER}]") == [MAX_INTEGER, -MAX_INTEGER]


def test_long_texts_are_refused_unread_and_messages_stay_short() -> None:
    with pytest.raises(MalformedMessage, match="has 11 bytes; at most 10 are read"):
        parse_json(b"x" * 11, "the text", 10)
    for text in ('{"' + "é" * 100_000 + '":1}', "1." + "0" * 100_000, '"' + "a" * 100_000):
        with pytest.raises(MalformedMessage) as caught:
            read(text)
        assert len(str(caught.value)) < 400


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0d8-19.eEaInfNt é\n', max_size=60).map(str.encode))
def test_hostile_bytes_bring_out_only_our_error(data: bytes) -> None:
    try:
        value = read(data)
    except CommonweightError:
        return
    assert read(canonical_json(value)) == value


@given(json_values, st.data())
def test_damaged_text_brings_out_only_our_error(value: Any, data: st.DataObject) -> None:
    text = bytearray(canonical_json(value))
    position = data.draw(st.integers(0, len(text) - 1))
    text[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with suppress(CommonweightError):
        canonical_json(read(bytes(text)))
