"""One root per set of leaves, a proof for each leaf and for nothing else."""

import pytest
from eth_abi.abi import encode
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.merkle import MerkleTree, hash_leaf, hash_pair, settlement_leaf, verify_proof, word
from tests.property.strategies import addresses

hashes = st.binary(min_size=32, max_size=32)
uint256 = st.integers(0, 2**256 - 1)
sets_of_leaves = st.lists(hashes, min_size=1, max_size=40, unique=True)


@given(st.lists(hashes, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_root_doesnt_depend_on_the_order(leaves: list[bytes], rng) -> None:  # type: ignore[no-untyped-def]
    other = leaves.copy()
    rng.shuffle(other)
    assert MerkleTree(other).root == MerkleTree(leaves).root


@given(st.lists(hashes, min_size=1, max_size=40))
def test_every_proof_verifies_and_is_short(leaves: list[bytes]) -> None:
    tree = MerkleTree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.proof(index)
        assert verify_proof(tree.root, leaf, proof)
        assert len(proof) <= (len(leaves) - 1).bit_length()


@given(sets_of_leaves, hashes)
def test_no_proof_verifies_for_another_leaf(leaves: list[bytes], foreign: bytes) -> None:
    tree = MerkleTree(leaves)
    for index, leaf in enumerate(leaves):
        proof = tree.proof(index)
        for other in {*leaves, foreign} - {leaf}:
            assert not verify_proof(tree.root, other, proof)


@given(sets_of_leaves, st.data())
def test_a_damaged_proof_doesnt_verify(leaves: list[bytes], data: st.DataObject) -> None:
    tree = MerkleTree(leaves)
    index = data.draw(st.integers(0, len(leaves) - 1))
    proof = tree.proof(index)
    assert not verify_proof(tree.root, leaves[index], [*proof, data.draw(hashes)])
    if proof:
        assert not verify_proof(tree.root, leaves[index], proof[:-1])
        step, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
        proof[step] = (int.from_bytes(proof[step], "big") ^ (1 << bit)).to_bytes(32, "big")
        assert not verify_proof(tree.root, leaves[index], proof)


@given(st.lists(st.tuples(uint256, uint256), min_size=2, max_size=20, unique=True))
def test_an_inner_node_is_no_leaf(rows: list[tuple[int, int]]) -> None:
    """A leaf of two words has as many bytes as an inner node's children: hashed once, it would pass for one."""
    leaves = [hash_leaf(*row) for row in rows]
    tree = MerkleTree(leaves)
    for index, leaf in enumerate(leaves):
        node = leaf
        siblings = tree.proof(index)
        while siblings:
            below, (sibling, *siblings) = sorted((node, siblings[0])), siblings
            node = hash_pair(node, sibling)
            assert verify_proof(tree.root, keccak(b"".join(below)), siblings)
            assert not verify_proof(tree.root, hash_leaf(*below), siblings)


@given(sets_of_leaves, st.data())
def test_another_set_has_another_root(leaves: list[bytes], data: st.DataObject) -> None:
    other = leaves.copy()
    other[data.draw(st.integers(0, len(leaves) - 1))] = data.draw(hashes)
    assert (MerkleTree(other).root == MerkleTree(leaves).root) == (sorted(other) == sorted(leaves))
    assert MerkleTree([*leaves, leaves[0]]).root != MerkleTree(leaves).root


@given(uint256, addresses, addresses, uint256, uint256, uint256, uint256)
def test_the_settlement_leaf_is_that_of_abi_encode(
    chain_id: int, settlement: str, account: str, cumulative: int, shares: int, debt: int, revenue: int
) -> None:
    values = (chain_id, settlement, account, cumulative, shares, debt, revenue)
    encoded = encode(["uint256", "address", "address", "uint256", "uint256", "uint256", "uint256"], values)
    assert settlement_leaf(*values) == keccak(keccak(encoded))


def test_equals_the_root_in_the_readme_of_openzeppelins_library() -> None:
    """github.com/OpenZeppelin/merkle-tree, README, "Building a Tree"."""
    rows = (("0x" + "11" * 20, 5 * 10**18), ("0x" + "22" * 20, 25 * 10**17))
    root = MerkleTree([hash_leaf(*row) for row in rows]).root
    assert root.hex() == "d4dee0beab2d53f2cc83e567171bd2820e49898130a22622b10ead383e90bd77"


def test_a_tree_needs_a_leaf() -> None:
    with pytest.raises(ValueError, match="needs a leaf"):
        MerkleTree([])


@pytest.mark.parametrize("value", [-1, 2**256, b"", b"\0" * 31, b"\0" * 33, "0x", "0x" + "00" * 19, "0x" + "zz" * 20])
def test_what_fits_in_no_word_is_refused(value: int | bytes | str) -> None:
    with pytest.raises(ValueError):
        word(value)
