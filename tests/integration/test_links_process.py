"""The shaping process and who runs it: real processes, real gRPC with mutual TLS, and nothing left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from commonweight.devnet.processes import start_time, wait_for_end
from commonweight.errors import ConfigError, PeerUnreachable
from commonweight.identity import NodeIdentity
from commonweight.links.client import FrontStatistics, LinkShaper
from commonweight.links.link import LinkShape
from commonweight.links.names import ANY
from commonweight.wire.channel import open_channel, serve
from commonweight.wire.tls import make_certificate, server_credentials

DEADLINE_S = 60
A_WHILE_S = 0.3
ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENT = (make_certificate(NodeIdentity(bytes([n]) * 32)) for n in (1, 2))
pytestmark = pytest.mark.asyncio

# Connects, and then answers each line that it is given: sends it, and prints what comes back.
TALKER = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print("connected", flush=True)
for line in sys.stdin.buffer:
    connection.sendall(line)
    print(connection.makefile("rb").readline().decode(), end="", flush=True)
"""


class Talker:
    """A process in a session of its own that talks to an address."""

    @classmethod
    @asynccontextmanager
    async def start(cls, shaper: LinkShaper, name: str, front: str) -> AsyncIterator["Talker"]:
        pipe = asyncio.subprocess.PIPE
        talker = cls()
        talker.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "input()\n" + TALKER, front.rpartition(":")[2]),
            stdin=pipe,
            stdout=pipe,
            start_new_session=True,
        )
        await shaper.know(name, talker.process.pid)
        talker.process.stdin.write(b"go\n")
        try:
            assert await talker.process.stdout.readline() == b"connected\n"
            yield talker
        finally:
            with suppress(ProcessLookupError):
                talker.process.kill()
            await talker.process.wait()

    async def say(self, word: str) -> str:
        self.process.stdin.write(f"{word}\n".encode())
        return (await self.process.stdout.readline()).decode().strip()


@asynccontextmanager
async def echo(name: str) -> AsyncIterator[tuple[str, int]]:
    """A server that answers each line with its name and the line."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(name.encode() + b" " + line)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()


@asynccontextmanager
async def deadline() -> AsyncIterator[None]:
    async with asyncio.timeout(DEADLINE_S):
        yield


async def test_grpc_with_mutual_tls_runs_over_a_shaped_link_and_through_a_partition() -> None:
    server, port = await serve([], "127.0.0.1:0", server_credentials(SERVER, lambda: [CLIENT.der]))
    try:
        async with deadline(), LinkShaper() as shaper:
            front = await shaper.open("b")
            await shaper.point(front, ("127.0.0.1", port))
            await shaper.know("a", os.getpid())
            await shaper.shape(ANY, ANY, LinkShape(80_000_000, 0.05))
            async with open_channel(front, CLIENT, SERVER.der) as channel:
                stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest()
                await stub.Check(request, timeout=30)
                started_s = asyncio.get_running_loop().time()
                await stub.Check(request, timeout=30)
                assert asyncio.get_running_loop().time() - started_s >= 0.1

                await shaper.partition([["a"], ["b", "c"]])
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await stub.Check(request, timeout=0.5)
                assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                paths = (await shaper.statistics()).paths
                assert paths["a", "b"].cut
                assert paths["b", "a"].cut

                await shaper.heal()
                await stub.Check(request, timeout=30, wait_for_ready=True)
    finally:
        await server.stop(None)


async def test_links_are_told_apart_by_who_connects() -> None:
    """Two processes talk to one front; the link of one of them is cut, one way, then the other way."""
    async with deadline(), LinkShaper() as shaper, echo("b") as back:
        front = await shaper.open("b")
        await shaper.point(front, back)
        async with Talker.start(shaper, "a", front) as a, Talker.start(shaper, "c", front) as c:
            assert await a.say("one") == "b one"
            assert await c.say("one") == "b one"
            for source, target in (("a", "b"), ("b", "a")):
                await shaper.cut(source, target)
                assert await c.say("two") == "b two"
                waiting = asyncio.create_task(a.say("two"))
                done, _ = await asyncio.wait([waiting], timeout=A_WHILE_S)
                assert not done
                paths = (await shaper.statistics()).paths
                assert paths[source, target].queued_bytes > 0
                assert paths[target, source].queued_bytes == 0
                await shaper.heal(source, target)
                assert await waiting == "b two"
            assert await shaper.reset("c", "a") == 0
            assert await shaper.reset("c", "b") == 1
            assert await a.say("three") == "b three"
            assert await c.say("three") == ""
            assert await c.process.wait() != 0


async def test_a_front_leads_to_where_a_node_listens_after_its_restart() -> None:
    async with deadline(), LinkShaper() as shaper, echo("old") as old, echo("new") as new:
        front = await shaper.open("b")
        await shaper.point(front, old)
        async with Talker.start(shaper, "a", front) as before:
            assert await before.say("x") == "old x"
            await shaper.point(front, new)
            async with Talker.start(shaper, "a", front) as after:
                assert await after.say("x") == "new x"
                assert (await shaper.statistics()).fronts == {front: FrontStatistics("b", 2)}


async def test_a_shape_holds_for_links_that_begin_later_until_another_is_said() -> None:
    async with deadline(), LinkShaper() as shaper, echo("b") as back:
        front = await shaper.open("b")
        await shaper.point(front, back)
        await shaper.shape("a", ANY, LinkShape(None, 0.2))
        clock = asyncio.get_running_loop()
        async with Talker.start(shaper, "a", front) as a:
            started_s = clock.time()
            await a.say("x")
            assert clock.time() - started_s >= 0.2
            await shaper.shape(ANY, "b", LinkShape())
            started_s = clock.time()
            await a.say("x")
            assert clock.time() - started_s < 0.2
            paths = (await shaper.statistics()).paths
            assert paths["a", "b"].offered_bytes == paths["a", "b"].delivered_bytes == 4
            assert paths["b", "a"].delivered_bytes == 8


async def test_what_cant_be_is_refused_and_changes_nothing() -> None:
    async with deadline(), LinkShaper() as shaper:
        with pytest.raises(ConfigError, match=r"can't lose 0\.01 of its packets"):
            await shaper.shape("a", "b", LinkShape(loss=0.01))
        with pytest.raises(ConfigError, match=r"no front 127\.0\.0\.1:1\."):
            await shaper.point("127.0.0.1:1", None)
        assert (await shaper.statistics()).paths == {}


async def test_an_order_that_was_given_up_doesnt_answer_the_next() -> None:
    async with deadline(), LinkShaper() as shaper:
        os.kill(shaper.pid, signal.SIGSTOP)
        given_up = asyncio.create_task(shaper.open("a"))
        await asyncio.wait([given_up], timeout=A_WHILE_S)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        os.kill(shaper.pid, signal.SIGCONT)
        statistics = await shaper.statistics()
        assert [front.target for front in statistics.fronts.values()] == ["a"]


async def test_a_shaping_process_that_is_gone_is_said_to_be() -> None:
    async with deadline(), LinkShaper() as shaper:
        os.kill(shaper.pid, signal.SIGKILL)
        with pytest.raises(PeerUnreachable, match="shapes links"):
            await shaper.statistics()


async def test_a_shaping_process_ends_with_the_context_and_with_its_parent() -> None:
    async with deadline():
        async with LinkShaper() as shaper:
            assert start_time(shaper.pid) is not None
        assert start_time(shaper.pid) is None

        script = """
import asyncio
from commonweight.links.client import LinkShaper
async def main():
    async with LinkShaper() as shaper:
        print(shaper.pid, flush=True)
        await asyncio.sleep(3600)
asyncio.run(main())
"""
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        pid = int(await parent.stdout.readline())
        parent.kill()
        await parent.wait()
        assert await asyncio.to_thread(wait_for_end, pid, 20.0)
