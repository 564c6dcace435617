"""The link between control process and worker: messages whole or an error, and a worker that dies with its parent."""

import asyncio
import json
import os
import signal
import socket
import sys

import pytest

from commonweight.errors import ConfigError, MalformedMessage, MessageTooLarge, PeerUnreachable
from commonweight.wire.generated import worker_pb2
from commonweight.wire.link import MAX_LINK_BYTES, Link, connect_link, spawn_worker

DEADLINE_S = 20
pytestmark = pytest.mark.asyncio

# A worker that sends back what it gets, and as its first event what it was started with.
ECHO = """
import asyncio, json, os, signal, sys
from commonweight.wire.generated import worker_pb2
from commonweight.wire.link import connect_link

async def main():
    async with await connect_link(int(sys.argv[sys.argv.index("--link-fd") + 1])) as link:
        started = {"env": dict(os.environ), "sigint": str(signal.getsignal(signal.SIGINT)), "pid": os.getpid()}
        await link.send(worker_pb2.WorkerStart(spec=json.dumps(started).encode()))
        while (message := await link.receive(worker_pb2.WorkerStart)) is not None:
            await link.send(message)

asyncio.run(main())
"""


def start(size: int, stage: int = 1) -> worker_pb2.WorkerStart:
    return worker_pb2.WorkerStart(spec=bytes(size), stage=stage)


async def pair() -> tuple[Link, Link]:
    a, b = socket.socketpair()
    return await connect_link(a.detach()), await connect_link(b.detach())


async def raw_and_link() -> tuple[asyncio.StreamWriter, Link]:
    raw, sock = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=raw)
    return writer, await connect_link(sock.detach())


async def test_messages_arrive_whole_and_in_order():
    async with asyncio.timeout(DEADLINE_S):
        ours, theirs = await pair()
        sent = [start(size, size) for size in (0, 1, 70_000, 3_000_000, 5)]
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(_send_all(ours, sent))
            received = [await theirs.receive(worker_pb2.WorkerStart) for _ in sent]
        assert sending.done()
        assert received == sent
        await ours.close()
        assert await theirs.receive(worker_pb2.WorkerStart) is None
        await theirs.close()


async def _send_all(link: Link, messages: list[worker_pb2.WorkerStart]) -> None:
    for message in messages:
        await link.send(message)


async def test_several_tasks_may_send_at_once():
    async with asyncio.timeout(DEADLINE_S):
        ours, theirs = await pair()
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(ours.send(start(200_000, number)))
            stages = {(await theirs.receive(worker_pb2.WorkerStart)).stage for _ in range(20)}
        assert stages == set(range(20))
        await ours.close()
        await theirs.close()


async def test_a_cancelled_receive_loses_nothing():
    async with asyncio.timeout(DEADLINE_S):
        writer, link = await raw_and_link()
        payload = start(100, 7).SerializeToString()
        wire = len(payload).to_bytes(4, "big") + payload
        for byte in range(len(wire)):
            receiving = asyncio.ensure_future(link.receive(worker_pb2.WorkerStart))
            writer.write(wire[byte : byte + 1])
            await writer.drain()
            await asyncio.wait([receiving], timeout=0.002)
            if not receiving.done():
                receiving.cancel()
            try:
                message = await receiving
            except asyncio.CancelledError:
                continue
        assert message == start(100, 7)
        writer.close()
        await link.close()


async def test_what_is_too_large_is_refused_by_both_ends():
    async with asyncio.timeout(DEADLINE_S):
        writer, link = await raw_and_link()
        with pytest.raises(MessageTooLarge, match="WorkerStart of 16777"):
            await link.send(start(MAX_LINK_BYTES))
        writer.write((MAX_LINK_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(MessageTooLarge, match=str(MAX_LINK_BYTES + 1)):
            await link.receive(worker_pb2.WorkerStart)
        writer.close()
        await link.close()


@pytest.mark.parametrize("wire", [b"\0", b"\0\0\0\4", b"\0\0\0\4abc", b"\0\0\0\4\xff\xff\xff\xff"])
async def test_bytes_that_are_no_message_are_refused(wire):
    async with asyncio.timeout(DEADLINE_S):
        writer, link = await raw_and_link()
        writer.write(wire)
        writer.close()
        with pytest.raises(MalformedMessage):
            await link.receive(worker_pb2.WorkerStart)
        await link.close()


async def test_sending_to_an_end_that_is_gone_says_so():
    async with asyncio.timeout(DEADLINE_S):
        ours, theirs = await pair()
        await theirs.close()
        with pytest.raises(PeerUnreachable, match="other end"):
            await _send_all(ours, [start(100_000)] * 100)
        assert await ours.receive(worker_pb2.WorkerStart) is None
        await ours.close()
        with pytest.raises(PeerUnreachable):
            await ours.send(start(1))


async def test_a_descriptor_that_is_no_socket_is_refused():
    read, write = os.pipe()
    for fd in (read, 10_000):
        with pytest.raises(ConfigError, match=f"--link-fd {fd} is no socket"):
            await connect_link(fd)
    os.close(read)
    os.close(write)


async def test_a_worker_starts_with_its_environment_and_answers():
    async with asyncio.timeout(DEADLINE_S):
        process, link = await spawn_worker([sys.executable, "-c", ECHO], {"COLOUR": "blue"}, threads=3)
        async with link:
            first = await link.receive(worker_pb2.WorkerStart)
            started = json.loads(first.spec)
            assert started["pid"] == process.pid
            assert started["sigint"] == str(signal.SIG_IGN)
            wanted = {
                "COLOUR": "blue",
                "OMP_NUM_THREADS": "3",
                "MKL_NUM_THREADS": "3",
                "MALLOC_MMAP_THRESHOLD_": "4294967296",
                "MALLOC_TRIM_THRESHOLD_": "4294967296",
                "MALLOC_TOP_PAD_": "67108864",
                "PATH": os.environ["PATH"],
            }
            assert {name: started["env"].get(name) for name in wanted} == wanted
            await link.send(start(2_000_000, 9))
            assert await link.receive(worker_pb2.WorkerStart) == start(2_000_000, 9)
        assert await process.wait() == 0


async def test_a_worker_that_is_killed_ends_its_link():
    async with asyncio.timeout(DEADLINE_S):
        process, link = await spawn_worker([sys.executable, "-c", ECHO])
        async with link:
            await link.receive(worker_pb2.WorkerStart)
            process.kill()
            assert await link.receive(worker_pb2.WorkerStart) is None
            assert await process.wait() == -signal.SIGKILL


async def test_a_program_that_is_missing_is_named():
    with pytest.raises(ConfigError, match="/nowhere/worker"):
        await spawn_worker(["/nowhere/worker"])


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_a_worker_dies_with_its_parent_even_if_it_never_looks_at_the_link():
    parent = """
import asyncio, sys
from commonweight.wire.generated import worker_pb2
from commonweight.wire.link import spawn_worker

BUSY = '''
import os, sys
os.write(int(sys.argv[-1]), bytes(4))
print(os.getpid(), flush=True)
while True:
    pass
'''

async def main():
    process, link = await spawn_worker([sys.executable, "-c", BUSY])
    await link.receive(worker_pb2.WorkerStart)
    sys.stdin.read()

asyncio.run(main())
"""
    async with asyncio.timeout(DEADLINE_S):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", parent, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        worker = int(await process.stdout.readline())
        os.kill(worker, 0)
        process.kill()
        await process.wait()
        try:
            # The worker holds the other end of the parent's stdout: it closes when both are gone.
            assert await process.stdout.read() == b""
        except BaseException:
            os.kill(worker, signal.SIGKILL)
            raise
