"""What a host is connected over to each peer, and waiting for that to change. Trio side only."""

from collections.abc import Callable
from typing import Literal

import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from commonweight.peers.host import Host

Link = Literal["direct", "relayed"]


class Connections(INotifee):
    """One host's connections. Registers itself with the host."""

    def __init__(self, host: Host) -> None:
        self._network = host.libp2p.get_network()
        self._changed = trio.Event()
        self._network.register_notifee(self)

    def link(self, peer_id: str) -> Link | None:
        """The better of what there is; new streams take it. None: not connected."""
        connections = self._network.get_connections(ID.from_string(peer_id))
        kinds = {connection.get_connection_type() for connection in connections if not connection.is_closed}
        if kinds - {ConnectionType.RELAYED}:
            return "direct"
        return "relayed" if kinds else None

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Returns once `holds()`, which is asked whenever a connection comes or goes."""
        while not holds():
            changed = self._changed
            await changed.wait()

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        self._tell()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._tell()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
