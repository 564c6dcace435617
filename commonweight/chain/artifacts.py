"""The compiled contracts that ship with this package: ABI and bytecode, so that a node needs no compiler."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

CONTRACTS = (
    "ModelRegistry",
    "ModelShares",
    "EpochSettlement",
    "RevenueRouter",
    "ProviderRegistry",
    "Arbiter",
    "TestUSD",
)


@dataclass(frozen=True)
class Artifact:
    """One compiled contract."""

    name: str
    abi: tuple[dict[str, Any], ...]
    bytecode: str
    """0x-prefixed creation code, without constructor arguments."""
    deployed_bytecode: str
    """0x-prefixed code on chain; immutables are zero in it."""


@cache
def load_artifact(name: str) -> Artifact:
    """One of CONTRACTS, from `commonweight/chain/artifacts/NAME.json`, which `contracts/` generates."""
    assert name in CONTRACTS, f"no contract is called {name}"
    fields = json.loads(files("commonweight.chain").joinpath("artifacts", f"{name}.json").read_text())
    return Artifact(name, tuple(fields["abi"]), fields["bytecode"], fields["deployedBytecode"])
