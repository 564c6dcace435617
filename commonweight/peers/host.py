"""A libp2p host on the node's key: who is connected, over what, and whether they still answer. Trio side only.

py-libp2p 0.8.1 wants to be held by the hand. Each of these is covered here, so that nothing above has to know:
* a default host accepts plaintext, so only Noise is offered;
* an exception that escapes a stream's handler ends the host, so every stream is guarded in one place;
* a bind that fails is only logged, so the address is asked for afterwards;
* a failed dial blocks the peer for a minute, and an old address is tried before a new one, so both are cleared;
* a silent peer stays connected for ever, so each is pinged, and hung up on;
* left alone it dials whomever it has heard of to fill up its connections, so that part is stopped;
* its places for connections that come in are never given back, see `tcp.py`;
* it buffers whatever a peer sends, see `muxer.py`;
* it documents no exceptions: what a dial, a stream or a peer's bytes raise is its own errors, those of TCP, Noise,
  yamux and protobuf, and groups of them. So every call into it that a peer can make fail catches `Exception`, and says
  what it means for us.
"""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.keys import KeyPair, KeyType, PrivateKey, PublicKey
from libp2p.crypto.secp256k1 import Secp256k1PublicKey
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import MultiError
from libp2p.host.ping import ID as PING
from libp2p.host.ping import perform_ping_roundtrip
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr

from commonweight.errors import ConfigError, PeerUnreachable
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.peers.address import PeerAddress, parse_listen, parse_peer_host
from commonweight.peers.muxer import ONLY_YAMUX, hold_to_windows
from commonweight.peers.tcp import MAX_CONNECTIONS, BoundedTcp

DIAL_S = 10.0
"""For a connection to be made, secured and ready for streams."""
OPEN_S = 10.0
"""For a stream to be opened on a connection."""
PING_EVERY_S = 2.0
PING_S = 5.0
"""A peer that doesn't answer for this long is hung up on: a stopped one within 7 s."""
HANG_UP_S = 2.0
HANDSHAKE_S = 5.0
"""For whoever connects to become a peer; half-open connections end here."""

LOG = logging.getLogger(__name__)
logging.getLogger("libp2p").addHandler(logging.NullHandler())  # what matters is told as errors and events

StreamHandler = Callable[[INetStream], Awaitable[None]]


@dataclass(frozen=True)
class HostConfig:
    """What one libp2p host runs with."""

    identity: NodeIdentity
    listen: str
    """Multiaddr, /ip4/…/tcp/…; port 0 takes a free one."""
    psk: str | None = field(default=None, repr=False)
    """32 bytes in hexadecimal: only who has the same is heard. None: anyone."""
    advertise: str | None = None
    """Host by which others reach it, where that isn't the one it listens on."""


@dataclass(frozen=True)
class HostStatistics:
    """A host at one moment."""

    connected: tuple[str, ...]
    """PeerIds."""
    streams_failed: int
    """Streams whose handler failed: mostly what strangers send."""
    hung_up: int
    """Peers that fell silent."""


class NodeKey(PrivateKey):
    """The node's key as libp2p wants one: it signs, and the secret stays where it is."""

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity = identity

    def to_bytes(self) -> bytes:
        raise TypeError("A node's secret isn't handed out.")

    def get_type(self) -> KeyType:
        return KeyType.Secp256k1

    def sign(self, data: bytes) -> bytes:
        return self._identity.sign_libp2p(data)

    def get_public_key(self) -> PublicKey:
        return Secp256k1PublicKey.from_bytes(self._identity.public_key)


class Host:
    """A running host. Use `open_host`."""

    def __init__(self, libp2p: IHost, config: HostConfig) -> None:
        self.libp2p = libp2p
        self.peer_id = config.identity.peer_id
        swarm = libp2p.get_network()
        assert isinstance(swarm, Swarm), "what new_host makes"
        self.swarm = swarm
        self.listening: tuple[str, ...] = ()
        """Multiaddrs with our PeerId at which it listens."""
        self.addresses: tuple[str, ...] = ()
        """Those by which others reach it."""
        self._streams_failed = 0
        self._hung_up = 0

    @property
    def connected(self) -> tuple[str, ...]:
        """PeerIds of the connected peers."""
        return tuple(str(peer) for peer in self.libp2p.get_connected_peers())

    def statistics(self) -> HostStatistics:
        """What it is and has been doing."""
        return HostStatistics(self.connected, self._streams_failed, self._hung_up)

    async def connect(self, address: PeerAddress, timeout_s: float = DIAL_S) -> None:
        """Be connected to the peer at this address; nothing happens where we are. Raises PeerUnreachable."""
        peer = ID.from_string(address.peer_id)
        if self.swarm.get_connections(peer):
            return
        self.swarm.unblock_peer(peer)
        self.libp2p.get_peerstore().clear_addrs(peer)
        try:
            with trio.fail_after(timeout_s):
                await self.libp2p.connect(PeerInfo(peer, [Multiaddr(address.transport)]))
        except trio.TooSlowError as error:
            raise PeerUnreachable(
                f"{address} didn't become a libp2p peer within {timeout_s:g} s. Check that it runs, and that both have "
                "the same --psk-file, or none."
            ) from error
        except Exception as error:  # libp2p's, of any layer: see the top
            raise PeerUnreachable(
                f"{address} can't be reached: {_reason(error)}. Check the address, and that it runs."
            ) from error

    async def open_stream(self, peer_id: str, protocol: str, timeout_s: float = OPEN_S) -> INetStream:
        """A stream to a connected peer that speaks this protocol. Raises PeerUnreachable."""
        try:
            with trio.fail_after(timeout_s):
                return await self.libp2p.new_stream(ID.from_string(peer_id), [TProtocol(protocol)])
        except trio.TooSlowError as error:
            raise PeerUnreachable(f"{peer_id} didn't open a stream of {protocol} within {timeout_s:g} s.") from error
        except Exception as error:  # likewise
            raise PeerUnreachable(f"{peer_id} opens no stream of {protocol}: {_reason(error)}.") from error

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Have `handler` answer every stream of this protocol. What it raises ends the stream, and no more."""
        self.libp2p.set_stream_handler(TProtocol(protocol), handler)

    async def disconnect(self, peer_id: str) -> None:
        """Hang up on a peer."""
        with trio.move_on_after(HANG_UP_S):
            await self.libp2p.disconnect(ID.from_string(peer_id))

    async def hang_up(self) -> None:
        """Hang up on everybody, so that they know at once and don't have to find out."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for peer_id in self.connected:
                    nursery.start_soon(self.disconnect, peer_id)

    async def ping(self, peer_id: str, timeout_s: float = PING_S) -> float:
        """Seconds that a connected peer takes to answer. Raises PeerUnreachable."""
        began = trio.current_time()
        stream = await self.open_stream(peer_id, PING, timeout_s)
        try:
            with trio.fail_after(timeout_s - (trio.current_time() - began)):
                await perform_ping_roundtrip(stream)
        except Exception as error:  # likewise, and TooSlowError
            raise PeerUnreachable(
                f"{peer_id} didn't answer a ping within {timeout_s:g} s: {_reason(error)}."
            ) from error
        finally:
            await _reset(stream)
        return trio.current_time() - began

    async def keep_pinging(self) -> None:
        """Hang up on whoever falls silent, for ever."""
        async with trio.open_nursery() as nursery:
            pinged: set[str] = set()
            while True:
                for peer_id in set(self.connected) - pinged:
                    pinged.add(peer_id)
                    nursery.start_soon(self._watch, peer_id, pinged)
                await trio.sleep(PING_EVERY_S)

    async def _watch(self, peer_id: str, pinged: set[str]) -> None:
        try:
            while peer_id in self.connected:
                await self.ping(peer_id)
                await trio.sleep(PING_EVERY_S)
        except PeerUnreachable as error:
            if peer_id in self.connected:
                self._hung_up += 1
                emit("peer.lost", peer=peer_id, code=error.code, message=error.args[0])
                await self.disconnect(peer_id)
        finally:
            pinged.discard(peer_id)

    def guard_streams(self) -> None:
        """Let no stream's failure out: one place for all protocols, libp2p's own and those that are added later."""
        inner = self.swarm.common_stream_handler

        async def guarded(stream: INetStream) -> None:
            try:
                await inner(stream)
            except Exception as error:  # a stream's outermost edge: whatever a stranger caused
                self._streams_failed += 1
                LOG.debug("a stream of %s failed", stream.get_protocol(), exc_info=error)
                await _reset(stream)

        self.swarm.set_stream_handler(guarded)


@asynccontextmanager
async def open_host(config: HostConfig) -> AsyncIterator[Host]:
    """A host that listens and pings its peers. Raises ConfigError where it can't listen there."""
    listen = parse_listen(config.listen)
    keys = KeyPair(NodeKey(config.identity), Secp256k1PublicKey.from_bytes(config.identity.public_key))
    _refuse_taken(listen)

    def advertised(address: str) -> str:
        if config.advertise is None or not address.startswith(listen.rpartition("/")[0]):
            return address  # another one that was observed from outside
        return f"{parse_peer_host(config.advertise)}/tcp/{address.split('/')[4]}"

    libp2p = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, create_noise_key_pair().private_key)},
        muxer_opt=ONLY_YAMUX,
        psk=config.psk,
        transports=[BoundedTcp()],
        addrs_factory=lambda found: [Multiaddr(advertised(str(address))) for address in found],
        connection_config=ConnectionConfig(
            min_connections=0,
            low_watermark=MAX_CONNECTIONS,
            high_watermark=2 * MAX_CONNECTIONS,
            max_connections=2 * MAX_CONNECTIONS,
            inbound_upgrade_timeout=HANDSHAKE_S,
            dial_timeout=DIAL_S,
        ),
    )
    host = Host(libp2p, config)
    host.guard_streams()
    hold_to_windows(host.swarm)
    async with libp2p.run([Multiaddr(listen)]):
        listening = tuple(str(address) for address in libp2p.get_transport_addrs())
        host.listening = tuple(f"{address}/p2p/{host.peer_id}" for address in listening)
        host.addresses = tuple(f"{advertised(address)}/p2p/{host.peer_id}" for address in listening)
        if not listening:
            raise ConfigError(f"libp2p can't listen on {listen}. Give an address of this machine and a free port.")
        await host.swarm.auto_connector.stop()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.keep_pinging)
                yield host
                nursery.cancel_scope.cancel()
        finally:
            await host.hang_up()


def _refuse_taken(listen: str) -> None:
    """libp2p shares its port with whoever else asks for it (SO_REUSEPORT), and half of the peers would get another."""
    _, kind, host, _, port = listen.split("/")
    with socket.socket(socket.AF_INET6 if kind == "ip6" else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise ConfigError(
                f"libp2p can't listen on {listen}: {error.strerror or error}. Take another port."
            ) from error


async def _reset(stream: INetStream) -> None:
    """Give a stream up, whatever state it is in."""
    with trio.move_on_after(HANG_UP_S) as scope:
        scope.shield = True
        try:
            await stream.reset()
        except Exception as error:  # libp2p's streams raise what their connection raises
            LOG.debug("a stream couldn't be reset", exc_info=error)


def _reason(error: BaseException) -> str:
    """What is at the bottom of it; above that each layer says only that it failed."""
    while True:
        if isinstance(error, MultiError) and error.errors:
            error = error.errors[-1]
        elif isinstance(error, BaseExceptionGroup):
            error = error.exceptions[-1]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    return str(error) or type(error).__name__
