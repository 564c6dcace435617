"""Mutual TLS on real gRPC servers: who gets through, who doesn't, and how a refusal reads."""

import asyncio
import contextlib
import datetime as dt
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from commonweight.errors import (
    CommonweightError,
    ConfigError,
    IdentityMismatch,
    MessageTooLarge,
    PeerUnreachable,
    Refused,
)
from commonweight.identity import NodeIdentity, public_key_protobuf
from commonweight.wire.channel import CONTROL_MESSAGE_BYTES, open_channel, serve
from commonweight.wire.generated import control_pb2, control_pb2_grpc
from commonweight.wire.signed_key import encode_signed_key
from commonweight.wire.status import refuse, wire_error
from commonweight.wire.tls import (
    LIBP2P_EXTENSION,
    SIGNED_PREFIX,
    Certificate,
    check_certificate,
    enrolment_credentials,
    fetch_certificate,
    make_certificate,
    peer_id_of,
    peer_of,
    server_credentials,
)

DEADLINE_S = 10
NOW = dt.datetime.now(dt.UTC)

ALICE, BOB, CAROL, SERVER = (NodeIdentity(bytes([n]) * 32) for n in range(1, 5))
SERVER_CERT = make_certificate(SERVER)
ALICE_CERT = make_certificate(ALICE)
BOB_CERT = make_certificate(BOB)

# libp2p specs, tls.md, "Test vectors": number 3 (secp256k1), number 4 (the key doesn't match).
SPEC_PEER = "16Uiu2HAkutTMoTzDw1tCvSRtu6YoixJwS46S1ZFxW8hSx9fWHiPs"
SPEC_HEAD = (
    "a0030201020204499602d2300a06082a8648ce3d040302302031123010060355040a13096c69627032702e696f310a3008060355040513013130"
    "20170d3735303130313133303030305a180f34303936303130313133303030305a302031123010060355040a13096c69627032702e696f310a30"
    "0806035504051301313059301306072a8648ce3d020106082a8648ce3d030107034200040c901d423c831ca85e27c73c263ba132721bb9d7a84c"
    "4f0380b2a6756fd601331c8870234dec878504c174144fa4b14b66a651691606d8173e55bd37e381569ea3"
)
SPEC_VALID = bytes.fromhex(
    "308201ba3082015f"
    + SPEC_HEAD
    + "8184308181307f060a2b0601040183a25a01010471306f0425080212210206dc6968726765b820f050263"
    "ececf7f71e4955892776c0970542efd689d2382044630440220145e15a991961f0d08cd15425bb95ec93f6ffa03c5a385eedc34ecf464c7a8ab02"
    "2026b3109b8a3f40ef833169777eb2aa337cfb6282f188de0666d1bcec2a4690dd300a06082a8648ce3d0403020349003046022100e1a217eeef9"
    "ec9204b3f774a08b70849646b6a1e6b8b27f93dc00ed58545d9fe022100b00dafa549d0f03547878338c7b15e7502888f6d45db387e5ae6b5d468"
    "99cef0"
)
SPEC_INVALID = bytes.fromhex(
    "308201f73082019d"
    + SPEC_HEAD
    + "81c23081bf3081bc060a2b0601040183a25a01010481ad3081aa045f0803125b3059301306072a8648ce3"
    "d020106082a8648ce3d03010703420004bf30511f909414ebdd3242178fd290f093a551cf75c973155de0bb5a96fedf6cb5d52da7563e794b512f"
    "66e60c7f55ba8a3acf3dd72a801980d205e8a1ad29f204473045022100bb6e03577b7cc7a3cd1558df0da2b117dfdcc0399bc2504ebe7de6f65ca"
    "de72802206de96e2a5be9b6202adba24ee0362e490641ac45c240db71fe955f2c5cf8df6e300a06082a8648ce3d0403020348003045022100e847"
    "f267f43717358f850355bdcabbefb2cfbf8a3c043b203a14788a092fe8db022027c1d04a2d41fd6b57a7e8b3989e470325de4406e52e084e34a3f"
    "d56eef0d0df"
)


class Enrolment(control_pb2_grpc.EnrolmentServicer):
    """Answers with as many bytes as it got, to whom it was told to; remembers who called."""

    def __init__(self, admitted: Callable[[], Iterable[bytes]] | None) -> None:
        self.admitted = admitted
        self.callers: list[str] = []

    async def Enrol(self, request, context):
        try:
            self.callers.append(peer_of(context, self.admitted))
        except CommonweightError as error:
            await refuse(context, error)
        return control_pb2.EnrolResponse(control_port=len(request.certificate))


@contextlib.asynccontextmanager
async def running(
    certificate: Certificate = SERVER_CERT, admitted: list[bytes] | None = None
) -> AsyncIterator[tuple[str, Enrolment]]:
    """A server with mutual TLS, or an enrolment server where `admitted` is None; yields its address and servicer."""
    if admitted is None:
        servicer, credentials = Enrolment(None), enrolment_credentials(certificate)
    else:
        servicer, credentials = Enrolment(lambda: admitted), server_credentials(certificate, lambda: admitted)
    pair = (control_pb2_grpc.add_EnrolmentServicer_to_server, servicer)
    server, port = await serve([pair], "127.0.0.1:0", credentials)
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(None)


async def call(channel: grpc.aio.Channel, size: int = 3, timeout_s: float = DEADLINE_S) -> control_pb2.EnrolResponse:
    request = control_pb2.EnrolRequest(certificate=bytes(size))
    try:
        return await control_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        raise wire_error(error, "the server") from error


async def call_once(address: str, mine: Certificate, peer_der: bytes = SERVER_CERT.der) -> control_pb2.EnrolResponse:
    async with open_channel(address, mine, peer_der) as channel:
        return await call(channel)


def forge(
    claimed: NodeIdentity, *, signer: NodeIdentity | None = None, extension: bytes | None = b"made", **changes
) -> Certificate:
    """A certificate like ours that claims to be `claimed`'s, with something wrong with it."""
    key = ec.generate_private_key(changes.get("curve", ec.SECP256R1()))
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if extension == b"made":
        signature = (signer or claimed).sign_libp2p(changes.get("prefix", SIGNED_PREFIX) + spki)
        extension = encode_signed_key(public_key_protobuf(claimed.public_key), signature)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, claimed.peer_id + os.urandom(4).hex())])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - dt.timedelta(days=1))
        .not_valid_after(NOW + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("node")]), critical=False)
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION, extension), critical=False)
    made = builder.sign(changes.get("signing_key", key), hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Certificate(made.public_bytes(serialization.Encoding.DER), private, claimed.peer_id)


def extension_of(der: bytes) -> bytes:
    certificate = x509.load_der_x509_certificate(der)
    return certificate.extensions.get_extension_for_oid(LIBP2P_EXTENSION).value.value


FORGERIES = {
    "signed by another key": (lambda: forge(ALICE, signer=BOB), "didn't sign it"),
    "extension stolen": (lambda: forge(ALICE, extension=extension_of(ALICE_CERT.der)), "didn't sign it"),
    "signed without the prefix": (lambda: forge(ALICE, prefix=b""), "didn't sign it"),
    "no extension": (lambda: forge(ALICE, extension=None), "no libp2p extension"),
    "extension empty": (lambda: forge(ALICE, extension=b""), "not a DER SignedKey"),
    "extension with a tail": (lambda: forge(ALICE, extension=extension_of(ALICE_CERT.der) + b"\0"), "after its end"),
    "not self-signed": (
        lambda: forge(ALICE, signing_key=ec.generate_private_key(ec.SECP256R1())),
        "isn't signed by its own key",
    ),
    "another curve": (lambda: forge(ALICE, curve=ec.SECP384R1()), "not on P-256"),
}


@pytest.mark.parametrize(("make", "why"), FORGERIES.values(), ids=FORGERIES)
def test_a_forged_certificate_is_refused_and_says_why(make, why):
    with pytest.raises(IdentityMismatch, match=why):
        peer_id_of(make().der)


def test_certificates_of_the_libp2p_specification():
    assert peer_id_of(SPEC_VALID) == SPEC_PEER
    with pytest.raises(IdentityMismatch, match="kind secp256k1"):
        peer_id_of(SPEC_INVALID)


def test_a_certificate_names_its_node_and_no_other():
    assert peer_id_of(ALICE_CERT.der) == ALICE.peer_id == ALICE_CERT.peer_id
    check_certificate(ALICE_CERT.der, ALICE.peer_id)
    with pytest.raises(IdentityMismatch) as caught:
        check_certificate(ALICE_CERT.der, BOB.peer_id)
    assert ALICE.peer_id in str(caught.value)
    assert BOB.peer_id in str(caught.value)


def test_a_certificate_allows_for_clocks_that_differ_and_for_long_runs():
    for now in (NOW - dt.timedelta(hours=23), NOW + dt.timedelta(days=3650)):
        assert peer_id_of(ALICE_CERT.der, now) == ALICE.peer_id
    for now in (NOW - dt.timedelta(hours=25), NOW + dt.timedelta(days=3654)):
        with pytest.raises(IdentityMismatch, match="check this machine's clock"):
            peer_id_of(ALICE_CERT.der, now)


def test_every_certificate_has_a_subject_of_its_own_and_hides_its_key():
    again = make_certificate(ALICE)
    subjects = {x509.load_der_x509_certificate(each.der).subject for each in (ALICE_CERT, again)}
    assert len(subjects) == 2
    assert again.private_key_pem.splitlines()[1].decode() not in repr(again)


@pytest.mark.parametrize("der", [b"", b"\x30", os.urandom(200), bytes(5000), ALICE_CERT.der[:-1], ALICE_CERT.pem])
def test_bytes_that_are_no_certificate_are_refused(der):
    with pytest.raises(IdentityMismatch):
        peer_id_of(der)


@pytest.mark.asyncio
async def test_the_right_peers_get_through_and_are_known_by_name():
    # Two admitted at once: with equal subjects only the first would be found.
    async with running(admitted=[ALICE_CERT.der, BOB_CERT.der]) as (address, servicer):
        for mine in (ALICE_CERT, BOB_CERT):
            assert (await call_once(address, mine)).control_port == 3
        assert servicer.callers == [ALICE.peer_id, BOB.peer_id]


@pytest.mark.asyncio
async def test_a_hundred_may_be_admitted_at_once():
    others = [make_certificate(BOB).der for _ in range(100)]
    async with running(admitted=[*others, ALICE_CERT.der]) as (address, servicer):
        await call_once(address, ALICE_CERT)
        assert servicer.callers == [ALICE.peer_id]


@pytest.mark.asyncio
async def test_a_client_who_is_unknown_gets_no_answer_until_admitted_and_after_removal():
    admitted: list[bytes] = []
    async with running(admitted=admitted) as (address, servicer):
        with pytest.raises(PeerUnreachable, match="admits this node's certificate"):
            await call_once(address, ALICE_CERT)
        admitted.append(ALICE_CERT.der)
        async with open_channel(address, ALICE_CERT, SERVER_CERT.der) as channel:
            await call(channel)
            admitted.remove(ALICE_CERT.der)
            with pytest.raises(Refused, match="no longer admitted"):
                await call(channel)  # the connection is still the old one
        with pytest.raises(PeerUnreachable):
            await call_once(address, ALICE_CERT)
        assert servicer.callers == [ALICE.peer_id]


@pytest.mark.asyncio
async def test_another_certificate_of_an_admitted_node_is_not_admitted():
    async with running(admitted=[ALICE_CERT.der]) as (address, servicer):
        with pytest.raises(PeerUnreachable):
            await call_once(address, make_certificate(ALICE))
        assert servicer.callers == []


@pytest.mark.asyncio
async def test_a_server_that_is_not_the_expected_one_is_called_an_impostor():
    async with running(BOB_CERT, admitted=[ALICE_CERT.der]) as (address, servicer):
        with pytest.raises(IdentityMismatch, match="another certificate than the one expected"):
            await call_once(address, ALICE_CERT)
        assert servicer.callers == []


@pytest.mark.asyncio
async def test_a_client_without_a_certificate_or_without_tls_is_refused():
    async with running(admitted=[ALICE_CERT.der]) as (address, servicer):
        bare = grpc.ssl_channel_credentials(SERVER_CERT.pem)
        options = [("grpc.ssl_target_name_override", "node")]
        for channel in (
            grpc.aio.secure_channel(address, bare, options=options),
            grpc.aio.insecure_channel(address),
        ):
            async with channel:
                with pytest.raises(PeerUnreachable):
                    await call(channel)
        assert servicer.callers == []


@pytest.mark.asyncio
async def test_a_forged_certificate_is_refused_at_the_call_even_if_it_was_admitted():
    forged = forge(ALICE, signer=BOB)
    async with running(admitted=[forged.der]) as (address, servicer):
        with pytest.raises(Refused, match="forged or copied"):
            await call_once(address, forged)
        assert servicer.callers == []


@pytest.mark.asyncio
async def test_an_expired_certificate_is_refused_on_either_side():
    old = make_certificate(ALICE, NOW - dt.timedelta(days=4000))
    async with running(admitted=[old.der, BOB_CERT.der]) as (address, servicer):
        with pytest.raises(PeerUnreachable):
            await call_once(address, old)
        await call_once(address, BOB_CERT)
        assert servicer.callers == [BOB.peer_id]
    async with running(old, admitted=[BOB_CERT.der]) as (address, _):
        host, port = address.split(":")
        with pytest.raises(IdentityMismatch, match="is valid from"):
            await fetch_certificate(host, int(port), ALICE.peer_id, DEADLINE_S)
        with pytest.raises(IdentityMismatch, match="is valid from"):
            open_channel(address, BOB_CERT, old.der)


@pytest.mark.asyncio
async def test_the_enrolment_port_serves_strangers_but_names_nobody():
    async with running(admitted=None) as (address, _):
        with pytest.raises(Refused, match="presented no certificate"):
            await call_once(address, make_certificate(CAROL))


@pytest.mark.asyncio
async def test_a_certificate_is_fetched_from_either_kind_of_port_without_being_admitted():
    for admitted in (None, []):
        async with running(admitted=admitted) as (address, _):
            host, port = address.split(":")
            assert await fetch_certificate(host, int(port), SERVER.peer_id, DEADLINE_S) == SERVER_CERT.der
            with pytest.raises(IdentityMismatch) as caught:
                await fetch_certificate(host, int(port), BOB.peer_id, DEADLINE_S)
            assert BOB.peer_id in str(caught.value)
            assert SERVER.peer_id in str(caught.value)
            assert address in str(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["signed by another key", "extension stolen", "no extension"])
async def test_a_forged_certificate_is_not_fetched(name):
    make, why = FORGERIES[name]
    async with running(make(), admitted=[]) as (address, _):
        host, port = address.split(":")
        with pytest.raises(IdentityMismatch, match=why):
            await fetch_certificate(host, int(port), ALICE.peer_id, DEADLINE_S)


@pytest.mark.asyncio
async def test_nobody_there_something_else_there_or_silence_is_unreachable():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(PeerUnreachable, match=f"127.0.0.1:{port} can't be reached"):
            await fetch_certificate("127.0.0.1", port, SERVER.peer_id, DEADLINE_S)
        silent.listen()
        with pytest.raises(PeerUnreachable, match=r"within 0\.2 s.*firewall"):
            await fetch_certificate("127.0.0.1", port, SERVER.peer_id, 0.2)
    junk = await asyncio.start_server(_answer_with_junk, "127.0.0.1", 0)
    async with junk:
        port = junk.sockets[0].getsockname()[1]
        with pytest.raises(PeerUnreachable, match="Check"):
            await fetch_certificate("127.0.0.1", port, SERVER.peer_id, DEADLINE_S)


async def _answer_with_junk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.mark.asyncio
async def test_oversized_messages_are_refused_on_either_side():
    async with running(admitted=[ALICE_CERT.der]) as (address, servicer):
        async with open_channel(address, ALICE_CERT, SERVER_CERT.der) as channel:
            assert (await call(channel, CONTROL_MESSAGE_BYTES - 16)).control_port == CONTROL_MESSAGE_BYTES - 16
            with pytest.raises(MessageTooLarge):
                await call(channel, CONTROL_MESSAGE_BYTES)
            await call(channel)  # the connection survives
        # A client that doesn't keep to the limit:
        async with open_channel(address, ALICE_CERT, SERVER_CERT.der, max_message_bytes=1 << 30) as channel:
            with pytest.raises(MessageTooLarge, match=str(CONTROL_MESSAGE_BYTES)):
                await call(channel, 2 * CONTROL_MESSAGE_BYTES)
        assert len(servicer.callers) == 2


@pytest.mark.asyncio
async def test_the_health_service_answers_admitted_peers():
    async with running(admitted=[ALICE_CERT.der]) as (address, _):
        async with open_channel(address, ALICE_CERT, SERVER_CERT.der) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=DEADLINE_S
            )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_named():
    async with running(admitted=[]) as (address, _):
        with pytest.raises(ConfigError, match=f"Can't listen on {address}"):
            await serve([], address, server_credentials(SERVER_CERT, list))
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await serve([], "192.0.2.1:0", server_credentials(SERVER_CERT, list))  # TEST-NET: never ours


@pytest.mark.asyncio
async def test_a_peer_that_comes_back_is_reached_within_the_backoff():
    async with running(admitted=[ALICE_CERT.der]) as (address, _):
        channel = open_channel(address, ALICE_CERT, SERVER_CERT.der)
        await call(channel)
    with pytest.raises(PeerUnreachable):
        await call(channel)
    credentials = server_credentials(SERVER_CERT, lambda: [ALICE_CERT.der])
    servicer = Enrolment(None)
    pair = (control_pb2_grpc.add_EnrolmentServicer_to_server, servicer)
    server, _ = await serve([pair], address, credentials)
    async with asyncio.timeout(3):
        request = control_pb2.EnrolRequest()
        await control_pb2_grpc.EnrolmentStub(channel).Enrol(request, wait_for_ready=True)
    await channel.close()
    await server.stop(None)


# A node in a process of its own: prints its certificate and port, serves until its stdin closes.
NODE = """
import asyncio, sys
from commonweight.identity import NodeIdentity
from commonweight.wire.channel import serve
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.tls import make_certificate, server_credentials

class Control(control_pb2_grpc.ControlServicer):
    async def Attach(self, requests, context):
        async for _ in requests:
            pass
        if False:
            yield

async def main():
    mine = make_certificate(NodeIdentity(bytes([4]) * 32))
    admitted = [bytes.fromhex(sys.argv[1])]
    pair = (control_pb2_grpc.add_ControlServicer_to_server, Control())
    server, port = await serve([pair], "127.0.0.1:0", server_credentials(mine, lambda: admitted))
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)

asyncio.run(main())
"""


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP")
async def test_a_peer_in_another_process_is_reached_and_noticed_when_it_freezes():
    async with asyncio.timeout(30):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            NODE,
            ALICE_CERT.der.hex(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            port = int(await process.stdout.readline())
            der = await fetch_certificate("127.0.0.1", port, SERVER.peer_id, DEADLINE_S)
            async with open_channel(f"127.0.0.1:{port}", ALICE_CERT, der) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                stream = control_pb2_grpc.ControlStub(channel).Attach()
                await stream.write(control_pb2.NodeMessage(heartbeat=control_pb2.Heartbeat()))
                process.send_signal(signal.SIGSTOP)
                loop = asyncio.get_running_loop()
                frozen = loop.time()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stream.read()
                noticed_s = loop.time() - frozen
                assert isinstance(wire_error(caught.value, "the node"), PeerUnreachable)
                assert noticed_s < 6
        finally:
            process.send_signal(signal.SIGCONT)
            process.stdin.close()
            await process.wait()
        assert process.returncode == 0
