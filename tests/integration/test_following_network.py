"""A newcomer whose line is so slow that a state takes it longer than a round comes in, and nobody waits for it."""

from pathlib import Path

import pytest

from commonweight.failpoints import SLOW_VARIABLE
from commonweight.rules.following import NEWCOMERS_S
from commonweight.rules.stages import state_bytes
from tests.integration.network import Network

pytestmark = pytest.mark.slow
MANY = 10_000
"""Epochs: more than there is time for."""
ROUND_S = 2.0
"""Four microbatches, and one that fills the pipeline, of as many seconds as MICROBATCH_S."""
MICROBATCH_S = 0.4
STATE_ROUNDS = 1.8
"""What a state takes over the line."""
SLOW_LINE = """
import asyncio
from node.offering import Offering

chunk, line = Offering.Chunk, asyncio.Lock()

async def carry(self, request, context):
    answer = await chunk(self, request, context)
    async with line:
        await asyncio.sleep(len(answer.data) / {bytes_per_s})
    return answer

Offering.Chunk = carry
"""
"""Of who offers its state, in its control process."""


def test_who_can_t_fetch_a_state_within_a_round_follows_and_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "slow").write_text(str(MICROBATCH_S))
    slow = {SLOW_VARIABLE: str(tmp_path / "slow")}
    with Network(tmp_path) as network:
        coordinator = network.start_coordinator(MANY)
        for stage in range(2):
            line = SLOW_LINE.format(bytes_per_s=state_bytes(network.spec, stage) / (STATE_ROUNDS * ROUND_S))
            network.start_node(stage, line, slow)
            coordinator.wait_for("node.joined", lambda event, stage=stage: event.fields["stage"] == stage)
        coordinator.wait_for("round.sealed", lambda event: event.fields["round"] >= 4)
        newcomer = network.start_node(2, environment=slow)
        stage = newcomer.wait_for("node.assigned").fields["stage"]
        fetched = newcomer.wait_for("state.fetched", lambda event: event.fields["what"].startswith("version"))
        assert fetched.fields["seconds"] > 1.5 * ROUND_S, "the line is slow"
        replicas = [1 + (each == stage) for each in range(2)]
        coordinator.wait_for("round.sealed", lambda event: event.fields["replicas"] == replicas)

        versions = [e for e in newcomer.events if e.name == "state.fetched" and e.fields["what"].startswith("version")]
        assert versions == [fetched], "one state, and gradients from there"
        followed = [event.fields["round"] for event in newcomer.events if event.name == "state.followed"]
        first = int(fetched.fields["what"].removeprefix("version "))
        assert followed == list(range(first, first + len(followed)))
        assert len(followed) >= 2
        assert not [event for event in coordinator.events if event.name == "generation.paused"]
        extended = [event for event in coordinator.events if event.name == "generation.extended"]
        assert [event.fields["nodes"] for event in extended] == [[network.accounts["node-2"].address]]
        sealed = [event for event in coordinator.events if event.name == "round.sealed"]
        waited = [b.time - a.time for a, b in zip(sealed[1:], sealed[2:], strict=False)]
        assert max(waited) < ROUND_S + NEWCOMERS_S, "no round waited for it in vain"
