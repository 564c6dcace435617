"""One byte string per value, and one hash per byte string.

Canonical JSON is RFC 8785 restricted to what needs no number formatting: objects with ASCII keys, arrays,
strings, booleans, null and integers below 2^53. Larger integers and fractions travel as decimal strings.
"""

import json
import re
from typing import Any

from eth_hash.auto import keccak

from commonweight.errors import MalformedMessage

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 64

_BRACKET_OR_STRING = re.compile(r'[\[\]{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


def canonical_json(value: Any) -> bytes:
    """The one UTF-8 encoding of `value`. Raises ValueError where the value has none."""
    _check(value, "$", 0)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_json(data: bytes, what: str, max_bytes: int) -> Any:
    """The value of a JSON text of at most `max_bytes`; duplicate keys, NaN and floats are refused.

    Raises MalformedMessage that names `what` was being read.
    """
    if len(data) > max_bytes:
        raise MalformedMessage(f"{what} has {len(data)} bytes; at most {max_bytes} are read.")
    try:
        # Decoded here, because json.loads would guess at other encodings and let encoded surrogates pass.
        text = data.decode()
        _refuse_depth(text)
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse)
        _check(value, "$", 0)
    except ValueError as error:
        raise MalformedMessage(f"{what} is not canonical JSON: {error!s:.200}.") from error
    return value


def content_hash(value: Any) -> bytes:
    """keccak256 of the canonical JSON: 32 bytes."""
    return keccak(canonical_json(value))


def _check(value: Any, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{path:.40} is nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        value.encode()  # a lone surrogate has no UTF-8 encoding: UnicodeEncodeError is a ValueError
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"{path} = {value} is over 2^53 - 1; write it as a decimal string")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise ValueError(f"{path} has the key {key!r}; keys are ASCII strings")
            _check(item, f"{path}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
    else:
        raise ValueError(f"{path} is a {type(value).__name__}, which has no canonical form")


def _refuse_depth(text: str) -> None:
    """Before json.loads, which recurses in C: past a raised recursion limit it would end the process."""
    depth = 0
    for token in _BRACKET_OR_STRING.finditer(text):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        if depth > MAX_DEPTH + 1:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _refuse(text: str) -> Any:
    raise ValueError(f"the number {text} has no canonical form; write it as a decimal string")
