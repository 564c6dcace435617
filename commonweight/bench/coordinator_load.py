"""`bench coordinator`: what a coordinator needs for many nodes, as a process of its own, with a real chain.

The nodes are real but for their workers, see light_nodes.py. Each says at least something every second, as nodes do,
and reports a round that takes ten. Audits are off: they are the referee's work, in a process of its own.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import commonweight
from commonweight.bench.light_nodes import LightNodes
from commonweight.bench.measure import Result, Summary
from commonweight.chain.child import Ready
from commonweight.chain.local import LocalChain
from commonweight.devnet.accounts import devnet_accounts, key_file, password_file, write_keys
from commonweight.devnet.child import Child
from commonweight.devnet.deployment import Deployment, deploy_contracts, hand_out_money, register_model
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import StateError
from commonweight.events import Event, parse_event
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec, build_spec

CPU_LIMIT = 0.5
"""Of one core."""
MEMORY_LIMIT = 1.1
"""Of the memory in the middle window, in the last: the first epochs' statements fill the allocator's arenas."""
LOOK_S = 1.0
"""Between looks at the memory. The least of a window counts: what it takes to make a statement isn't kept."""
COME_UP_S = 60.0
STOP_S = 10.0


@dataclass(frozen=True)
class CoordinatorBench:
    """What is measured."""

    nodes: int = 1000
    stages: int = 100
    """Between which the nodes are divided."""
    microbatches: int = 20
    round_s: float = 10.0
    rounds_per_epoch: int = 6
    windows: int = 10
    window_s: float = 30.0
    joins_per_s: float = 10.0
    processes: int = 2
    """That the nodes are in."""
    ready_s: float = 600.0
    """For all nodes to have a part in a round."""


class Watched:
    """A coordinator's events, as they come."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sealed: list[Event] = []
        self._changed = asyncio.Condition()
        self.peer = ""

    async def read(self, child: Child) -> None:
        """Until the coordinator ends, which it shouldn't."""
        async for line in child.lines():
            if (event := parse_event(line)) is None:
                continue
            async with self._changed:
                self.counts[event.name] += 1
                if event.name == "coordinator.listening":
                    self.peer = event.fields["peer"]
                elif event.name == "round.sealed":
                    self.sealed.append(event)
                self._changed.notify_all()
        raise StateError(f"The coordinator ended with {await child.wait()}: {child.last_errors()}")

    @property
    def at_work(self) -> int:
        """Nodes that had a load in the last round."""
        return sum(self.sealed[-1].fields["replicas"]) if self.sealed else 0

    async def until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Raises StateError where it doesn't come to that in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise StateError(f"{what} didn't come about within {timeout_s:g} s; so far: {dict(self.counts)}") from None


def run_coordinator_bench(bench: CoordinatorBench, say: Callable[[str], None] = lambda _: None) -> list[Result]:
    """All results."""
    with tempfile.TemporaryDirectory(prefix="commonweight-bench-") as folder:
        return asyncio.run(_run(bench, Path(folder), say))


async def _run(bench: CoordinatorBench, folder: Path, say: Callable[[str], None]) -> list[Result]:
    with LocalChain.start("embedded", accounts=16) as chain:
        command = await asyncio.to_thread(_prepare, bench, folder, chain)
        child = await Child.start("coordinator", command, folder)
        try:
            async with _reading(child) as watched:
                await watched.until(lambda: bool(watched.peer), "A coordinator", COME_UP_S)
                with _light_nodes(bench, watched.peer):
                    return await _measure(bench, child.pid, watched, say)
        finally:
            await child.stop(STOP_S)


@asynccontextmanager
async def _reading(child: Child) -> AsyncIterator[Watched]:
    watched = Watched()
    reader = asyncio.create_task(watched.read(child))
    body = asyncio.current_task()
    assert body is not None, "this is a coroutine"
    reader.add_done_callback(lambda _: body.cancel())
    try:
        yield watched
    except asyncio.CancelledError:
        if reader.done():
            reader.result()
        raise
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, StateError):
            await reader


async def _measure(bench: CoordinatorBench, pid: int, watched: Watched, say: Callable[[str], None]) -> list[Result]:
    began, cpu_before = time.monotonic(), _cpu_s(pid)
    await watched.until(lambda: watched.counts["node.joined"] >= bench.nodes, f"{bench.nodes} nodes", bench.ready_s)
    join_s = (_cpu_s(pid) - cpu_before) / bench.nodes
    say(f"{bench.nodes} nodes joined in {time.monotonic() - began:.0f} s, {1000 * join_s:.1f} ms of a core each")
    await watched.until(lambda: watched.at_work == bench.nodes, "A round of all nodes", bench.ready_s)
    say(f"all have a part in round {watched.sealed[-1].fields['round']}; measuring for {bench.windows} windows")
    before, first = watched.counts.copy(), len(watched.sealed)
    shares, resident = [], []
    for _ in range(bench.windows):
        at, cpu, looks = time.monotonic(), _cpu_s(pid), []
        while (left_s := at + bench.window_s - time.monotonic()) > 0:
            looks.append(_resident_mib(pid))
            await asyncio.sleep(min(left_s, LOOK_S))
        shares.append((_cpu_s(pid) - cpu) / (time.monotonic() - at))
        resident.append(min(looks))
        say(f"{shares[-1]:.3f} of a core, {resident[-1]:.0f} MiB")
    during = watched.counts - before
    if during["node.lost"] or not len(watched.sealed) > first:
        raise StateError(f"Nodes were lost, or no round was sealed, while it was measured: {dict(during)}")
    rounds = [event.fields["seconds"] for event in watched.sealed[first:]]
    return [
        Result("processor time per second", "s", Summary.of(shares), limit=CPU_LIMIT),
        Result("memory", "MiB", Summary.of(resident)),
        Result(
            "memory, last over middle",
            "",
            Summary.of([resident[-1] / resident[len(resident) // 2]]),
            limit=MEMORY_LIMIT,
        ),
        Result("a round", "s", Summary.of(rounds)),
        Result("processor time per join", "ms", Summary.of([1000 * join_s])),
    ]


def _prepare(bench: CoordinatorBench, folder: Path, chain: LocalChain) -> list[str]:
    """Everything on the chain that a coordinator wants, and its command."""
    spec, spec_file = _spec(bench), folder / "spec.json"
    spec_file.write_bytes(canonical_json(spec.model_dump()))
    accounts = devnet_accounts(())
    (folder / "keys").mkdir()
    write_keys(folder / "keys", accounts)
    ready = Ready("embedded", chain.rpc_url, chain.port, chain.chain_id, chain.pid)
    contracts = deploy_contracts(ready.rpc_url, ready.chain_id, accounts)
    deployment = register_model(ready, contracts, spec, spec_file, accounts, window_s=1, seat_stake=0)
    hand_out_money(deployment, accounts)
    return _command(folder, spec_file, deployment)


def _command(folder: Path, spec_file: Path, deployment: Deployment) -> list[str]:
    keys = folder / "keys"
    return [
        *(sys.executable, "-m", "commonweight", "coordinator", "run", "--spec", str(spec_file)),
        *("--ledger", f"sqlite:///{folder}/ledger.sqlite", "--listen", "127.0.0.1:0"),
        *("--key", str(key_file(keys, "coordinator")), "--password-file", str(password_file(keys))),
        *("--rpc", deployment.rpc_url, "--chain-id", str(deployment.chain_id)),
        *("--registry", deployment.registry, "--model-id", deployment.model_id),
        *("--statements", str(folder / "statements")),
    ]


def _spec(bench: CoordinatorBench) -> ModelSpec:
    """A model of many small stages that nobody trains."""
    spec = devnet_spec(4, 0, "0x" + "11" * 32, 1 << 20, rounds_per_epoch=bench.rounds_per_epoch).model_dump()
    spec["stages"] = spec["architecture"]["n_layers"] = bench.stages
    spec["training"]["microbatches_per_round"] = bench.microbatches
    spec["verification"] |= dict.fromkeys(("round_rate", "microbatch_rate", "data_rate", "answer_rate"), "0")
    return build_spec(spec)


@contextmanager
def _light_nodes(bench: CoordinatorBench, coordinator: str) -> Iterator[None]:
    """All nodes, in some processes; they end with the context, or with this process."""
    bounds = [bench.nodes * turn // bench.processes for turn in range(bench.processes + 1)]
    environment = {**os.environ, "PYTHONPATH": str(Path(commonweight.__file__).parents[1])}
    command = [sys.executable, "-m", "commonweight.bench.light_nodes"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for first, end in zip(bounds[:-1], bounds[1:], strict=True):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
            processes.append(process)
            order = LightNodes(
                coordinator,
                first,
                end - first,
                bench.nodes,
                bench.stages,
                bench.microbatches,
                bench.round_s,
                bench.joins_per_s / bench.processes,
            )
            assert process.stdin is not None, "it was asked for"
            process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            process.stdin.flush()
        yield
    finally:
        _end(processes)


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        assert process.stdin is not None, "it was asked for"
        process.stdin.close()
    for process in processes:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _cpu_s(pid: int) -> float:
    """On a processor so far, in user and system mode, without children."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
