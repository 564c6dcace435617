"""Two nodes behind NATs, real ones of the kernel's: which way they find, and that gRPC goes through it unchanged."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.nat import missing, two_nats
from tests.integration.network import Process
from tests.integration.passage_child import identity_of

RELAY = f"/ip4/203.0.113.1/tcp/4001/p2p/{identity_of('relay').peer_id}"
FAR_PEER = identity_of("far").peer_id
THROUGH_RELAY = f"{RELAY}/p2p-circuit/p2p/{FAR_PEER}"
INSIDE, OUTSIDE = "10.0.3.2:7701", "203.0.113.3:7701"

WHY_NOT = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")]

BROKEN_S = 20
"""gRPC and libp2p both notice in less; a hang would last a minute."""
TRY = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"

Start = Callable[..., Process]


@contextmanager
def network(symmetric: bool) -> Iterator[Start]:
    """What starts a role at a place."""
    with ExitStack() as stack:
        at = stack.enter_context(two_nats(symmetric))

        def start(place: str, *arguments: str) -> Process:
            process = Process([*at[place], sys.executable, "-m", "tests.integration.passage_child", *arguments])
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        for address in (INSIDE, OUTSIDE):  # nobody gets in from outside
            tried = [*at["near"], sys.executable, "-c", TRY, *address.split(":")]
            assert subprocess.run(tried, capture_output=True, check=False).returncode == 1
        yield start


def start_relay(start: Start) -> Process:
    relay = start("public", "relay", "relay", "/ip4/203.0.113.1/tcp/4001")
    relay.wait_for("child.ready")
    return relay


def start_far(start: Start, folder: Path, *relays: str, place: str = "far") -> Process:
    far = start(place, "serve", "far", "/ip4/0.0.0.0/tcp/4002", str(folder), "0.0.0.0:7701", *relays)
    far.wait_for("child.ready")
    return far


def start_near(start: Start, folder: Path, address: str, *peer_addresses: str) -> Process:
    return start("near", "call", "near", "/ip4/0.0.0.0/tcp/4003", str(folder), FAR_PEER, address, *peer_addresses)


def broken_within(near: Process, began: float) -> bool:
    assert near.wait_for("child.broken").fields["status"] == "UNAVAILABLE"
    return time.monotonic() - began < BROKEN_S


def test_nats_that_keep_ports_are_punched_and_the_relay_is_not_needed_any_more(tmp_path: Path) -> None:
    with network(symmetric=False) as start:
        relay = start_relay(start)
        far = start_far(start, tmp_path, RELAY)
        far.wait_for("relay.ready")
        near = start_near(start, tmp_path, OUTSIDE, THROUGH_RELAY)
        found = near.wait_for("child.found").fields
        assert found["kind"] == "punched"
        assert f"{OUTSIDE} didn't complete a TLS handshake" in found["why"]
        near.wait_for("child.echoed")
        relay.kill()
        relay.wait()
        streamed = len(near.events)
        near.wait_for("child.streamed", lambda event: near.events.index(event) > streamed + 10)
        far.kill(signal.SIGSTOP)
        assert broken_within(near, time.monotonic())


def test_symmetric_nats_are_relayed_and_the_end_of_the_relay_is_noticed(tmp_path: Path) -> None:
    with network(symmetric=True) as start:
        relay = start_relay(start)
        start_far(start, tmp_path, RELAY).wait_for("relay.ready")
        near = start_near(start, tmp_path, OUTSIDE, THROUGH_RELAY)
        assert near.wait_for("child.found").fields["kind"] == "relayed"
        near.wait_for("child.echoed")
        near.wait_for("child.streamed")
        relay.kill(signal.SIGSTOP)
        assert broken_within(near, time.monotonic())
        relay.kill()


def test_who_is_not_behind_a_nat_is_called_directly(tmp_path: Path) -> None:
    with network(symmetric=True) as start:
        start_far(start, tmp_path, place="public")
        near = start_near(start, tmp_path, "203.0.113.1:7701")
        assert near.wait_for("child.found").fields["kind"] == "direct"
        near.wait_for("child.echoed")


def test_an_open_libp2p_port_is_enough(tmp_path: Path) -> None:
    with network(symmetric=True) as start:
        start_far(start, tmp_path, place="public")
        near = start_near(start, tmp_path, "203.0.113.1:7799", f"/ip4/203.0.113.1/tcp/4002/p2p/{FAR_PEER}")
        found = near.wait_for("child.found").fields
        assert found["kind"] == "dialled"
        assert "203.0.113.1:7799" in found["why"]
        near.wait_for("child.echoed")


def test_no_way_is_told_with_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    with network(symmetric=True) as start:
        start_relay(start)
        start_far(start, tmp_path)
        near = start_near(start, tmp_path, OUTSIDE, f"/ip4/203.0.113.3/tcp/4002/p2p/{FAR_PEER}", THROUGH_RELAY)
        failed = near.wait_for("child.failed").fields
        assert failed["code"] == "WIRE_UNREACHABLE"
        for part in (
            f"{OUTSIDE} didn't complete a TLS handshake within 3 s",
            "/ip4/203.0.113.3/tcp/4002",
            "isn't connected to this relay",
            "/ip4/203.0.113.2/tcp/4003",  # as the relay sees it
            "--advertise",
        ):
            assert part in failed["message"]
