"""Tunnelled gRPC between hosts on this machine: what gets through, what doesn't, and what ends it."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from commonweight.events import Event
from commonweight.peers import passage as passage_module
from commonweight.peers.passage import Whereabouts
from commonweight.peers.punching import Puncher
from commonweight.peers.tunnel import TUNNEL, TunnelLimits
from tests.integration.passages import (
    MIB,
    Node,
    calling,
    running_node,
    running_relay,
    serving_echo,
    silent_service,
    stream,
    unary,
    until,
)

DEADLINE_S = 20.0

pytestmark = pytest.mark.asyncio


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every event of this process."""
    events: list[Event] = []
    monkeypatch.setattr("commonweight.events._sinks", [events.append])
    return events


@pytest.fixture
def unpunchable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind NATs that can't be punched."""

    async def fail(self: Puncher, peer_id: str) -> None:
        pass

    monkeypatch.setattr(Puncher, "punch", fail)
    monkeypatch.setattr(passage_module, "PUNCH_S", 0.2)


@asynccontextmanager
async def tunnel(near: Node, far: Node) -> AsyncIterator[int]:
    """A port of `near` that leads to `far`, which admits it."""
    far.admit(near)
    yield await near.thread.acall(near.passage.tunnel, Whereabouts(far.peer_id, (far.address,)), "data")


async def test_grpc_goes_through_a_tunnel_unchanged() -> None:
    async with (
        running_node() as near,
        running_node() as far,
        tunnel(near, far) as port,
        serving_echo(far.certificate, [near.certificate.der]) as (_, far.services["data"]),
        calling(f"127.0.0.1:{port}", near.certificate, far.certificate.der) as channel,
    ):
        await check_echoes(channel)


@pytest.mark.usefixtures("unpunchable")
async def test_grpc_goes_through_a_relay_unchanged() -> None:
    async with running_relay() as (address, relay), running_node() as near, running_node([address]) as far:
        far.admit(near)
        await until(lambda: far.passage.circuits.addresses != ())
        where = far.through(address)
        async with serving_echo(far.certificate, [near.certificate.der]) as (_, far.services["data"]):
            assert await near.thread.acall(near.passage.connect, where) == "relayed"
            port = await near.thread.acall(near.passage.tunnel, where, "data")
            async with calling(f"127.0.0.1:{port}", near.certificate, far.certificate.der) as channel:
                await check_echoes(channel)
        assert relay.statistics().circuits == 1
        await near.thread.stop()
        await until(lambda: relay.statistics().circuits == 0, timeout_s=90)
        assert relay.statistics().bytes_carried > 2 * 8 * MIB


async def check_echoes(channel: grpc.aio.Channel) -> None:
    for _ in range(4):
        payload = secrets.token_bytes(MIB)
        assert await unary(channel)(payload, timeout=DEADLINE_S) == payload
    call = stream(channel)(timeout=DEADLINE_S)
    sent = [secrets.token_bytes(MIB) for _ in range(4)]
    for payload in sent:
        await call.write(payload)
    await call.done_writing()
    assert [message async for message in call] == sent


async def test_tls_is_with_the_far_service_and_not_with_who_copies() -> None:
    async with (
        running_node() as near,
        running_node() as far,
        running_node() as third,
        tunnel(near, far) as port,
        serving_echo(far.certificate, [near.certificate.der]) as (_, far.services["data"]),
        calling(f"127.0.0.1:{port}", near.certificate, third.certificate.der) as expects_another,
        calling(f"127.0.0.1:{port}", third.certificate, far.certificate.der) as is_another,
    ):
        for channel in (expects_another, is_another):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await unary(channel)(b"x", timeout=DEADLINE_S)
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_peer_that_is_not_admitted_reaches_nothing(told: list[Event]) -> None:
    async with (
        running_node() as near,
        running_node() as far,
        tunnel(near, far) as port,
        silent_service(far) as accepted,
    ):
        far.admit()
        assert await read_to_end(port) == b""
        assert event(told, "tunnel.refused").fields == {"peer": near.peer_id, "why": "not_admitted"}
        failed = event(told, "tunnel.failed").fields
        assert (failed["peer"], failed["code"]) == (far.peer_id, "WIRE_REFUSED")
        assert not accepted


@pytest.mark.parametrize("name", [b"evidence", b"127.0.0.1:22", b"", b"\xff" * 255])
async def test_only_what_is_served_can_be_named(name: bytes, told: list[Event]) -> None:
    async with running_node() as near, running_node() as far, silent_service(far) as accepted:
        far.admit(near)

        async def ask() -> bytes:
            opened = await near.host.open_stream(far.peer_id, TUNNEL)
            await opened.write(bytes([len(name)]) + name)
            return await opened.read(1)

        await near.thread.acall(near.host.connect, far.address)
        assert await near.thread.acall(ask) == b"\x02"
        assert event(told, "tunnel.refused").fields["why"] == "not_served"
        assert not accepted


async def test_a_service_that_is_gone_is_told(told: list[Event]) -> None:
    async with running_node() as near, running_node() as far, tunnel(near, far) as port:
        async with silent_service(far):
            pass
        assert await read_to_end(port) == b""
        assert event(told, "tunnel.refused").fields["why"] == "unavailable"


async def test_a_peer_has_so_many_streams_and_gets_them_back(told: list[Event]) -> None:
    async with (
        running_node(limits=TunnelLimits(streams_per_peer=3)) as near,
        running_node() as far,
        tunnel(near, far) as port,
        silent_service(far) as accepted,
    ):
        writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(3)]
        await until(lambda: len(accepted) == 3)
        assert await read_to_end(port) == b""
        assert "as many as there may be" in event(told, "tunnel.failed").fields["message"]
        writers[0].close()
        accepted[0][1].close()
        await until(lambda: near.passage.statistics().open == 2)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: len(accepted) == 4)
        for each in (*writers, writer, *(service for _, service in accepted)):
            each.close()
        await until(lambda: near.passage.statistics().open == far.passage.statistics().open == 0)


async def test_the_far_side_has_its_own_limit(told: list[Event]) -> None:
    async with (
        running_node() as near,
        running_node(limits=TunnelLimits(streams_per_peer=1)) as far,
        tunnel(near, far) as port,
        silent_service(far) as accepted,
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: len(accepted) == 1)
        assert await read_to_end(port) == b""
        assert event(told, "tunnel.refused").fields["why"] == "no_room"
        writer.close()


async def test_what_is_not_read_is_not_taken_and_nothing_of_it_is_lost() -> None:
    """A reader that pauses, and then reads: what waits on the way is bounded meanwhile."""
    total, bound = 96 * MIB, 40 * MIB  # libp2p's largest window is 16 MiB; the rest is the kernel's
    async with (
        running_node() as near,
        running_node() as far,
        tunnel(near, far) as port,
        silent_service(far) as accepted,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: len(accepted) == 1)
        far_reader, far_writer = accepted[0]
        payload = secrets.token_bytes(MIB)
        sent = 0

        async def write() -> None:
            nonlocal sent
            while sent < total:
                writer.write(payload)
                await writer.drain()
                sent += len(payload)
            writer.write_eof()

        writing = asyncio.create_task(write())
        await until_still(lambda: sent)
        assert MIB <= sent < bound
        for _ in range(total // MIB):
            assert await far_reader.readexactly(MIB) == payload
        assert await far_reader.read() == b""
        await writing
        far_writer.write(b"half-closed, and still answering")
        far_writer.write_eof()
        assert await reader.read() == b"half-closed, and still answering"
        await until(lambda: near.passage.statistics().open == far.passage.statistics().open == 0)


async def test_a_stream_that_carries_nothing_ends(told: list[Event]) -> None:
    async with (
        running_node(limits=TunnelLimits(idle_s=0.5)) as near,
        running_node() as far,
        tunnel(near, far) as port,
        silent_service(far),
    ):
        assert await read_to_end(port) == b""
        await until(lambda: {e.fields["why"] for e in told if e.name == "tunnel.ended"} == {"idle", "broken"})
        assert near.passage.statistics().open == far.passage.statistics().open == 0
        await near.thread.acall(near.host.ping, far.peer_id)


async def read_to_end(port: int) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()


async def until_still(value: Callable[[], int]) -> None:
    """Until it hasn't changed for a second."""
    seen, since = value(), time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        while time.monotonic() - since < 1:
            await asyncio.sleep(0.02)
            if value() != seen:
                seen, since = value(), time.monotonic()


def event(told: list[Event], name: str) -> Event:
    return next(each for each in told if each.name == name)
