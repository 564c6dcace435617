"""Solidity's names and Python's: the same in camelCase and in snake_case, but for those listed here."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")

_FIELDS = {
    "specURI": "spec_uri",
    "accAt": "accumulator",
    "from": "from_",
    "window": "window_s",
    "arbitration": "arbitration_s",
    "streamPeriod": "stream_period_s",
    "seatCooldown": "seat_cooldown_s",
}
_MEMBERS = {field: member for member, field in _FIELDS.items()}


def to_field(member: str) -> str:
    """The field for a member of a Solidity struct, or for an argument of an event."""
    return _FIELDS.get(member) or re.sub(r"(?=[A-Z])", "_", member).lower()


def to_member(field: str) -> str:
    """The same the other way round."""
    first, *others = field.split("_")
    return _MEMBERS.get(field) or first + "".join(word.title() for word in others)


def to_record(kind: type[T], members: Mapping[str, Any]) -> T:
    """A record of the dataclass `kind`, which has a field for each of the members as web3 decoded them."""
    values = {to_field(name): bytes(value) if isinstance(value, bytes) else value for name, value in members.items()}
    return kind(**values)


def to_members(record: Any) -> dict[str, Any]:
    """The fields of a dataclass by their members' names, for web3 to encode as a struct."""
    return {to_member(field.name): getattr(record, field.name) for field in fields(record)}
