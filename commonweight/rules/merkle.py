"""Merkle trees as in OpenZeppelin's merkle-tree library: sorted pairs, double-hashed leaves.

The tree is a complete binary tree in an array; children of node i are 2i + 1 and 2i + 2, leaves fill it from
the end in order of their hash. Hashing a leaf twice keeps an inner node from being taken for one (second
pre-image).
"""

from collections.abc import Iterable, Sequence

from eth_hash.backends.pysha3 import backend

keccak = backend.keccak256  # eth_hash.auto would take pycryptodome's, which takes four times as long

HASH_BYTES = 32
WORD = 32


def word(value: int | bytes | str) -> bytes:
    """A value of a static Solidity type as 32 bytes, as abi.encode has it.

    Takes a non-negative integer, a 0x address (20 bytes) or 32 bytes. Raises ValueError where it doesn't fit.
    """
    if isinstance(value, str):
        raw = bytes.fromhex(value.removeprefix("0x"))
        if len(raw) != 20:
            raise ValueError(f"{value!r} is not an address of 20 bytes")
        return raw.rjust(WORD, b"\0")
    if isinstance(value, bytes):
        if len(value) != WORD:
            raise ValueError(f"bytes32 has 32 bytes, not {len(value)}")
        return value
    if not 0 <= value < 2**256:
        raise ValueError(f"{value} doesn't fit in a uint256")
    return value.to_bytes(WORD, "big")


def hash_leaf(*words: int | bytes | str) -> bytes:
    """keccak256(keccak256(abi.encode(words)))."""
    return keccak(keccak(b"".join(map(word, words))))


def settlement_leaf(
    chain_id: int,
    settlement: str,
    account: str,
    cumulative_shares: int,
    epoch_shares: int,
    debt_before: int,
    operator_revenue: int,
) -> bytes:
    """The leaf of one account in an epoch's tree.

    `cumulative_shares`: shares earned up to and with this epoch, base units. `epoch_shares`: of them, in this
    epoch. `debt_before`: Σ over earlier epochs e of shares_e · accAt[e], so that a late claim is owed what an
    early one is. `operator_revenue`: earned by serving up to and with this epoch, in the revenue token's smallest unit.
    """
    return hash_leaf(chain_id, settlement, account, cumulative_shares, epoch_shares, debt_before, operator_revenue)


class MerkleTree:
    """A tree over at least one leaf hash. `root` and `proof(i)` verify with OpenZeppelin's MerkleProof."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        if not leaves:
            raise ValueError("a Merkle tree needs a leaf")
        count = len(leaves)
        order = sorted(range(count), key=leaves.__getitem__)
        nodes = [b""] * (2 * count - 1)
        self._position = [0] * count
        for rank, index in enumerate(order):
            position = len(nodes) - 1 - rank
            nodes[position] = leaves[index]
            self._position[index] = position
        for i in range(count - 2, -1, -1):
            nodes[i] = hash_pair(nodes[2 * i + 1], nodes[2 * i + 2])
        self._nodes = nodes

    @property
    def root(self) -> bytes:
        """32 bytes that commit to all leaves, whatever their order."""
        return self._nodes[0]

    def proof(self, index: int) -> list[bytes]:
        """The siblings from leaf `index` (in the order given) up to the root."""
        position = self._position[index]
        siblings = []
        while position > 0:
            siblings.append(self._nodes[position + 1 if position % 2 else position - 1])
            position = (position - 1) // 2
        return siblings


def hash_pair(a: bytes, b: bytes) -> bytes:
    """The parent of two nodes, in either order."""
    return keccak(a + b if a < b else b + a)


def verify_proof(root: bytes, leaf: bytes, proof: Iterable[bytes]) -> bool:
    """Whether `proof` leads from `leaf` to `root`."""
    for sibling in proof:
        leaf = hash_pair(leaf, sibling)
    return leaf == root
