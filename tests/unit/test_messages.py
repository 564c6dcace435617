"""Reports to protobuf and back, peers as text, and what may be imported without torch."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest

from commonweight.errors import ConfigError, MalformedMessage
from commonweight.identity import NodeIdentity
from commonweight.rules.receipt import Domain
from commonweight.rules.report import HOP_WORDS, Hop, Report, report_receipt
from commonweight.wire.channel import (
    CONTROL_MESSAGE_BYTES,
    advertised_address,
    join_address,
    split_address,
    split_advertised,
)
from commonweight.wire.generated import control_pb2
from commonweight.wire.messages import MAX_HOPS, report_from_proto, report_to_proto, split_peer

PEER = NodeIdentity(b"\x01" * 32).peer_id
HOP = Hop(1, *(bytes([n]) * 32 for n in range(1, 7)), loss=0.1)
REPORT = Report(2**40, 3, (HOP, Hop(0, *[bytes(32)] * 6, loss=0.0)), *(bytes([n]) * 32 for n in range(10, 14)))


def test_a_report_survives_the_way_there_and_back_with_its_digest():
    wire = report_to_proto(REPORT, 1.5, 0.5, 10, 20).SerializeToString()
    message = control_pb2.StageReport.FromString(wire)
    assert (message.seconds, message.busy_seconds, message.bytes_down, message.bytes_up) == (1.5, 0.5, 10, 20)
    back = report_from_proto(message)
    assert back == REPORT
    domain = Domain(1, "0x5FbDB2315678afecb367f032d93F642f64180aa3")
    digests = {
        report_receipt(bytes(32), 1, each.round, each.stage, each.commitments(2), b"\x0d" * 32).digest(domain)
        for each in (back, REPORT)
    }
    assert len(digests) == 1


def test_the_largest_report_fits_into_a_control_message():
    hops = tuple(replace(HOP, microbatch=number) for number in range(MAX_HOPS))
    report = Report(2**64 - 1, 2**32 - 1, hops, *[b"\xff" * 32] * 4)
    message = control_pb2.NodeMessage(
        report=control_pb2.SignedReport(report=report_to_proto(report, 1.0, 1.0, 2**63, 2**63))
    )
    assert message.ByteSize() < CONTROL_MESSAGE_BYTES // 2


@pytest.mark.parametrize("field", ["gradient_hash", "round_gradient_hash", "state_before", "state_after"])
@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_hash_of_another_length_is_named(field, size):
    message = report_to_proto(REPORT)
    setattr(message, field, bytes(size))
    with pytest.raises(MalformedMessage, match=f"{field}: .*this one has {size}"):
        report_from_proto(message)


@pytest.mark.parametrize("field", HOP_WORDS)
def test_a_hash_of_a_hop_is_named_with_its_place(field):
    message = report_to_proto(REPORT)
    setattr(message.hops[1], field, bytes(20))
    with pytest.raises(MalformedMessage, match=rf"hops\[1\]\.{field}"):
        report_from_proto(message)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, -1.0, -0.0])
def test_a_loss_that_is_none_is_refused(loss):
    message = report_to_proto(REPORT)
    message.hops[0].loss = loss
    with pytest.raises(MalformedMessage, match=r"hops\[0\]\.loss"):
        report_from_proto(message)


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_duration_that_is_none_is_refused(seconds):
    for durations in ((seconds, 0.0), (0.0, seconds)):
        with pytest.raises(MalformedMessage, match="seconds"):
            report_from_proto(report_to_proto(REPORT, *durations))


def test_the_number_of_hops_is_bounded():
    message = report_to_proto(REPORT)
    message.hops.extend([control_pb2.Hop()] * (MAX_HOPS - 1))
    with pytest.raises(MalformedMessage, match=f"has {MAX_HOPS + 1}"):
        report_from_proto(message)


def test_a_report_has_a_microbatch_once_and_may_have_none():
    message = report_to_proto(REPORT)
    message.hops[0].microbatch = 0
    with pytest.raises(MalformedMessage, match="two are of one microbatch"):
        report_from_proto(message)
    del message.hops[:]
    assert report_from_proto(message).load == ()


def test_a_peer_is_split():
    assert split_peer(f"{PEER}@coordinator.example:7000") == (PEER, "coordinator.example", 7000)
    assert split_peer(f"{PEER}@[::1]:7000") == (PEER, "::1", 7000)


@pytest.mark.parametrize(
    "text", ["", PEER, f"{PEER}@", f"{PEER}@host", f"{PEER}@host:0", f"x{PEER}@host:1", "@host:1", f"@{PEER}@host:1"]
)
def test_what_is_no_peer_is_refused(text):
    with pytest.raises(ConfigError):
        split_peer(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("a-host_1.example.:65535", "a-host_1.example.", 65535),
        ("[::]:50051", "::", 50051),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_an_address_is_split_and_joined(text, host, port):
    assert split_address(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":1", "host:-1", "host:65536", "host:1e3", "host:٣", "host: 1",
        "host:000001", "::1:80", "[::1]", "[::1:80", "[host]:80", "[]:80", "unix:/tmp/x:1",
        "dns:///host:1", "http://host:1", "a b:1", "-a:1", "a..b:1", "host\n:1", "host:1\n",
        "x" * 64 + ":1", "x." * 130 + "x:1", "peer@host:1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_shown(text):
    with pytest.raises(ConfigError) as caught:
        split_address(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("advertise", "told"),
    [
        (None, "10.0.0.5:7701"),
        ("node.example", "node.example:7701"),
        ("node.example:17701", "node.example:17701"),
        ("2001:db8::1", "[2001:db8::1]:7701"),
        ("[2001:db8::1]:17701", "[2001:db8::1]:17701"),
    ],
)
def test_others_are_told_the_host_and_port_that_are_forwarded(advertise, told):
    assert advertised_address("10.0.0.5:0", advertise, 7701) == told


@pytest.mark.parametrize("advertise", ["", "a b", "node.example:", "node.example:0", "[::1]", "http://node.example"])
def test_what_nobody_can_be_reached_by_is_refused_and_shown(advertise):
    with pytest.raises(ConfigError) as caught:
        split_advertised(advertise)
    assert advertise in str(caught.value)


def test_the_control_plane_does_without_torch():
    program = (
        "import sys; import commonweight.identity; from commonweight.wire import tls, channel, link, "
        "messages, status; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
