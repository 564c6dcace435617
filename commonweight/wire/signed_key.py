"""The ASN.1 structure in a certificate's libp2p extension: SignedKey ::= SEQUENCE { OCTET STRING, OCTET
STRING }.

Fourteen lines of DER beat a general ASN.1 parser: two tags, lengths below 65,536 in their shortest form, no
rest.
"""

from commonweight.errors import IdentityMismatch

_SEQUENCE, _OCTET_STRING = 0x30, 0x04


def encode_signed_key(public_key: bytes, signature: bytes) -> bytes:
    """DER of a SignedKey."""
    return _element(_SEQUENCE, _element(_OCTET_STRING, public_key) + _element(_OCTET_STRING, signature))


def decode_signed_key(der: bytes) -> tuple[bytes, bytes]:
    """Public key message and signature of a SignedKey. Raises IdentityMismatch where it isn't exactly one."""
    body, rest = _take(_SEQUENCE, der)
    public_key, tail = _take(_OCTET_STRING, body)
    signature, end = _take(_OCTET_STRING, tail)
    if rest or end:
        raise IdentityMismatch("The certificate's libp2p extension has bytes after its end.")
    return public_key, signature


def _element(tag: int, body: bytes) -> bytes:
    size = len(body)
    assert size < 65_536
    if size < 128:
        return bytes((tag, size)) + body
    octets = size.to_bytes(1 if size < 256 else 2, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + body


def _take(tag: int, der: bytes) -> tuple[bytes, bytes]:
    """The body of the element of kind `tag` that `der` begins with, and what follows it."""
    for octets in range(3):
        head = 2 + octets
        size = int.from_bytes(der[2:head], "big") if octets else (der[1] if len(der) > 1 else 0)
        body = der[head : head + size]
        if _element(tag, body) == der[: head + size]:  # the one encoding of this body, or another length form
            return body, der[head + size :]
    raise IdentityMismatch("The certificate's libp2p extension is not a DER SignedKey.")
