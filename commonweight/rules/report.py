"""What a provider signs about a round: which bytes came in and went out, and what its stage became.

The hashes follow EIP-712, so that a contract can check them. Tensors are hashed with SHA-256 (hardware has
it); everything that is signed or goes into a tree with keccak256.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from eth_hash.auto import keccak

from commonweight.rules.load import Load, pack_load
from commonweight.rules.merkle import MerkleTree, hash_leaf, word
from commonweight.rules.receipt import Receipt

NO_TENSOR = bytes(32)
"""Stands where nothing crosses: on the outer side of the first and of the last stage, both ways."""


@dataclass(frozen=True)
class Hop:
    """What one microbatch was to a stage: SHA-256 of the bytes that crossed each side, and what it added."""

    microbatch: int
    tokens: bytes
    """Token ids, as drawn by the head and passed on."""
    activation_in: bytes
    activation_out: bytes
    gradient_in: bytes
    gradient_out: bytes
    sketch: bytes
    """Of the gradient of this microbatch and those that the report has before it: commonweight/model/sketch.py; 32
    bytes.
    """
    loss: float
    """Mean cross entropy in nats per token on the last stage; 0.0 elsewhere."""

    def leaf(self, position: int) -> bytes:
        """The leaf of this hop in the tree of the report that has it in this place; the loss enters as its IEEE-754
        bits.
        """
        (bits,) = struct.unpack(">Q", struct.pack(">d", self.loss))
        words = [getattr(self, name) for name in HOP_WORDS]
        return hash_leaf(position, self.microbatch, *words, bits)


@dataclass(frozen=True)
class Report:
    """One replica's part of a stage's round, as its provider saw it."""

    round: int
    stage: int
    hops: tuple[Hop, ...]
    """Of its load, in the order in which their gradients were added."""
    gradient_hash: bytes
    """SHA-256 of the sum of these gradients."""
    round_gradient_hash: bytes
    """SHA-256 of what the stage was stepped with, before clipping: the sum of all its replicas' gradients, in order of
    their addresses. Where replicas step alone it is their own gradient, or the mean of their movements: see
    commonweight/model/adamw.py.
    """
    state_before: bytes
    state_after: bytes

    @property
    def load(self) -> Load:
        """The microbatches that it is of."""
        return tuple(sorted(hop.microbatch for hop in self.hops))

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """Of the hops, in their order."""
        return tuple(hop.leaf(position) for position, hop in enumerate(self.hops))

    @property
    def hops_root(self) -> bytes:
        """Merkle root over the hops and their order; of none 32 zero bytes."""
        return MerkleTree(self.leaves).root if self.hops else bytes(32)

    def position(self, microbatch: int) -> int:
        """Which of the hops is of this microbatch. Raises ValueError where none is."""
        return [hop.microbatch for hop in self.hops].index(microbatch)

    def commitments(self, microbatches: int) -> "Commitments":
        """All that it says, as hashes; of a round with so many microbatches."""
        return Commitments(
            pack_load(self.load, microbatches),
            self.hops_root,
            self.gradient_hash,
            self.round_gradient_hash,
            self.state_before,
            self.state_after,
        )


@dataclass(frozen=True)
class Commitments:
    """What a provider commits to with a report. See `Report`."""

    load: bytes
    """As `pack_load` has it."""
    hops_root: bytes
    gradient_hash: bytes
    round_gradient_hash: bytes
    state_before: bytes
    state_after: bytes

    @property
    def claim(self) -> bytes:
        """All of it as one hash: what an audit of training is a verdict on. Two of one unit can't both be right."""
        return keccak(b"".join(self._words()))

    def output(self, beacon_tip: bytes) -> bytes:
        """What a receipt says came of the unit, in the epoch whose audits follow from this tip."""
        return keccak(b"".join((*self._words(), beacon_tip)))

    def _words(self) -> tuple[bytes, ...]:
        hashes = (self.gradient_hash, self.round_gradient_hash, self.state_before, self.state_after)
        return (keccak(self.load), self.hops_root, *hashes)


def report_receipt(
    model_id: bytes, generation: int, round_: int, stage: int, commitments: Commitments, beacon_tip: bytes
) -> Receipt:
    """What the provider signs about its round, in the epoch whose audits follow from this tip.

    The unit is one attempt at one round: after a fault the round is trained again in a new generation, by right with
    other bits where another kind of machine has taken a seat. The output is all that the report says.
    """
    unit = keccak(b"".join(map(word, (generation, round_, stage))))
    return Receipt(model_id, stage, unit=unit, output=commitments.output(beacon_tip))


def find_mismatch(stages: Sequence[Mapping[str, Report]], *, alone: bool = False) -> str | None:
    """What a round's reports (by stage, then by node) disagree about, or None. The loads of each stage are divided.

    What a stage says it sent must be what the next says it took, both ways, and all must have seen the same tokens.
    Nothing crosses the outer sides of the first and the last stage. All replicas of a stage end in the same state, by
    the same gradient, unless each has stepped `alone`.
    """
    hops = [{hop.microbatch: hop for report in reports.values() for hop in report.hops} for reports in stages]
    for number, first in sorted(hops[0].items()):
        last = hops[-1][number]
        outer = (first.activation_in, first.gradient_out, last.activation_out, last.gradient_in)
        if any(side != NO_TENSOR for side in outer):
            return (
                f"the ends of microbatch {number}: nothing crosses the outer sides of the first and the last stage, "
                "yet one of them reports a tensor there"
            )
    for stage, (above, below) in enumerate(pairwise(hops)):
        for number, sent in sorted(above.items()):
            taken = below[number]
            pairs = {
                "tokens": (sent.tokens, taken.tokens),
                "activation": (sent.activation_out, taken.activation_in),
                "gradient": (sent.gradient_in, taken.gradient_out),
            }
            for what, (a, b) in pairs.items():
                if a != b:
                    return (
                        f"the {what} of microbatch {number}: stage {stage} reports {a.hex()}, stage {stage + 1} "
                        f"reports {b.hex()}"
                    )
    for stage, reports in enumerate(() if alone else stages):
        for name in ("round_gradient_hash", "state_after"):
            said = {node: getattr(report, name).hex() for node, report in sorted(reports.items())}
            if len(set(said.values())) > 1:
                return f"the {name} of stage {stage}: its replicas report {said}"
    return None


HOP_WORDS = tuple(field.name for field in fields(Hop) if field.name not in ("microbatch", "loss"))
"""What a hop has in 32 bytes each."""
