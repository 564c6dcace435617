"""Real nodes train a model and generate with it: a gateway gets what the unsplit model would say."""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from commonweight.errors import NotServed, Refused, StageLost
from commonweight.events import Event
from commonweight.identity import NodeIdentity
from commonweight.model.inference import InferenceStage, generate
from commonweight.rules.answer import NONCE_BYTES, pack_ids, session_id
from commonweight.rules.receipt import Domain
from commonweight.wire.generation import Generator, open_generator
from commonweight.wire.serving import Route, Served, ServingClient
from commonweight.wire.tls import make_certificate
from node.checkpoint import Checkpoints
from tests.integration.network import PATIENT, Network, Process, seconds_since, train_in_process

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

DEADLINE_S = 90.0
GATEWAY, STRANGER = NodeIdentity(b"\x33" * 32), NodeIdentity(b"\x34" * 32)
PROMPT, COUNT = list(b"It is a"), 9


class Shop:
    """A gateway, as far as generating goes."""

    def __init__(self, network: Network, identity: NodeIdentity = GATEWAY) -> None:
        self.certificate = make_certificate(identity)
        self.client = ServingClient(network.peer, self.certificate)
        self.session = b""
        """Of the last answer that was asked for."""
        deployed = network.deployment
        self._model_id = bytes.fromhex(deployed.model_id[2:])
        self._domain = Domain(deployed.chain_id, deployed.settlement)

    async def __aenter__(self) -> "Shop":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    @asynccontextmanager
    async def generator(self) -> AsyncIterator[Generator]:
        """Over the present route, as soon as there is one that holds."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    opened = open_generator(await self.client.route(), self.certificate)
                    generator = await opened.__aenter__()
                    break
                except NotServed:
                    await asyncio.sleep(0)
        try:
            yield generator
        finally:
            await opened.__aexit__(None, None, None)

    async def ask(self, temperature: float = 0.0, seed: int = 0) -> tuple[Route, list[int]]:
        """An answer, and who gave it; asked again where a version or a stage has just gone."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    async with self.generator() as generator:
                        nonce = secrets.token_bytes(NONCE_BYTES)
                        self.session = session_id(nonce, pack_ids(PROMPT), temperature, seed)
                        options = {"temperature": temperature, "seed": seed, "nonce": nonce}
                        answer = generator.generate(PROMPT, COUNT, **options)
                        return generator.route, [token async for token in answer]
                except (NotServed, StageLost):
                    await asyncio.sleep(0)

    async def report(self, number: int, round_: int) -> bool:
        """That the last answer was sold, as the request of this number."""
        served = Served(b"request number %2d" % number, round_, self.session, len(PROMPT), COUNT)
        return await self.client.report(
            served, GATEWAY.sign_digest(served.receipt(self._model_id).digest(self._domain))
        )


def start_coordinator(network: Network) -> Process:
    process = Process([*network.coordinator_command(1000), "--gateway", GATEWAY.address])
    network.processes.append(process)
    listening = process.wait_for("coordinator.listening")
    network.peer, network.listen = listening.fields["peer"], listening.fields["enrolment_address"]
    return process


async def told(process: Process, name: str, where: Callable[[Event], bool] = lambda _: True) -> Event:
    return await asyncio.to_thread(process.wait_for, name, where, DEADLINE_S)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Without this worker no round is sealed, and no version is published."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def ask_the_last(network: Network, shop: Shop) -> tuple[Route, list[int]]:
    """An answer by the version that was published last before the worker was frozen: it may still be loading."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            route, tokens = await shop.ask()
            folders = network.folder.glob("node-*/published/stage-*/round-*")
            if route.round == max(int(folder.name.removeprefix("round-")) for folder in folders):
                return route, tokens


def expected(network: Network, round_: int, **options: Any) -> list[int]:
    """What the unsplit model says at the version that the nodes have published."""
    torch.set_num_threads(1)
    parameters = {}
    for stage in range(network.stages):
        (folder,) = network.folder.glob(f"node-*/published/stage-{stage}")
        parameters |= Checkpoints(folder, network.spec, stage).parameters(round_)
    whole = InferenceStage(network.spec.model_copy(update={"stages": 1}), 0, parameters)
    return list(generate([whole], PROMPT, COUNT, **options))


async def test_nodes_generate_with_what_they_train_and_train_on_to_the_bit(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        coordinator = start_coordinator(network)
        async with Shop(network) as shop, Shop(network, STRANGER) as stranger:
            with pytest.raises(NotServed, match="0 of the first epoch's 3 rounds are sealed"):
                await shop.client.route()
            nodes = [network.start_node(index, PATIENT) for index in range(2)]
            await told(coordinator, "version.served")
            for _ in range(20):
                await shop.ask()  # while rounds go on
            with frozen(nodes[0].wait_for("worker.started").fields["worker_pid"]):
                drawn, answers = {"temperature": 1.0, "seed": 5}, []
                for _ in range(2):  # two rounds at most were under way, so one version more may be published meanwhile
                    route, tokens = await ask_the_last(network, shop)
                    assert tokens == expected(network, route.round)
                    _, *answers = await asyncio.gather(*(shop.ask(**drawn) for _ in range(4)))
                    if {by for by, _ in answers} == {route}:
                        break
                assert answers == [(route, expected(network, route.round, **drawn))] * 3
                with pytest.raises(Refused, match="list of gateways"):
                    await stranger.client.route()
                assert [await shop.report(1, route.round) for _ in range(2)] == [True, False]
                with pytest.raises(Refused, match="was never published"):
                    await shop.report(2, route.round + 1)
            sealed = await told(coordinator, "answer.sealed", lambda e: e.fields["session"] == shop.session.hex())
            epoch = sealed.fields["round"] // network.spec.economics.rounds_per_epoch
            await told(coordinator, "epoch.proposed", lambda event: event.fields["epoch"] == epoch)
            await told(coordinator, "version.served", lambda event: event.fields["round"] > route.round)
            later, _ = await shop.ask()
            assert later.round > route.round
        statements = {statement["epoch"]: statement for statement in network.statements}
        assert [(line["stage"], line["account"], line["tokens"]) for line in statements[epoch]["served"]] == [
            (stage, holder.account, len(PROMPT) + COUNT) for stage, holder in enumerate(route.stages)
        ]
        rounds = [event for event in coordinator.events if event.name == "round.sealed"]
        _, roots = train_in_process(network.spec, tmp_path / "data", len(rounds))
        assert [event.fields["state_roots"] for event in rounds] == [[root.hex() for root in each] for each in roots]
        assert not [event for event in coordinator.events if event.name == "node.lost"]


@pytest.mark.long
async def test_generation_outlives_the_coordinator_and_comes_back_with_what_dies(tmp_path: Path) -> None:
    with Network(tmp_path) as network:
        coordinator = start_coordinator(network)
        nodes = [network.start_node(index, PATIENT) for index in range(2)]
        await told(coordinator, "version.served")
        with frozen(nodes[0].wait_for("worker.started").fields["worker_pid"]):
            async with Shop(network) as shop:
                await ask_the_last(network, shop)
                # The coordinator dies within an answer.
                async with shop.generator() as generator:
                    async with aclosing(generator.generate(PROMPT, COUNT)) as answer:
                        tokens = [await anext(answer)]
                        coordinator.kill()
                        assert await asyncio.to_thread(coordinator.wait) == -signal.SIGKILL
                        tokens += [token async for token in answer]
                    round_ = generator.route.round
                assert tokens == expected(network, round_)
                network.processes.remove(coordinator)
                coordinator = start_coordinator(network)
                served = await told(coordinator, "version.served")
                assert served.fields["round"] >= round_
                route, tokens = await shop.ask()
                assert tokens == expected(network, route.round)
                # A decode process dies within an answer.
                for node in nodes:
                    pid = [e for e in node.events if e.name == "decode.started"][-1].fields["decode_pid"]
                    async with shop.generator() as generator:
                        answer = generator.generate(PROMPT, COUNT)
                        begun = [await anext(answer)]
                        os.kill(pid, signal.SIGKILL)
                        killed_s = time.monotonic()
                        with pytest.raises(StageLost):
                            begun += [token async for token in answer]
                        assert seconds_since(killed_s) < 5
                    assert begun == tokens[: len(begun)]
                    assert "signal 9" in (await told(node, "decode.died")).fields["message"]
                    await told(node, "decode.started", lambda event, pid=pid: event.fields["decode_pid"] != pid)
                    assert (await shop.ask())[1] == tokens
                assert [e for e in coordinator.events if e.name == "version.withdrawn"]
                # A whole node dies.
                nodes[1].kill()
                assert await asyncio.to_thread(nodes[1].wait) == -signal.SIGKILL
                await told(coordinator, "node.lost")
                with pytest.raises(NotServed, match=r"Stage [01] of tiny can't generate"):
                    await shop.client.route()
                network.start_node(1)
                route, again = await shop.ask()
                assert again == tokens == expected(network, route.round)
        # Nothing of this was a reason not to train on.
        await told(coordinator, "version.served", lambda event: event.fields["round"] > route.round)
