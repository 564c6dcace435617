"""Every decoder on hostile bytes: a message, or one of the errors that its contract names, and never a large "
"allocation."""

import asyncio
import socket
import tracemalloc

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commonweight.errors import (
    ConfigError,
    IdentityMismatch,
    MalformedMessage,
    MessageTooLarge,
    NonFiniteTensor,
    UnplannedMessage,
)
from commonweight.identity import NodeIdentity, address_of, public_key_of, recover_address
from commonweight.rules.report import Hop, Report
from commonweight.wire.channel import join_address, split_address
from commonweight.wire.generated import control_pb2, pipe_pb2, tensor_pb2, worker_pb2
from commonweight.wire.link import connect_link
from commonweight.wire.messages import report_from_proto, report_to_proto, split_peer
from commonweight.wire.pipe import Assembler, encode
from commonweight.wire.signed_key import decode_signed_key, encode_signed_key
from commonweight.wire.tensors import check_header, digest, from_buffer
from commonweight.wire.tls import make_certificate, peer_id_of

fuzz = settings(
    max_examples=120, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
HOSTILE = (MalformedMessage, MessageTooLarge, UnplannedMessage, NonFiniteTensor)

IDENTITY = NodeIdentity(b"\x07" * 32)
CERTIFICATE = make_certificate(IDENTITY).der
TENSORS = (torch.arange(10, dtype=torch.int32).reshape(2, 5), torch.linspace(-1, 1, 24).reshape(2, 4, 3))
PLAN = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in TENSORS)
FRAME = encode(1, 2, TENSORS)[0].SerializeToString()
HOPS = tuple(Hop(microbatch, *[b"\x01" * 32] * 6, loss=1.0) for microbatch in (4, 0, 3))
REPORT = Report(1, 2, HOPS, *[b"\x02" * 32] * 4)
REPORT_WIRE = report_to_proto(REPORT, 1.0, 0.5, 2, 3).SerializeToString()
LINK_WIRE = worker_pb2.WorkerEvent(listening=worker_pb2.WorkerListening(port=7)).SerializeToString()


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """The original with up to four changes: a byte replaced, a run removed, repeated or inserted, the end cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("replace", "remove", "repeat", "insert", "cut")))
        run = draw(st.integers(1, 16))
        if kind == "replace" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "remove":
            del data[at : at + run]
        elif kind == "repeat":
            data[at:at] = data[at : at + run]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == "cut":
            del data[at:]
    return bytes(data)


def hostile(original: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(mutated(original), st.binary(max_size=300))


def assemble(frames: list[pipe_pb2.PipeFrame]) -> None:
    """What may come out is what was planned, with the digests of what it is."""
    assembler = Assembler(lambda round_, microbatch: PLAN if (round_, microbatch) == (1, 2) else None)
    for frame in frames:
        result = assembler.add(frame)
        if result is not None:
            assert tuple((tensor.dtype, tuple(tensor.shape)) for tensor in result.tensors) == PLAN
            assert result.digests == tuple(map(digest, result.tensors))
            assert all(bool(torch.isfinite(tensor).all()) for tensor in result.tensors)


@fuzz
@given(hostile(FRAME))
def test_a_frame_of_hostile_bytes(data):
    try:
        frame = pipe_pb2.PipeFrame.FromString(data)
    except DecodeError:
        return  # gRPC ends the stream here
    try:
        assemble([frame])
    except HOSTILE:
        return


headers = st.builds(
    tensor_pb2.TensorHeader,
    dtype=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 7),
    shape=st.lists(st.integers(0, 2**32 - 1) | st.sampled_from((2, 3, 4, 5)), max_size=10),
)
right_headers = st.just(
    [tensor_pb2.TensorHeader(dtype=6, shape=(2, 5)), tensor_pb2.TensorHeader(dtype=1, shape=(2, 4, 3))]
)
parts = st.builds(
    pipe_pb2.TensorFrame,
    round=st.just(1) | st.integers(0, 2**64 - 1),
    microbatch=st.just(2) | st.integers(0, 2**32 - 1),
    headers=right_headers | st.just([]) | st.lists(headers, max_size=4),
    offset=st.sampled_from((0, 40, 68, 136)) | st.integers(0, 2**32 - 1),
    data=st.sampled_from((bytes(136), bytes(40), bytes(96), bytes(28), bytes(68), b"\xff" * 136))
    | st.binary(max_size=200),
)


@fuzz
@given(st.lists(parts, min_size=1, max_size=5))
def test_well_formed_frames_with_hostile_fields(bodies):
    try:
        assemble([pipe_pb2.PipeFrame(tensor=body) for body in bodies])
    except HOSTILE:
        return


@fuzz
@given(headers, st.binary(max_size=64), st.integers(-(2**40), 2**40) | st.integers(-2, 70))
def test_a_header_over_a_buffer(header, buffer, offset):
    try:
        tensor = from_buffer(header, buffer, offset)
    except MalformedMessage:
        return
    assert tuple(tensor.shape) == tuple(header.shape)
    assert tensor.nbytes <= len(buffer) - offset


def test_huge_declarations_allocate_nothing():
    huge = [tensor_pb2.TensorHeader(dtype=1, shape=[2**32 - 1] * n) for n in range(1, 9)]
    frames = [pipe_pb2.TensorFrame(round=1, microbatch=2, headers=[h, h], data=b"x") for h in huge]
    tracemalloc.start()
    try:
        for header, frame in zip(huge, frames, strict=True):
            with pytest.raises(MalformedMessage):
                from_buffer(header, b"1234")
            with pytest.raises(UnplannedMessage):
                check_header(header, *PLAN[0])
            with pytest.raises(UnplannedMessage):
                assemble([pipe_pb2.PipeFrame(tensor=frame)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@fuzz
@given(hostile(REPORT_WIRE))
def test_a_report_of_hostile_bytes(data):
    try:
        message = control_pb2.StageReport.FromString(data)
    except DecodeError:
        return
    try:
        report = report_from_proto(message)
    except MalformedMessage:
        return
    assert report_from_proto(report_to_proto(report)) == report
    assert len(report.hops_root) == 32


@fuzz
@given(st.one_of(st.binary(max_size=80), hostile(len(LINK_WIRE).to_bytes(4, "big") + LINK_WIRE)))
def test_a_link_of_hostile_bytes(data):
    async def read() -> None:
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(data)
        async with asyncio.timeout(10), await connect_link(theirs.detach()) as link:
            while await link.receive(worker_pb2.WorkerEvent) is not None:
                pass

    try:
        asyncio.run(read())
    except (MalformedMessage, MessageTooLarge):
        return


@fuzz
@given(hostile(CERTIFICATE))
def test_a_certificate_of_hostile_bytes(der):
    try:
        peer_id = peer_id_of(der)
    except IdentityMismatch:
        return
    assert der == CERTIFICATE, "a changed certificate passed"
    assert peer_id == IDENTITY.peer_id


SIGNED_KEY = encode_signed_key(bytes(37), bytes(70))


@fuzz
@given(hostile(SIGNED_KEY))
def test_a_signed_key_of_hostile_bytes_has_one_encoding(der):
    try:
        decoded = decode_signed_key(der)
    except IdentityMismatch:
        return
    assert encode_signed_key(*decoded) == der


@given(st.binary(max_size=400), st.binary(max_size=400))
@fuzz
def test_a_signed_key_survives_the_way_there_and_back(public_key, signature):
    assert decode_signed_key(encode_signed_key(public_key, signature)) == (public_key, signature)


DIGEST = bytes(range(32))
SIGNATURE = IDENTITY.sign_digest(DIGEST)


@fuzz
@given(hostile(SIGNATURE) | st.binary(min_size=65, max_size=65))
def test_a_signature_of_hostile_bytes(signature):
    try:
        address = recover_address(DIGEST, signature)
    except MalformedMessage:
        return
    assert (address == IDENTITY.address) == (signature == SIGNATURE), "a second signature of the same digest"


@fuzz
@given(st.text(max_size=80) | mutated(IDENTITY.peer_id.encode()).map(lambda raw: raw.decode("latin-1")))
def test_a_peer_id_of_hostile_text(text):
    try:
        public_key_of(text)
    except MalformedMessage:
        return
    assert (address_of(text) == IDENTITY.address) == (text == IDENTITY.peer_id)


@fuzz
@given(st.text(max_size=60) | mutated(b"[fe80::1%eth0]:50051").map(lambda raw: raw.decode("latin-1")))
def test_an_address_of_hostile_text(text):
    for read in (split_address, split_peer):
        try:
            result = read(text)
        except ConfigError:
            continue
        assert result == split_address(join_address(*result))
