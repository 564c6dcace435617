"""Nodes that reach each other by libp2p, and a gRPC service with mutual TLS to tunnel to."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from commonweight.identity import NodeIdentity
from commonweight.peers.address import PeerAddress, parse_peer
from commonweight.peers.bridge import TrioThread
from commonweight.peers.host import Host, HostConfig, open_host
from commonweight.peers.offered import Offered, Service
from commonweight.peers.passage import Passage, Whereabouts, open_passage
from commonweight.peers.pump import CHUNK_BYTES
from commonweight.peers.relay import Relay, RelayLimits, serve_relay
from commonweight.peers.relaying import CircuitAddress
from commonweight.peers.tunnel import TunnelLimits
from commonweight.wire.channel import PIPE_FRAME_BYTES, open_channel, serve
from commonweight.wire.tls import Certificate, make_certificate, server_credentials

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MIB = 1 << 20


@dataclass
class Node:
    """A host with its ways through, in a trio thread of its own."""

    identity: NodeIdentity
    thread: TrioThread[Passage]
    passage: Passage
    host: Host
    services: dict[Service, str]
    offered: Offered
    certificate: Certificate = field(init=False)

    def __post_init__(self) -> None:
        self.certificate = make_certificate(self.identity)

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id

    @property
    def address(self) -> PeerAddress:
        return parse_peer(self.host.addresses[0])

    def admit(self, *others: "Node") -> None:
        """These, and nobody else."""
        self.offered.admitted = frozenset(other.peer_id for other in others)

    def through(self, relay: PeerAddress) -> Whereabouts:
        """Where it is for who can't dial it."""
        return Whereabouts(self.peer_id, circuits=(CircuitAddress(relay, self.peer_id),))


@asynccontextmanager
async def running_node(
    relays: Sequence[PeerAddress] = (), limits: TunnelLimits | None = None, listen: str = LOOPBACK
) -> AsyncIterator[Node]:
    """A node that admits nobody yet, and serves nothing."""
    identity = NodeIdentity(secrets.token_bytes(32))
    services: dict[Service, str] = {}
    offered = Offered(services)
    hosts: list[Host] = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[Passage]:
        async with (
            open_host(HostConfig(identity, listen)) as host,
            open_passage(host, relays, offered, limits) as passage,
        ):
            hosts.append(host)
            yield passage

    thread = TrioThread(opened)
    try:
        passage = await thread.start()
        yield Node(identity, thread, passage, hosts[0], services, offered)
    finally:
        await thread.stop()


@asynccontextmanager
async def running_relay(
    limits: RelayLimits | None = None, listen: str = LOOPBACK, identity: NodeIdentity | None = None
) -> AsyncIterator[tuple[PeerAddress, Relay]]:
    """A relay, and where it is."""
    config = HostConfig(identity or NodeIdentity(secrets.token_bytes(32)), listen)
    thread = TrioThread(lambda: open_host(config))
    try:
        host = await thread.start()
        yield parse_peer(host.addresses[0]), serve_relay(host, limits)
    finally:
        await thread.stop()


class Echo:
    """A raw gRPC service: one method answers what it gets, the other does so for each message of a stream."""

    def __init__(self) -> None:
        self.received = 0
        self.go_on = asyncio.Event()
        """While it is clear, the stream isn't read."""
        self.go_on.set()

    def add(self, servicer: Any, server: grpc.aio.Server) -> None:
        async def unary(request: bytes, context: Any) -> bytes:
            self.received += len(request)
            return request

        async def stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                self.received += len(request)
                yield request
                await self.go_on.wait()

        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "test.Echo",
                    {
                        "Unary": grpc.unary_unary_rpc_method_handler(unary),
                        "Stream": grpc.stream_stream_rpc_method_handler(stream),
                    },
                ),
            )
        )


@asynccontextmanager
async def serving_echo(certificate: Certificate, admitted: Sequence[bytes]) -> AsyncIterator[tuple[Echo, str]]:
    """An echo service for who presents one of these certificates, and its host:port."""
    echo = Echo()
    server, port = await serve(
        [(echo.add, None)],
        "127.0.0.1:0",
        server_credentials(certificate, lambda: admitted),
        max_message_bytes=PIPE_FRAME_BYTES,
    )
    try:
        yield echo, f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=0)


@asynccontextmanager
async def silent_service(far: Node) -> AsyncIterator[list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]:
    """A plain TCP service that takes connections and does nothing with them; those that came."""
    accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    server = await asyncio.start_server(lambda r, w: accepted.append((r, w)), "127.0.0.1", 0, limit=CHUNK_BYTES)
    far.services["data"] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield accepted
    finally:
        server.close()
        for _, writer in accepted:
            writer.close()


@asynccontextmanager
async def calling(address: str, mine: Certificate, peer: bytes) -> AsyncIterator[grpc.aio.Channel]:
    """A channel as pipes have them."""
    channel = open_channel(address, mine, peer, max_message_bytes=PIPE_FRAME_BYTES, ping_timeout_ms=10_000)
    try:
        yield channel
    finally:
        await channel.close()


def unary(channel: grpc.aio.Channel) -> Callable[..., Awaitable[bytes]]:
    return channel.unary_unary("/test.Echo/Unary")


def stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream("/test.Echo/Stream")


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Until what happens in another thread has happened."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it is true in another thread
            await asyncio.sleep(0.02)
