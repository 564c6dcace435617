"""All paths of one process: made when something is first sent over them, ruled from outside while they run."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from commonweight.links.link import LinkShape
from commonweight.links.names import ByPath
from commonweight.links.path import Clock, Path

P = TypeVar("P", bound=Path)


class Paths(Generic[P]):
    """The paths between any two names, each with its own rate and queue: two links never share a bottleneck."""

    def __init__(self, kind: Callable[[LinkShape, Clock, str], P], clock: Clock, seed: int) -> None:
        self._kind = kind
        self._clock = clock
        self._seed = seed
        self._shapes = ByPath(LinkShape())
        self._cuts = ByPath(False)
        self._paths: dict[tuple[str, str], P] = {}

    def path(self, source: str, target: str) -> P:
        """The path from one to the other."""
        path = self._paths.get((source, target))
        if path is None:
            # Its losses and jitter depend on the seed and the names alone, not on which path was made first.
            seed = f"{self._seed} {source} {target}"
            path = self._kind(self._shapes.of(source, target), self._clock, seed)
            path.set_cut(self._cuts.of(source, target))
            self._paths[source, target] = path
        return path

    def change(self, source: str, target: str, shape: LinkShape) -> None:
        """Give all paths that the two name, or ANY, another shape, those to come as well."""
        self._shapes = self._shapes.with_rule(source, target, shape)
        for (each_source, each_target), path in self._paths.items():
            if path.shape != (wanted := self._shapes.of(each_source, each_target)):
                path.change(wanted)

    def set_cut(self, source: str, target: str, cut: bool) -> None:
        """Cut or heal all paths that the two name, or ANY, those to come as well."""
        self._cuts = self._cuts.with_rule(source, target, cut)
        for (each_source, each_target), path in self._paths.items():
            if path.cut != (wanted := self._cuts.of(each_source, each_target)):
                path.set_cut(wanted)

    def statistics(self) -> list[dict[str, Any]]:
        """PathStatistics of each path, with `source` and `target`."""
        return [
            {"source": source, "target": target, **asdict(path.statistics())}
            for (source, target), path in self._paths.items()
        ]
