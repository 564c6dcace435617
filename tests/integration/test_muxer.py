"""What a peer can make a host keep in memory."""

from typing import Any, cast

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.io.exceptions import IOException

from commonweight.errors import PeerUnreachable
from commonweight.peers import muxer
from commonweight.peers.host import Host
from tests.integration.passages import MIB, Node, running_node, until

pytestmark = pytest.mark.asyncio


async def never_reads(stream: INetStream) -> None:
    await trio.sleep_forever()


async def connected(near: Node, far: Node) -> Host:
    far.host.handle("/test/silent", never_reads)
    await near.thread.acall(near.host.connect, far.address)
    return near.host


async def test_who_sends_more_than_it_may_is_hung_up_on() -> None:
    async with running_node() as near, running_node() as far:
        host = await connected(near, far)

        async def flood() -> int:
            stream = cast(Any, await host.open_stream(far.peer_id, "/test/silent"))
            stream.muxed_stream.send_window = 1 << 40
            sent = 0
            try:
                while sent < 100 * MIB:
                    await stream.write(bytes(MIB))
                    sent += MIB
            except IOException:
                pass
            return sent

        assert await near.thread.acall(flood) < 40 * MIB  # what TCP holds, and not a stream
        await until(lambda: near.peer_id not in far.host.connected)
        await near.thread.acall(near.host.connect, far.address)


async def test_a_connection_has_so_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muxer, "MAX_STREAMS", 20)
    async with running_node() as near, running_node() as far:
        host = await connected(near, far)

        async def open_many() -> int:
            opened = 0
            try:
                for _ in range(40):
                    await host.open_stream(far.peer_id, "/test/silent")
                    opened += 1
            except PeerUnreachable:
                pass
            return opened

        assert 10 < await near.thread.acall(open_many) <= 20
        await until(lambda: near.peer_id not in far.host.connected)
