"""A tree of as many providers as a network may have: in time, and equal to OpenZeppelin's own."""

import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from commonweight.bench.merkle import LIMIT_S, MerkleBench, leaves_of, run_merkle_bench
from commonweight.rules.merkle import MerkleTree, verify_proof

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
PROVIDERS = 100_000
STEP = 100
"""Their library takes a minute for all proofs."""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="no Node.js on PATH: `make test` has one")
@pytest.mark.skipif(not (CONTRACTS / "node_modules" / "@openzeppelin").is_dir(), reason="no `npm ci` in contracts/")
def test_root_and_proofs_of_100_000_providers_are_openzeppelins() -> None:
    leaves = leaves_of(PROVIDERS)
    started = time.process_time()
    tree = MerkleTree(leaves)
    proofs = [tree.proof(index) for index in range(PROVIDERS)]
    assert time.process_time() - started < LIMIT_S
    assert all(verify_proof(tree.root, leaf, proof) for leaf, proof in zip(leaves, proofs, strict=True))

    theirs = subprocess.run(
        ["node", "test/oz_root.mjs", str(STEP)],
        cwd=CONTRACTS,
        input="\n".join("0x" + leaf.hex() for leaf in leaves),
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    digest = hashlib.sha256(b"".join(sibling for proof in proofs[::STEP] for sibling in proof))
    assert theirs.stdout.split() == ["0x" + tree.root.hex(), digest.hexdigest()]


def test_the_bench_measures_all_parts() -> None:
    results = {result.name: result for result in run_merkle_bench(MerkleBench(providers=50, turns=2))}
    assert set(results) == {"leaves", "root", "all proofs", "together"}
    assert results["together"].limit == LIMIT_S
    parts = sum(results[name].candidate.median for name in ("leaves", "root", "all proofs"))
    assert results["together"].candidate.max >= parts / 2
