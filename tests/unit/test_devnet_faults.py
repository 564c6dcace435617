"""What `devnet inject` asks for and is answered, over the socket in the devnet's folder; how a process is slowed."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from commonweight.devnet.faults import Faults
from commonweight.devnet.folder import RunFolder
from commonweight.devnet.injection import injections, send_injection
from commonweight.devnet.observer import Observer
from commonweight.errors import CommonweightError, ConfigError, StateError
from commonweight.failpoints import SLOW_VARIABLE, slow_down

NODES = ("node-0", "node-1")


class World:
    """A devnet of two nodes, of which neither runs, and whose links can't be shaped."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder.create(folder)
        self.observer = Observer(self.folder)
        self.noted: list[dict[str, Any]] = []
        self.observer.watch(lambda state, source, event: self.noted.append({"event": event.name} | event.fields))
        self.faults = Faults(self.folder, self.observer, {}, NODES)

    async def injected(self, fault: str, what: str) -> str:
        """As `devnet inject` of another process."""
        async with injections(self.folder.path, self.faults.inject):
            return await asyncio.to_thread(send_injection, self.folder.path, fault, what)


@pytest.mark.asyncio
async def test_a_node_is_slowed_by_its_file_and_that_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / ("deep" * 40) / "run")  # a Unix socket's path has at most 108 characters
    assert await world.injected("slow", "node-1:250ms") == "node-1 takes 0.25 s longer for each microbatch"
    assert world.noted == [{"event": "fault.begun", "fault": "slow", "name": "node-1", "how": "0.25 s"}]
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for file in (world.folder.slow("node-1"), world.folder.slow("node-0")):
        monkeypatch.setenv(SLOW_VARIABLE, str(file))
        slow_down()
    monkeypatch.delenv(SLOW_VARIABLE)
    slow_down()
    assert slept == [0.25]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fault", "what", "error", "said"),
    [
        ("kill", "node-7", ConfigError, "inject kill: there is no node 'node-7'. There are node-0, node-1."),
        ("kill", "node-0", StateError, "node-0 doesn't run at the moment"),
        ("link", "8mbit:50ms", StateError, "Start it with --link"),
        ("partition", "node-0", StateError, "Start it with --link"),
        ("heal", "", StateError, "Start it with --link"),
        ("link", "8mbit:50ms:1%", ConfigError, "can't lose"),
        ("flood", "", ConfigError, "'flood' can't be injected: take one of kill, slow, link, partition, heal"),
    ],
)
async def test_what_cant_be_done_is_said_and_not_noted(
    fault: str, what: str, error: type[CommonweightError], said: str, tmp_path: Path
) -> None:
    world = World(tmp_path / "run")
    with pytest.raises(error, match=said):
        await world.injected(fault, what)
    assert world.noted == []


def test_a_devnet_that_doesnt_listen_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=f"{tmp_path} takes no faults"):
        send_injection(tmp_path, "kill", "node-0")
