"""Who keeps the pieces of a stage's version, how many of them restore it, and what its maker signs of them.

A version's bytes are encrypted with a key that nobody keeps. The ciphertext is cut into **pieces**, the key into **key
shares**, one of each for every keeper. As many as the threshold give the version back; with one key share less nothing
is known of the key. So the keepers of a stage are of other stages, and of different owners.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

from eth_hash.auto import keccak
from pydantic import Field, ValidationError, model_validator

from commonweight.errors import MalformedMessage
from commonweight.rules.canonical import canonical_json, content_hash, parse_json
from commonweight.rules.receipt import Domain
from commonweight.rules.spec import Hash, Record
from commonweight.rules.statement import Number

FORMAT = "commonweight.pieces/1"
PIECES_TYPE = b"Pieces(bytes32 content)"
MIN_KEEPERS = 2
"""One alone would have the stage."""
MAX_KEEPERS = 7
"""Four of them restore the version, and the pieces are together 7/4 of its size."""
STRIPE_BYTES = 1 << 20
"""Of a version's files, one after the other, that are encrypted and cut together; the last stripe is what is left."""
TAG_BYTES = 16
"""By which a stripe is longer when it is encrypted (AES-GCM)."""
KEY_SHARE_BYTES = 32
MAX_MANIFEST_BYTES = 4096


@dataclass(frozen=True)
class Holder:
    """A node that is there."""

    stage: int
    owner: str


def choose_keepers(stage: int, nodes: Mapping[str, Holder]) -> tuple[str, ...]:
    """Of those who are there the keepers of a stage, in order; none where there are too few.

    They hold other stages, no two have one owner, and no owner of theirs has a node in the stage. Ranked by a hash, so
    that stages differ in their keepers, and whoever comes or goes changes one keeper at most.
    """
    insiders = {holder.owner for holder in nodes.values() if holder.stage == stage}
    ranked = sorted(nodes, key=lambda node: (sha256(f"{FORMAT}/{stage}/{node}".encode()).digest(), node))
    by_owner: dict[str, str] = {}
    for node in ranked:
        if (owner := nodes[node].owner) not in insiders:
            by_owner.setdefault(owner, node)
    chosen = tuple(by_owner.values())[:MAX_KEEPERS]
    return chosen if len(chosen) >= MIN_KEEPERS else ()


def threshold(keepers: int) -> int:
    """How many of a version's pieces restore it: more than half. For two keepers and more."""
    return keepers // 2 + 1


def piece_bytes(version_bytes: int, needed: int) -> int:
    """The size of each piece of a version's files, of which `needed` restore it."""
    stripes, rest = divmod(version_bytes, STRIPE_BYTES)
    last = -(-(rest + TAG_BYTES) // needed) if rest else 0
    return stripes * -(-(STRIPE_BYTES + TAG_BYTES) // needed) + last


class PiecesManifest(Record):
    """What a maker signs: of which version the pieces are, and what each of them and each key share hashes to."""

    format: Literal["commonweight.pieces/1"]
    spec_hash: Hash
    stage: Number
    round: Number = Field(description="which the version is ready to train")
    state_root: Hash
    files: tuple[Annotated[int, Field(gt=0, le=2**53 - 1)], Annotated[int, Field(gt=0, le=2**53 - 1)]] = Field(
        description="bytes of its parameters and of its moments"
    )
    threshold: Annotated[int, Field(ge=MIN_KEEPERS, description="so many pieces and key shares restore it")]
    pieces: Annotated[tuple[Hash, ...], Field(max_length=MAX_KEEPERS, description="SHA-256 of each")]
    key_shares: tuple[Hash, ...] = Field(description="likewise, in the same order")

    @model_validator(mode="after")
    def _fits(self) -> "PiecesManifest":
        if not self.threshold <= len(self.pieces) == len(self.key_shares):
            raise ValueError(f"{self.threshold} of {len(self.pieces)} pieces and {len(self.key_shares)} key shares")
        return self

    @property
    def version_bytes(self) -> int:
        """Of its files."""
        return sum(self.files)

    def encode(self) -> bytes:
        """As it travels."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self, domain: Domain) -> bytes:
        """The 32 bytes that its maker signs (EIP-712)."""
        struct_hash = keccak(keccak(PIECES_TYPE) + content_hash(self.model_dump(mode="json")))
        return keccak(b"\x19\x01" + domain.separator + struct_hash)


def read_manifest(data: bytes) -> PiecesManifest:
    """What it says. Raises MalformedMessage."""
    try:
        value = parse_json(data, "A manifest of pieces", MAX_MANIFEST_BYTES)
        return PiecesManifest.model_validate(value, strict=False)
    except ValidationError as error:
        raise MalformedMessage(f"A manifest of pieces that is none: {error!s:.300}") from error
