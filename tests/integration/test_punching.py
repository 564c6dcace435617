"""Who may have a host dial, and how much. Whether it gets through NATs is in test_nat.py."""

import pytest
import trio
from libp2p.io.exceptions import IOException
from libp2p.relay.circuit_v2.dcutr import PROTOCOL_ID as DCUTR
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from libp2p.relay.circuit_v2.utils import write_delimited_msg
from multiaddr import Multiaddr

from commonweight.peers.punching import MAX_ADDRESSES, Puncher
from tests.integration.passages import Node, running_node, running_relay, until

pytestmark = pytest.mark.asyncio


async def begin_punching(near: Node, far: Node, addresses: list[str]) -> bytes:
    """What `far` answers to a peer that begins a punch from these addresses, up to the moment when both would dial."""

    async def begin() -> bytes:
        stream = await near.host.open_stream(far.peer_id, DCUTR)
        named = [Multiaddr(address).to_bytes() for address in addresses]
        answer = b""
        try:
            await write_delimited_msg(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=named))
            with trio.move_on_after(5):
                answer = await stream.read(1024)
            await write_delimited_msg(stream, HolePunch(type=HolePunch.SYNC))
        except IOException:
            pass
        return answer

    return await near.thread.acall(begin)


@pytest.mark.parametrize("is_admitted", [False, True])
async def test_a_peer_has_a_host_dial_little_and_only_if_it_is_admitted(
    is_admitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[str] = []

    async def note(self: object, peer_id: object, address: Multiaddr, *_: object) -> None:
        dialled.append(str(address))

    monkeypatch.setattr(Puncher, "_dial_peer", note)
    # Over a circuit: with a direct connection there is nothing to punch.
    monkeypatch.setattr(Puncher, "punch", unwilling)
    monkeypatch.setattr("commonweight.peers.passage.PUNCH_S", 0.1)
    async with running_relay() as (address, _), running_node() as near, running_node([address]) as far:
        far.admit(near)
        await until(lambda: far.passage.circuits.addresses != ())
        assert await near.thread.acall(near.passage.connect, far.through(address)) == "relayed"
        if not is_admitted:
            far.admit()
        answer = await begin_punching(near, far, [f"/ip4/127.0.0.1/tcp/{port}" for port in range(1, 40)])
        if is_admitted:
            await until(lambda: len(dialled) > 0)
            named = {each for each in dialled if int(each.split("/")[4]) < 40}
            assert len(named) == MAX_ADDRESSES
        else:
            assert answer == b""
            await near.thread.acall(near.host.ping, far.peer_id)
            assert dialled == []


async def unwilling(self: object, peer_id: str) -> None:
    pass
