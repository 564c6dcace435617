"""Proposals to slash a seat are told to who may lose by them: a node's owner, and whoever watches the model. A node
contests them where it may.
"""

import asyncio
import base64
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from eth_hash.auto import keccak
from typer.testing import CliRunner

from commonweight.chain.events import SlashContested
from commonweight.chain.keys import Key
from commonweight.chain.records import SlashStatus
from commonweight.chain.token import Token
from commonweight.cli.main import app
from commonweight.errors import ConfigError, RpcUnreachable
from commonweight.identity import NodeIdentity
from commonweight.rules.canonical import canonical_json
from commonweight.rules.statement import to_hex
from commonweight.watch.contest import Contester
from commonweight.watch.slashes import BLOCKS_AGAIN, SlashWatch
from commonweight.wire.generated import control_pb2 as pb
from node.watching import Watch, WatchConfig
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    BOB,
    CAROL,
    DELAY_S,
    NODE,
    REPORTER_BOND,
    SEAT_STAKE,
    STRANGER,
    WINDOW_S,
    World,
)

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
    for module in ("slashes", "contest"):
        monkeypatch.setattr(f"commonweight.watch.{module}.emit", lambda name, /, **fields: said.append({name: fields}))
    return said


def watch_of(world: World, node: str | None = None) -> SlashWatch:
    return SlashWatch(world.providers(), world.model.model_id, node)


def contesting(world: World) -> SlashWatch:
    """That of Bob's node, which may spend what it has."""
    contester = Contester(world.providers(NODE), world.model.model_id)
    return SlashWatch(world.providers(), world.model.model_id, NODE.address, contester)


def names(told: list[dict[str, Any]]) -> list[str]:
    return [name for each in told for name in each]


def status(world: World, slash_id: int = 1) -> SlashStatus:
    return world.providers().slash(slash_id).status


def contests(world: World) -> list[SlashContested]:
    return world.providers().events(SlashContested)


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


@pytest_asyncio.fixture
async def said(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[tuple[str, dict[str, Any]]]:
    """What a node's watcher, which looks all the time, says."""
    said: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for module in ("slashes", "contest", "watcher"):
        monkeypatch.setattr(
            f"commonweight.watch.{module}.emit",
            lambda name, /, **fields: loop.call_soon_threadsafe(said.put_nowait, (name, fields)),
        )
    monkeypatch.setattr("commonweight.watch.watcher.Watcher.poll_s", 0.01)
    return said


async def heard(said: asyncio.Queue[tuple[str, dict[str, Any]]], name: str) -> dict[str, Any]:
    """The next event of that name."""
    while (event := await said.get())[0] != name:
        pass
    return event[1]


def node_watch(world: World, folder: Path, **options: Any) -> Watch:
    """That of Bob's node, as it stands in its control process."""
    config = WatchConfig(world.chain.rpc_url, world.registry.address, NODE, (), None, **options)
    watch = Watch(NODE.address, BOB.address, folder, config)
    spec = canonical_json(world.spec.model_dump())
    watch.begin(pb.Assignment(spec=spec, model_id=world.model.model_id, chain_id=world.chain.chain_id))
    return watch


@pytest.mark.asyncio
async def test_a_node_with_rpc_tells_it_and_spends_nothing(
    world: World, tmp_path: Path, said: asyncio.Queue[tuple[str, dict[str, Any]]]
) -> None:
    """A statement that can't be had doesn't keep it from looking."""
    world.give(NODE, REPORTER_BOND)
    watch = node_watch(world, tmp_path)
    async with asyncio.timeout(60):
        while (await heard(said, "watch.failed"))["code"] != "CHAIN_NO_STATEMENT":  # the proposals name files
            pass
        seen = []
        for owner, stage in ((ALICE, 0), (BOB, 1), (BOB, 3)):
            await asyncio.to_thread(report, world, owner, stage)
            if owner is BOB:
                seen.append(await heard(said, "slash.seen"))
        await watch.close()
    assert [(each["owner"], each["stage"], each["slash_id"]) for each in seen] == [
        (BOB.address, 1, 2),
        (BOB.address, 3, 3),
    ]
    assert status(world, 2) is SlashStatus.PROPOSED, "the look that told the third was over with the second"


@pytest.mark.asyncio
async def test_a_node_that_may_contest_does(
    world: World,
    tmp_path: Path,
    said: asyncio.Queue[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Epochs are looked at while it does, however long that takes."""
    contest, is_mined = Contester.contest, threading.Event()

    def slow(contester: Contester, new: Any) -> None:
        found = list(new)
        assert not found or is_mined.wait(60)
        contest(contester, found)

    monkeypatch.setattr(Contester, "contest", slow)
    world.give(NODE, REPORTER_BOND)
    watch = node_watch(world, tmp_path, contests=True)
    try:
        async with asyncio.timeout(60):
            await asyncio.to_thread(report, world, BOB, 1)
            await heard(said, "slash.seen")
            for _ in range(3):
                assert (await heard(said, "watch.failed"))["code"] == "CHAIN_NO_STATEMENT"
            is_mined.set()
            await heard(said, "slash.defended")
            await watch.close()
    finally:
        is_mined.set()
    assert status(world) is SlashStatus.CONTESTED


def test_what_is_proposed_against_the_owner_is_contested_with_an_answer(
    world: World, told: list[dict[str, Any]]
) -> None:
    world.give(NODE, REPORTER_BOND)
    report(world, ALICE, 0)
    report(world, BOB, 3)
    contesting(world).look()
    (event,) = contests(world)
    assert (event.slash_id, event.contester) == (2, NODE.address)
    head, _, text = event.uri.partition(",")
    assert head == "data:application/json;base64"
    answer = json.loads(base64.b64decode(text))
    assert canonical_json(answer) == base64.b64decode(text)
    assert answer.pop("statement")
    assert answer == {
        "format": "commonweight.contest/1",
        "slash_id": 2,
        "evidence_hash": to_hex(keccak(b"a")),
        "node": NODE.address,
        "stage": 3,
    }
    assert names(told) == ["slash.seen", "slash.defended"]
    assert told[1]["slash.defended"]["bond"] == str(REPORTER_BOND)
    assert world.usd().balance_of(NODE.address) == 0


def test_none_is_contested_twice(world: World, told: list[dict[str, Any]]) -> None:
    world.give(NODE, 2 * REPORTER_BOND)
    watch = contesting(world)
    report(world, BOB, 1)
    for _ in range(2):
        watch.look()
    contesting(world).look()  # the node is started again
    assert len(contests(world)) == 1
    assert names(told) == ["slash.seen", "slash.defended", "slash.seen"]
    assert told[2]["slash.seen"]["status"] == "contested"


def test_a_contest_that_a_reorganisation_undid_is_made_again(world: World, told: list[dict[str, Any]]) -> None:
    world.give(NODE, REPORTER_BOND)
    watch = contesting(world)
    report(world, BOB, 1)
    for _ in range(BLOCKS_AGAIN + 1):
        world.chain.request("evm_mine")
    before = world.chain.request("evm_snapshot")
    for _ in range(2):
        watch.look()
    world.chain.request("evm_revert", before)
    assert status(world) is SlashStatus.PROPOSED
    watch.look()
    assert status(world) is SlashStatus.CONTESTED
    assert names(told) == ["slash.seen", "slash.defended", "slash.defended"]


def test_a_proposal_that_a_reorganisation_replaces_is_another_s_to_contest(
    world: World, told: list[dict[str, Any]]
) -> None:
    world.bond(CAROL, SEAT_STAKE)
    world.providers(CAROL).take_seat(world.model.model_id, 1)
    watch, before = contesting(world), world.chain.request("evm_snapshot")
    report(world, BOB, 1)
    watch.look()
    world.chain.request("evm_revert", before)
    report(world, CAROL, 1)
    world.give(NODE, REPORTER_BOND)
    watch.look()
    assert status(world) is SlashStatus.PROPOSED
    assert names(told) == ["slash.seen", "slash.defenceless"]


def test_who_has_too_few_tokens_is_told_once_and_contests_when_they_come(
    world: World, told: list[dict[str, Any]]
) -> None:
    world.give(NODE, 2 * REPORTER_BOND - 1)
    for stage in (1, 3):
        report(world, BOB, stage)
    watch = contesting(world)
    for _ in range(2):
        watch.look()
    assert names(told) == ["slash.seen", "slash.seen", "slash.defended", "slash.defenceless"]
    fields = told[3]["slash.defenceless"]
    record = world.providers().slash(2)
    assert (fields["slash_id"], fields["code"], fields["until"]) == (2, "CHAIN_NO_FUNDS", record.deadline)
    assert "send it 1 in time" in fields["message"]
    world.give(NODE, 1)
    watch.look()
    assert [status(world, slash_id) for slash_id in (1, 2)] == [SlashStatus.CONTESTED] * 2
    assert names(told)[4:] == ["slash.defended"]


def test_who_comes_too_late_is_told(world: World, told: list[dict[str, Any]]) -> None:
    world.give(NODE, REPORTER_BOND)
    report(world, BOB, 1)
    world.later(WINDOW_S)
    watch = contesting(world)
    for _ in range(2):
        watch.look()
    assert names(told) == ["slash.seen", "slash.defenceless"]
    assert told[1]["slash.defenceless"]["code"] == "CHAIN_NOT_ALLOWED"
    assert not contests(world)


def test_a_chain_that_goes_away_meanwhile_is_no_alarm_either(
    world: World, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher says `watch.failed`, and looks again."""
    world.give(NODE, REPORTER_BOND)
    report(world, BOB, 1)
    watch = contesting(world)

    def away(*_: object) -> None:
        raise RpcUnreachable("away")

    with monkeypatch.context() as patched:
        patched.setattr(Token, "approve", away)
        with pytest.raises(RpcUnreachable):
            watch.look()
    watch.look()
    assert status(world) is SlashStatus.CONTESTED
    assert names(told) == ["slash.seen", "slash.defended"]


def test_what_somebody_else_contests_meanwhile_is_no_alarm(
    world: World, told: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.give(NODE, REPORTER_BOND)
    world.give(BOB, REPORTER_BOND, world.model.terms.providers)
    report(world, BOB, 1)
    monkeypatch.setattr(Contester, "_answer", lambda *_: world.providers(BOB).contest_slash(1, "") and "")
    contesting(world).look()
    assert [each.contester for each in contests(world)] == [BOB.address]
    assert names(told) == ["slash.seen"]


def test_no_bond_is_posted_for_a_seat_that_is_slashed_already(world: World, told: list[dict[str, Any]]) -> None:
    world.give(NODE, REPORTER_BOND)
    report(world, BOB, 1)
    world.later(WINDOW_S // 2)
    report(world, BOB, 1, b"b")
    world.later(WINDOW_S // 2)
    world.providers(STRANGER).execute_slash(1)
    contesting(world).look()
    assert status(world, 2) is SlashStatus.PROPOSED
    assert names(told) == ["slash.seen", "slash.seen"]


def test_who_contests_what_the_arbiter_rejects_has_half_of_the_reporter_s_bond(
    world: World, told: list[dict[str, Any]]
) -> None:
    world.give(NODE, REPORTER_BOND)
    report(world, BOB, 1)
    contesting(world).look()
    for judge in ("judge-0", "judge-1"):
        world.run("arbiter", "resolve-slash", "1", "--reject", *world.key_options(judge))
    world.later(DELAY_S)
    world.run("arbiter", "resolve-slash", "1", "--reject", *world.key_options())
    providers = world.providers(NODE)
    assert providers.is_seated(world.model.model_id, BOB.address, 1)
    assert providers.free_stake_of(NODE.address) == REPORTER_BOND + REPORTER_BOND // 2
    assert providers.free_stake_of(STRANGER.address) == 0
    providers.withdraw(NODE.address, providers.free_stake_of(NODE.address))  # it can be posted again
    assert world.usd().balance_of(NODE.address) == REPORTER_BOND + REPORTER_BOND // 2


def test_who_may_contest_must_see_the_chain(world: World) -> None:
    options = [
        "--coordinator",
        f"{NodeIdentity(NODE.secret).peer_id}@127.0.0.1:1",
        "--key",
        str(world.dir / "node.json"),
    ]
    result = CliRunner().invoke(app, ["node", "run", *options, "--dir", str(world.dir), "--contest"])
    assert isinstance(result.exception, ConfigError)
    assert "--rpc" in str(result.exception)


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
