"""A direct libp2p connection between two peers behind NATs, once a relay has brought them together. Trio side only.

Both dial at the same moment, from the ports that they listen on (DCUtR). In libp2p 0.8.1 both sides begin that, and get
into each other's way. By its specification, and here, only who has accepted the circuit does.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.dcutr import DCUtRProtocol
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from commonweight.peers.host import Host

PUNCH_S = 5.0
"""Where it works it takes a second at most."""


class Puncher(DCUtRProtocol):
    """Answers a peer that begins, and begins by itself only with `punch`. Use `open_puncher`."""

    async def punch(self, peer_id: str) -> None:
        """Try to have a direct connection to a peer whose circuit this host has accepted; gives up after PUNCH_S."""
        with trio.move_on_after(PUNCH_S):
            await self.initiate_hole_punch(ID.from_string(peer_id))

    async def outside(self) -> tuple[str, ...]:
        """Where this host's port would be if its NATs keep the number: as those who are connected see its address."""
        return tuple(str(Multiaddr(address)) for address in await self._get_observed_addrs())

    async def _auto_drive_loop(self) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def open_puncher(host: Host) -> AsyncIterator[Puncher]:
    """Answer hole punching."""
    puncher = Puncher(host.libp2p)
    async with background_trio_service(puncher):
        await puncher.event_started.wait()
        yield puncher
