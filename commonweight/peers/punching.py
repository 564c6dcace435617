"""A direct libp2p connection between two peers behind NATs, once a relay has brought them together. Trio side only.

Both dial at the same moment, from the ports that they listen on (DCUtR). In libp2p 0.8.1 both sides begin that, and get
into each other's way. By its specification, and here, only who has accepted the circuit does. And there anybody who is
connected can have a host dial as many addresses as fit into a message: here only who is admitted, and a few.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import trio
from libp2p.abc import IHost, INetStream
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.dcutr import DCUtRProtocol
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from commonweight.peers.host import Host
from commonweight.peers.pump import reset_stream

PUNCH_S = 5.0
"""Where it works it takes a second at most."""
MAX_ADDRESSES = 4
"""That are dialled because a peer names them."""


class Puncher(DCUtRProtocol):
    """Answers a peer that begins, and begins by itself only with `punch`. Use `open_puncher`."""

    def __init__(self, host: Host, admitted: Callable[[str], bool]) -> None:
        super().__init__(cast(IHost, _Listening(host.libp2p)))
        setattr(host.libp2p, "_dcutr_protocol", self)  # noqa: B010 - by this the host tells it who has gone
        self._admitted = admitted

    async def punch(self, peer_id: str) -> None:
        """Try to have a direct connection to a peer whose circuit this host has accepted; gives up after PUNCH_S."""
        with trio.move_on_after(PUNCH_S):
            await self.initiate_hole_punch(ID.from_string(peer_id))

    async def outside(self) -> tuple[str, ...]:
        """Where this host's port would be if its NATs keep the number: as those who are connected see its address."""
        return tuple(str(Multiaddr(address)) for address in await self._get_observed_addrs())

    async def _auto_drive_loop(self) -> None:
        await trio.sleep_forever()

    async def _handle_dcutr_stream(self, stream: INetStream) -> None:
        if self._admitted(str(stream.muxed_conn.peer_id)):
            await super()._handle_dcutr_stream(stream)
        else:
            await reset_stream(stream)

    def _decode_observed_addrs(self, addr_bytes: list[bytes]) -> list[Multiaddr]:
        return super()._decode_observed_addrs(addr_bytes[:MAX_ADDRESSES])


class _Listening:
    """A host whose addresses are those that it listens on: punching dials from these, not from what is advertised."""

    def __init__(self, host: IHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def get_addrs(self) -> list[Multiaddr]:
        return self._host.get_transport_addrs()


@asynccontextmanager
async def open_puncher(host: Host, admitted: Callable[[str], bool]) -> AsyncIterator[Puncher]:
    """Answer those who are `admitted` and want to punch."""
    puncher = Puncher(host, admitted)
    async with background_trio_service(puncher):
        await puncher.event_started.wait()
        yield puncher
