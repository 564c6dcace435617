"""What gateways and stages agree on about generation: limits, and the first message of each stream. No torch."""

from commonweight.errors import MalformedMessage, UnplannedMessage
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import code_bytes
from commonweight.wire.generated import decode_pb2 as pb

ID_BYTES = 16
"""Of a session's and of a client's id."""
MAX_CHUNK_TOKENS = 128
"""Of one step. A longer prompt goes in several, which take turns with what other sessions ask for."""
MAX_CHUNK_BYTES = 1 << 20
"""Of one step's code."""
DECODE_FRAME_BYTES = MAX_CHUNK_BYTES + (64 << 10)
"""Of a whole message: a step's code, and slack for its ids and the rest."""
DECODE_PING_TIMEOUT_MS = 5_000
"""A frozen peer is noticed this long, and the two seconds before a ping, after its last byte."""
OPEN_S = 10.0
"""For a stream to the next stage, or from a gateway, to open."""


def chunk_tokens(spec: ModelSpec) -> int:
    """How many tokens a step has at most."""
    return max(1, min(MAX_CHUNK_TOKENS, MAX_CHUNK_BYTES // code_bytes(spec)))


def check_hello(hello: pb.DecodeHello, spec: ModelSpec, round_: int, stage: int) -> None:
    """Raises UnplannedMessage unless the hello is of this version and names this stage."""
    expected = {"spec_hash": spec.spec_hash, "round": round_, "stage": stage}
    for name, wanted in expected.items():
        if (found := getattr(hello, name)) != wanted:
            raise UnplannedMessage(f"The other side's {name} is {_show(found)}; here it is {_show(wanted)}.")


def check_id(value: bytes, what: str) -> None:
    """Raises MalformedMessage unless it has 16 bytes."""
    if len(value) != ID_BYTES:
        raise MalformedMessage(f"A {what} has {ID_BYTES} bytes; this one has {len(value)}.")


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
