"""What chooses the audits: values that were fixed before the work, mixed with what the work came to.

For each epoch the coordinator draws a secret seed and hashes it, again and again, once for each round. The end of this
chain, the **tip**, is committed on chain before the epoch begins, and every provider signs it with each of its
reports. The **value** of a round is revealed when all reports are in; it hashes to that of the round before, the first
one to the tip. So nobody who doesn't know the seed can know, while work is done, what of it will be replayed, and who
does know the seed can't change it any more.

What the providers have committed to is mixed in, too. Nodes are told the commitments of others **blinded**: who could
compare a report with what was signed would know a false one without replaying it (panel.py).
"""

from collections.abc import Sequence
from itertools import accumulate, repeat

from commonweight.rules.audits import NO_ANSWERS
from commonweight.rules.merkle import MerkleTree, hash_leaf, keccak, word


def hash_chain(seed: bytes, rounds: int) -> tuple[bytes, ...]:
    """The tip, then the value of each of an epoch's rounds; `seed` is 32 random bytes."""
    backwards = accumulate(repeat(keccak(seed), rounds + 1), lambda value, _: keccak(value))
    return tuple(backwards)[::-1]


def seal_salt(seed: bytes, round_: int, stage: int, replica: int) -> bytes:
    """32 bytes that hide what a provider has signed in a round until the epoch's seed is known to all."""
    return keccak(seed + word(round_) + word(stage) + word(replica))


def blinded(output: bytes, salt: bytes) -> bytes:
    """What others are told of a receipt's output: who knows both can check it, and nobody else can compare it."""
    return keccak(output + salt)


def round_root(commitments: Sequence[Sequence[bytes]]) -> bytes:
    """What all providers have committed to in a round: their receipts' outputs, blinded, by stage, then by replica."""
    leaves = (
        hash_leaf(stage, replica, each)
        for stage, of_stage in enumerate(commitments)
        for replica, each in enumerate(of_stage)
    )
    return MerkleTree(list(leaves)).root


def answers_root(leaves: Sequence[bytes]) -> bytes:
    """What all stages have committed to in the answers that are sealed with a round; of none 32 zero bytes."""
    return MerkleTree(leaves).root if leaves else NO_ANSWERS


def round_beacon(value: bytes, root: bytes) -> bytes:
    """32 bytes that choose a round's audits; `root` is its `round_root`."""
    return keccak(value + root)
