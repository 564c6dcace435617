"""Starts a devnet's processes in the order in which they need each other, watches over them, and ends them.

    corpus ─────────────┐                         ┌─ nodes ── training …
    chain ── contracts ─┴─ model ── coordinator ──┼─ auditors
                             └──── seats, money   └─ gateway ── buyers

A node or an auditor that dies is started again with the same key, which is what its owner would do: the network waits
for a node, and asks somebody else for what an auditor was asked.
Anything else that dies ends the run.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any

from commonweight.chain.child import Ready
from commonweight.chain.local import local_chain_command
from commonweight.devnet.accounts import (
    FIRST_NODE,
    Account,
    buyer_name,
    devnet_accounts,
    key_file,
    password_file,
    write_keys,
)
from commonweight.devnet.child import Child
from commonweight.devnet.commands import (
    ask_command,
    auditor_command,
    coordinator_command,
    gateway_command,
    node_command,
    pack_command,
)
from commonweight.devnet.deployment import (
    Contracts,
    Deployment,
    deploy_contracts,
    hand_out_money,
    register_model,
    take_seats,
)
from commonweight.devnet.faults import Faults
from commonweight.devnet.folder import RunFolder, write_json
from commonweight.devnet.injection import injections
from commonweight.devnet.observer import Observer
from commonweight.devnet.options import DevnetOptions
from commonweight.devnet.revenue import glance_at_revenue
from commonweight.devnet.spec import NAME
from commonweight.devnet.wiring import Wiring
from commonweight.errors import ChainError, StateError
from commonweight.events import Event, parse_event
from commonweight.failpoints import SLOW_VARIABLE
from commonweight.rules.canonical import canonical_json

BRING_UP_S = 180.0
"""Until chain, contracts and coordinator stand; five seconds on an idle machine."""
RESTART_EVERY_S = 60.0
"""Between restarts of one node or auditor, at least."""
STOP_S = 10.0
"""Until a process that was asked to end is killed."""
BUY_EVERY_S = 10.0
"""Between a buyer's answers."""
REVENUE_EVERY_S = 5.0
"""Between looks at the revenue."""
UNSHAPED = "unlimited:0ms"
"""A link that only can be shaped and cut."""
FAREWELL_S = 5.0
"""Between the coordinator's word that training is finished and the end of all who heard it."""


class Network:
    """The processes of one devnet. `run` once, then `stop_training`, then `stop_chain`, whatever happened."""

    def __init__(self, options: DevnetOptions, folder: RunFolder, observer: Observer) -> None:
        self.options = options
        self.folder = folder
        self.accounts: dict[str, Account] = {}
        self.deployment: Deployment | None = None
        """Known once the model is registered."""
        self._observer = observer
        self._children: dict[str, Child] = {}
        self._faults = Faults(folder, observer, self._children, list(options.node_stages))
        self._wiring: Wiring | None = None
        """The links between nodes, where there are any that can be shaped."""
        self._until_the_end = AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Brings everything up and returns when the last epoch is final.

        Raises StateError where a process ends that shouldn't, ChainError where the contracts can't be deployed.
        """
        async with _first_error(), asyncio.TaskGroup() as group:
            try:
                async with asyncio.timeout(BRING_UP_S):
                    await self._bring_up(group)
            except TimeoutError as error:
                raise StateError(
                    f"The devnet's processes didn't come up within {BRING_UP_S:g} s; is this machine overloaded? "
                    f"What each of them did is in {self.folder.logs}."
                ) from error
            await self._observer.until(lambda state: state.finished)
            with suppress(TimeoutError):
                await self._everyone_left()
            for task in self._watchers:
                task.cancel()

    async def stop_training(self) -> None:
        """Ends the buyers, the gateway, which collects what is owed, auditors, nodes, then the coordinator."""
        for role in ("buyer-", "gateway", "auditor-", "node-", "coordinator"):
            await asyncio.gather(*(self._stop(name) for name in list(self._children) if name.startswith(role)))

    async def stop_chain(self) -> None:
        """Ends the chain, and whatever else is left."""
        for name in list(self._children):
            await self._stop(name)
        await self._until_the_end.aclose()

    async def _bring_up(self, group: asyncio.TaskGroup) -> None:
        async with asyncio.TaskGroup() as start:
            corpus = start.create_task(self._pack_corpus())
            contracts = start.create_task(self._deploy(group))
        deployment = self.deployment = await self._register(*contracts.result(), corpus.result())
        if (shape := self.options.link_shape) is not None:
            self._wiring = await self._until_the_end.enter_async_context(Wiring(self.options.seed))
            self._watch(group, self._wiring.watch())
        cheating = self.options.cheating
        nodes = self.options.node_stages
        auditors = self.options.auditor_stages
        for name in nodes:
            address, log, how = self._introduced(name)
            self._observer.note("node.created", name=name, address=address, log=log, byzantine=how)
        for name, stage in auditors.items():
            address, log, how = self._introduced(name)
            self._observer.note("auditor.created", name=name, stage=stage, address=address, log=log, byzantine=how)
        addresses = [self.accounts[name].address for name in (*nodes, *auditors)]
        gateway = self.accounts["gateway"].address
        command = coordinator_command(self.folder, self.options, deployment, addresses, gateway)
        coordinator = await self._start("coordinator", command)
        self._watch(group, self._need(coordinator))
        peer = (await self._observer.until(lambda state: state.coordinator is not None)).coordinator
        assert peer is not None, "it is what was waited for"
        write_json(self.folder.deployments, self.deployments())
        if self._wiring is not None and shape is not None:
            self._faults.wiring = self._wiring
            await self._faults.shape(shape, self.options.link or UNSHAPED)
        for slow in self.options.slowed:
            self._faults.slow(slow)
        for name in nodes:
            front = None if self._wiring is None else await self._wiring.front(name)
            command = node_command(self.folder, deployment, name, peer, cheating.get(name), front)
            slow_file = {SLOW_VARIABLE: str(self.folder.slow(name))}
            self._watch(group, self._keep(name, command, slow_file))
        for name in auditors:
            command = auditor_command(self.folder, name, peer, cheating.get(name))
            self._watch(group, self._keep(name, command))
        await self._observer.until(lambda state: all(member.pid is not None for member in state.members))
        await self._until_the_end.enter_async_context(injections(self.folder.path, self._faults.inject))
        self._watch(group, self._disturb())
        if self.options.buyers:
            await self._sell(group, deployment, peer)
            self._watch(group, self._look_at_revenue(deployment))
        self._observer.note("devnet.ready")

    async def _sell(self, group: asyncio.TaskGroup, deployment: Deployment, peer: str) -> None:
        """The gateway, and buyers that wait for it."""
        gateway = await self._start("gateway", gateway_command(self.folder, deployment, peer))
        self._watch(group, self._need(gateway))
        await self._observer.until(lambda state: state.gateway_url is not None)
        write_json(self.folder.deployments, self.deployments())
        for index in range(self.options.buyers):
            self._watch(group, self._buy(buyer_name(index)))

    def _introduced(self, name: str) -> tuple[str, str, str | None]:
        """Of a process: the address, the log of its events as a path in the run's folder, and how it cheats."""
        log = (self.folder.logs / f"{name}.jsonl").relative_to(self.folder.path)
        cheating = self.options.cheating.get(name)
        return self.accounts[name].address, str(log), None if cheating is None else str(cheating)

    def deployments(self) -> dict[str, Any]:
        """What deployments.json holds: all that a command needs to find this devnet's model. Empty before it stands."""
        if self.deployment is None:
            return {}
        return self.deployment.fields() | {
            "statements": str(self.folder.statements),
            "spec": str(self.folder.spec),
            "coordinator_peer": self._observer.state.coordinator,
            "data": str(self.folder.data),
            "auditors": {auditor.name: auditor.address for auditor in self._observer.state.auditors},
            "gateway_url": self._observer.state.gateway_url,
            "buyer_key": str(key_file(self.folder.keys, buyer_name(0))) if self.options.buyers else None,
            "password_file": str(password_file(self.folder.keys)),
        }

    # Starting

    async def _pack_corpus(self) -> Event:
        child = await self._start("pack", pack_command(self.folder))
        packed = None
        async for line in child.lines():
            if (event := parse_event(line)) and event.name == "data.packed":
                packed = event
        if await self._ended(child) or packed is None:
            raise _unexpected(child, await child.wait())
        return packed

    async def _deploy(self, group: asyncio.TaskGroup) -> tuple[Ready, Contracts]:
        """The chain, with the contracts on it; the accounts and their key files."""
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        options = self.options
        command = local_chain_command(
            options.backend,
            accounts=FIRST_NODE + len(options.node_stages) + options.auditors + options.buyers,
            log_file=self.folder.logs / "chain.log",
            parent_pid=os.getpid(),
        )
        chain = await self._start("chain", command)
        self._watch(group, self._need(chain, ready))
        self.accounts = await asyncio.to_thread(
            devnet_accounts, options.node_stages, options.buyers, options.auditor_stages
        )
        await asyncio.to_thread(write_keys, self.folder.keys, self.accounts)
        answer = await ready
        self._observer.note("chain.ready", backend=answer.backend, rpc_url=answer.rpc_url, chain_id=answer.chain_id)
        contracts = await asyncio.to_thread(deploy_contracts, answer.rpc_url, answer.chain_id, self.accounts)
        return answer, contracts

    async def _register(self, ready: Ready, contracts: Contracts, packed: Event) -> Deployment:
        spec = self.options.spec(packed.fields["manifest"], packed.fields["tokens"])
        self.folder.spec.write_bytes(canonical_json(spec.model_dump()))
        options = self.options
        deployment = await asyncio.to_thread(
            register_model,
            ready,
            contracts,
            spec,
            self.folder.spec,
            self.accounts,
            max_stages_per_owner=options.seats,
        )
        await asyncio.to_thread(hand_out_money, deployment, self.accounts)
        await asyncio.to_thread(take_seats, deployment, self.accounts, options.node_stages | options.auditor_stages)
        for number in range(1, options.seats):
            more = {name: (stage + number) % options.stages for name, stage in options.node_stages.items()}
            await asyncio.to_thread(take_seats, deployment, self.accounts, more)
        return deployment

    async def _start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> Child:
        child = self._children[name] = await Child.start(name, command, self.folder.logs, environment=environment)
        if self._wiring is not None:
            await self._wiring.know(name, child.pid)
        self._observer.note("child.started", name=name, child_pid=child.pid)
        return child

    # Watching

    def _watch(self, group: asyncio.TaskGroup, watching: Coroutine[Any, Any, None]) -> None:
        self._watchers.append(group.create_task(watching))

    async def _need(self, child: Child, ready: asyncio.Future[Ready] | None = None) -> None:
        """Takes in a child's events; raises StateError when it ends, except as it was told to."""
        async for line in child.lines():
            if event := parse_event(line):
                self._observer.record(child.name, event)
            elif ready is not None and not ready.done():
                ready.set_result(Ready.parse(line))
        status = await self._ended(child)
        if status or not self._observer.state.finished:
            raise _unexpected(child, status)

    async def _keep(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        """The same for a node or an auditor, which is started again instead if the coordinator ever had it."""
        next_restart = time.monotonic()
        while True:
            child = await self._start(name, command, environment)
            async for line in child.lines():
                if event := parse_event(line):
                    self._observer.record(name, event)
                    if self._wiring is not None:
                        await self._wiring.follow(name, event)
            status = await self._ended(child)
            if self._wiring is not None:
                await self._wiring.forget(name)
            if self._observer.state.finished or (status == 0 and await self._finished_soon()):
                return
            down = self._faults.down(name)
            if down is None and not any(each.joined for each in self._observer.state.members if each.name == name):
                raise _unexpected(child, status)
            wait_s = max(0.0, next_restart - time.monotonic())
            if down is not None:
                wait_s = 0.0
                await down.wait()
            self._observer.note("child.restarted", name=name, status=status, wait_s=wait_s)
            await asyncio.sleep(wait_s)
            next_restart = time.monotonic() + (0.0 if down is not None else RESTART_EVERY_S)

    async def _disturb(self) -> None:
        """What the options say, once training has begun."""
        await self._observer.until(lambda state: state.last_round is not None)
        for partition in self.options.partitions:
            await self._faults.partition(partition)
        if self.options.kill_every_s is not None:
            await self._faults.kill_by_plan(self.options.seed, self.options.kill_every_s)

    async def _buy(self, name: str) -> None:
        """Buys an answer every few seconds, once there is a version of the model to ask."""
        await self._observer.until(lambda state: state.selling)
        for number in count():
            child = await self._start(name, ask_command(self.folder, NAME, name, number))
            await self._ended(child)
            await asyncio.sleep(BUY_EVERY_S)

    async def _look_at_revenue(self, deployment: Deployment) -> None:
        """Notes what holders of shares could take, for the view."""
        seen = (0, 0)
        while True:
            with suppress(ChainError):
                found = await asyncio.to_thread(glance_at_revenue, deployment.rpc_url, deployment.shares)
                if found != seen:
                    seen = found
                    self._observer.note("revenue.seen", claimable=str(found[0]), withdrawn=str(found[1]))
            await asyncio.sleep(REVENUE_EVERY_S)  # nothing tells when time has credited a little more

    async def _finished_soon(self) -> bool:
        try:
            async with asyncio.timeout(FAREWELL_S):
                return (await self._observer.until(lambda state: state.finished)).finished
        except TimeoutError:
            return False

    # Ending

    async def _everyone_left(self) -> None:
        """Returns once nodes, auditors and coordinator have ended, as they do by themselves when all is finished."""
        async with asyncio.timeout(FAREWELL_S):
            await asyncio.gather(*(child.wait() for name, child in self._children.items() if _leaves(name)))

    async def _ended(self, child: Child) -> int:
        status = await child.wait()
        self._observer.note("child.ended", name=child.name, status=status)
        return status

    async def _stop(self, name: str) -> None:
        if (child := self._children.pop(name, None)) and not child.ended:
            await child.stop(STOP_S)
            await self._ended(child)


def _leaves(name: str) -> bool:
    return name == "coordinator" or name.startswith(("node-", "auditor-"))


def _unexpected(child: Child, status: int) -> StateError:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    said = child.last_errors() or "It wrote nothing to standard error."
    return StateError(f"{child.name} {how}, which ends the devnet. Its last words:\n{said}\nAll are in {child.errors}")


@asynccontextmanager
async def _first_error() -> AsyncIterator[None]:
    """Raises the first error of the task groups inside by itself: a user has one thing to mend."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
