"""The Evidence service of a node: what it keeps of its rounds, for auditors of what is drawn.

It runs in the control process, so the compute worker waits for nobody who fetches. Who may fetch what is decided by
draws.py; every call is held against it, because a connection outlives an admission.
"""

import asyncio
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from commonweight.errors import (
    CommonweightError,
    EvidenceMissing,
    MalformedMessage,
    PeerUnreachable,
    Refused,
    UnplannedMessage,
    WireError,
)
from commonweight.events import emit
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PING_TIMEOUT_MS, Servicer, serve
from commonweight.wire.evidence import EVIDENCE_PART_BYTES
from commonweight.wire.generated import control_pb2, evidence_pb2_grpc, pieces_pb2_grpc, state_pb2_grpc
from commonweight.wire.generated import evidence_pb2 as pb
from commonweight.wire.status import refuse
from commonweight.wire.tls import Certificate, certificate_of, server_credentials
from node.answers import answer_path, answers_folder
from node.draws import Draws
from node.keeping import Keeping
from node.offering import Offering
from node.published import MOMENTS_FILE, PARAMETERS_FILE, version_path
from node.receipts import Signed
from node.traces import read_index, trace_path

GRANT_S = 5.0
"""A call may come before the grant that it needs, which takes another way."""
FETCH_S = 600.0
"""For one fetch: a state of 6 GB at 80 Mbit/s."""
MAX_FETCHES = 4
"""At a time; the next ones wait."""
FILES = {"parameters_after": PARAMETERS_FILE, "moments_after": MOMENTS_FILE}
"""Of a version; by what a request asks for."""


class Evidence(evidence_pb2_grpc.EvidenceServicer):
    """Of one node. Methods run on the event loop."""

    def __init__(self, directory: Path, certificate: Certificate) -> None:
        """`directory` is the node's, with its checkpoints and receipts."""
        self.port = 0
        """On which it listens."""
        self._directory = directory
        self._certificate = certificate
        self._draws: Draws | None = None
        self._granted = asyncio.Condition()
        self._room = asyncio.Semaphore(MAX_FETCHES)
        self._index = lru_cache(maxsize=4)(read_index)  # a trace that may be fetched never changes
        self._server: grpc.aio.Server | None = None

    async def listen(self, address: str, offering: Offering | None = None, keeping: Keeping | None = None) -> None:
        """Serve on host:port, and on the same port what the node offers to other replicas of its stage, and what it
        keeps for others.

        Raises ConfigError where that can't be.
        """
        servicers: list[Servicer] = [(evidence_pb2_grpc.add_EvidenceServicer_to_server, self)]
        if offering is not None:
            servicers.append((state_pb2_grpc.add_StageStateServicer_to_server, offering))

        if keeping is not None:
            servicers.append((pieces_pb2_grpc.add_KeepingServicer_to_server, keeping))

        def admitted() -> set[bytes]:
            auditors = self._draws.admitted() if self._draws else set()
            return auditors.union(*(each.admitted() for each in (offering, keeping) if each is not None))

        self._server, self.port = await serve(
            servicers,
            address,
            server_credentials(self._certificate, admitted),
            max_message_bytes=PIPE_FRAME_BYTES,
            ping_timeout_ms=PIPE_PING_TIMEOUT_MS,
        )
        emit("evidence.listening", port=self.port)

    async def close(self) -> None:
        """End it, and every fetch."""
        if self._server is not None:
            await self._server.stop(grace=0)

    def begin(self, assignment: control_pb2.Assignment) -> None:
        """The node knows its model now, and its stage; later another one."""
        if self._draws is None:
            self._draws = Draws.open(self._directory, assignment)
        self._draws.stage = assignment.stage

    async def plan(self, plan: control_pb2.RoundPlan) -> None:
        """A round is to be trained; raises as `Draws.plan`."""
        await asyncio.to_thread(self._known().plan, plan.round, plan.beacon_tip)

    def tip(self, round_: int) -> bytes:
        """What a report of this round signs; raises as `Draws.tip`."""
        return self._known().tip(round_)

    async def seal(self, sealed: control_pb2.RoundSealed, signed: Signed | None) -> None:
        """A round is sealed; raises as `Draws.seal`."""
        await asyncio.to_thread(self._known().seal, sealed, signed)

    def needed_versions(self) -> frozenset[int]:
        """Published versions that an audit may ask for."""
        return self._draws.needed_versions() if self._draws else frozenset()

    async def grant(self, grant: control_pb2.AuditGrant) -> None:
        """Let an auditor fetch, where this node finds the unit drawn."""
        unit = grant.unit
        try:
            audit = await asyncio.to_thread(self._known().grant, grant)
        except WireError as error:
            code, message = error.code, error.args[0]
            emit("audit.refused", round=unit.round, stage=unit.stage, kind=unit.kind, code=code, message=message)
            return
        emit("audit.granted", round=audit.round, stage=audit.stage, kind=unit.kind, microbatch=audit.microbatch)
        async with self._granted:
            self._granted.notify_all()

    async def Fetch(self, request: pb.EvidenceRequest, context: Any) -> None:  # noqa: N802 - gRPC's name
        """See the proto."""
        try:
            async with asyncio.timeout(FETCH_S):
                auditor = certificate_of(context)
                await self._check(request, auditor)
                async with self._room:
                    await self._send(request, auditor, context)
        except TimeoutError:
            await self._refuse(context, PeerUnreachable(f"The fetch isn't over after {FETCH_S:g} s."))
        except CommonweightError as error:
            await self._refuse(context, error)

    async def _check(self, request: pb.EvidenceRequest, auditor: bytes) -> None:
        draws, kind = self._known(), request.WhichOneof("what")
        if kind is None:
            raise MalformedMessage(
                "A fetch asks for a tensor, a state, a gradient, or for the trace or the version of an answer."
            )

        def allowed() -> bool:
            if kind == "tensor":
                return draws.allows_tensors(auditor, request.round)
            if kind == "answer":
                return request.answer in draws.granted_answers(auditor, request.round)
            if kind == "version":
                return request.version in draws.granted_answers(auditor, request.round).values()
            return draws.allows_state(auditor, request.round)

        try:
            async with asyncio.timeout(GRANT_S), self._granted:
                await self._granted.wait_for(allowed)
        except TimeoutError:
            raise Refused(f"No audit that needs {_what(request)} is granted to the caller.") from None

    async def _send(self, request: pb.EvidenceRequest, auditor: bytes, context: Any) -> None:
        file, position, left = await asyncio.to_thread(self._open, request, auditor)
        with file:
            size = left
            while left:
                data = await asyncio.to_thread(os.pread, file.fileno(), min(left, EVIDENCE_PART_BYTES), position)
                if not data:
                    raise EvidenceMissing(f"The file ended {left} bytes before it should.")
                await context.write(pb.EvidencePart(size=size, data=data))
                size, position, left = 0, position + len(data), left - len(data)

    def _open(self, request: pb.EvidenceRequest, auditor: bytes) -> tuple[BinaryIO, int, int]:
        """The file, where in it what is asked for begins, and how many bytes it has. Raises EvidenceMissing."""
        draws, kind = self._known(), request.WhichOneof("what")
        try:
            if (stage := draws.stage_in(request.round)) is None:
                raise KeyError(request.round)
            folder = self._directory / f"stage-{stage}"
            if kind == "tensor":
                trace = trace_path(folder / "traces", request.round)
                position, size = self._index(trace)[request.tensor]
                return trace.open("rb"), position, size
            if kind == "gradient":
                trace = trace_path(folder / "gradients", request.round)
                position, size = self._index(trace)[request.gradient]
                return trace.open("rb"), position, size
            if kind == "answer":
                version = draws.granted_answers(auditor, request.round)[request.answer]
                path = answer_path(answers_folder(self._directory, stage), version, request.answer)
            elif kind == "version":
                path = version_path(self._directory / "published" / folder.name, request.version) / PARAMETERS_FILE
            else:
                path = version_path(folder, request.round + getattr(request, kind)) / FILES[kind]
            file = path.open("rb")
            return file, 0, os.fstat(file.fileno()).st_size
        except (OSError, KeyError, ValueError) as error:
            raise EvidenceMissing(f"This isn't kept here: {_what(request)}.") from error

    async def _refuse(self, context: Any, error: CommonweightError) -> None:
        emit("evidence.refused", peer=context.peer(), code=error.code, message=error.args[0])
        await refuse(context, error)

    def _known(self) -> Draws:
        if self._draws is None:
            raise UnplannedMessage("The coordinator speaks of rounds before it has assigned a stage.")
        return self._draws


def _what(request: pb.EvidenceRequest) -> str:
    kind = request.WhichOneof("what")
    if kind == "tensor":
        return f"tensor {request.tensor.hex()[:16]}… of round {request.round}"
    if kind == "gradient":
        return f"gradient {request.gradient.hex()[:16]}… of round {request.round}"
    if kind == "answer":
        return f"the trace of session {request.answer.hex()}, sealed with round {request.round}"
    if kind == "version":
        return f"version {request.version}, of an answer that was sealed with round {request.round}"
    return f"{kind.removesuffix('_after')} {'after' if getattr(request, kind) else 'before'} round {request.round}"
