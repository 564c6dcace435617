#!/usr/bin/env python3
"""Applies each mutant of contracts/test/mutants.toml to a copy of the contracts; the tests must kill every one.

    python tools/mutate_contracts.py               # all
    python tools/mutate_contracts.py debt stream   # those whose name contains one of the words

A mutant replaces one piece of source text, which must be there exactly once. It is killed if a test fails. One that
survives, no longer applies or doesn't compile makes the check fail.
Needs `npm ci --ignore-scripts` in contracts/.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
MUTANTS = CONTRACTS / "test" / "mutants.toml"
WORKERS = 2
TIMEOUT_S = 300

#: Tests are compiled against artifacts, not sources, so that a mutant recompiles nothing but what it is in. Without the
#: optimizer that takes a third of the time; what a contract does is the same.
SETTINGS = {
    "FOUNDRY_DYNAMIC_TEST_LINKING": "true",
    "FOUNDRY_OPTIMIZER": "false",
    "FOUNDRY_CODE_SIZE_LIMIT": "200000",
    "FOUNDRY_FUZZ_RUNS": "32",
    "FOUNDRY_INVARIANT_RUNS": "2",
    "FOUNDRY_INVARIANT_SHRINK_RUN_LIMIT": "0",
    "FOUNDRY_LINT_LINT_ON_BUILD": "false",
}
#: Source -> the test files that exercise it; what they import comes along. No file is left out by a filter: forge would
#: compile everything once more to find out which tests match.
SHARES_TESTS = ("EmissionSchedule", "ModelShares", "EpochSettlement", "RevenueRouter", "Attacks", "Invariants")
STAKE_TESTS = ("ProviderRegistry", "ProviderSlashing", "ProviderInvariants", "Arbiter")
TESTS = {
    "EmissionSchedule": SHARES_TESTS,
    "ModelShares": SHARES_TESTS,
    "EpochSettlement": SHARES_TESTS,
    "RevenueRouter": SHARES_TESTS,
    "ProviderRegistry": STAKE_TESTS,
    "Arbiter": STAKE_TESTS,
}

_FAILED = re.compile(r"^\[FAIL.*?\b((?:test|invariant|afterInvariant)\w*)\(", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Mutant:
    """`find` in contracts/src/`file`.sol becomes `replace`."""

    name: str
    file: str
    find: str
    replace: str


def load() -> list[Mutant]:
    """All mutants; each file's stand together, so that as little as possible is compiled twice."""
    entries = tomllib.loads(MUTANTS.read_text())
    mutants = [Mutant(name, file, **text) for file, named in entries.items() for name, text in named.items()]
    for mutant in mutants:
        count = (CONTRACTS / "src" / f"{mutant.file}.sol").read_text().count(mutant.find)
        if count != 1:
            raise SystemExit(
                f"mutate_contracts: {mutant.name}: its text is {count} times in {mutant.file}.sol, not once"
            )
    return mutants


def workspace(folder: Path, tests: tuple[str, ...]) -> Path:
    """A copy of the contracts with these tests, built; the tests pass."""
    copy = folder / "contracts"
    copy.mkdir(parents=True)
    shutil.copytree(CONTRACTS / "src", copy / "src")
    (copy / "tools").mkdir()
    quick_solc(copy / "tools" / "solc")
    shutil.copytree(CONTRACTS / "test", copy / "test", ignore=shutil.ignore_patterns("halmos", "*.t.sol"))
    for name in tests:
        shutil.copy(CONTRACTS / "test" / f"{name}.t.sol", copy / "test")
    shutil.copy(CONTRACTS / "foundry.toml", copy)
    (copy / "node_modules").symlink_to(CONTRACTS / "node_modules")
    done = forge(copy)
    if done.returncode != 0:
        raise SystemExit(f"mutate_contracts: tests fail without any mutant:\n{done.stdout}{done.stderr}")
    return copy


def quick_solc(path: Path) -> None:
    """tools/solc, but it knows its version without starting Node.js: forge asks for it twice in every run."""
    solc = CONTRACTS / "tools" / "solc"
    version = subprocess.run([solc, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    path.with_suffix(".version").write_text(version)
    path.write_text(
        f'#!/bin/sh\n[ "$*" = --version ] && exec cat "{path.with_suffix(".version")}"\nexec "{solc}" "$@"\n'
    )
    path.chmod(0o755)


def forge(copy: Path) -> subprocess.CompletedProcess[str]:
    """Runs the tests, up to the first failure."""
    command = [str(CONTRACTS / "node_modules" / ".bin" / "forge"), "test", "--fail-fast"]
    return subprocess.run(
        command, cwd=copy, env=os.environ | SETTINGS, capture_output=True, text=True, timeout=TIMEOUT_S
    )


def verdict(copy: Path, mutant: Mutant) -> tuple[bool, str]:
    """Whether it is killed, and by which test."""
    source = copy / "src" / f"{mutant.file}.sol"
    original = source.read_text()
    source.write_text(original.replace(mutant.find, mutant.replace))
    for kind in ("fuzz", "invariant"):  # what failed with other mutants
        shutil.rmtree(copy / "cache" / kind, ignore_errors=True)
    try:
        done = forge(copy)
    finally:
        source.write_text(original)
    killer = _FAILED.search(done.stdout)
    if killer:
        return True, killer[1]
    if done.returncode == 0:
        return False, "SURVIVED"
    return False, "no test failed, but forge: " + (done.stderr or done.stdout).strip()[-2000:]


def work(copies: dict[tuple[str, ...], Path], todo: queue.SimpleQueue[Mutant], alive: dict[str, str]) -> None:
    """Judges mutants until there are none left."""
    while True:
        try:
            mutant = todo.get_nowait()
        except queue.Empty:
            return
        start = time.monotonic()
        killed, killer = verdict(copies[TESTS[mutant.file]], mutant)
        if not killed:
            alive[mutant.name] = killer
        mark, seconds = "killed" if killed else "ALIVE ", time.monotonic() - start
        print(f"{mark}  {mutant.file:<16}  {mutant.name:<36}  {seconds:5.1f} s  {killer}", flush=True)


def main(words: list[str]) -> int:
    mutants = [m for m in load() if not words or any(word in m.name for word in words)]
    todo: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        todo.put(mutant)
    alive: dict[str, str] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        groups = sorted({TESTS[mutant.file] for mutant in mutants})
        built = list(pool.map(lambda tests: workspace(Path(folder) / tests[0] / "0", tests), groups))
        workers = []
        for i in range(WORKERS):
            copies = {}
            for tests, copy in zip(groups, built, strict=True):
                copies[tests] = Path(folder) / tests[0] / str(i) / copy.name
                if i != 0:
                    shutil.copytree(copy, copies[tests], symlinks=True)
            workers.append(copies)
        for judged in [pool.submit(work, copies, todo, alive) for copies in workers]:
            judged.result()
    print(f"{len(mutants) - len(alive)} of {len(mutants)} mutants killed in {time.monotonic() - start:.0f} s")
    for name, why in alive.items():
        print(f"mutate_contracts: {name}: {why}", file=sys.stderr)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
