"""One secp256k1 key, seen from both worlds: an Ethereum address and a libp2p PeerId.

A PeerId inlines the compressed public key (libp2p spec, peer-ids.md: an "identity" multihash of the protobuf
PublicKey{Type: Secp256k1, Data: 33 bytes}), so the address follows from it without a look-up.

One key signs for both worlds and the two can't be confused: what a contract checks is a keccak256 digest that
begins with 0x1901 (EIP-712), what libp2p checks is SHA-256 over a message with a text prefix.
"""

import base58
from coincurve import PrivateKey, PublicKey
from eth_hash.auto import keccak

from commonweight.errors import IdentityMismatch, KeyStoreError, MalformedMessage

_PUBLIC_KEY_PROTOBUF = bytes.fromhex("08021221")  # field 1 (Type) = 2 (Secp256k1), field 2 (Data) of 33 bytes
_PEER_ID_PREFIX = bytes.fromhex("0025") + _PUBLIC_KEY_PROTOBUF  # multihash "identity", 37 bytes
_PEER_ID_TEXT = 53  # characters of every secp256k1 PeerId
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class NodeIdentity:
    """A node's key. Its repr, str and pickle never show the secret; nothing here writes it anywhere."""

    __slots__ = ("_key", "address", "peer_id")

    def __init__(self, secret: bytes) -> None:
        """From the 32 bytes of a secp256k1 secret. Raises KeyStoreError where they are no valid secret."""
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise KeyStoreError(
                "A node's key is a secp256k1 secret: 32 bytes, as a number above 0 and below the order of "
                "the curve. The given one isn't; create another one."
            )
        self._key = PrivateKey(secret)
        public = self.public_key
        self.address: str = _address(PublicKey(public))
        """EIP-55 checksum address, 0x…"""
        self.peer_id: str = _peer_id(public)
        """libp2p PeerId, base58: 16Uiu2HA…"""

    @property
    def public_key(self) -> bytes:
        """Compressed, 33 bytes."""
        return self._key.public_key.format(compressed=True)

    def sign_digest(self, digest: bytes) -> bytes:
        """r ‖ s ‖ v over a 32-byte digest: 65 bytes, v 27 or 28.

        s is in the lower half (EIP-2) and the nonce deterministic (RFC 6979).
        """
        _check_digest(digest)
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes((27 + signature[64],))

    def sign_libp2p(self, message: bytes) -> bytes:
        """DER-encoded ECDSA over SHA-256 of the message, as libp2p signs with secp256k1 keys."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"NodeIdentity(address={self.address!r}, peer_id={self.peer_id!r})"

    def __reduce__(self) -> str:
        raise TypeError("A NodeIdentity holds a secret and isn't pickled or copied.")


def recover_address(digest: bytes, signature: bytes) -> str:
    """The checksum address whose key made `signature` (65 bytes r ‖ s ‖ v) over `digest` (32 bytes).

    Raises MalformedMessage where the bytes are no signature: wrong length, v other than 27 or 28, r or s out
    of range, or s in the upper half, which OpenZeppelin's ECDSA refuses, too.
    """
    _check_digest(digest)
    if len(signature) != 65:
        raise MalformedMessage(f"A signature has 65 bytes (r, s, v); this one has {len(signature)}.")
    v, s = signature[64], int.from_bytes(signature[32:64], "big")
    if v not in (27, 28):
        raise MalformedMessage(f"The last byte of a signature is 27 or 28; this one's is {v}.")
    if s > _ORDER // 2:
        raise MalformedMessage("The signature's s is in the upper half of the curve's order, which contracts refuse.")
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes((v - 27,)), digest, hasher=None)
    except Exception as error:  # coincurve raises a bare Exception for r or s out of range
        raise MalformedMessage("The signature belongs to no key: its r or s is out of range.") from error
    return _address(key)


def verify_libp2p(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (DER) is `public_key`'s (33 bytes) over SHA-256 of `message`.

    False, too, for a key or a signature that can't be parsed.
    """
    try:
        return PublicKey(public_key).verify(signature, message)
    except ValueError:
        return False


def public_key_of(peer_id: str) -> bytes:
    """The compressed public key, 33 bytes, that a secp256k1 PeerId inlines.

    Raises MalformedMessage for any other text.
    """
    # Base58 decoding is quadratic in the length, so the length comes first.
    if len(peer_id) != _PEER_ID_TEXT or not peer_id.isascii():
        raise MalformedMessage(
            f"{peer_id[:80]!r} is not the PeerId of a node: it has {len(peer_id)} characters, a PeerId with "
            f"a secp256k1 key has {_PEER_ID_TEXT} and begins with 16Uiu2HA."
        )
    try:
        raw = base58.b58decode(peer_id)
    except ValueError as error:
        raise MalformedMessage(f"{peer_id!r} is not a PeerId: {error}.") from error
    if len(raw) != 39 or not raw.startswith(_PEER_ID_PREFIX):
        raise MalformedMessage(f"{peer_id!r} is not the PeerId of a secp256k1 key; those begin with 16Uiu2HA.")
    public = raw[len(_PEER_ID_PREFIX) :]
    _curve_point(public, peer_id)
    return public


def address_of(peer_id: str) -> str:
    """The checksum address of the key in a PeerId. Raises MalformedMessage where the text is no PeerId."""
    return _address(_curve_point(public_key_of(peer_id), peer_id))


def peer_id_from_protobuf(message: bytes) -> tuple[str, bytes]:
    """The PeerId and the compressed key of a libp2p PublicKey message.

    Raises IdentityMismatch for another kind of key than secp256k1 or another encoding than the deterministic
    one.
    """
    if len(message) != 37 or not message.startswith(_PUBLIC_KEY_PROTOBUF):
        raise IdentityMismatch(f"A node's public key is of kind secp256k1; {message[:40].hex()} is of another kind.")
    public = message[4:]
    try:
        _curve_point(public, public.hex())
    except MalformedMessage as error:
        raise IdentityMismatch(f"The node's public key {public.hex()} is not a point of the curve.") from error
    return _peer_id(public), public


def public_key_protobuf(public_key: bytes) -> bytes:
    """libp2p's PublicKey message for a compressed secp256k1 key: 37 bytes."""
    return _PUBLIC_KEY_PROTOBUF + public_key


def _peer_id(public_key: bytes) -> str:
    return base58.b58encode(_PEER_ID_PREFIX + public_key).decode()


def _address(key: PublicKey) -> str:
    """EIP-55: the hex digits of keccak256(address text) say which letters are capital."""
    text = keccak(key.format(compressed=False)[1:])[-20:].hex()
    case = keccak(text.encode()).hex()
    return "0x" + "".join(c.upper() if int(case[i], 16) > 7 else c for i, c in enumerate(text))


def _curve_point(public_key: bytes, shown: str) -> PublicKey:
    try:
        return PublicKey(public_key)
    except ValueError as error:
        raise MalformedMessage(f"{shown} holds no valid secp256k1 public key.") from error


def _check_digest(digest: bytes) -> None:
    if len(digest) != 32:
        raise MalformedMessage(f"What is signed is a digest of 32 bytes; this one has {len(digest)}.")
