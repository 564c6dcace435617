"""`bench merkle`: what settling an epoch costs off the chain, where its cost grows with the number of providers."""

import time
from dataclasses import dataclass

from commonweight.bench.measure import Result, Summary
from commonweight.rules.merkle import MerkleTree, settlement_leaf

LIMIT_S = 3.0
SETTLEMENT = "0x" + 20 * "5e"


@dataclass(frozen=True)
class MerkleBench:
    """What is measured."""

    providers: int = 100_000
    turns: int = 5


def leaves_of(providers: int) -> list[bytes]:
    """The leaves of as many accounts, each with numbers of its own."""
    return [
        settlement_leaf(31337, SETTLEMENT, f"0x{n:040x}", 10**24 + n, 10**21 + 7 * n, 2**150 + n, 10**9 + n)
        for n in range(providers)
    ]


def run_merkle_bench(bench: MerkleBench) -> list[Result]:
    """Processor seconds of this process, which has one thread: by part, and in all."""
    parts: dict[str, list[float]] = {"leaves": [], "root": [], "all proofs": [], "together": []}
    for _ in range(bench.turns):
        times = [time.process_time()]
        leaves = leaves_of(bench.providers)
        times.append(time.process_time())
        tree = MerkleTree(leaves)
        times.append(time.process_time())
        for index in range(bench.providers):
            tree.proof(index)
        times.append(time.process_time())
        for name, begin, end in zip(parts, [*times[:-1], times[0]], [*times[1:], times[-1]], strict=True):
            parts[name].append(end - begin)
    return [
        Result(name, "s", Summary.of(values), limit=LIMIT_S if name == "together" else None)
        for name, values in parts.items()
    ]
