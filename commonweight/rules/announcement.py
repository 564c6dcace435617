"""What a node or a coordinator says of itself to everybody: for which model, at which address, with which certificate.

An announcement is signed by the announcer's key and holds for a while. Anybody may pass it on and nobody can change it.
It proves who said so and when, not that it is true: an address counts once it has been dialled.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from eth_hash.auto import keccak

from commonweight.errors import MalformedMessage
from commonweight.rules.canonical import MAX_INTEGER, content_hash
from commonweight.rules.receipt import Domain

FORMAT = "commonweight.announcement/1"
ANNOUNCEMENT_TYPE = b"Announcement(bytes32 content)"
MAX_BYTES = 4096
"""Signed, as it travels."""
MAX_TTL_S = 600
MIN_TTL_S = 5
MAX_SKEW_S = 30
"""By which an announcer's clock may be ahead of ours."""
MAX_STAGE = 2**16
MAX_PEER_ADDRESSES = 4
MAX_ADDRESS = 255
MAX_CERTIFICATE_BYTES = 1536

_HEX = {"model_id": re.compile(r"0x[0-9a-f]{64}"), "registry": re.compile(r"0x[0-9a-f]{40}")}
_PRINTABLE = re.compile(r"[!-~]+")


class Role(Enum):
    """What the announcer is to its model."""

    NODE = "node"
    COORDINATOR = "coordinator"


class Order(Enum):
    """What a valid announcement is to the one that is known of the same key, for the same model and role."""

    NEWER = "newer"
    SAME = "same"
    OLDER = "older"
    CONFLICT = "conflict"
    """Two processes announce with one key: only one of them may."""


@dataclass(frozen=True)
class Announcement:
    """One announcement, without its signature."""

    role: Role
    chain_id: int
    registry: str
    """0x and 40 lower-case digits: with the chain's id, the network that it is for."""
    model_id: bytes
    stage: int | None
    """That a node holds; None: none yet, or a coordinator."""
    address: str
    """host:port where it presents its certificate: of a coordinator the enrolment service, of a node its pipes."""
    certificate: bytes
    """DER."""
    capacity: int | None
    """Tokens per second that a node measured; None: not yet."""
    peer_addresses: tuple[str, ...]
    """Multiaddrs of its libp2p host, directly or through a relay."""
    sequence: int
    """Grows with each announcement of a key, over restarts, too: milliseconds since the Unix epoch, by its clock."""
    issued_at_s: int
    """Unix time, by the announcer's clock."""
    ttl_s: int

    @property
    def until_s(self) -> int:
        """From then on it counts no more, by the announcer's clock."""
        return self.issued_at_s + self.ttl_s

    def to_json(self) -> dict[str, Any]:
        """What is hashed, as canonical JSON."""
        return {
            "format": FORMAT,
            "role": self.role.value,
            "chain_id": self.chain_id,
            "registry": self.registry,
            "model_id": "0x" + self.model_id.hex(),
            "stage": self.stage,
            "address": self.address,
            "certificate": base64.b64encode(self.certificate).decode(),
            "capacity": self.capacity,
            "peer_addresses": list(self.peer_addresses),
            "sequence": self.sequence,
            "issued_at_s": self.issued_at_s,
            "ttl_s": self.ttl_s,
        }

    def digest(self) -> bytes:
        """The 32 bytes that are signed (EIP-712); the registry is the verifying contract.

        The type sets it apart from a receipt: no signature of the one is good for the other.
        """
        struct_hash = keccak(keccak(ANNOUNCEMENT_TYPE) + content_hash(self.to_json()))
        return keccak(b"\x19\x01" + Domain(self.chain_id, self.registry).separator + struct_hash)


def announcement_from_json(value: Any) -> Announcement:
    """The announcement in a JSON value. Raises MalformedMessage that names the field."""
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        raise MalformedMessage(f"An announcement is an object with exactly the fields {', '.join(sorted(_FIELDS))}.")
    if value["format"] != FORMAT:
        raise MalformedMessage(f"format: {value['format']!r:.60} is not {FORMAT}, the only one that is read here.")
    try:
        role = Role(value["role"])
    except ValueError as error:
        raise MalformedMessage(f"role: {value['role']!r:.40} is neither node nor coordinator.") from error
    return Announcement(
        role=role,
        chain_id=_integer(value, "chain_id", 1, MAX_INTEGER),
        registry=_hex(value, "registry"),
        model_id=bytes.fromhex(_hex(value, "model_id")[2:]),
        stage=None if value["stage"] is None else _integer(value, "stage", 0, MAX_STAGE),
        address=_text(value["address"], "address"),
        certificate=_certificate(value["certificate"]),
        capacity=None if value["capacity"] is None else _integer(value, "capacity", 0, MAX_INTEGER),
        peer_addresses=_peer_addresses(value["peer_addresses"]),
        sequence=_integer(value, "sequence", 0, MAX_INTEGER),
        issued_at_s=_integer(value, "issued_at_s", 0, MAX_INTEGER),
        ttl_s=_integer(value, "ttl_s", MIN_TTL_S, MAX_TTL_S),
    )


def check_time(announcement: Announcement, now_s: float) -> None:
    """Raise MalformedMessage unless the announcement counts at `now_s`, by our clock."""
    ahead_s = announcement.issued_at_s - now_s
    if ahead_s > MAX_SKEW_S:
        raise MalformedMessage(
            f"The announcement was issued {ahead_s:.0f} s ahead of this machine's clock; {MAX_SKEW_S} s are let pass. "
            "One of the two clocks is wrong."
        )
    if now_s >= announcement.until_s:
        raise MalformedMessage(
            f"The announcement ended {now_s - announcement.until_s:.0f} s ago by this machine's clock: it is old, or "
            "one of the two clocks is wrong."
        )


def compare(new: Announcement, known: Announcement, replaced: tuple[bytes, ...]) -> Order:
    """What `new` is to `known`, both of one key for one model and role, both counting now.

    A process that was started again has another certificate, and its announcement replaces the old one. Where a
    certificate comes back that was `replaced` before, or two announcements share a sequence, two processes announce
    at the same time.
    """
    if new.sequence < known.sequence:
        return Order.OLDER
    if new.sequence == known.sequence:
        return Order.SAME if new == known else Order.CONFLICT
    if new.certificate != known.certificate and new.certificate in replaced:
        return Order.CONFLICT
    return Order.NEWER


_FIELDS = frozenset(
    Announcement(Role.NODE, 1, "0x" + 40 * "0", bytes(32), None, "", b"", None, (), 0, 0, MIN_TTL_S).to_json()
)


def _integer(value: dict[str, Any], name: str, low: int, high: int) -> int:
    found = value[name]
    if type(found) is not int or not low <= found <= high:
        raise MalformedMessage(f"{name}: {found!r:.40} is not an integer from {low} to {high}.")
    return found


def _hex(value: dict[str, Any], name: str) -> str:
    found = value[name]
    if not isinstance(found, str) or not _HEX[name].fullmatch(found):
        raise MalformedMessage(f"{name}: {found!r:.80} is not 0x and lower-case hexadecimal digits.")
    return found


def _text(found: Any, name: str) -> str:
    if not isinstance(found, str) or len(found) > MAX_ADDRESS or not _PRINTABLE.fullmatch(found):
        raise MalformedMessage(f"{name}: {found!r:.80} is not 1 to {MAX_ADDRESS} visible ASCII characters.")
    return found


def _certificate(found: Any) -> bytes:
    try:
        der = base64.b64decode(found, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise MalformedMessage(f"certificate: {found!r:.40} is not base64.") from error
    if not 0 < len(der) <= MAX_CERTIFICATE_BYTES or base64.b64encode(der).decode() != found:
        raise MalformedMessage(
            f"certificate: {len(der)} bytes; 1 to {MAX_CERTIFICATE_BYTES} are read, in canonical base64."
        )
    return der


def _peer_addresses(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or len(found) > MAX_PEER_ADDRESSES:
        raise MalformedMessage(f"peer_addresses: a list of at most {MAX_PEER_ADDRESSES}.")
    return tuple(_text(each, "peer_addresses") for each in found)
