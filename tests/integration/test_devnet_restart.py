"""When the devnet starts a node again, and when it doesn't: small scripts stand for nodes."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from commonweight.devnet import network as module
from commonweight.devnet.folder import RunFolder
from commonweight.devnet.network import Network
from commonweight.devnet.observer import Observer
from commonweight.devnet.options import DevnetOptions
from commonweight.devnet.state import DEVNET, DevnetState
from commonweight.errors import StateError
from commonweight.events import Event

ADDRESS, AUDITOR = "0x" + "ab" * 20, "0x" + "cd" * 20
DIES = [sys.executable, "-c", "import sys; sys.stderr.write('out of luck\\n'); sys.exit(3)"]
LEAVES = [sys.executable, "-c", "pass"]


def coordinator_says(observer: Observer, name: str, **fields: object) -> None:
    observer.record("coordinator", Event(name, fields, 1.0, os.getpid()))


@pytest.fixture
def observer(tmp_path: Path) -> Observer:
    observer = Observer(RunFolder.create(tmp_path / "run"))
    observer.note("node.created", name="node-0", address=ADDRESS)
    observer.note("auditor.created", name="auditor-0", stage=0, address=AUDITOR)
    return observer


@pytest.fixture
def network(tmp_path: Path, observer: Observer) -> Network:
    return Network(DevnetOptions(stages=1), RunFolder(tmp_path / "run"), observer)


@pytest.mark.asyncio
async def test_a_node_that_never_joined_ends_the_run_with_its_last_words(network: Network) -> None:
    with pytest.raises(StateError, match=r"node-0 ended with status 3.*\nout of luck\n"):
        await network._keep("node-0", DIES)


@pytest.mark.asyncio
async def test_a_node_is_started_again_at_once_but_then_not_too_often(
    network: Network, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_EVERY_S", 3600.0)
    coordinator_says(observer, "node.joined", node=ADDRESS, stage=0, data_address="127.0.0.1:1")
    waits: list[float] = []

    def note(state: DevnetState, source: str, event: Event) -> None:
        if (source, event.name) == (DEVNET, "child.restarted"):
            waits.append(event.fields["wait_s"])

    observer.watch(note)
    keeping = asyncio.create_task(network._keep("node-0", DIES))
    async with asyncio.timeout(30):
        await observer.until(lambda state: state.nodes[0].restarts == 2)
    keeping.cancel()
    assert waits[0] == 0
    assert 3500 < waits[1] <= 3600


@pytest.mark.asyncio
async def test_an_auditor_is_started_again_once_the_coordinator_had_it(network: Network, observer: Observer) -> None:
    with pytest.raises(StateError, match=r"auditor-0 ended with status 3.*\nout of luck\n"):
        await network._keep("auditor-0", DIES)
    coordinator_says(observer, "auditor.joined", node=AUDITOR, owner=AUDITOR, stages=[0])
    keeping = asyncio.create_task(network._keep("auditor-0", DIES))
    async with asyncio.timeout(30):
        await observer.until(lambda state: state.auditors[0].restarts == 1)
    keeping.cancel()


@pytest.mark.asyncio
async def test_a_node_that_was_told_to_leave_isnt_started_again(network: Network, observer: Observer) -> None:
    coordinator_says(observer, "node.joined", node=ADDRESS, stage=0, data_address="127.0.0.1:1")
    keeping = asyncio.create_task(network._keep("node-0", LEAVES))
    async with asyncio.timeout(30):
        await observer.until(lambda state: state.nodes[0].pid is not None)
        await observer.until(lambda state: state.nodes[0].pid is None)
        coordinator_says(observer, "coordinator.finished", epochs=1)
        await keeping
    assert observer.state.nodes[0].restarts == 0
