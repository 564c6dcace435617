"""Mutual TLS bound to node keys: which certificate a node presents, and whose certificate a given one is.

Each process makes a P-256 key and a self-signed certificate for itself. The node's secp256k1 key signs the
certificate's public key in the libp2p TLS extension (libp2p spec, tls/tls.md), so the certificate names its
PeerId and needs no authority. Only then is it pinned: gRPC gets the one expected certificate as its trust
root (client) or the admitted peers' (server).

Three properties of gRPC decide the shape:
* its Python interface has no hook to verify certificates, hence the pinning;
* a root is found by its subject, so every certificate has a subject of its own, or only the first of a bundle
  works;
* removing a root doesn't cut open connections, so servicers ask `peer_of` at every call.
"""

import asyncio
import datetime as dt
import secrets
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from commonweight.errors import IdentityMismatch, PeerUnreachable
from commonweight.identity import NodeIdentity, peer_id_from_protobuf, public_key_protobuf, verify_libp2p
from commonweight.wire.signed_key import decode_signed_key, encode_signed_key

LIBP2P_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNED_PREFIX = b"libp2p-tls-handshake:"
TARGET_NAME = "node"
"""The DNS name in every certificate. Names mean nothing here, but gRPC insists on checking one."""
MAX_CERTIFICATE_BYTES = 4096
"""Ours have about 600."""
CLOCK_SKEW = dt.timedelta(days=1)
LIFETIME = dt.timedelta(days=3653)
"""A certificate ends with the process whose memory holds its key, and admission with the coordinator's list;
its dates must not end a node that has been running for a year."""

Admitted = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Certificate:
    """What one process presents on every connection.

    The private key is this certificate's, not the node's.
    """

    der: bytes
    private_key_pem: bytes = field(repr=False)
    peer_id: str

    @property
    def pem(self) -> bytes:
        """The certificate in PEM."""
        return _pem(self.der)


def make_certificate(identity: NodeIdentity, now: dt.datetime | None = None) -> Certificate:
    """A fresh certificate of the node.

    Valid for ten years, and from a day before `now`, for clocks that differ.
    """
    now = now or dt.datetime.now(dt.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    signed_key = encode_signed_key(public_key_protobuf(identity.public_key), identity.sign_libp2p(SIGNED_PREFIX + spki))
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, identity.peer_id),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, secrets.token_hex(16)),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(TARGET_NAME)]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION, signed_key), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(certificate.public_bytes(serialization.Encoding.DER), private, identity.peer_id)


def peer_id_of(der: bytes, now: dt.datetime | None = None) -> str:
    """The PeerId of the node that a certificate belongs to.

    Raises IdentityMismatch, saying what is wrong, for: bytes that are no certificate, a key other than P-256,
    a self-signature that doesn't hold, dates that exclude `now`, and an extension that is missing, malformed
    or signed by another key or for another certificate.
    """
    peer_id, begins, ends = _bound_peer(der)
    now = now or dt.datetime.now(dt.UTC)
    if not begins <= now <= ends:
        raise IdentityMismatch(
            f"The certificate of {peer_id} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} "
            f"UTC and it is {now:%Y-%m-%d %H:%M}: check this machine's clock, or restart that node."
        )
    return peer_id


def check_certificate(der: bytes, expected_peer_id: str) -> None:
    """Raises IdentityMismatch unless the certificate is valid and belongs to `expected_peer_id`."""
    actual = peer_id_of(der)
    if actual != expected_peer_id:
        raise IdentityMismatch(f"Expected a certificate of {expected_peer_id}; this one belongs to {actual}.")


def client_credentials(mine: Certificate, peer_der: bytes) -> grpc.ChannelCredentials:
    """Credentials that present `mine` and accept the one certificate `peer_der`.

    Raises IdentityMismatch where `peer_der` isn't a node's valid certificate. Whose it should be is checked
    before, by `fetch_certificate` or `check_certificate`.
    """
    peer_id_of(peer_der)
    return grpc.ssl_channel_credentials(_pem(peer_der), mine.private_key_pem, mine.pem)


def server_credentials(mine: Certificate, admitted: Admitted) -> grpc.ServerCredentials:
    """Credentials that present `mine` and demand one of the `admitted` certificates (DER).

    `admitted` is called at every handshake, from a thread of gRPC's: it returns a snapshot without waiting
    for anything. What it returns has been through `peer_id_of`.
    """
    pair = (mine.private_key_pem, mine.pem)
    known: frozenset[bytes] | None = None

    def configuration() -> grpc.ServerCertificateConfiguration | None:
        nonlocal known
        wanted = frozenset(admitted())
        if wanted == known:
            return None  # gRPC keeps the previous one
        # gRPC refuses to start on an empty bundle; only we hold the key of our own certificate.
        bundle = b"".join(_pem(der) for der in (mine.der, *sorted(wanted)))
        result = grpc.ssl_server_certificate_configuration([pair], root_certificates=bundle)
        known = wanted
        return result

    first = configuration()
    return grpc.dynamic_ssl_server_credentials(first, configuration, require_client_authentication=True)


def enrolment_credentials(mine: Certificate) -> grpc.ServerCredentials:
    """Credentials that present `mine` and ask nothing of the client: for the enrolment service only."""
    return grpc.ssl_server_credentials([(mine.private_key_pem, mine.pem)])


async def fetch_certificate(host: str, port: int, expected_peer_id: str, timeout_s: float) -> bytes:
    """The certificate (DER) that a TLS server presents, once it is known to be `expected_peer_id`'s.

    Nothing is sent beyond the handshake. Raises PeerUnreachable where nobody completes one within
    `timeout_s`, and IdentityMismatch where somebody else does.
    """
    where = f"{expected_peer_id} at {host}:{port}"
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port, ssl=_capture_context(), server_hostname=TARGET_NAME)
    except TimeoutError as error:
        raise PeerUnreachable(
            f"{where} didn't complete a TLS handshake within {timeout_s:g} s. Check that the node runs, and "
            "that no firewall drops connections to that port."
        ) from error
    except ssl.SSLError as error:
        raise PeerUnreachable(
            f"{where} doesn't speak TLS 1.3 ({error.reason or error}). Check the port: is it a gRPC port of a node?"
        ) from error
    except OSError as error:
        raise PeerUnreachable(
            f"{where} can't be reached: {error.strerror or error}. Check host and port, and that the node runs."
        ) from error
    der: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    if not der:
        raise IdentityMismatch(f"{where} presented no certificate.")
    try:
        check_certificate(der, expected_peer_id)
    except IdentityMismatch as error:
        raise IdentityMismatch(f"{host}:{port}: {error.args[0]}") from error
    return der


def certificate_of(context: Any) -> bytes:
    """The certificate (DER) of the client that makes this call. Raises IdentityMismatch where it presented none."""
    presented = context.auth_context().get("x509_pem_cert")
    if not presented:
        raise IdentityMismatch("The client presented no certificate.")
    return ssl.PEM_cert_to_DER_cert(presented[0].decode())


def peer_of(context: Any, admitted: Admitted | None = None) -> str:
    """The PeerId of the client that makes this call, from a servicer's `context`.

    With `admitted`, its certificate must also be among these now: a connection outlives an admission. Raises
    IdentityMismatch; the servicer answers with PERMISSION_DENIED.
    """
    der = certificate_of(context)
    peer_id = peer_id_of(der)
    if admitted is not None and der not in admitted():
        raise IdentityMismatch(f"{peer_id} is no longer admitted with the certificate of this connection.")
    return peer_id


@lru_cache(maxsize=1024)
def _bound_peer(der: bytes) -> tuple[str, dt.datetime, dt.datetime]:
    """PeerId and dates of a certificate whose binding holds; a pure function of the bytes (about 0.5 ms)."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise IdentityMismatch(f"A node's certificate has at most {MAX_CERTIFICATE_BYTES} bytes, not {len(der)}.")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        extensions = list(certificate.extensions)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except Exception as error:  # hostile DER makes the parser raise more kinds than it documents
        raise IdentityMismatch(f"These {len(der)} bytes are no X.509 certificate: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityMismatch("The certificate's own key is not on P-256, the only curve in use here.")
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise IdentityMismatch("The certificate isn't signed by its own key.") from error
    found = [extension for extension in extensions if extension.oid == LIBP2P_EXTENSION]
    if not found:
        raise IdentityMismatch(f"The certificate has no libp2p extension ({LIBP2P_EXTENSION.dotted_string}).")
    value = found[0].value
    assert isinstance(value, x509.UnrecognizedExtension)
    public_message, signature = decode_signed_key(value.value)
    peer_id, public_key = peer_id_from_protobuf(public_message)
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not verify_libp2p(public_key, SIGNED_PREFIX + spki, signature):
        raise IdentityMismatch(
            f"The certificate claims to be {peer_id}'s, but that node's key didn't sign it: the extension is "
            "forged or copied from another certificate."
        )
    return peer_id, begins, ends


def _capture_context() -> ssl.SSLContext:
    """Takes whatever certificate is presented; it is verified afterwards, against the expected PeerId."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    return context


def _pem(der: bytes) -> bytes:
    return ssl.DER_cert_to_PEM_cert(der).encode()
