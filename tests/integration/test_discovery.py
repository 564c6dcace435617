"""Discovery between real libp2p hosts and real TLS services: who is found, and who can't be impersonated or drowned."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed

from commonweight.errors import PeerUnreachable
from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.peers import discovery as discovery_module
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.announced import next_sequence, sign_announcement
from commonweight.peers.bridge import TrioThread
from commonweight.peers.config import PeersConfig
from commonweight.peers.discovery import Claim, Discovery
from commonweight.peers.frames import frame
from commonweight.peers.gossip import TOPIC
from commonweight.peers.host import Host, HostConfig, open_host
from commonweight.rules.announcement import Announcement, Role
from commonweight.rules.canonical import canonical_json
from commonweight.wire.channel import join_address, serve
from commonweight.wire.tls import Certificate, enrolment_credentials, make_certificate

ANY_PORT = "/ip4/127.0.0.1/tcp/0"
MODEL = b"\x07" * 32
REGISTRY = "0x" + 40 * "a"
WAIT_S = 20.0

pytestmark = pytest.mark.asyncio


def new_identity() -> NodeIdentity:
    return NodeIdentity(secrets.token_bytes(32))


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    heard: list[Event] = []
    monkeypatch.setattr("commonweight.events._sinks", [heard.append])
    return heard


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_module, "ANNOUNCE_EVERY_S", 1.0)
    monkeypatch.setattr(discovery_module, "ANNOUNCE_GAP_S", 0.1)
    monkeypatch.setattr(discovery_module, "ASK_EVERY_S", 0.2)
    monkeypatch.setattr("commonweight.peers.directory.REFILL_S", 0.2)


@asynccontextmanager
async def discovering(
    identity: NodeIdentity | None = None,
    *bootstrap: PeerAddress,
    confirms: bool = False,
    mdns: bool = False,
    psk: str | None = None,
) -> AsyncIterator[Discovery]:
    config = PeersConfig(ANY_PORT, bootstrap, mdns, psk=psk)
    discovery = Discovery(identity or new_identity(), config, confirms=confirms)
    await discovery.start()
    running = asyncio.create_task(discovery.run())
    try:
        yield discovery
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await discovery.stop()


@asynccontextmanager
async def service(certificate: Certificate) -> AsyncIterator[str]:
    """A TLS service that presents the certificate; its address."""
    server, port = await serve([], "127.0.0.1:0", enrolment_credentials(certificate))
    try:
        yield join_address("127.0.0.1", port)
    finally:
        await server.stop(None)


def claim(certificate: Certificate, address: str, role: Role = Role.COORDINATOR) -> Claim:
    return Claim(role, 1337, REGISTRY, MODEL, address, certificate.der)


def announcement(certificate: Certificate, address: str) -> Announcement:
    now = int(time.time())
    sequence = next_sequence(0)
    return Announcement(
        Role.NODE,
        1337,
        REGISTRY,
        MODEL,
        None,
        address,
        certificate.der,
        None,
        (),
        sequence,
        now,
        discovery_module.TTL_S,
    )


def where(discovery: Discovery) -> PeerAddress:
    return parse_peer(discovery.addresses[0])


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it is true in another thread
            await asyncio.sleep(0.02)


def told(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event.name == name]


async def test_a_coordinator_is_found_by_a_bootstrap_address_and_its_key() -> None:
    identity = new_identity()
    certificate = make_certificate(identity)
    async with (
        service(certificate) as address,
        discovering() as bootstrap,
        discovering(identity, where(bootstrap)) as coordinator,
        discovering(None, where(bootstrap)) as node,
    ):
        coordinator.announce(claim(certificate, address))
        assert await node.find_coordinator(MODEL, identity.address, WAIT_S) == f"{identity.peer_id}@{address}"


async def test_a_coordinator_that_moved_is_found_anew_and_one_that_is_gone_isnt() -> None:
    identity = new_identity()
    async with discovering() as bootstrap, discovering(None, where(bootstrap)) as node:
        for _ in range(2):
            certificate = make_certificate(identity)
            async with (
                service(certificate) as address,
                discovering(identity, where(bootstrap)) as coordinator,
            ):
                coordinator.announce(claim(certificate, address))
                assert await node.find_coordinator(MODEL, identity.address, WAIT_S) == f"{identity.peer_id}@{address}"
        with pytest.raises(PeerUnreachable, match="can't be reached"):
            await node.find_coordinator(MODEL, identity.address, 1.0)


async def test_what_wasnt_announced_is_said_so() -> None:
    async with discovering() as bootstrap, discovering(None, where(bootstrap)) as node:
        account = new_identity().address
        with pytest.raises(PeerUnreachable, match=rf"none of them of {account}.*Connected to 1 libp2p"):
            await node.find_coordinator(MODEL, account, 2.0)


async def test_gossip_reaches_who_never_asked_and_peers_do_without_the_bootstrap() -> None:
    identity = new_identity()
    certificate = make_certificate(identity)
    async with (
        service(certificate) as address,
        discovering(identity) as first,
        discovering() as bootstrap,
        discovering(None, where(bootstrap)) as second,
        discovering(None, where(bootstrap)) as third,
    ):
        await until(lambda: second._station.host.peer_id in third._station.host.connected)  # by Kademlia
        await bootstrap.stop()
        await second._thread.acall(second._station.host.connect, where(first))
        first.announce(claim(certificate, address))
        await until(lambda: bool(third.directory.live(MODEL)))


async def test_a_coordinator_on_the_lan_is_found_with_nothing_but_its_key(events: list[Event]) -> None:
    """Under a pre-shared key: whatever else announces itself on this LAN isn't met."""
    identity, psk = new_identity(), secrets.token_hex(32)
    certificate = make_certificate(identity)
    async with (
        service(certificate) as address,
        discovering(identity, mdns=True, psk=psk) as coordinator,
        discovering(mdns=True, psk=psk) as node,
    ):
        if told(events, "mdns.unavailable"):
            pytest.skip("no multicast on this machine")
        coordinator.announce(claim(certificate, address))
        assert await node.find_coordinator(MODEL, identity.address, WAIT_S) == f"{identity.peer_id}@{address}"


async def test_a_false_address_is_refuted_and_never_given_out(events: list[Event]) -> None:
    """Nobody there; or another node's service, whose certificate a stranger can't present."""
    honest, liar = new_identity(), new_identity()
    certificate = make_certificate(liar)
    async with (
        service(make_certificate(honest)) as anothers,
        discovering(confirms=True) as bootstrap,
        discovering(liar, where(bootstrap)) as lying,
    ):
        for address, why in ((anothers, "Expected a certificate"), ("127.0.0.1:9", "can't be reached")):
            lying.announce(claim(certificate, address))
            await until(lambda why=why: any(why in e.fields["message"] for e in told(events, "address.refuted")))
            async with discovering(None, where(bootstrap)) as node:
                with pytest.raises(PeerUnreachable, match=why):
                    await node.find_coordinator(MODEL, liar.address, 1.5)
        assert bootstrap.directory.statistics().failed == 1
        assert bootstrap.directory.statistics().reached == 0


async def test_a_certificate_that_was_announced_once_isnt_the_one_presented_now() -> None:
    identity = new_identity()
    async with (
        service(make_certificate(identity)) as address,
        discovering() as bootstrap,
        discovering(identity, where(bootstrap)) as coordinator,
        discovering(None, where(bootstrap)) as node,
    ):
        coordinator.announce(claim(make_certificate(identity), address))
        with pytest.raises(PeerUnreachable, match="another certificate than it announces"):
            await node.find_coordinator(MODEL, identity.address, 1.5)


async def test_two_processes_with_one_key_are_told(events: list[Event]) -> None:
    identity = new_identity()
    async with discovering() as bootstrap:
        async with (
            discovering(identity, where(bootstrap)) as one,
            discovering(identity, where(bootstrap)) as other,
        ):
            one.announce(claim(make_certificate(identity), "127.0.0.1:9"))
            other.announce(claim(make_certificate(identity), "127.0.0.1:10"))
            await until(lambda: bootstrap.directory.statistics().conflicts > 0)
        assert identity.peer_id in told(events, "announcement.conflict")[0].fields["message"]


class Stranger:
    """A peer that publishes whatever it likes, with libp2p as it comes."""

    def __init__(self, thread: TrioThread[tuple[Host, Pubsub]], host: Host, pubsub: Pubsub) -> None:
        self._thread = thread
        self.host = host
        self._pubsub = pubsub

    async def meet(self, address: PeerAddress) -> None:
        await self._thread.acall(self.host.connect, address)
        await self._thread.acall(self._pubsub.wait_for_mesh, ID.from_string(address.peer_id), TOPIC, WAIT_S)

    async def publish(self, *messages: bytes) -> None:
        async def publish() -> None:
            for message in messages:
                await self._pubsub.publish(TOPIC, message)

        await self._thread.acall(publish)

    async def write(self, peer_id: str, protocol: str, *messages: bytes) -> INetStream:
        """Open a stream and write these bytes as they are."""

        async def write() -> INetStream:
            stream = await self.host.open_stream(peer_id, protocol)
            for message in messages:
                await stream.write(message)
            return stream

        return await self._thread.acall(write)


@asynccontextmanager
async def stranger(identity: NodeIdentity) -> AsyncIterator[Stranger]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Host, Pubsub]]:
        async with open_host(HostConfig(identity, ANY_PORT)) as host:
            router = GossipSub([PROTOCOL_ID_V11], 6, 4, 12, heartbeat_interval=1, max_messages_per_topic_per_second=1e9)
            pubsub = Pubsub(host.libp2p, router)
            async with background_trio_service(pubsub), background_trio_service(router):
                await pubsub.wait_until_ready()
                await pubsub.subscribe(TOPIC)
                yield host, pubsub

    thread: TrioThread[tuple[Host, Pubsub]] = TrioThread(opened)
    try:
        yield Stranger(thread, *await thread.start())
    finally:
        await thread.stop()


async def test_what_a_stranger_publishes_counts_only_where_it_holds(events: list[Event]) -> None:
    identity, victim = new_identity(), new_identity()
    certificate = make_certificate(identity)
    good = sign_announcement(announcement(certificate, "127.0.0.1:9"), identity)
    anothers = sign_announcement(announcement(make_certificate(victim), "127.0.0.1:9"), victim)
    async with discovering() as bootstrap, stranger(identity) as peer:
        await peer.meet(where(bootstrap))
        await peer.publish(
            b"",
            b"junk",
            b"{}",
            secrets.token_bytes(4000),
            canonical_json({**announcement(certificate, "127.0.0.1:9").to_json(), "signature": "0x" + 130 * "0"}),
            anothers.data,
        )
        await until(lambda: bootstrap.directory.statistics().refused >= 6)
        assert not bootstrap.directory.live()
        await peer.publish(good.data)
        await until(lambda: [entry.announced for entry in bootstrap.directory.live()] == [good])
    assert {"WIRE_MALFORMED", "WIRE_IDENTITY"} <= {e.fields["code"] for e in told(events, "announcement.refused")}


async def test_messages_that_end_libp2p_by_itself_dont_end_us() -> None:
    """A key that can't be parsed in a signed message, fields that are none, and no protobuf at all."""
    identity = new_identity()
    key = create_new_key_pair(secrets.token_bytes(32)).public_key.serialize()
    broken = [
        rpc_pb2.Message(data=b"x", topicIDs=[TOPIC], from_id=b"\x12\x20" + bytes(32), seqno=b"1", signature=b"s", key=k)
        for k in (b"junk", b"", key, b"\x08\x63\x12\x01x")
    ] + [
        rpc_pb2.Message(data=b"x", topicIDs=[TOPIC], from_id=b"", seqno=b"2", signature=b"s", key=key),
        rpc_pb2.Message(data=b"x", topicIDs=[TOPIC, "other"], from_id=b"\x00", seqno=b"", signature=b"s"),
        rpc_pb2.Message(topicIDs=[]),
    ]
    async with discovering() as bootstrap, stranger(identity) as peer, discovering(None, where(bootstrap)) as node:
        await peer.meet(where(bootstrap))
        peer_id = where(bootstrap).peer_id
        for message in broken:
            data = rpc_pb2.RPC(publish=[message]).SerializeToString()
            await peer.write(peer_id, PROTOCOL_ID_V11, encode_varint_prefixed(data))
        for junk in (b"\xff" * 64, b"\x05junk!", b"\xff\xff\xff\xff\x7f"):
            for protocol in (PROTOCOL_ID_V11, "/ipfs/kad/1.0.0", "/commonweight/announced/1", "/ipfs/ping/1.0.0"):
                with contextlib.suppress(PeerUnreachable):  # it hangs up before the stream is ready
                    await peer.write(peer_id, protocol, junk)
        await peer.write(peer_id, "/commonweight/announced/1", frame(b"{}"))
        good = sign_announcement(announcement(make_certificate(identity), "127.0.0.1:9"), identity)
        await peer.publish(good.data)
        await until(lambda: [entry.announced for entry in node.directory.live()] == [good])


async def test_a_flood_leaves_room_and_time_for_the_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commonweight.peers.gossip.NEIGHBOUR_BURST", 20.0)
    identity, flooding = new_identity(), new_identity()
    certificate, false = make_certificate(identity), make_certificate(flooding)
    first = announcement(false, "127.0.0.1:9")
    flood = [sign_announcement(replace(first, sequence=first.sequence + n), flooding).data for n in range(1500)]
    async with (
        service(certificate) as address,
        discovering() as bootstrap,
        stranger(flooding) as peer,
        discovering(identity, where(bootstrap)) as coordinator,
    ):
        await peer.meet(where(bootstrap))
        publishing = asyncio.create_task(peer.publish(*flood))
        coordinator.announce(claim(certificate, address))
        async with discovering(None, where(bootstrap)) as node:
            assert await node.find_coordinator(MODEL, identity.address, WAIT_S) == f"{identity.peer_id}@{address}"
        await publishing
        await until(lambda: bootstrap.directory.statistics().refused > 0)  # it did come, and was turned away
        assert bootstrap.directory.statistics().entries == 2
        assert flooding.peer_id in (await bootstrap.statistics()).host.connected


async def test_who_asks_without_end_is_answered_now_and_then() -> None:
    async with discovering() as bootstrap, discovering(None, where(bootstrap)) as node:
        await asyncio.wait_for(node.met.wait(), WAIT_S)
        station, peer_id = node._station, where(bootstrap).peer_id
        ask = station._exchange.ask
        answers = await asyncio.gather(
            *(node._thread.acall(ask, peer_id, MODEL, None) for _ in range(60)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, PeerUnreachable)]
        assert 0 < len(refused) < len(answers)
        assert await node._thread.acall(station.host.ping, peer_id) < 5  # and no worse than that


async def test_an_answer_is_bounded_and_a_silent_asker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commonweight.peers.exchange.ANSWER_S", 0.5)
    async with discovering() as bootstrap, stranger(new_identity()) as peer:
        await peer.meet(where(bootstrap))
        stream = await peer.write(where(bootstrap).peer_id, "/commonweight/announced/1", (1 << 30).to_bytes(4, "big"))
        silent = await peer.write(where(bootstrap).peer_id, "/commonweight/announced/1", b"\x00")

        async def ended(of: INetStream) -> None:
            with trio.fail_after(WAIT_S):
                try:
                    while await of.read(1 << 16):
                        pass
                except Exception:  # noqa: BLE001 - reset is as good an end
                    return

        await peer._thread.acall(ended, stream)
        await peer._thread.acall(ended, silent)
        await until(lambda: not bootstrap._station._exchange._answering)
