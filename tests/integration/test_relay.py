"""A relay, and what it doesn't give away."""

import asyncio
import secrets
from contextlib import suppress

import pytest
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.relay.circuit_v2.utils import read_delimited_msg, write_delimited_msg

from commonweight.errors import ConfigError, PeerUnreachable, Refused
from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.peers import passage, relaying
from commonweight.peers.punching import Puncher
from commonweight.peers.relay import HOP, RelayLimits
from commonweight.peers.relaying import CircuitAddress, parse_circuit
from tests.integration.passages import MIB, Node, running_node, running_relay, silent_service, until

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("relayed_only")]


@pytest.fixture
def relayed_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind NATs that can't be punched; and what is tried again is tried at once."""

    async def fail(self: Puncher, peer_id: str) -> None:
        pass

    monkeypatch.setattr(Puncher, "punch", fail)
    monkeypatch.setattr(passage, "PUNCH_S", 0.1)
    monkeypatch.setattr(relaying, "RETRY_S", 0.2)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every event of this process."""
    events: list[Event] = []
    monkeypatch.setattr("commonweight.events._sinks", [events.append])
    return events


def named(told: list[Event], name: str) -> list[Event]:
    return [event for event in told if event.name == name]


async def reserved(node: Node) -> CircuitAddress:
    await until(lambda: node.passage.circuits.addresses != ())
    return parse_circuit(node.passage.circuits.addresses[0])


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (RelayLimits(circuit_bytes=2 * MIB), "bytes"),
        (RelayLimits(circuit_s=1), "duration"),
        (RelayLimits(idle_s=0.3), "idle"),
    ],
)
async def test_a_circuit_ends_at_its_limits_and_can_be_opened_again(
    limits: RelayLimits, why: str, told: list[Event]
) -> None:
    async with running_relay(limits) as (address, relay), running_node() as near, running_node([address]) as far:
        far.admit(near)
        await reserved(far)
        port = await near.thread.acall(near.passage.tunnel, far.through(address), "data")
        async with silent_service(far):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await until(lambda: bool(named(told, "tunnel.opened")))
            if why == "bytes":
                writer.write(bytes(3 * MIB))
            await until(lambda: bool(named(told, "relay.circuit")))
            assert named(told, "relay.circuit")[0].fields["why"] == why
            async with asyncio.timeout(20):
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
        await until(lambda: not near.host.libp2p.get_network().get_connections(ID.from_string(far.peer_id)))
        assert await near.thread.acall(near.passage.connect, far.through(address)) == "relayed"
        await until(lambda: relay.statistics().circuits <= 1)


async def test_reservations_are_bounded_and_end_with_the_connection(told: list[Event]) -> None:
    async with running_relay(RelayLimits(reservations=1)) as (address, _):
        async with running_node([address]) as first:
            await reserved(first)
            async with running_node([address]) as second:
                await until(lambda: bool(named(told, "relay.failed")))
                failed = named(told, "relay.failed")[0].fields
                assert failed["code"] == "WIRE_REFUSED"
                assert "no reservation left" in failed["message"]
                await first.thread.stop()
                await reserved(second)
        async with running_node() as near:
            with pytest.raises(Refused, match="has no reservation with it"):
                await near.thread.acall(near.passage.circuits.dial, CircuitAddress(address, first.peer_id))


async def test_circuits_of_one_peer_are_bounded() -> None:
    async with (
        running_relay(RelayLimits(circuits_per_peer=1)) as (address, relay),
        running_node() as near,
        running_node() as other,
        running_node([address]) as far,
    ):
        far.admit(near, other)
        where = await reserved(far)
        await near.thread.acall(near.passage.circuits.dial, where)
        for node in (near, other):
            with pytest.raises(Refused, match="too many circuits"):
                await node.thread.acall(node.passage.circuits.dial, where)
        await near.thread.acall(near.host.disconnect, far.peer_id)
        await until(lambda: relay.statistics().circuits == 0)
        await other.thread.acall(other.passage.circuits.dial, where)


async def test_the_end_of_one_circuit_leaves_the_others() -> None:
    async with (
        running_relay() as (address, relay),
        running_node() as near,
        running_node() as other,
        running_node([address]) as far,
    ):
        far.admit(near, other)
        where = await reserved(far)
        for node in (near, other):
            await node.thread.acall(node.passage.circuits.dial, where)
        await near.thread.acall(near.host.disconnect, far.peer_id)
        await until(lambda: relay.statistics().circuits == 1)
        assert await other.thread.acall(other.host.ping, far.peer_id) < 5


async def test_who_is_not_admitted_gets_no_circuit(told: list[Event]) -> None:
    async with running_relay() as (address, _), running_node() as near, running_node([address]) as far:
        where = await reserved(far)
        with pytest.raises(Refused, match="doesn't admit this node"):
            await near.thread.acall(near.passage.circuits.dial, where)
        assert named(told, "circuit.refused")[0].fields["peer"] == near.peer_id
        assert near.peer_id not in far.host.connected


async def test_nobody_reserves_for_another() -> None:
    async with running_relay() as (address, relay), running_node() as near, running_node() as far:

        async def reserve_for_far() -> int:
            await near.host.connect(address)
            stream = await near.host.open_stream(address.peer_id, HOP)
            someone = pb.PeerId(id=ID.from_string(far.peer_id).to_bytes())
            await write_delimited_msg(stream, pb.HopMessage(type=pb.HopMessage.RESERVE, peer=someone))
            return (await read_delimited_msg(stream, pb.HopMessage)).status

        assert await near.thread.acall(reserve_for_far) == pb.OK
        assert relay.statistics().reservations == 1
        async with running_node() as third:
            with pytest.raises(Refused, match="has no reservation with it"):
                await third.thread.acall(third.passage.circuits.dial, CircuitAddress(address, far.peer_id))
            with pytest.raises(Refused, match="doesn't admit this node"):  # it is near that has one
                await third.thread.acall(third.passage.circuits.dial, CircuitAddress(address, near.peer_id))


@pytest.mark.parametrize("junk", [b"\x00", b"\x05hello", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x02\x08\x09"])
async def test_junk_ends_its_stream_only(junk: bytes) -> None:
    async with running_relay() as (address, _), running_node() as near:

        async def send() -> None:
            await near.host.connect(address)
            stream = await near.host.open_stream(address.peer_id, HOP)
            await stream.write(junk)
            await stream.close()

        await near.thread.acall(send)
        assert await near.thread.acall(near.passage.circuits.reserve, address) > 0


async def test_a_relay_that_comes_back_is_used_again(told: list[Event]) -> None:
    identity = NodeIdentity(secrets.token_bytes(32))
    async with running_relay(identity=identity) as (address, _):
        pass
    async with running_node([address]) as far:
        await until(lambda: bool(named(told, "relay.failed")))
        assert named(told, "relay.failed")[0].fields["code"] == "WIRE_UNREACHABLE"
        for _ in range(2):
            async with running_relay(identity=identity, listen=address.transport):
                await reserved(far)
            await until(lambda: far.passage.circuits.addresses == ())
        assert len(named(told, "relay.ready")) == 2


async def test_nobody_there_is_an_error_that_says_so() -> None:
    async with running_relay() as (address, _), running_node() as near, running_node() as far:
        with pytest.raises(PeerUnreachable, match="has no reservation with it"):
            await near.thread.acall(near.passage.connect, far.through(address))
        with pytest.raises(PeerUnreachable, match="nor a relay"):
            await near.thread.acall(near.passage.connect, passage.Whereabouts(far.peer_id))


@pytest.mark.parametrize(
    "text", ["", "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/x/p2p-circuit/p2p/y", "/p2p-circuit"]
)
def test_other_text_is_no_circuit(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_circuit(text)
