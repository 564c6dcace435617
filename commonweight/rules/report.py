"""What a provider signs about a round: which bytes came in and went out, and what its stage became.

The hashes follow EIP-712, so that a contract can check them. Tensors are hashed with SHA-256 (hardware has
it); everything that is signed or goes into a tree with keccak256.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise

from eth_hash.auto import keccak

from commonweight.rules.merkle import MerkleTree, hash_leaf, word
from commonweight.rules.receipt import Receipt

NO_TENSOR = bytes(32)
"""Stands where nothing crosses: on the outer side of the first and of the last stage, both ways."""


@dataclass(frozen=True)
class Hop:
    """What one microbatch was to a stage: SHA-256 of the bytes that crossed each side, and what it added."""

    tokens: bytes
    """Token ids, as drawn by the head and passed on."""
    activation_in: bytes
    activation_out: bytes
    gradient_in: bytes
    gradient_out: bytes
    sketch: bytes
    """Of the gradient of this microbatch and those before it: commonweight/model/sketch.py; 32 bytes."""
    loss: float
    """Mean cross entropy in nats per token on the last stage; 0.0 elsewhere."""

    def leaf(self, microbatch: int) -> bytes:
        """The leaf of this hop in the report's tree; the loss enters as its IEEE-754 bits."""
        (bits,) = struct.unpack(">Q", struct.pack(">d", self.loss))
        words = [getattr(self, name) for name in HOP_WORDS]
        return hash_leaf(microbatch, *words, bits)


@dataclass(frozen=True)
class Report:
    """One stage's round, as its provider saw it."""

    round: int
    stage: int
    hops: tuple[Hop, ...]
    """In order of their microbatch; a round has all of them."""
    gradient_hash: bytes
    """SHA-256 of the summed gradient, before clipping."""
    state_before: bytes
    state_after: bytes

    @property
    def hops_root(self) -> bytes:
        """Merkle root over the hops."""
        return MerkleTree([hop.leaf(number) for number, hop in enumerate(self.hops)]).root

    @property
    def claim(self) -> bytes:
        """All that it says, as one hash: what an audit of training is a verdict on. Two of one round can't both be
        right.
        """
        return round_claim(self.hops_root, self.gradient_hash, self.state_before, self.state_after)


def report_receipt(model_id: bytes, generation: int, report: Report, beacon_tip: bytes) -> Receipt:
    """What the provider signs about its round, in the epoch whose audits follow from this tip."""
    commitments = (report.hops_root, report.gradient_hash, report.state_before, report.state_after, beacon_tip)
    return round_receipt(model_id, generation, report.round, report.stage, commitments)


def round_receipt(model_id: bytes, generation: int, round_: int, stage: int, commitments: Iterable[bytes]) -> Receipt:
    """The receipt of one stage's round. `commitments`: hops root, gradient hash, state before, state after, beacon tip.

    The unit is one attempt at one round: after a fault the round is trained again in a new generation, by right with
    other bits where another kind of machine has taken a seat. The output is all that the report says.
    """
    return Receipt(
        model_id,
        stage,
        unit=keccak(b"".join(map(word, (generation, round_, stage)))),
        output=keccak(b"".join(map(word, commitments))),
    )


def round_claim(hops_root: bytes, gradient_hash: bytes, state_before: bytes, state_after: bytes) -> bytes:
    """The `Report.claim` of a report with these commitments."""
    return keccak(hops_root + gradient_hash + state_before + state_after)


def find_mismatch(reports: tuple[Report, ...]) -> str | None:
    """What two neighbours disagree about in a round's reports (all stages, in order), or None.

    What a stage says it sent must be what the next says it took, both ways, and all must have seen the same
    tokens. Nothing crosses the outer sides of the first and the last stage.
    """
    for number, (first, last) in enumerate(zip(reports[0].hops, reports[-1].hops, strict=True)):
        outer = (first.activation_in, first.gradient_out, last.activation_out, last.gradient_in)
        if any(side != NO_TENSOR for side in outer):
            return (
                f"the ends of microbatch {number} in round {reports[0].round}: nothing crosses the outer "
                "sides of the first and the last stage, yet one of them reports a tensor there"
            )
    for above, below in pairwise(reports):
        for number, (sent, taken) in enumerate(zip(above.hops, below.hops, strict=True)):
            pairs = {
                "tokens": (sent.tokens, taken.tokens),
                "activation": (sent.activation_out, taken.activation_in),
                "gradient": (sent.gradient_in, taken.gradient_out),
            }
            for what, (a, b) in pairs.items():
                if a != b:
                    return (
                        f"the {what} of microbatch {number} in round {above.round}: stage {above.stage} "
                        f"reports {a.hex()}, stage {below.stage} reports {b.hex()}"
                    )
    return None


HOP_WORDS = tuple(field.name for field in fields(Hop) if field.name != "loss")
"""What a hop has in 32 bytes each."""
