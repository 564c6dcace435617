"""The referee as its coordinator starts it: a process of its own, with nodes to fetch from over mutual TLS."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from eth_hash.auto import keccak

from commonweight.errors import EvidenceMissing
from commonweight.identity import NodeIdentity
from commonweight.model.data import Dataset
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.canonical import canonical_json
from commonweight.rules.recording import operator_hash
from commonweight.rules.spec import ModelSpec
from commonweight.wire.channel import PIPE_FRAME_BYTES, serve
from commonweight.wire.evidence import EVIDENCE_PART_BYTES
from commonweight.wire.generated import control_pb2, evidence_pb2, evidence_pb2_grpc
from commonweight.wire.generated import referee_pb2 as pb
from commonweight.wire.link import Link, spawn_worker
from commonweight.wire.messages import answer_to_proto, audit_to_proto, report_to_proto
from commonweight.wire.status import refuse
from commonweight.wire.tls import Certificate, make_certificate, server_credentials
from tests.integration.network import pack_text, tiny_spec
from tests.unit import answers_world
from tests.unit.answers_world import Kept, Model
from tests.unit.referee_world import FalseGradient, Node, World, WrongOutput, single, whole

DEADLINE_S = 60
ROOT = Path(__file__).resolve().parents[2]
ME = make_certificate(NodeIdentity(bytes([1]) * 32))
pytestmark = pytest.mark.asyncio


class Keeper(evidence_pb2_grpc.EvidenceServicer):
    """Serves what a node of the world keeps, in small parts."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.answer: Callable[[Any], Awaitable[None]] | None = None
        """What it does instead."""
        self.kept: Kept | None = None
        """Of one answer."""

    async def Fetch(self, request: Any, context: Any) -> None:
        if self.answer is not None:
            await self.answer(context)
            return
        if request.WhichOneof("what") == "tensor":
            data = self.node.tensors.get(request.tensor)
        elif request.WhichOneof("what") in ("answer", "version"):
            data = self.of_answer(request)
        elif request.WhichOneof("what") == "gradient":
            data = self.node.gradients.get((request.round, request.gradient))
        else:
            part = request.WhichOneof("what").removesuffix("_after")
            data = self.node.states.get((request.round, part, getattr(request, f"{part}_after")))
        if data is None:
            await refuse(context, EvidenceMissing("It isn't kept here."))
        part = min(EVIDENCE_PART_BYTES, max(1, len(data) // 3))
        for start in range(0, len(data), part):
            size = len(data) if start == 0 else 0
            await context.write(evidence_pb2.EvidencePart(size=size, data=data[start : start + part]))

    def of_answer(self, request: Any) -> bytes | None:
        if self.kept is None or request.round != answers_world.ROUND:
            return None
        if request.version == answers_world.VERSION:
            return self.kept.parameters
        return self.kept.whole if request.answer == self.kept.session else None


async def cancel(context: Any) -> None:
    await context.abort(grpc.StatusCode.CANCELLED, "no")


async def fail(context: Any) -> None:
    raise RuntimeError("a bug")


async def send_nothing(context: Any) -> None:
    """Ends at once."""


async def announce_too_much(context: Any) -> None:
    await context.write(evidence_pb2.EvidencePart(size=2**63, data=b"x"))


async def send_empty_parts(context: Any) -> None:
    await context.write(evidence_pb2.EvidencePart(size=20_000, data=b"x"))
    while True:
        await context.write(evidence_pb2.EvidencePart())


async def send_rubbish(context: Any) -> None:
    await context.write(evidence_pb2.EvidencePart(size=20_000, data=bytes(20_000)))


@dataclass
class Running:
    """A referee, and a world that it audits."""

    spec: ModelSpec
    data: Path
    world: World
    process: Process
    link: Link
    sources: list[control_pb2.EvidenceSource]
    keepers: list[Keeper]
    numerics: str = ""

    async def start(self, certificate: Certificate = ME) -> None:
        begin = pb.RefereeStart(
            spec=canonical_json(self.spec.model_dump()),
            certificate=certificate.der,
            private_key=certificate.private_key_pem,
            data_dir=str(self.data),
            device="cpu",
        )
        await self.link.send(pb.RefereeCommand(start=begin))
        self.numerics = (await self.event()).ready.numerics

    async def event(self) -> pb.RefereeEvent:
        event = await self.link.receive(pb.RefereeEvent)
        assert event is not None, "the referee is gone"
        return event

    def order(self, unit: Audit) -> control_pb2.AuditOrder:
        report = report_to_proto(self.world.reports[unit.round, unit.stage])
        report.numerics = self.numerics
        where = (near for near in (unit.stage, unit.stage - 1, unit.stage + 1) if 0 <= near < len(self.sources))
        sources = [self.sources[near] for near in where]
        return control_pb2.AuditOrder(unit=audit_to_proto(unit), report=report, sources=sources)

    async def audit(self, unit: Audit) -> control_pb2.AuditOpinion:
        return await self.obey(self.order(unit))

    async def audit_answer(self, stage: int, version_root: bytes) -> control_pb2.AuditOpinion:
        """Of what the stage's keeper has kept."""
        kept, unit = self.keepers[stage].kept, answers_world.unit(stage)
        assert kept is not None, "there is an answer"
        return await self.obey(
            control_pb2.AuditOrder(
                unit=audit_to_proto(unit),
                answer=answer_to_proto(kept.answer),
                version_root=version_root,
                sources=[self.sources[stage]],
            )
        )

    async def obey(self, order: control_pb2.AuditOrder) -> control_pb2.AuditOpinion:
        await self.link.send(pb.RefereeCommand(audit=order))
        found = (await self.event()).opinion
        assert found.unit == order.unit
        return found

    async def record(self, unit: Audit, tensors_of: int | None = None) -> pb.Recording:
        await self.link.send(
            pb.RefereeCommand(record=pb.RecordOperators(order=self.order(unit), tensors_of=tensors_of))
        )
        return (await self.event()).recording


@contextlib.asynccontextmanager
async def running(tmp_path: Path, lie: type[Node] = Node, at: int = -1) -> AsyncIterator[Running]:
    """Two rounds of three stages, each served by its node; and a referee whose every folder is an empty one."""
    manifest, tokens = pack_text(tmp_path / "data")
    spec = tiny_spec(manifest, tokens, stages=3)
    dataset = Dataset.open(tmp_path / "data", spec)
    world = World([(lie if index == at else Node)(spec, index) for index in range(3)])
    microbatches = range(spec.training.microbatches_per_round)
    for round_ in range(2):
        world.train(round_, [dataset.microbatch(round_, number) for number in microbatches])
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {"HOME": str(empty), "TMPDIR": str(empty), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    async with contextlib.AsyncExitStack() as stack:
        sources, keepers = [], [Keeper(node) for node in world.nodes]
        for number, keeper in enumerate(keepers):
            certificate = make_certificate(NodeIdentity(bytes([number + 2]) * 32))
            server, port = await serve(
                [(evidence_pb2_grpc.add_EvidenceServicer_to_server, keeper)],
                "127.0.0.1:0",
                server_credentials(certificate, lambda: [ME.der]),
                max_message_bytes=PIPE_FRAME_BYTES,
            )
            stack.push_async_callback(server.stop, None)
            address = f"127.0.0.1:{port}"
            source = control_pb2.EvidenceSource(
                peer_id=certificate.peer_id, address=address, certificate=certificate.der
            )
            sources.append(source)
        with contextlib.chdir(empty):
            process, link = await spawn_worker([sys.executable, "-m", "referee"], environment)
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield Running(spec, tmp_path / "data", world, process, link, sources, keepers)
        finally:
            await link.close()
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()


def resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS:"))


def bytes_to_disk(pid: int) -> int:
    text = Path(f"/proc/{pid}/io").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes:"))


async def test_it_replays_what_nodes_serve_and_ends_with_its_link(tmp_path):
    async with running(tmp_path) as referee:
        await referee.start()
        assert "1 thread" in referee.numerics
        assert os.getpriority(os.PRIO_PROCESS, referee.process.pid) == 19
        for unit in (whole(0), whole(1), whole(2), single(0), Audit(1, 2, Kind.LOSS, 0), Audit(1, 0, Kind.DATA, 0)):
            found = await referee.audit(unit)
            assert (found.verdict, found.evidence) == ("passed", b""), found.why
            assert found.seconds > 0
            assert 0 < found.cpu_seconds <= found.seconds * 2
            assert (found.fetched_bytes > 0) == (unit.kind is not Kind.DATA)
    assert referee.process.returncode == 0


async def test_fraud_is_shown_and_withholding_said(tmp_path):
    async with running(tmp_path, WrongOutput, 1) as referee:
        await referee.start()
        found = await referee.audit(single(1))
        assert found.verdict == "failed"
        assert found.evidence.startswith(b'{"commitments":')
        assert "activation_out of microbatch 1" in found.why
        del referee.world.nodes[1].states[1, "parameters", False]
        found = await referee.audit(single(1))
        assert (found.verdict, found.evidence) == ("withheld", b"")
        assert "[EVIDENCE_MISSING]" in found.why
        assert (await referee.audit(single(2, 0))).verdict == "passed"


async def test_one_microbatch_shows_a_false_sum(tmp_path):
    async with running(tmp_path, FalseGradient, 1) as referee:
        await referee.start()
        found = await referee.audit(single(1))
        assert found.verdict == "failed"
        assert "sketch of microbatch 0" in found.why
        referee.world.nodes[1].gradients.clear()
        found = await referee.audit(single(1))
        assert found.verdict == "failed", "the whole round shows it without the gradient"
        assert (await referee.audit(single(2))).verdict == "passed"


async def test_it_replays_answers(tmp_path):
    async with running(tmp_path) as referee:
        await referee.start()
        model = Model.of(referee.spec, [node.stage for node in referee.world.nodes])
        kept = model.answered(steps=(2, 3, 1, 1), temperature=0.8, lies={1: answers_world.stale})
        for keeper, part in zip(referee.keepers, kept, strict=True):
            keeper.kept = part
        for stage, due in enumerate(("passed", "failed", "passed")):
            found = await referee.audit_answer(stage, model.roots[stage])
            assert found.verdict == due, found.why
            assert found.fetched_bytes == len(kept[stage].whole) + len(model.served[stage])
            assert found.evidence.startswith(b'{"difference":{"error":' if due == "failed" else b"")
        found = await referee.audit_answer(0, model.roots[1])
        assert (found.verdict, found.evidence) == ("withheld", b"")
        referee.sources[0].certificate = referee.sources[1].certificate
        found = await referee.audit_answer(0, model.roots[0])
        assert (found.verdict, found.evidence) == ("withheld", b"")
        assert "[WIRE_IDENTITY]" in found.why
        assert (await referee.audit(single(1))).verdict == "passed"


async def test_who_presents_another_certificate_is_not_believed(tmp_path):
    """The neighbours serve the tensors; state and gradient only their holder has."""
    async with running(tmp_path) as referee:
        await referee.start()
        referee.sources[1].certificate = referee.sources[0].certificate
        for unit in (whole(1, round_=0), single(1, round_=0)):
            found = await referee.audit(unit)
            assert found.verdict == "passed", found.why
        for unit in (single(1), whole(1)):
            found = await referee.audit(unit)
            assert found.verdict == "withheld"
            assert "[WIRE_IDENTITY]" in found.why


async def test_whatever_a_node_answers_is_its_own_fault(tmp_path):
    """Nothing that it does ends the referee, or leaves the unit undecided, which would cost it nothing."""
    async with running(tmp_path) as referee:
        await referee.start()
        keeper = referee.keepers[1]
        for keeper.answer in (cancel, fail, send_nothing, announce_too_much, send_empty_parts, send_rubbish):
            found = await referee.audit(single(1))
            assert (found.verdict, found.evidence) == ("withheld", b""), (keeper.answer, found.why)
        keeper.answer = None
        assert (await referee.audit(single(1))).verdict == "passed"


async def test_nothing_is_written_and_nothing_stays(tmp_path):
    async with running(tmp_path) as referee:
        await referee.start()
        pid, units = referee.process.pid, [whole(1), single(1)]

        async def audit(times: int) -> int:
            for number in range(times):
                assert (await referee.audit(units[number % 2])).verdict == "passed"
            return resident_kib(pid)

        before = await audit(100)  # until then the allocator and gRPC take what they keep
        states = 120 * len(referee.world.nodes[1].states[1, "parameters", False]) // 1024
        for _ in range(3):  # now and then they take more, but no audit leaves anything: so not each 120 do
            grown = await audit(120) - before
            if grown < states // 4:
                break
            before += grown
        else:
            raise AssertionError(f"120 audits, of {states} KiB of states in all, left {grown} KiB each time")
        assert bytes_to_disk(pid) == 0
    assert list((tmp_path / "empty").iterdir()) == []


async def test_text_of_another_model_ends_it_with_the_reason(tmp_path, capfd):
    async with running(tmp_path) as referee:
        manifest, _ = pack_text(tmp_path / "other", "Another text. " * 400)
        assert manifest != referee.spec.data.manifest
        referee.data = tmp_path / "other"
        with pytest.raises(AssertionError, match="the referee is gone"):
            await referee.start()
        assert await referee.process.wait() == 1
    assert "[DATA_INVALID]" in capfd.readouterr().err


async def test_it_records_operators_and_goes_on_after_what_it_can_t(tmp_path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), running(tmp_path) as referee:
        await referee.start()
        for unit in (whole(0), single(1)):
            plain = await referee.record(unit)
            assert not plain.failure
            found = await referee.record(unit, 0)
            assert found.operators == plain.operators
            assert operator_hash(found.operators, 0) == keccak(found.record)
            assert found.tensors
        referee.keepers[1].answer = fail
        assert "Nobody served" in (await referee.record(whole(1))).failure
        referee.keepers[1].answer = None
        assert (await referee.record(single(1))).operators == plain.operators
        assert (await referee.audit(single(1))).verdict == "passed"
