"""How a node and its neighbours reach each other where they found the coordinator by libp2p: directly, or through that.

The way to the next stage is found before worker and decode process hear of it, which then connect to an address like
any other. The previous one comes by the same kinds of way.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from commonweight.errors import PeerUnreachable
from commonweight.events import emit
from commonweight.identity import address_of
from commonweight.locating import Locator
from commonweight.peers.offered import Offered, Service
from commonweight.wire.channel import local_address
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import peer_id_of

TRIES, RETRY_S = 3, 2.0
"""The neighbour may not know yet that it has one, or not have its relay yet."""
MAX_AUDITORS = 64
"""That are let in; one that is forgotten is let in again with its next grant."""


class Routing:
    """A node's. Methods run on the event loop."""

    def __init__(self, locator: Locator, offered: Offered, node: str) -> None:
        """`offered` is what the locator lets peers reach, `node` this one's address."""
        self._locator = locator
        self._node = node
        self._offered = offered
        self._neighbours: dict[Service, frozenset[str]] = {}
        self._auditors: dict[str, None] = {}
        """Of late, the last one last."""

    def serve(self, service: Service, listen: str, port: int) -> None:
        """Neighbours may reach the service that listens on this port of the host in `listen`."""
        self._offered.services = {**self._offered.services, service: local_address(listen, port)}

    async def form(self, formation: pb.Formation) -> dict[str, PeerUnreachable]:
        """Let the neighbours and replicas in, and put the way in the place of the address of each with whom this node
        opens a pipe: the next stage's, and replicas of a higher address. By PeerId, those that there is no way to.
        """
        self._admit("data", (*formation.previous, *formation.replicas, *formation.next))
        later = [replica for replica in formation.replicas if address_of(replica.peer_id) > self._node]
        failed: dict[str, PeerUnreachable] = {}

        async def find(neighbour: pb.Neighbour) -> None:
            try:
                neighbour.data_address = await self._reach_in_time(neighbour)
            except PeerUnreachable as error:
                failed[neighbour.peer_id] = error

        await asyncio.gather(*map(find, (*formation.next, *later)))
        return failed

    async def find_sources(self, *sources: pb.EvidenceSource) -> None:
        """The same of who has a state that is to be fetched, or keeps pieces. Where there is no way, the address
        stays.
        """
        for source in sources:
            with suppress(PeerUnreachable):
                source.address = await self._locator.reach(source.peer_id, "evidence", source.address)

    async def meet(self, peers: pb.DecodePeers) -> None:
        """The same of decode processes. Where there is no way, the address stays: it is tried again and again."""
        self._admit("decode", [peers.previous, peers.next])
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

    async def _reach_in_time(self, neighbour: pb.Neighbour) -> str:
        for _ in range(TRIES - 1):
            with suppress(PeerUnreachable):
                return await self._reach(neighbour, "data")
            await asyncio.sleep(RETRY_S)
        return await self._reach(neighbour, "data")

    async def _reach(self, neighbour: pb.Neighbour, service: Service) -> str:
        return await self._locator.reach(neighbour.peer_id, service, neighbour.data_address)

    def _admit(self, service: Service, neighbours: Iterable[pb.Neighbour]) -> None:
        self._neighbours[service] = frozenset(each.peer_id for each in neighbours if each.peer_id)
        self._let_in()

    def _let_in(self) -> None:
        self._offered.admitted = frozenset(self._auditors).union(*self._neighbours.values())
