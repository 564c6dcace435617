"""js-libp2p, which shares no code with ours, against our peers: it pings and identifies one, and reads our gossip."""

import asyncio
import json
import secrets
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from commonweight.identity import NodeIdentity
from commonweight.peers.announced import read_announced
from commonweight.peers.gossip import TOPIC
from commonweight.rules.announcement import Role
from commonweight.wire.tls import make_certificate
from tests.integration.test_discovery import claim, discovering, where

FOLDER = Path(__file__).parents[1] / "interop"
TIMEOUT_S = 60

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOLDER / "node_modules" / "libp2p").exists() or shutil.which("node") is None,
        reason="no js-libp2p here: `make tests/interop/node_modules/installed`",
    ),
]


async def test_js_libp2p_pings_identifies_and_reads_our_gossip() -> None:
    identity = NodeIdentity(secrets.token_bytes(32))
    certificate = make_certificate(identity)
    async with discovering() as bootstrap, discovering(identity, where(bootstrap)) as node:
        address = where(bootstrap)
        node.announce(claim(certificate, "127.0.0.1:9", Role.NODE))
        command = ("node", str(FOLDER / "read_gossip.mjs"), str(address), TOPIC, str(TIMEOUT_S))
        reader = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        said, errors = await asyncio.wait_for(reader.communicate(), TIMEOUT_S + 10)
        assert reader.returncode == 0, errors.decode()
    steps = {line["step"]: line for line in map(json.loads, said.splitlines())}
    assert steps["connected"]["encryption"] == "/noise"
    assert steps["connected"]["muxer"] == "/yamux/1.0.0"
    assert steps["pinged"]["ms"] >= 0
    assert steps["identified"]["peer"] == address.peer_id
    assert {"/meshsub/1.1.0", "/ipfs/ping/1.0.0", "/commonweight/announced/1"} <= set(steps["identified"]["protocols"])
    assert steps["heard"]["type"] == "signed"
    assert steps["heard"]["from"] == identity.peer_id
    announced = read_announced(steps["heard"]["data"].encode())
    assert (announced.peer_id, announced.announcement.certificate) == (identity.peer_id, certificate.der)
