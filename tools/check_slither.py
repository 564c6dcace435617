#!/usr/bin/env python3
"""Runs slither over contracts/src and demands that each finding is answered in docs/contracts-audit.md.

    python tools/check_slither.py path/to/slither

An answer is a row of the page's table under "## Static analysis": the detector, where, and why it is no fault. A
finding without a row fails, and so does a row without a finding, and a function that slither couldn't read.
Needs `npm ci --ignore-scripts` in contracts/: slither compiles through forge.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
PAGE = ROOT / "docs" / "contracts-audit.md"

#: What the table calls a function of ours that slither couldn't read.
UNREAD = "not analysed"

Finding = tuple[str, str]
"""Detector and place, such as ("timestamp", "Arbiter.execute")."""

_UNREAD = re.compile(r"Impossible to generate IR for (\S+) \((\S+?)#")
_ROW = re.compile(r"^\| `([^`]+)` \| (`[^|]+`) \|", re.MULTILINE)


def place(element: dict[str, Any]) -> str:
    """`Contract.name` of a finding's first element; of a parameter, the function that it belongs to."""
    parent = element.get("type_specific_fields", {}).get("parent", {})
    if element["type"] == "variable" and parent.get("type") == "function":
        element, parent = parent, parent["type_specific_fields"]["parent"]
    return f"{parent['name']}.{element['name']}"


def findings(slither: str) -> set[Finding]:
    """All that slither says."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        path = os.pathsep.join([str(CONTRACTS / "node_modules" / ".bin"), os.environ["PATH"]])
        done = subprocess.run(
            [Path(slither).absolute(), ".", "--json", report],
            cwd=CONTRACTS,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if not report.exists():
            raise SystemExit(f"check_slither: slither wrote no report:\n{done.stderr[-3000:]}")
        results = json.loads(report.read_text())
    if not results["success"]:
        raise SystemExit(f"check_slither: slither failed: {results['error']}")
    unread = {(UNREAD, name) for name, source in _UNREAD.findall(done.stderr) if source.startswith("src/")}
    return unread | {(f["check"], place(f["elements"][0])) for f in results["results"].get("detectors", [])}


def answers() -> set[Finding]:
    """The rows of the page's table; a row may answer for several places."""
    section = PAGE.read_text().partition("## Static analysis")[2].partition("\n## ")[0]
    return {(detector, name) for detector, places in _ROW.findall(section) for name in re.findall("`([^`]+)`", places)}


def main(slither: str) -> int:
    found, answered = findings(slither), answers()
    for detector, name in sorted(found - answered):
        print(f"check_slither: {detector} at {name}: fix it, or answer it in {PAGE.relative_to(ROOT)}", file=sys.stderr)
    for detector, name in sorted(answered - found):
        print(f"check_slither: {detector} at {name} isn't found any more: remove its answer", file=sys.stderr)
    if found != answered:
        return 1
    print(f"slither: {len(found)} findings, all answered")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
