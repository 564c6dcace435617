#!/usr/bin/env python3
"""Demands that the contracts' tests reach 95 % of the lines and of the branches of every source in contracts/src.

    python tools/check_coverage.py

Says per source what was reached, and which lines were not. Needs `npm ci --ignore-scripts` in contracts/.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
LEAST_PERCENT = 95
#: What is measured is compiled without the optimizer: contracts get larger than a chain takes, and use more gas.
LEFT_OUT = ["--no-match-contract", "Gas|Integration|Invariants", "--no-match-test", "test_deployment_fitsAChain"]


@dataclass
class Source:
    """Times that each line and each branch was taken."""

    lines: dict[int, int] = field(default_factory=dict)
    branches: dict[tuple[int, str, str], int] = field(default_factory=dict)

    def percentages(self) -> tuple[float, float]:
        """Of lines and of branches; 100 where there are none."""
        reached = [list(self.lines.values()), list(self.branches.values())]
        lines, branches = (100 * sum(map(bool, hits)) / len(hits) if hits else 100.0 for hits in reached)
        return lines, branches

    def missed(self) -> list[str]:
        """Where something was never taken."""
        lines = [f"line {line}" for line, hits in self.lines.items() if not hits]
        return lines + [f"a branch in line {line}" for (line, _, _), hits in self.branches.items() if not hits]


def parse(lcov: str) -> dict[str, Source]:
    """By source below contracts/src; lcov's SF, DA and BRDA records."""
    sources: dict[str, Source] = {}
    source = Source()
    for record in lcov.splitlines():
        kind, _, text = record.partition(":")
        fields = text.split(",")
        if kind == "SF":
            source = Source()
            if text.startswith("src/"):
                sources[text.removeprefix("src/")] = source
        elif kind == "DA":
            source.lines[int(fields[0])] = int(fields[1])
        elif kind == "BRDA":
            source.branches[(int(fields[0]), fields[1], fields[2])] = 0 if fields[3] == "-" else int(fields[3])
    return sources


def measure() -> dict[str, Source]:
    """Runs the tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lcov.info"
        command = [str(CONTRACTS / "node_modules" / ".bin" / "forge"), "coverage", "--report", "lcov"]
        done = subprocess.run(
            [*command, "--report-file", str(report), *LEFT_OUT],
            cwd=CONTRACTS,
            env=os.environ | {"FOUNDRY_OUT": f"{folder}/out", "FOUNDRY_CACHE_PATH": f"{folder}/cache"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode != 0:
            raise SystemExit(f"check_coverage: forge coverage failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return parse(report.read_text())


def main() -> int:
    sources, failed = measure(), False
    for name, source in sorted(sources.items()):
        percentages = source.percentages()
        print(f"{name:<24}  lines {percentages[0]:5.1f} %  branches {percentages[1]:5.1f} %")
        for place in source.missed():
            print(f"{'':<24}  not reached: {place}")
        if min(percentages) < LEAST_PERCENT:
            failed = True
            print(f"check_coverage: {name} is below {LEAST_PERCENT} %: test what wasn't reached", file=sys.stderr)
    return 1 if failed or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
