"""Proposals to slash a seat are told to who may lose by them: a node's owner, and whoever watches the model."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from commonweight.chain.keys import Key
from commonweight.rules.canonical import canonical_json
from commonweight.rules.statement import to_hex
from commonweight.watch.slashes import BLOCKS_AGAIN, SlashWatch
from commonweight.wire.generated import control_pb2 as pb
from node.watching import Watch, WatchConfig
from tests.integration import cli_world
from tests.integration.cli_world import ALICE, BOB, NODE, REPORTER_BOND, STRANGER, WINDOW_S, World

world = cli_world.world  # pytest finds fixtures by their names here


def report(world: World, owner: Key, stage: int, text: bytes = b"a") -> None:
    """A stranger proposes to slash a seat."""
    world.give(STRANGER, REPORTER_BOND, world.model.terms.providers)
    world.providers(STRANGER).propose_slash(
        world.model.model_id, owner.address, stage, keccak(text), "https://e.example"
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr("commonweight.watch.slashes.emit", lambda name, /, **fields: said.append({name: fields}))
    return said


def watch_of(world: World, node: str | None = None) -> SlashWatch:
    return SlashWatch(world.providers(), world.model.model_id, node)


def test_each_is_told_once_with_all_that_it_takes_to_contest_it(world: World, told: list[dict[str, Any]]) -> None:
    watch = watch_of(world)
    watch.look()
    assert told == []
    report(world, ALICE, 0)
    for _ in range(2):
        watch.look()
    record = world.providers().slash(1)
    fields = {
        "slash_id": 1,
        "stage": 0,
        "owner": ALICE.address,
        "reporter": STRANGER.address,
        "status": "proposed",
        "until": record.deadline,
        "evidence_hash": to_hex(record.evidence_hash),
    }
    assert told == [{"slash.seen": fields}]
    report(world, BOB, 1)
    watch.look()
    assert [each["slash.seen"]["slash_id"] for each in told] == [1, 2]


def test_a_node_hears_of_its_owner_s_seats_alone(world: World, told: list[dict[str, Any]]) -> None:
    report(world, ALICE, 0)
    report(world, BOB, 3)
    watch_of(world, NODE.address).look()  # bound to Bob
    assert [(each["slash.seen"]["owner"], each["slash.seen"]["stage"]) for each in told] == [(BOB.address, 3)]


def test_who_was_away_hears_of_it_afterwards(world: World, told: list[dict[str, Any]]) -> None:
    report(world, ALICE, 0)
    world.later(WINDOW_S)
    world.providers(BOB).execute_slash(1)
    for _ in range(BLOCKS_AGAIN + 1):
        world.chain.request("evm_mine")
    watch_of(world).look()
    assert [each["slash.seen"]["status"] for each in told] == ["executed"]


def test_a_proposal_that_a_reorganisation_replaces_is_told(world: World, told: list[dict[str, Any]]) -> None:
    watch, before = watch_of(world), world.chain.request("evm_snapshot")
    report(world, ALICE, 0)
    watch.look()
    world.chain.request("evm_revert", before)
    report(world, BOB, 1, b"b")
    watch.look()
    seen = [(each["slash.seen"]["slash_id"], each["slash.seen"]["owner"]) for each in told]
    assert seen == [(1, ALICE.address), (1, BOB.address)]


@pytest.mark.asyncio
async def test_a_node_with_rpc_tells_it(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands in the node's control process; a statement that can't be had doesn't keep it from looking."""
    said: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for module in ("slashes", "watcher"):
        monkeypatch.setattr(
            f"commonweight.watch.{module}.emit",
            lambda name, /, **fields: loop.call_soon_threadsafe(said.put_nowait, (name, fields)),
        )
    monkeypatch.setattr("commonweight.watch.watcher.Watcher.poll_s", 0.01)
    config = WatchConfig(world.chain.rpc_url, world.registry.address, NODE, (), None)
    watch = Watch(NODE.address, BOB.address, tmp_path, config)
    spec = canonical_json(world.spec.model_dump())
    watch.begin(pb.Assignment(spec=spec, model_id=world.model.model_id, chain_id=world.chain.chain_id))
    async with asyncio.timeout(60):
        while (await said.get())[1].get("code") != "CHAIN_NO_STATEMENT":  # the proposals name files
            pass
        for owner, stage in ((ALICE, 0), (BOB, 1)):
            await asyncio.to_thread(report, world, owner, stage)
        while (event := await said.get())[0] != "slash.seen":
            pass
        await watch.close()
    assert (event[1]["owner"], event[1]["stage"], event[1]["slash_id"]) == (BOB.address, 1, 2)


def test_the_command_tells_it(world: World) -> None:
    report(world, ALICE, 0)
    options = ["--dir", str(world.dir), "--spec", str(world.dir / "spec.json"), "--once"]
    done = subprocess.run(
        [sys.executable, "-m", "commonweight", "watch", *options, "--statements", str(world.dir / "statements")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    seen = [each for each in events if each["event"] == "slash.seen"]
    assert [(each["owner"], each["slash_id"]) for each in seen] == [(ALICE.address, 1)]
