"""Announcements with their signature, as they travel: made by one key, and checked by everybody else."""

import time
from dataclasses import dataclass

from commonweight.errors import ConfigError, IdentityMismatch, MalformedMessage
from commonweight.identity import NodeIdentity, address_of, recover_address
from commonweight.peers.address import MAX_TEXT
from commonweight.rules.announcement import MAX_BYTES, Announcement, Role, announcement_from_json
from commonweight.rules.canonical import canonical_json, parse_json
from commonweight.wire.channel import split_address
from commonweight.wire.tls import peer_id_of

Key = tuple[bytes, str, Role]
"""Model, PeerId and role: what one announcement counts for at a time."""


@dataclass(frozen=True)
class Announced:
    """An announcement whose signature and certificate hold: its key said so. Whether it is true is another matter."""

    announcement: Announcement
    peer_id: str
    """Whose key signed it, and whose certificate is in it."""
    data: bytes
    """As it travels."""

    @property
    def key(self) -> Key:
        """What the next announcement replaces this one for."""
        return self.announcement.model_id, self.peer_id, self.announcement.role

    @property
    def account(self) -> str:
        """The key's address on the chain."""
        return address_of(self.peer_id)

    @property
    def target(self) -> str:
        """PEERID@host:port, as a coordinator is named everywhere else."""
        return f"{self.peer_id}@{self.announcement.address}"


def sign_announcement(announcement: Announcement, identity: NodeIdentity) -> Announced:
    """The announcement, signed. Raises MalformedMessage where it is too long to travel."""
    signature = identity.sign_digest(announcement.digest())
    data = canonical_json({**announcement.to_json(), "signature": "0x" + signature.hex()})
    return read_announced(data)


def read_announced(data: bytes) -> Announced:
    """The announcement in `data`, checked as far as it goes without a clock.

    Raises MalformedMessage that names the field: over MAX_BYTES, not canonical JSON, no address, a libp2p address of
    somebody else. Raises IdentityMismatch where the certificate isn't a node's, or its node's key didn't sign.
    """
    value = parse_json(data, "An announcement", MAX_BYTES)
    if canonical_json(value) != data:
        raise MalformedMessage("An announcement travels as canonical JSON (RFC 8785); this one is written otherwise.")
    signature = _signature(value.pop("signature", None) if isinstance(value, dict) else None)
    announcement = announcement_from_json(value)
    peer_id = peer_id_of(announcement.certificate)
    signer = recover_address(announcement.digest(), signature)
    if signer != address_of(peer_id):
        raise IdentityMismatch(
            f"The announcement carries the certificate of {peer_id}, but {signer} signed it: it is forged, or was "
            "changed on its way."
        )
    try:
        split_address(announcement.address)
    except ConfigError as error:
        raise MalformedMessage(f"address: {error.args[0]}") from error
    for address in announcement.peer_addresses:
        if len(address) > MAX_TEXT or not address.startswith("/") or not address.endswith(f"/p2p/{peer_id}"):
            raise MalformedMessage(f"peer_addresses: {address!r:.120} isn't a multiaddr of {peer_id}.")
    return Announced(announcement, peer_id, data)


def next_sequence(last: int) -> int:
    """The sequence of a key's next announcement: the time in milliseconds, and more than the last one in any case."""
    return max(last + 1, time.time_ns() // 1_000_000)


def _signature(text: object) -> bytes:
    if not isinstance(text, str) or len(text) != 132 or not text.startswith("0x"):
        raise MalformedMessage("signature: expected 0x and 130 lower-case hexadecimal digits.")
    try:
        signature = bytes.fromhex(text[2:])
    except ValueError as error:
        raise MalformedMessage(f"signature: {error}.") from error
    if "0x" + signature.hex() != text:
        raise MalformedMessage("signature: expected lower-case hexadecimal digits.")
    return signature
