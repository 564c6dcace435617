"""`bench tunnel`: gRPC's echo of one message through a libp2p stream, against the same channel opened directly.

As between two nodes: who serves, and each of the two libp2p hosts, is a process of its own; the caller is this one.
"""

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import grpc

from commonweight.bench.measure import Result, compare, interleave
from commonweight.identity import NodeIdentity
from commonweight.peers.address import parse_peer
from commonweight.peers.bridge import TrioThread
from commonweight.peers.host import HostConfig, open_host
from commonweight.peers.offered import Offered
from commonweight.peers.passage import Passage, Whereabouts, open_passage
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PART_BYTES, PIPE_PING_TIMEOUT_MS, open_channel, serve
from commonweight.wire.tls import make_certificate, server_credentials

NEAR, FAR = b"\x01" * 32, b"\x02" * 32
"""Keys that hold nothing."""
CALL_S = 60.0
CHILD_S = 60.0
"""For a child to come up."""


@dataclass(frozen=True)
class TunnelBench:
    """What is measured, over loopback."""

    message_bytes: int = PIPE_PART_BYTES
    messages: int = 16
    """Of one turn, one after another."""
    pairs: int = 5


def run_tunnel_bench(bench: TunnelBench) -> list[Result]:
    """All results: milliseconds for a message there and back."""
    payload = bytes(bench.message_bytes)
    with ExitStack() as stack:
        mine = make_certificate(NodeIdentity(NEAR))
        address, theirs = stack.enter_context(_child(_serve, mine.der))
        far, _ = stack.enter_context(_child(_host, FAR, mine.peer_id, address, None))
        _, port = stack.enter_context(_child(_host, NEAR, NodeIdentity(FAR).peer_id, "", far))
        runner = stack.enter_context(asyncio.Runner())

        async def measure(where: str, kind: str) -> float:
            channel = open_channel(
                where, mine, theirs, max_message_bytes=PIPE_FRAME_BYTES, ping_timeout_ms=PIPE_PING_TIMEOUT_MS
            )
            echo = _unary if kind == "unary" else _stream
            try:
                return await echo(channel, payload, bench.messages)
            finally:
                await channel.close()

        def contender(where: str, kind: str) -> Callable[[int], float]:
            return lambda _: 1000 * runner.run(measure(where, kind)) / bench.messages

        kinds = ("unary", "stream")
        ways = {"direct": address, "tunnelled": f"127.0.0.1:{port}"}
        values = interleave(
            {f"{kind} {way}": contender(where, kind) for kind in kinds for way, where in ways.items()}, bench.pairs
        )
    return [
        compare(f"{kind}, over direct", "ms", values[f"{kind} tunnelled"], values[f"{kind} direct"], None)
        for kind in kinds
    ]


async def _unary(channel: grpc.aio.Channel, payload: bytes, messages: int) -> float:
    call = channel.unary_unary("/bench.Echo/Unary")
    await call(payload[:1], timeout=CALL_S)
    began = time.perf_counter()
    for _ in range(messages):
        assert len(await call(payload, timeout=CALL_S)) == len(payload), "it is an echo"
    return time.perf_counter() - began


async def _stream(channel: grpc.aio.Channel, payload: bytes, messages: int) -> float:
    call = channel.stream_stream("/bench.Echo/Stream")(timeout=CALL_S)
    await call.write(payload[:1])
    await call.read()
    began = time.perf_counter()
    for _ in range(messages):
        await call.write(payload)
        assert len(await call.read()) == len(payload), "it is an echo"
    seconds = time.perf_counter() - began
    await call.done_writing()
    return seconds


@contextmanager
def _child(run: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """A process that runs a coroutine function; what it has said first."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(run, theirs, *arguments), daemon=True)
    process.start()
    try:
        if not ours.poll(CHILD_S):
            raise TimeoutError(f"{run.__name__} didn't come up within {CHILD_S:g} s")
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def _main(run: Callable[..., Any], parent: Connection, *arguments: Any) -> None:
    asyncio.run(run(parent, *arguments))


async def _serve(parent: Connection, admitted: bytes) -> None:
    certificate = make_certificate(NodeIdentity(FAR))

    async def unary(request: bytes, context: object) -> bytes:
        return request

    async def stream(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    def add(_: object, server: grpc.aio.Server) -> None:
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Stream": grpc.stream_stream_rpc_method_handler(stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", methods),))

    credentials = server_credentials(certificate, lambda: [admitted])
    server, port = await serve([(add, None)], "127.0.0.1:0", credentials, max_message_bytes=PIPE_FRAME_BYTES)
    parent.send((f"127.0.0.1:{port}", certificate.der))
    await server.wait_for_termination()


async def _host(parent: Connection, secret: bytes, admitted: str, service: str, far: str | None) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[str, Passage]]:
        config = HostConfig(NodeIdentity(secret), "/ip4/127.0.0.1/tcp/0")
        async with (
            open_host(config) as host,
            open_passage(host, (), Offered({"data": service}, frozenset({admitted}))) as passage,
        ):
            yield host.addresses[0], passage

    thread = TrioThread(opened)
    address, passage = await thread.start()
    port = 0
    if far is not None:
        port = await thread.acall(passage.tunnel, Whereabouts(admitted, (parse_peer(far),)), "data")
    parent.send((address, port))
    await thread.died
