"""libp2p hosts against each other and against strangers on their port."""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmDialAllFailedError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from multiaddr import Multiaddr

from commonweight.errors import ConfigError, PeerUnreachable
from commonweight.identity import NodeIdentity
from commonweight.peers import tcp
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.bridge import TrioThread
from commonweight.peers.host import Host, HostConfig, open_host
from tests.integration.network import Process

ANY_PORT = "/ip4/127.0.0.1/tcp/0"
WAIT_S = 20.0

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def running(
    identity: NodeIdentity | None = None,
    listen: str = ANY_PORT,
    psk: str | None = None,
    advertise: str | None = None,
) -> AsyncIterator[tuple[TrioThread[Host], Host]]:
    """A host in a trio thread of its own, as in every process."""
    config = HostConfig(identity or NodeIdentity(secrets.token_bytes(32)), listen, psk, advertise)
    thread = TrioThread(lambda: open_host(config))
    try:
        yield thread, await thread.start()
    finally:
        await thread.stop()


def address_of(host: Host) -> PeerAddress:
    return parse_peer(host.addresses[0])


async def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it is true in another thread
            await asyncio.sleep(0.02)


async def test_two_hosts_meet_and_part() -> None:
    async with running() as (_, one), running() as (thread, two):
        await thread.acall(two.connect, address_of(one))
        assert two.connected == (one.peer_id,)
        assert await thread.acall(two.ping, one.peer_id) < 5
        await thread.acall(two.disconnect, one.peer_id)
        await until(lambda: not one.connected and not two.connected)
        await thread.acall(two.connect, address_of(one))  # no block, no old state


async def test_a_handler_that_fails_costs_its_stream_only() -> None:
    async def fail(stream: INetStream) -> None:
        await stream.read(1)
        raise RuntimeError("what a stranger caused")

    async with running() as (_, one), running() as (thread, two):
        one.handle("/test/fails", fail)
        await thread.acall(two.connect, address_of(one))
        stream = await thread.acall(two.open_stream, one.peer_id, "/test/fails")
        await thread.acall(stream.write, b"x")
        await until(lambda: one.statistics().streams_failed == 1)
        assert await thread.acall(two.ping, one.peer_id) < 5
        with pytest.raises(PeerUnreachable, match="/test/unknown"):
            await thread.acall(two.open_stream, one.peer_id, "/test/unknown")


async def test_another_key_than_expected_is_refused() -> None:
    async with running() as (_, one), running() as (thread, two):
        stranger = NodeIdentity(secrets.token_bytes(32)).peer_id
        with pytest.raises(PeerUnreachable, match="pubkey"):
            await thread.acall(two.connect, PeerAddress(address_of(one).transport, stranger))
        assert not two.connected


async def test_a_peer_that_was_down_is_reached_as_soon_as_it_is_back_elsewhere() -> None:
    identity = NodeIdentity(secrets.token_bytes(32))
    async with running() as (thread, two):
        async with running(identity) as (_, one):
            gone = address_of(one)
        with pytest.raises(PeerUnreachable):
            await thread.acall(two.connect, gone)
        async with running(identity) as (_, one):
            await thread.acall(two.connect, address_of(one))
            assert two.connected == (identity.peer_id,)


async def test_a_taken_port_is_refused() -> None:
    async with running() as (_, one):
        with pytest.raises(ConfigError, match="already in use"):
            async with running(listen=address_of(one).transport):
                pass


async def test_others_are_told_the_advertised_host_and_the_real_port() -> None:
    async with running(listen="/ip4/0.0.0.0/tcp/0", advertise="127.0.0.1") as (_, one), running() as (thread, two):
        address = address_of(one)
        assert address.transport.startswith("/ip4/127.0.0.1/tcp/")
        await thread.acall(two.connect, address)
        store, peer = two.libp2p.get_peerstore(), ID.from_string(one.peer_id)
        await until(lambda: len(store.get_protocols(peer)) > 0)  # it has identified itself
        assert {str(each) for each in store.addrs(peer)} <= {address.transport, str(address)}


async def test_plaintext_is_refused() -> None:
    async with running() as (_, one):

        async def dial() -> None:
            keys = create_new_key_pair(secrets.token_bytes(32))
            plain = new_host(keys, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(keys)})
            async with plain.run([Multiaddr(ANY_PORT)]):
                where = address_of(one)
                await plain.connect(PeerInfo(ID.from_string(where.peer_id), [Multiaddr(where.transport)]))

        with pytest.raises(BaseExceptionGroup) as raised:
            await asyncio.to_thread(trio.run, dial)
        assert raised.group_contains(SwarmDialAllFailedError)
        assert not one.connected


async def test_only_who_has_the_key_of_a_private_network_is_heard() -> None:
    key, other = secrets.token_hex(32), secrets.token_hex(32)
    async with running(psk=key) as (_, one):
        for psk in (other, None):
            async with running(psk=psk) as (thread, two):
                with pytest.raises(PeerUnreachable):
                    await thread.acall(two.connect, address_of(one), 2.0)
                assert not one.connected
        async with running(psk=key) as (thread, two):
            await thread.acall(two.connect, address_of(one))


async def test_a_host_takes_more_connections_in_its_life_than_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "CLOSING_S", 0.1)
    monkeypatch.setattr(tcp, "MAX_PER_SOURCE", 3)
    async with running() as (_, one):
        for _ in range(6):
            async with running() as (thread, two):
                await thread.acall(two.connect, address_of(one))
            await until(lambda: not one.connected)


async def test_half_open_connections_of_one_source_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commonweight.peers.host.HANDSHAKE_S", 0.5)
    monkeypatch.setattr(tcp, "CLOSING_S", 0.1)
    monkeypatch.setattr(tcp, "MAX_PER_SOURCE", 4)
    async with running() as (_, one), running() as (thread, two):
        _, _, host, _, port = address_of(one).transport.split("/")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(8)]
        closed = [asyncio.create_task(reader.read()) for reader, _ in silent]
        done, _ = await asyncio.wait(closed, timeout=WAIT_S)
        assert len(done) == len(silent)
        await until_connects(thread, two, address_of(one))
        for _, writer in silent:
            writer.close()


async def until_connects(thread: TrioThread[Host], host: Host, address: PeerAddress) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await thread.acall(host.connect, address)
            except PeerUnreachable:
                await asyncio.sleep(0.05)


async def test_junk_on_the_port_changes_nothing() -> None:
    async with running() as (_, one), running() as (thread, two):
        _, _, host, _, port = address_of(one).transport.split("/")
        for junk in (b"GET / HTTP/1.1\r\n\r\n", secrets.token_bytes(4096), b"\x13/multistream/1.0.0\n\xff\xff\xff\xff"):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(junk)
            await writer.drain()
            writer.close()
        await thread.acall(two.connect, address_of(one))


async def test_a_stopped_peer_is_noticed_and_hung_up_on() -> None:
    child = Process([sys.executable, "-m", "tests.integration.peer_child"])
    try:
        address = parse_peer((await asyncio.to_thread(child.wait_for, "child.listening")).fields["address"])
        async with running() as (thread, host):
            await thread.acall(host.connect, address)
            await thread.acall(host.ping, address.peer_id)
            os.kill(child.pid, signal.SIGSTOP)
            began = time.monotonic()
            await until(lambda: not host.connected)
            assert time.monotonic() - began < 10
            assert host.statistics().hung_up == 1
            os.kill(child.pid, signal.SIGCONT)
            await until_connects(thread, host, address)
    finally:
        child.kill(signal.SIGKILL)
        child.wait()
