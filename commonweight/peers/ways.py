"""Which way gRPC takes to a peer's service: its own port, or a tunnel over the best connection that libp2p can make."""

from dataclasses import dataclass
from typing import Any, Literal

from commonweight.errors import IdentityMismatch, PeerUnreachable
from commonweight.events import emit
from commonweight.peers.bridge import TrioThread
from commonweight.peers.offered import Service
from commonweight.peers.passage import Passage, Whereabouts
from commonweight.wire.channel import split_address
from commonweight.wire.tls import fetch_certificate

DIRECT_S = 3.0
"""For a TLS handshake with the service itself."""


@dataclass(frozen=True)
class Way:
    """How a service of a peer's is reached."""

    kind: Literal["direct", "dialled", "punched", "relayed"]
    """Its own port; or a tunnel through a libp2p connection that was dialled, hole-punched, or is a relay's circuit."""
    address: str
    """host:port to open the channel to."""
    why: str
    """Why it is no better one; "" of a direct one."""


async def find_way(
    trio_side: TrioThread[Any], passage: Passage, peer: Whereabouts, service: Service, address: str
) -> Way:
    """The best way to the service that the peer has at `address`, as host:port: directly; else by a tunnel, over a
    direct libp2p connection if one can be dialled or punched; else over a relay.

    Raises PeerUnreachable that says what was tried, what came of it, and what to do.
    """
    try:
        await fetch_certificate(*split_address(address), peer.peer_id, DIRECT_S)
        way = Way("direct", address, "")
    except (PeerUnreachable, IdentityMismatch) as closed:
        try:
            link = await trio_side.acall(passage.connect, peer)
        except PeerUnreachable as error:
            outside = ", ".join(await trio_side.acall(passage.outside)) or "unknown: it is connected to nobody"
            raise PeerUnreachable(
                f"No way to the {service} service of {peer.peer_id}. {closed.args[0]} {error.args[0]} "
                f"This node's own outside address: {outside}. One of the two must forward its ports and say so with "
                "--advertise, or both must reach one relay."
            ) from error
        port = await trio_side.acall(passage.tunnel, peer, service)
        way = Way(link, f"127.0.0.1:{port}", closed.args[0])
    emit("way.found", peer=peer.peer_id, service=service, kind=way.kind, address=way.address, why=way.why)
    return way
