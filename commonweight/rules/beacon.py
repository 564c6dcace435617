"""What chooses the audits: values that were fixed before the work, mixed with what the work came to.

For each epoch the coordinator draws a secret seed and hashes it, again and again, once for each round. The end of this
chain, the **tip**, is committed on chain before the epoch begins, and every provider signs it with each of its
reports. The **value** of a round is revealed when all reports are in; it hashes to that of the round before, the first
one to the tip. So nobody who doesn't know the seed can know, while work is done, what of it will be replayed, and who
does know the seed can't change it any more.
"""

from collections.abc import Sequence
from itertools import accumulate, repeat

from commonweight.rules.merkle import MerkleTree, hash_leaf, keccak


def hash_chain(seed: bytes, rounds: int) -> tuple[bytes, ...]:
    """The tip, then the value of each of an epoch's rounds; `seed` is 32 random bytes."""
    backwards = accumulate(repeat(keccak(seed), rounds + 1), lambda value, _: keccak(value))
    return tuple(backwards)[::-1]


def round_root(outputs: Sequence[bytes]) -> bytes:
    """What all providers have committed to in a round: `outputs` are their receipts', in stage order."""
    return MerkleTree([hash_leaf(stage, output) for stage, output in enumerate(outputs)]).root


def round_beacon(value: bytes, root: bytes) -> bytes:
    """32 bytes that choose a round's audits; `root` is its `round_root`."""
    return keccak(value + root)
