"""Links between network namespaces, with the kernel's own TCP and UDP: rate, delay, loss and cuts are as said, and
nothing is left of it.
"""

import asyncio
import json
import math
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from commonweight.devnet.processes import start_time, wait_for_end
from commonweight.errors import ConfigError
from commonweight.links.link import LinkShape
from commonweight.links.names import ANY
from commonweight.links.namespaces import Namespaces, why_not

WHY_NOT = why_not()
DEADLINE_S = 90
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.asyncio, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

# Answers each datagram with itself, and says on standard output that it came.
UDP_SERVER = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 5000))
print("listening", flush=True)
while True:
    data, client = server.recvfrom(2000)
    print(data.strip(b"."), flush=True)
    server.sendto(data, client)
"""
# Sends ADDRESS COUNT datagrams of SIZE bytes, at most WINDOW of them unanswered for SILENCE seconds; prints the numbers
# of the answers, how long the fastest took, and how long it was from the first sent to the last answered.
UDP_CLIENT = """
import json, socket, sys, time
address, count, size, window, silence_s = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((address, 5000))
client.settimeout(silence_s)
sent, settled, answers, fastest_s = [], 0, [], 1e9
while settled < count:
    while len(sent) < count and len(sent) - settled < window:
        sent.append(time.monotonic())
        client.send(str(len(sent)).encode().ljust(size, b"."))
    try:
        settled = int(client.recv(2000).strip(b"."))
    except TimeoutError:
        settled = len(sent)
    else:
        answers.append(settled)
        last_s = time.monotonic()
        fastest_s = min(fastest_s, last_s - sent[settled - 1])
print(json.dumps([answers, fastest_s, last_s - sent[0] if answers else None]), flush=True)
"""
# Prints bits per second, since before there was a connection, and since 6 MB had come: TCP has found the rate by then.
TCP_SERVER = """
import json, socket, time
server = socket.create_server(("0.0.0.0", 5000))
print("listening", flush=True)
size, first, warm = 0, (time.monotonic(), 0), None
connection, _ = server.accept()
while data := connection.recv(1 << 20):
    size += len(data)
    last = (time.monotonic(), size)
    warm = warm or (last if size >= 6_000_000 else None)
print(json.dumps([(last[1] - since[1]) * 8 / (last[0] - since[0]) for since in (first, warm)]), flush=True)
"""
TCP_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000)) as connection:
    connection.sendall(bytes(int(sys.argv[2])))
"""


@asynccontextmanager
async def hosts(seed: int = 0) -> AsyncIterator[Namespaces]:
    async with asyncio.timeout(DEADLINE_S), Namespaces(["a", "b"], seed=seed) as world:
        yield world


async def serve(world: Namespaces, script: str) -> Process:
    server = await world.start("b", [sys.executable, "-c", script], stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    assert await server.stdout.readline() == b"listening\n"
    return server


async def call(world: Namespaces, script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", script, world.hosts["b"].address, *map(str, arguments)]
    client = await world.start("a", command, stdout=asyncio.subprocess.PIPE)
    output, _ = await client.communicate()
    assert client.returncode == 0
    return output.decode()


async def exchange(
    world: Namespaces, count: int, size: int = 100, window: int = 1, silence_s: float = 1.0
) -> tuple[list[int], float, float]:
    answers, fastest_s, all_s = json.loads(await call(world, UDP_CLIENT, count, size, window, silence_s))
    return answers, fastest_s, all_s


async def test_a_packet_takes_the_delay_each_way() -> None:
    async with hosts() as world:
        await serve(world, UDP_SERVER)
        await world.shaper.shape("a", "b", LinkShape(None, 0.05))
        await world.shaper.shape("b", "a", LinkShape(None, 0.02))
        answers, fastest_s, _ = await exchange(world, 5)
        assert answers == [1, 2, 3, 4, 5]
        assert 0.07 <= fastest_s < 0.2


async def test_one_packet_in_a_hundred_is_lost_and_no_other() -> None:
    """6,000 packets: within five standard deviations of 1 %, and each that isn't lost arrives."""
    count, loss = 6_000, 0.01
    async with hosts(seed=11) as world:
        await serve(world, UDP_SERVER)
        await world.shaper.shape("a", "b", LinkShape(loss=loss))
        answers, _, _ = await exchange(world, count, window=50, silence_s=0.2)
        lost = (await world.shaper.statistics()).paths["a", "b"].lost
        assert len(answers) == count - lost
        assert answers == sorted(answers)
        assert abs(lost - count * loss) <= 5 * math.sqrt(count * loss * (1 - loss))


async def test_what_the_queue_cant_take_is_dropped() -> None:
    """300 packets of 1,028 bytes at once onto a link that takes 64 KiB at a time."""
    async with hosts() as world:
        await serve(world, UDP_SERVER)
        await world.shaper.shape("a", "b", LinkShape(4_000_000, queue_bytes=64 << 10))
        answers, _, all_s = await exchange(world, 300, size=1_000, window=300)
        dropped = (await world.shaper.statistics()).paths["a", "b"].dropped
        assert len(answers) == 300 - dropped
        assert 63 <= len(answers) < 300
        assert all_s >= len(answers) * 1_028 * 8 / 4_000_000


async def test_tcp_gets_the_rate_less_its_headers() -> None:
    """80 Mbit/s: of 1,500 bytes 1,448 are payload. Never faster; within 5 % unless others take the processor."""
    payload_bps = 80_000_000 * 1_448 / 1_500
    async with hosts() as world:
        await world.shaper.shape(ANY, ANY, LinkShape(80_000_000, 0.01))
        for _ in range(3):
            server = await serve(world, TCP_SERVER)
            await call(world, TCP_CLIENT, 30_000_000)
            assert server.stdout is not None
            whole_bps, warm_bps = json.loads(await server.stdout.readline())
            assert whole_bps <= 80_000_000
            if warm_bps >= payload_bps * 0.95:
                return
        pytest.fail(f"{warm_bps / 1e6:.1f} Mbit/s where {payload_bps / 1e6:.1f} should be")


async def test_a_cut_stops_one_direction_only() -> None:
    async with hosts() as world:
        server = await serve(world, UDP_SERVER)
        assert server.stdout is not None
        await world.shaper.cut("b", "a")
        assert (await exchange(world, 1, silence_s=0.3))[0] == []
        assert await server.stdout.readline() == b"b'1'\n"  # it came; the answer was cut off
        paths = (await world.shaper.statistics()).paths
        assert paths["b", "a"].dropped == 1
        assert paths["a", "b"].dropped == 0

        await world.shaper.heal("b", "a")
        await world.shaper.cut("a", "b")
        assert (await exchange(world, 1, silence_s=0.3))[0] == []
        assert (await world.shaper.statistics()).paths["a", "b"].dropped == 1

        await world.shaper.heal()
        assert (await exchange(world, 1))[0] == [1]
        assert await server.stdout.readline() == b"b'1'\n"


async def test_hosts_see_each_other_and_nothing_else() -> None:
    script = "import socket; print(sorted(name for _, name in socket.if_nameindex()))"
    async with hosts() as world:
        process = await world.start("a", [sys.executable, "-c", script], stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert output == b"['lo', 'tun0']\n"
        here = Path("/proc/self/ns/net").stat().st_ino  # noqa: ASYNC240
        assert len({here, *(os.fstat(host.namespace_fd).st_ino for host in world.hosts.values())}) == 3


async def test_processes_end_with_the_context_and_with_who_made_it() -> None:
    sleep = [sys.executable, "-c", r"import os, time; os.write(1, b'inside\n'); time.sleep(3600)"]
    async with hosts() as world:
        pids = [(await world.start(name, sleep)).pid for name in world.hosts] + [world.shaper.pid]
        assert None not in map(start_time, pids)
    assert [start_time(pid) for pid in pids] == [None, None, None]

    script = f"""
import asyncio, os
from commonweight.links.namespaces import Namespaces
async def main():
    async with Namespaces(["a", "b"]) as world:
        pids = [(await world.start(name, {sleep!r})).pid for name in world.hosts]
        os.write(1, f"started {{' '.join(map(str, pids))}} {{world.shaper.pid}}\\n".encode())
        await asyncio.sleep(3600)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        said = [(await parent.stdout.readline()).split() for _ in range(3)]  # one from each host, and the pids
        parent.kill()
        await parent.wait()
    (pids,) = [list(map(int, words)) for first, *words in said if first == b"started"]
    for pid in pids:
        assert await asyncio.to_thread(wait_for_end, pid, 20.0)


async def test_names_are_checked() -> None:
    with pytest.raises(ConfigError, match="all different"):
        Namespaces(["a", "a"])
