"""What is signed about an answer: by each stage's provider, what went through its stage, and by the gateway that sold
it, how many tokens were delivered.

No unit of these receipts is ever used for another output, so none of them is an equivocation: a gateway that uses a
session's id twice mustn't cost a provider its stake.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from commonweight.rules.merkle import hash_leaf, keccak, word
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import NO_TENSOR

SESSION_BYTES = NONCE_BYTES = 16
KEPT_VERSIONS = 3
"""So many of those that were published last nodes keep, for audits: only answers by these are sealed."""
MAX_TEMPERATURE = 100.0
"""At which tokens are drawn; far above it all are equally likely, and float64 ends."""
CHOICE = struct.Struct("<If")
"""One token that the last stage has chosen: its id, and its logit."""
TOKEN_BYTES = struct.calcsize("<I")
"""Of a token's id."""


@dataclass(frozen=True)
class Answer:
    """One stage's part of an answer, as its provider saw it. Hashes are SHA-256."""

    version: int
    """The one that is ready to train this round."""
    session: bytes
    """The `session_id` of what the gateway asked."""
    nonce: bytes
    """The gateway's, NONCE_BYTES."""
    prompt_tokens: int
    """As the session was opened; the tokens after them are those that the last stage chose, which it takes care of."""
    fed: int
    """Tokens that went through the stage: the prompt and all that was chosen, but for the last token."""
    ids: bytes
    """Of these tokens, each a little-endian uint32."""
    taken: bytes
    """Of the codes that came in, position after position, as they travelled; NO_TENSOR on the first stage."""
    passed: bytes
    """Of the codes that went out, likewise; on the last stage of what it chose, one CHOICE for each position from the
    end of the prompt to `fed`.
    """
    temperature: float
    seed: int

    @property
    def trace(self) -> bytes:
        """All of it, as one hash; the temperature enters as its IEEE-754 bits."""
        (bits,) = struct.unpack(">Q", struct.pack(">d", self.temperature))
        return keccak(self.nonce + self.ids + self.taken + self.passed + word(bits) + word(self.seed))

    def receipt(self, model_id: bytes, stage: int) -> Receipt:
        """What the provider of the stage signs."""
        return answer_receipt(model_id, stage, self.version, self.session, self.prompt_tokens, self.fed, self.trace)


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as they are hashed: each a little-endian uint32."""
    return struct.pack(f"<{len(ids)}I", *ids)


def piece_hash(piece: bytes | bytearray) -> bytes:
    """Of the ids, what was taken or what was passed: SHA-256, or NO_TENSOR of nothing."""
    return sha256(piece).digest() if piece else NO_TENSOR


def session_id(nonce: bytes, prompt: bytes, temperature: float, seed: int) -> bytes:
    """The id of the session that answers this prompt, packed, SESSION_BYTES.

    So no stage can put another prompt in the place of the gateway's, whose answer it knows already: the others, and the
    gateway, take it for another session. Who hasn't the random nonce learns nothing about the prompt.
    """
    asked = struct.pack(">dQ", temperature, seed) + prompt
    return sha256(b"commonweight.session/1" + nonce + asked).digest()[:SESSION_BYTES]


def answer_receipt(
    model_id: bytes, stage: int, version: int, session: bytes, prompt_tokens: int, fed: int, trace: bytes
) -> Receipt:
    """What the provider of a stage signs about its part of an answer."""
    said = keccak(b"answer" + word(version) + session + word(prompt_tokens) + word(fed) + trace)
    return Receipt(model_id, stage, unit=said, output=said)


def served_receipt(
    model_id: bytes, version: int, session: bytes, prompt_tokens: int, completion_tokens: int
) -> Receipt:
    """What the gateway signs about the whole answer."""
    said = keccak(b"served" + word(version) + session + word(prompt_tokens) + word(completion_tokens))
    return Receipt(model_id, 0, unit=said, output=said)


def answer_leaf(
    index: int, version: int, session: bytes, prompt_tokens: int, fed: int, traces: Sequence[bytes]
) -> bytes:
    """The leaf of an answer in the tree of a round's answers: what all stages have committed to, in their order."""
    return hash_leaf(index, version, int.from_bytes(session, "big"), prompt_tokens, fed, *traces)


def find_disagreement(answers: Sequence[Answer]) -> str | None:
    """What the stages of a model, in order, disagree about in one answer, or None."""
    for stage, (above, below) in enumerate(pairwise(answers)):
        for what in ("version", "session", "nonce", "prompt_tokens", "fed", "ids", "temperature", "seed"):
            if getattr(above, what) != getattr(below, what):
                return f"stages {stage} and {stage + 1} have other {what}"
        if above.passed != below.taken:
            return f"stage {stage} has sent other codes than stage {stage + 1} has taken"
    return None if answers[0].taken == NO_TENSOR else "a code came into the first stage"
