"""Real decode processes: of each session all stages keep a trace, and what they say of it agrees."""

import asyncio
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from commonweight.bench.decode_workers import DecodeWorkers
from commonweight.identity import NodeIdentity
from commonweight.rules.answer import CHOICE, find_disagreement
from commonweight.rules.report import NO_TENSOR
from commonweight.wire.decode import MAX_CHUNK_TOKENS
from commonweight.wire.generation import open_generator
from commonweight.wire.messages import answer_from_proto
from commonweight.wire.tls import make_certificate
from node.answers import answer_path
from tests.integration.network import tiny_spec

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

STAGES, COUNT, DEADLINE_S = 3, 5, 60.0
SPEC = tiny_spec("0x" + "00" * 32, 10_000, stages=STAGES, sequence_length=2 * MAX_CHUNK_TOKENS)
GATEWAY = make_certificate(NodeIdentity(b"\x21" * 32))
PROMPT = [(7 * n) % 251 for n in range(MAX_CHUNK_TOKENS + 3)]


async def test_all_stages_keep_the_same_session(tmp_path: Path) -> None:
    async with DecodeWorkers(SPEC, GATEWAY, answers=tmp_path) as workers, asyncio.timeout(DEADLINE_S):
        async with open_generator(workers.route(), GATEWAY) as generator:
            tokens = [token async for token in generator.generate(PROMPT, COUNT, temperature=1.5, seed=4)]
        told = await asyncio.gather(*(workers.expect("answer") for workers in workers.workers))
    answers = [answer_from_proto(event.answer) for event in told]
    assert find_disagreement(answers) is None
    assert {(a.version, a.prompt_tokens, a.fed, a.temperature, a.seed) for a in answers} == {
        (0, len(PROMPT), len(PROMPT) + COUNT - 1, 1.5, 4)
    }
    traces = [answer_path(tmp_path / f"stage-{n}", 0, each.session).read_bytes() for n, each in enumerate(answers)]
    ids = np.array([*PROMPT, *tokens[:-1]], dtype="<u4").tobytes()
    codes = len(PROMPT + tokens[:-1]) * SPEC.architecture.boundary_dim * 4
    for stage, (trace, answer) in enumerate(zip(traces, answers, strict=True)):
        taken, passed = (0 if stage == 0 else codes), trace[len(ids) + (0 if stage == 0 else codes) :]
        assert trace.startswith(ids)
        assert sha256(ids).digest() == answer.ids
        assert (sha256(trace[len(ids) :][:taken]).digest() if taken else NO_TENSOR) == answer.taken
        assert sha256(passed).digest() == answer.passed
    # The prompt's first step ends in a token, too, which is none of the choices.
    assert [id_ for id_, _ in CHOICE.iter_unpack(traces[-1][len(ids) + codes :])] == tokens
