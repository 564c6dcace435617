"""Evidence over real connections: whom a node serves what, and what an auditor takes from a source."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest

from commonweight.errors import (
    CommitmentBroken,
    CommonweightError,
    EvidenceMissing,
    IdentityMismatch,
    MalformedMessage,
    MessageTooLarge,
    PeerUnreachable,
    Refused,
)
from commonweight.identity import NodeIdentity
from commonweight.rules.audits import Audit, Kind
from commonweight.wire import evidence as wire_evidence
from commonweight.wire.channel import PIPE_FRAME_BYTES, open_channel, serve
from commonweight.wire.evidence import EVIDENCE_PART_BYTES, EvidenceClient, Source, StatePart
from commonweight.wire.generated import control_pb2, evidence_pb2_grpc
from commonweight.wire.generated import evidence_pb2 as pb
from commonweight.wire.tls import Certificate, make_certificate, server_credentials
from node import evidence as evidence_module
from node.answers import answers_folder, remove_trace
from node.evidence import Evidence
from node.published import META_FILE, MOMENTS_FILE, PARAMETERS_FILE, keep_published, version_path
from node.traces import Traces, trace_path
from tests.unit.sealing import (
    ASSIGNMENT,
    AUDITOR,
    STAGE,
    STRANGER,
    a_trace,
    answers,
    drawn,
    draws_at,
    find,
    find_answer,
    grant,
    sealed,
    signed,
    tip_of,
    undrawn,
)

pytestmark = pytest.mark.asyncio

TIMEOUT_S = 20.0
SHORT_S = 0.5
NODE = make_certificate(NodeIdentity(b"\x31" * 32))
TENSOR = bytes(range(256)) * (EVIDENCE_PART_BYTES // 256) + b"and a bit"
PARAMETERS, MOMENTS, GRADIENT = b"parameters" * 250_000, b"moments" * 500_000, b"gradient" * 250_000
ANSWER, UNDRAWN = find_answer(STAGE), find_answer(STAGE, is_drawn=False)
WHOLE, SINGLE, NEIGHBOURS = find(STAGE, Kind.ROUND), find(STAGE, Kind.MICROBATCH), find(STAGE + 1)
STATE_PARTS: tuple[StatePart, ...] = get_args(StatePart)


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    told: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(evidence_module, "emit", lambda name, **fields: told.append((name, fields)))
    return told


def digest(data: bytes) -> bytes:
    return sha256(data).digest()


@asynccontextmanager
async def a_node(folder: Path, *audits: Audit, answered: Sequence[int] = ()) -> AsyncIterator[tuple[Evidence, Source]]:
    """A node for which these audits' rounds are sealed, with TENSOR, states and a gradient in each, and its version
    published; with `answers` those that are `answered`. Nothing is granted yet.
    """
    rounds = sorted({audit.round for audit in audits})
    draws_at(folder, *rounds, answered=answered)
    for round_ in rounds:
        for name, data in (("traces", TENSOR), ("gradients", GRADIENT + bytes([round_]))):
            trace = Traces(folder / f"stage-{STAGE}" / name, 0).begin(round_)
            trace.add(digest(data), memoryview(data))
            trace.finish()
        for version in (round_, round_ + 1):
            path = version_path(folder / f"stage-{STAGE}", version)
            path.mkdir(exist_ok=True)
            (path / META_FILE).write_text("{}")
            (path / PARAMETERS_FILE).write_bytes(PARAMETERS + bytes([version]))
            (path / MOMENTS_FILE).write_bytes(MOMENTS + bytes([version]))
        keep_published(folder / f"stage-{STAGE}", folder / "published" / f"stage-{STAGE}", round_)
    evidence = Evidence(folder, NODE)
    await evidence.listen("127.0.0.1:0")
    evidence.begin(ASSIGNMENT)
    try:
        yield evidence, Source(NODE.peer_id, f"127.0.0.1:{evidence.port}", NODE.der)
    finally:
        await evidence.close()


class Auditor:
    """Fetches from one source."""

    def __init__(self, source: Source, certificate: Certificate = AUDITOR) -> None:
        self.client = EvidenceClient(certificate)
        self.source = source

    async def tensor(self, round_: int, data: bytes = TENSOR, timeout_s: float = TIMEOUT_S) -> bytes:
        return await self.client.fetch_tensor(self.source, round_, digest(data), len(data), timeout_s=timeout_s)

    async def state(
        self, round_: int, part: StatePart = "parameters", *, after: bool = False, limit: int = len(MOMENTS) + 1
    ) -> bytes:
        return await self.client.fetch_state(
            self.source, round_, part, after=after, max_bytes=limit, timeout_s=TIMEOUT_S
        )

    async def gradient(self, round_: int) -> bytes:
        gradient_hash = digest(GRADIENT + bytes([round_]))
        limit = len(GRADIENT) + 1
        return await self.client.fetch_gradient(
            self.source, round_, gradient_hash, max_bytes=limit, timeout_s=TIMEOUT_S
        )

    async def answer(self, round_: int, session: bytes, limit: int = 1 << 20) -> bytes:
        return await self.client.fetch_answer(self.source, round_, session, max_bytes=limit, timeout_s=TIMEOUT_S)

    async def version(self, round_: int, version: int, limit: int = len(PARAMETERS) + 1) -> bytes:
        return await self.client.fetch_version(self.source, round_, version, max_bytes=limit, timeout_s=TIMEOUT_S)

    async def __aenter__(self) -> "Auditor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()


@pytest.mark.parametrize("audit", [WHOLE, SINGLE], ids=str)
async def test_an_auditor_gets_the_tensors_the_states_and_the_gradient_of_a_drawn_round(
    tmp_path: Path, audit: Audit
) -> None:
    async with a_node(tmp_path, audit) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(audit))
        assert await auditor.tensor(audit.round) == TENSOR
        for after in (False, True):
            version = bytes([audit.round + after])
            assert await auditor.state(audit.round, "parameters", after=after) == PARAMETERS + version
            assert await auditor.state(audit.round, "moments", after=after) == MOMENTS + version
        assert await auditor.gradient(audit.round) == GRADIENT + bytes([audit.round])


async def test_an_auditor_of_an_answer_gets_its_trace_and_its_version(tmp_path: Path) -> None:
    trace = a_trace(0, ANSWER.microbatch or 0)
    async with a_node(tmp_path, ANSWER, answered=(0,)) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(ANSWER))
        assert await auditor.answer(0, trace.session) == bytes(trace.ids + trace.taken + trace.passed)
        assert await auditor.version(0, 0) == PARAMETERS + bytes([0])
        with pytest.raises(MessageTooLarge):
            await auditor.answer(0, trace.session, limit=len(trace.ids))
        assert evidence.needed_versions() == {0}


async def test_an_auditor_of_an_answer_gets_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "GRANT_S", 0.1)
    trace, other = a_trace(0, ANSWER.microbatch or 0), a_trace(0, UNDRAWN.microbatch or 0)
    async with a_node(tmp_path, ANSWER, WHOLE, answered=(0,)) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(ANSWER))
        for session in (other.session, trace.session[:-1], b""):
            with pytest.raises(Refused, match="needs the trace of session"):
                await auditor.answer(0, session)
        with pytest.raises(Refused, match="sealed with round 1"):
            await auditor.answer(1, trace.session)
        with pytest.raises(Refused, match="needs version 1"):
            await auditor.version(0, 1)
        with pytest.raises(Refused, match="needs tensor"):
            await auditor.tensor(0)
        for part in STATE_PARTS:
            for after in (False, True):
                with pytest.raises(Refused, match=f"needs (the )?{part}"):
                    await auditor.state(0, part, after=after)


async def test_an_auditor_of_a_round_gets_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "GRANT_S", 0.1)
    audits = drawn(0, answers(0))
    audit = next(each for each in audits if each.stage == STAGE and each.kind is not Kind.ANSWER)
    async with a_node(tmp_path, audit, answered=(0,)) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(audit))
        assert await auditor.tensor(0) == TENSOR
        with pytest.raises(Refused):
            await auditor.answer(0, a_trace(0, ANSWER.microbatch or 0).session)
        with pytest.raises(Refused):
            await auditor.version(0, 0)


async def test_a_trace_or_a_version_that_is_gone_is_missing(tmp_path: Path) -> None:
    trace = a_trace(0, ANSWER.microbatch or 0)
    async with a_node(tmp_path, ANSWER, answered=(0,)) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(ANSWER))
        remove_trace(answers_folder(tmp_path, STAGE), trace.version, trace.session)
        with pytest.raises(EvidenceMissing, match="isn't kept here: the trace of session"):
            await auditor.answer(0, trace.session)
        (version_path(tmp_path / "published" / f"stage-{STAGE}", 0) / PARAMETERS_FILE).unlink()
        with pytest.raises(EvidenceMissing, match="isn't kept here: version 0"):
            await auditor.version(0, 0)


async def test_a_call_that_comes_before_its_grant_waits_for_it(tmp_path: Path) -> None:
    earlier = SINGLE
    assert earlier.round != WHOLE.round
    async with a_node(tmp_path, earlier, WHOLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(earlier))
        await auditor.tensor(earlier.round)  # now it is connected
        fetching = asyncio.create_task(auditor.tensor(WHOLE.round))
        await auditor.tensor(earlier.round)
        assert not fetching.done()
        await evidence.grant(grant(WHOLE))
        assert await fetching == TENSOR


async def test_nobody_else_connects(tmp_path: Path) -> None:
    async with a_node(tmp_path, WHOLE) as (evidence, source):
        async with Auditor(source) as early:
            with pytest.raises(PeerUnreachable):
                await early.tensor(WHOLE.round, timeout_s=SHORT_S)
        await evidence.grant(grant(WHOLE))
        async with Auditor(source, STRANGER) as stranger:
            with pytest.raises(PeerUnreachable):
                await stranger.tensor(WHOLE.round, timeout_s=SHORT_S)


async def test_a_unit_that_isnt_drawn_is_granted_to_nobody(tmp_path: Path, events: list[Any]) -> None:
    audit = find(STAGE)
    async with a_node(tmp_path, audit) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(undrawn(audit.round)))
        assert [(name, fields["code"]) for name, fields in events[1:]] == [("audit.refused", "WIRE_UNPLANNED")]
        with pytest.raises(PeerUnreachable):
            await auditor.tensor(audit.round, timeout_s=SHORT_S)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("part", STATE_PARTS)
async def test_a_neighbours_auditor_gets_no_state(
    tmp_path: Path, part: StatePart, after: bool, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "GRANT_S", 0.1)
    async with a_node(tmp_path, NEIGHBOURS) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(NEIGHBOURS))
        assert await auditor.tensor(NEIGHBOURS.round) == TENSOR
        with pytest.raises(Refused, match=f"No audit that needs (the )?{part}"):
            await auditor.state(NEIGHBOURS.round, part, after=after)
        assert events[-1][0] == "evidence.refused"


async def test_an_auditor_whose_round_is_decided_gets_nothing_over_its_open_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "GRANT_S", 0.1)
    async with a_node(tmp_path, WHOLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(WHOLE))
        await auditor.tensor(WHOLE.round)
        await evidence.seal(sealed(WHOLE.round, ()), signed(WHOLE.round))
        with pytest.raises(Refused, match="granted to the caller"):
            await auditor.tensor(WHOLE.round)


async def test_what_isnt_kept_is_said_to_be_missing(tmp_path: Path, events: list[Any]) -> None:
    async with a_node(tmp_path, WHOLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(WHOLE))
        with pytest.raises(EvidenceMissing, match="isn't kept here"):
            await auditor.tensor(WHOLE.round, b"another")
        (version_path(tmp_path / f"stage-{STAGE}", WHOLE.round) / MOMENTS_FILE).unlink()
        with pytest.raises(EvidenceMissing, match="isn't kept here: moments before round"):
            await auditor.state(WHOLE.round, "moments")
        assert events[-1][1]["code"] == "EVIDENCE_MISSING"


@pytest.mark.parametrize("left", [None, 0, len(GRADIENT)])
async def test_a_gradient_that_is_gone_or_cut_short_is_missing(tmp_path: Path, left: int | None) -> None:
    async with a_node(tmp_path, SINGLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(SINGLE))
        path = trace_path(tmp_path / f"stage-{STAGE}" / "gradients", SINGLE.round)
        if left is None:
            path.unlink()
        else:
            os.truncate(path, left)
        with pytest.raises(EvidenceMissing, match=f"isn't kept here: gradient .* of round {SINGLE.round}"):
            await auditor.gradient(SINGLE.round)


async def test_a_rounds_trace_that_is_gone_is_missing(tmp_path: Path) -> None:
    async with a_node(tmp_path, WHOLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(WHOLE))
        trace_path(tmp_path / f"stage-{STAGE}" / "traces", WHOLE.round).unlink()
        with pytest.raises(EvidenceMissing):
            await auditor.tensor(WHOLE.round)


async def test_many_fetches_at_a_time_are_all_served(tmp_path: Path) -> None:
    async with a_node(tmp_path, WHOLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(WHOLE))
        count = 3 * evidence_module.MAX_FETCHES
        assert await asyncio.gather(*(auditor.tensor(WHOLE.round) for _ in range(count))) == [TENSOR] * count


async def test_a_fetch_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its turn never comes."""
    async with a_node(tmp_path, WHOLE) as (evidence, source), Auditor(source) as auditor:
        await evidence.grant(grant(WHOLE))
        monkeypatch.setattr(evidence, "_room", asyncio.Semaphore(0))
        with pytest.raises(PeerUnreachable):
            await auditor.tensor(WHOLE.round, timeout_s=SHORT_S)
        monkeypatch.setattr(evidence_module, "FETCH_S", SHORT_S)
        with pytest.raises(CommonweightError, match="isn't over"):
            await auditor.tensor(WHOLE.round)


async def test_a_false_beacon_is_refused_and_so_is_what_comes_before_the_assignment(tmp_path: Path) -> None:
    async with a_node(tmp_path, WHOLE) as (evidence, _):
        later = WHOLE.round + 1
        await evidence.plan(control_pb2.RoundPlan(round=later, beacon_tip=tip_of(later)))
        with pytest.raises(CommitmentBroken):
            await evidence.seal(sealed(later, beacon=b"\1" * 32), signed(later))
    unassigned = Evidence(tmp_path, NODE)
    with pytest.raises(CommonweightError, match="before it has assigned"):
        await unassigned.plan(control_pb2.RoundPlan(round=0, beacon_tip=tip_of(0)))


# A source that isn't a node of ours


class Liar(evidence_pb2_grpc.EvidenceServicer):
    """Answers every fetch with the same parts."""

    def __init__(self, *parts: pb.EvidencePart) -> None:
        self.parts = parts
        self.endless = False

    async def Fetch(self, request: pb.EvidenceRequest, context: Any) -> AsyncIterator[pb.EvidencePart]:
        for part in self.parts:
            yield part
        while self.endless:
            await asyncio.Event().wait()


@asynccontextmanager
async def a_liar(liar: Liar) -> AsyncIterator[Auditor]:
    server, port = await serve(
        [(evidence_pb2_grpc.add_EvidenceServicer_to_server, liar)],
        "127.0.0.1:0",
        server_credentials(NODE, lambda: [AUDITOR.der]),
        max_message_bytes=2 * PIPE_FRAME_BYTES,
    )
    try:
        async with Auditor(Source(NODE.peer_id, f"127.0.0.1:{port}", NODE.der)) as auditor:
            yield auditor
    finally:
        await server.stop(None)


def part(data: bytes, size: int = 0) -> pb.EvidencePart:
    return pb.EvidencePart(size=size, data=data)


LIES: dict[str, tuple[list[pb.EvidencePart], type[CommonweightError], str]] = {
    "nothing": ([], MalformedMessage, "ended after 0"),
    "another size": ([part(b"x" * 4, 4)], MessageTooLarge, "would send 4 bytes; due are 3 to 3"),
    "a size without end": ([part(b"x", 2**63)], MessageTooLarge, "would send 9223372036854775808"),
    "no size": ([part(b"abc")], MessageTooLarge, "would send 0 bytes"),
    "too little": ([part(b"ab", 3)], MalformedMessage, "ended after 2 of 3"),
    "too much": ([part(b"ab", 3), part(b"cd")], MalformedMessage, "more than the 3 bytes"),
    "empty parts": ([part(b"", 3), *([part(b"")] * 9)], MalformedMessage, "an empty part"),
    "a part over the limit": ([part(bytes(PIPE_FRAME_BYTES), 3)], MessageTooLarge, "over the limit"),
}


@pytest.mark.parametrize(("parts", "error", "match"), LIES.values(), ids=LIES.keys())
async def test_a_source_is_believed_nothing(
    parts: list[pb.EvidencePart], error: type[CommonweightError], match: str
) -> None:
    async with a_liar(Liar(*parts)) as auditor:
        with pytest.raises(error, match=match):
            await auditor.tensor(0, b"abc")
    async with a_liar(Liar(part(b"a", 3), part(b"bc"))) as auditor:
        assert await auditor.tensor(0, b"abc") == b"abc"


async def test_a_state_over_its_limit_isnt_taken() -> None:
    async with a_liar(Liar(part(b"abc", 3))) as auditor:
        assert await auditor.state(0, after=False, limit=3) == b"abc"
        with pytest.raises(MessageTooLarge, match="due are 1 to 2"):
            await auditor.state(0, after=False, limit=2)


async def test_a_source_that_falls_silent_is_given_up() -> None:
    liar = Liar(part(b"a", 3))
    liar.endless = True
    async with a_liar(liar) as auditor:
        with pytest.raises(PeerUnreachable):
            await auditor.tensor(0, b"abc", timeout_s=SHORT_S)


async def test_a_source_with_a_foreign_certificate_is_none() -> None:
    async with Auditor(Source(NODE.peer_id, "127.0.0.1:9", STRANGER.der)) as auditor:
        with pytest.raises(IdentityMismatch):
            await auditor.tensor(0)


async def test_a_connection_is_kept_to_the_sources_that_were_asked_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_evidence, "MAX_CONNECTIONS", 2)
    opened: list[tuple[Source, grpc.aio.Channel]] = []

    def counting(address: str, mine: Certificate, peer_der: bytes, **options: Any) -> grpc.aio.Channel:
        channel = open_channel(address, mine, peer_der, **options)
        opened.append((next(each for each in sources if each.certificate == peer_der), channel))
        return channel

    monkeypatch.setattr(wire_evidence, "open_channel", counting)
    async with a_node(tmp_path, WHOLE) as (evidence, node), Auditor(node) as auditor:
        await evidence.grant(grant(WHOLE))
        renewed, other = (make_certificate(NodeIdentity(bytes([0x31 + number]) * 32)) for number in range(2))
        sources = [
            node,
            Source(node.peer_id, node.address, renewed.der),
            Source(other.peer_id, node.address, other.der),
        ]
        for number in (0, 0, 1, 0, 2, 0, 1):
            auditor.source = sources[number]
            if number == 0:
                assert await auditor.tensor(WHOLE.round) == TENSOR
            else:
                with pytest.raises(PeerUnreachable):
                    await auditor.tensor(WHOLE.round, timeout_s=0.1)
        assert [source for source, _ in opened] == [node, sources[1], sources[2], sources[1]]
        states = [channel.get_state() for _, channel in opened]
        assert [state is grpc.ChannelConnectivity.SHUTDOWN for state in states] == [False, True, True, False]
    states = [channel.get_state() for _, channel in opened]
    assert set(states) == {grpc.ChannelConnectivity.SHUTDOWN}
