"""A node's watch: a chain that is away at first, or a bug of ours, doesn't leave it unwatched without a word."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commonweight.chain.keys import devnet_key
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.rpc import Chain
from commonweight.rules.canonical import canonical_json
from commonweight.wire.generated import control_pb2 as pb
from node.watching import Watch, WatchConfig
from tests.unit.tiny import tiny_spec


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[tuple[str, Any]]":
    said: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
    monkeypatch.setattr("node.watching.emit", lambda name, /, **fields: said.put_nowait((name, fields.get("code"))))
    monkeypatch.setattr("node.watching.CONNECT_RETRY_S", 0.01)
    return said


def watch_of(folder: Path, rpc_url: str) -> Watch:
    key = devnet_key(0)
    watch = Watch(key.address, key.address, folder, WatchConfig(rpc_url, key.address, key, (), None))
    watch.begin(pb.Assignment(spec=canonical_json(tiny_spec().model_dump()), model_id=bytes(32), chain_id=1))
    return watch


@pytest.mark.asyncio
async def test_a_chain_that_is_away_at_the_start_is_tried_again(
    tmp_path: Path, told: "asyncio.Queue[tuple[str, Any]]"
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        watch = watch_of(tmp_path, f"http://127.0.0.1:{closed.getsockname()[1]}")
        async with asyncio.timeout(30):
            for _ in range(3):
                assert await told.get() == ("watch.failed", "CHAIN_UNREACHABLE")
        await watch.close()


@pytest.mark.asyncio
async def test_a_bug_in_the_watch_is_told(
    tmp_path: Path, told: "asyncio.Queue[tuple[str, Any]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "_watcher", lambda *_: {}["nothing"])
    watch = watch_of(tmp_path, "")
    async with asyncio.timeout(30):
        assert await told.get() == ("watch.ended", "INTERNAL")
    await watch.close()


@pytest.mark.asyncio
async def test_a_spec_that_isn_t_the_registered_one_judges_no_epoch(
    tmp_path: Path, told: "asyncio.Queue[tuple[str, Any]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = SimpleNamespace(spec_hash=tiny_spec(seed=8).spec_hash)
    monkeypatch.setattr(Chain, "connect", lambda *_: None)
    monkeypatch.setattr(ModelRegistry, "__init__", lambda *_: None)
    monkeypatch.setattr(ModelRegistry, "model", lambda *_: registered)
    watch = watch_of(tmp_path, "")
    async with asyncio.timeout(30):
        assert await told.get() == ("watch.ended", "SPEC_INVALID")
    await watch.close()
