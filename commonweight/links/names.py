"""Which shape a path has, and whether it is cut: the last rule that speaks of it decides."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

ANY = "*"
"""In a rule: every name, those that nobody has told yet as well."""
UNKNOWN = "?"
"""The name of who opens a connection and isn't known."""

V = TypeVar("V")


@dataclass(frozen=True)
class ByPath(Generic[V]):
    """Values by path, for paths that needn't exist yet."""

    otherwise: V
    """Where no rule speaks of a path."""
    rules: tuple[tuple[str, str, V], ...] = ()
    """From, to, value; the later counts."""

    def with_rule(self, source: str, target: str, value: V) -> "ByPath[V]":
        """And this one, which counts before all others. Those of which it leaves nothing are forgotten."""
        kept = (rule for rule in self.rules if not (covers(source, rule[0]) and covers(target, rule[1])))
        return ByPath(self.otherwise, (*kept, (source, target, value)))

    def of(self, source: str, target: str) -> V:
        """The value for the path from `source` to `target`."""
        for rule_source, rule_target, value in reversed(self.rules):
            if covers(rule_source, source) and covers(rule_target, target):
                return value
        return self.otherwise


def crossing(groups: Iterable[Iterable[str]]) -> list[tuple[str, str]]:
    """The paths, as (from, to), between names of different groups: those that a partition into them cuts."""
    parts = [list(group) for group in groups]
    return [
        (source, target)
        for one in range(len(parts))
        for other in range(len(parts))
        if one != other
        for source in parts[one]
        for target in parts[other]
    ]


def covers(pattern: str, name: str) -> bool:
    """Whether a rule for `pattern` speaks of `name`."""
    return pattern in (ANY, name)
