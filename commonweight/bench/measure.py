"""Measuring on a machine that others use, too: candidates and baselines take turns, and only ratios count."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

VERSIONS = ("commonweight", "torch", "grpcio", "numpy")


@dataclass(frozen=True)
class Summary:
    """Of one quantity over the repetitions."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Result:
    """One line of a benchmark: a candidate, alone or against a baseline that ran in between."""

    name: str
    unit: str
    candidate: Summary
    baseline: Summary | None = None
    ratio: Summary | None = None
    target: float | None = None
    """Of the ratio's median, or of the candidate's where there is no baseline; the least that is wanted."""
    limit: float | None = None
    """Likewise, the most."""

    def to_json(self) -> dict[str, Any]:
        """As in the file of `--json`; without what doesn't apply."""
        fields = {"name": self.name, "unit": self.unit, "target": self.target, "limit": self.limit}
        for part in ("candidate", "baseline", "ratio"):
            if (summary := getattr(self, part)) is not None:
                fields[part] = vars(summary)
        return {name: value for name, value in fields.items() if value is not None}


def interleave(
    contenders: Mapping[str, Callable[[int], float]], pairs: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run all contenders in turn, `warm_up` + `pairs` times; the values of each, warm-up left out.

    A contender takes the number of the turn and returns what it measured.
    """
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm_up + pairs):
        for name, run in contenders.items():
            value = run(turn)
            if turn >= warm_up:
                values[name].append(value)
    return values


def compare(
    name: str, unit: str, candidate: Sequence[float], baseline: Sequence[float], target: float | None
) -> Result:
    """The candidate over the baseline, turn by turn."""
    ratios = [c / b for c, b in zip(candidate, baseline, strict=True)]
    return Result(name, unit, Summary.of(candidate), Summary.of(baseline), Summary.of(ratios), target)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": model, "cores": os.cpu_count(), "load_before": os.getloadavg()[0], "system": platform.platform()}


def publish(
    bench: str, here: Mapping[str, Any], config: Mapping[str, Any], results: Sequence[Result], json_file: Path | None
) -> None:
    """Print the results as a table, and write them to `json_file` where one is given.

    `here` is what `machine()` said before the first turn.
    """
    save(bench, here, config, results, json_file)
    print_results(f"bench {bench}: {here['cpu']}, {here['cores']} cores", results)


def print_results(title: str, results: Sequence[Result]) -> None:
    """As a table."""
    table = Table(title=title)
    for column in ("what", "unit", "candidate", "baseline", "ratio", "min – max", "target"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for result in results:
        table.add_row(
            result.name,
            result.unit,
            _show(result.candidate.median),
            f"{result.baseline.median:,.1f}" if result.baseline else "",
            f"{result.ratio.median:.3f}" if result.ratio else "",
            f"{result.ratio.min:.2f} – {result.ratio.max:.2f}" if result.ratio else "",
            _show_goal(result),
        )
    Console(width=110).print(table)


def save(
    bench: str, here: Mapping[str, Any], config: Mapping[str, Any], results: Sequence[Result], json_file: Path | None
) -> None:
    """Write the results to `json_file` where one is given."""
    if json_file is None:
        return
    document = {
        "bench": bench,
        "machine": dict(here),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "config": dict(config),
        "results": [result.to_json() for result in results],
    }
    json_file.write_text(json.dumps(document, indent=2) + "\n")


def _show(value: float) -> str:
    if 0 < abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.{2 if abs(value) < 10 else 1}f}"


def _show_goal(result: Result) -> str:
    if result.limit is not None:
        return f"≤ {result.limit:g}"
    return f"≥ {result.target:g}" if result.target is not None else ""
