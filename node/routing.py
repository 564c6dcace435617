"""How a node and its neighbours reach each other where they found the coordinator by libp2p: directly, or through that.

The way to the next stage is found before worker and decode process hear of it, which then connect to an address like
any other. The previous one comes by the same kinds of way.
"""

import asyncio
import ipaddress

from commonweight.errors import PeerUnreachable
from commonweight.events import emit
from commonweight.locating import Locator
from commonweight.peers.offered import Offered, Service
from commonweight.wire.channel import join_address, split_address
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import peer_id_of

TRIES, RETRY_S = 3, 2.0
"""The neighbour may not know yet that it has one, or not have its relay yet."""
MAX_AUDITORS = 64
"""That are let in; one that is forgotten is let in again with its next grant."""


class Routing:
    """A node's. Methods run on the event loop."""

    def __init__(self, locator: Locator, offered: Offered) -> None:
        """`offered` is what the locator lets peers reach."""
        self._locator = locator
        self._offered = offered
        self._neighbours: dict[Service, frozenset[str]] = {}
        self._auditors: dict[str, None] = {}
        """Of late, the last one last."""

    def serve(self, service: Service, listen: str, port: int) -> None:
        """Neighbours may reach the service that listens on this port of the host in `listen`."""
        host, _ = split_address(listen)
        try:
            if ipaddress.ip_address(host).is_unspecified:
                host = "127.0.0.1"
        except ValueError:
            pass
        self._offered.services = {**self._offered.services, service: join_address(host, port)}

    async def form(self, formation: pb.Formation) -> None:
        """Let the neighbours in, and put the way to the next stage in the place of its address.

        Raises PeerUnreachable where there is none.
        """
        self._admit("data", formation)
        if formation.HasField("next"):
            for left in reversed(range(TRIES)):
                try:
                    formation.next.data_address = await self._reach(formation.next, "data")
                    break
                except PeerUnreachable:
                    if not left:
                        raise
                    await asyncio.sleep(RETRY_S)

    async def meet(self, peers: pb.DecodePeers) -> None:
        """The same of decode processes. Where there is no way, the address stays: it is tried again and again."""
        self._admit("decode", peers)
        if peers.HasField("next"):
            try:
                peers.next.data_address = await self._reach(peers.next, "decode")
            except PeerUnreachable as error:
                emit("way.missing", peer=peers.next.peer_id, service="decode", code=error.code, message=error.args[0])

    def grant(self, auditor: bytes) -> None:
        """Let the holder of this certificate (DER) come for evidence. Raises IdentityMismatch for what is none."""
        peer_id = peer_id_of(auditor)
        self._auditors.pop(peer_id, None)
        self._auditors[peer_id] = None
        if len(self._auditors) > MAX_AUDITORS:
            del self._auditors[next(iter(self._auditors))]
        self._let_in()

    async def _reach(self, neighbour: pb.Neighbour, service: Service) -> str:
        return await self._locator.reach(neighbour.peer_id, service, neighbour.data_address)

    def _admit(self, service: Service, neighbours: pb.Formation | pb.DecodePeers) -> None:
        sides = (neighbours.previous.peer_id, neighbours.next.peer_id)
        self._neighbours[service] = frozenset(side for side in sides if side)
        self._let_in()

    def _let_in(self) -> None:
        self._offered.admitted = frozenset(self._auditors).union(*self._neighbours.values())
