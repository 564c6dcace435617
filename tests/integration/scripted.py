"""Nodes without torch: they speak the Control protocol from the test's process, and say what the test wants."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from commonweight.identity import NodeIdentity
from commonweight.rules.answer import Answer, answer_receipt
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Report, report_receipt
from commonweight.rules.spec import parse_spec
from commonweight.wire import PROTOCOL_VERSION
from commonweight.wire.channel import join_address, open_channel
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.messages import answer_to_proto, report_to_proto, split_peer
from commonweight.wire.tls import fetch_certificate, make_certificate
from tools.build_vectors import honest_reports

DEADLINE_S = 30.0
HEARTBEAT_S = 1.0


def honest_report(round_: int, stage: int, stages: int, microbatches: int) -> Report:
    """What a stage reports in a world where tensors are called by their names."""
    return honest_reports(stages, microbatches, round_)[stage]


class ScriptedNode:
    """A node's side of the Control protocol."""

    def __init__(self, identity: NodeIdentity, coordinator: str) -> None:
        self.identity = identity
        self.coordinator = coordinator
        self.certificate = make_certificate(identity)
        self.assignment = pb.Assignment()
        self.version = pb.Version()
        self.tips: dict[int, bytes] = {}
        """By round, from its plan: reports are signed over it."""
        self._plans: deque[pb.RoundPlan] = deque()
        """Not heard yet, and not taken back."""
        self._outbox: asyncio.Queue[pb.NodeMessage | None] = asyncio.Queue()
        self._call: Any = None

    @asynccontextmanager
    async def enrolment(self) -> AsyncIterator[control_pb2_grpc.EnrolmentStub]:
        peer_id, host, port = split_peer(self.coordinator)
        der = await fetch_certificate(host, port, peer_id, DEADLINE_S)
        async with open_channel(join_address(host, port), self.certificate, der, max_message_bytes=8 << 20) as channel:
            yield control_pb2_grpc.EnrolmentStub(channel)

    async def enrol(self, **fields: Any) -> int:
        """The control port; `fields` replace those of a right request."""
        right = {"certificate": self.certificate.der, "protocol_version": PROTOCOL_VERSION}
        async with self.enrolment() as stub:
            answer = await stub.Enrol(pb.EnrolRequest(**(right | fields)), timeout=DEADLINE_S)
        return answer.control_port

    @asynccontextmanager
    async def attached(self, port: int | None = None, *, beats: bool = True) -> AsyncIterator["ScriptedNode"]:
        """With an open stream on which nothing has been said."""
        peer_id, host, enrolment_port = split_peer(self.coordinator)
        der = await fetch_certificate(host, enrolment_port, peer_id, DEADLINE_S)
        port = await self.enrol() if port is None else port
        async with open_channel(join_address(host, port), self.certificate, der, max_message_bytes=8 << 20) as channel:
            self._outbox = asyncio.Queue()
            self._plans.clear()
            self._call = control_pb2_grpc.ControlStub(channel).Attach(self._messages(beats))
            yield self

    @asynccontextmanager
    async def seated(self, **fields: Any) -> AsyncIterator["ScriptedNode"]:
        """Joined (with these fields of its Join), its assignment read, and with the state that it is to have. While its
        last connection still counts it comes back, as a node does.
        """
        while True:
            async with self.attached():
                self.send(join=self.join(**fields))
                try:
                    self.assignment = await self.hear("assignment")
                    self.version = await self.hear("version")
                except grpc.aio.AioRpcError as error:
                    if "already connected" in (error.details() or ""):
                        continue
                    raise
                self.send(version=pb.HasVersion(round=self.version.round))
                yield self
                return

    def join(self, **fields: Any) -> pb.Join:
        right = {
            "data_address": "127.0.0.1:9",
            "evidence_address": "127.0.0.1:9",
            "certificate": self.certificate.der,
            "payout_account": self.identity.address,
            "has_data": True,
        }
        return pb.Join(**(right | fields))

    def send(self, **body: Any) -> None:
        self._outbox.put_nowait(pb.NodeMessage(**body))

    def end(self) -> None:
        """Say that no more comes."""
        self._outbox.put_nowait(None)

    async def hear(self, kind: str) -> Any:
        """The next message of this kind; others are passed over, but for plans: that of the next round may come before
        this one is sealed.
        """
        async with asyncio.timeout(DEADLINE_S):
            while kind != "plan" or not self._plans:
                message = await self._call.read()
                if message is grpc.aio.EOF:
                    raise AssertionError(f"the stream ended before a {kind}")
                self._keep(message)
                if message.WhichOneof("body") == kind != "plan":
                    return getattr(message, kind)
        return self._plans.popleft()

    def _keep(self, message: pb.CoordinatorMessage) -> None:
        """The plans that count."""
        match message.WhichOneof("body"):
            case "plan":
                self.tips[message.plan.round] = message.plan.beacon_tip
                self._plans.append(message.plan)
            case "sealed" if message.sealed.next_taken_back:
                self._plans = deque(plan for plan in self._plans if plan.round != message.sealed.round + 1)
            case "pause":
                self._plans.clear()

    async def refusal(self) -> tuple[grpc.StatusCode, str]:
        """How the coordinator ends the stream."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return await self._call.code(), await self._call.details()

    def sign(self, generation: int, report: Report) -> bytes:
        domain = Domain(self.assignment.chain_id, self.assignment.settlement)
        microbatches = parse_spec(self.assignment.spec).training.microbatches_per_round
        planned = max((round_ for round_ in self.tips if round_ <= report.round), default=min(self.tips))
        said = (report.round, report.stage, report.commitments(microbatches), self.tips[planned])
        receipt = report_receipt(self.assignment.model_id, generation, *said)
        return self.identity.sign_digest(receipt.digest(domain))

    def signed(self, generation: int, report: Report, /, **fields: Any) -> pb.SignedReport:
        """As a message; `fields` replace its own."""
        signature = self.sign(generation, report)
        message = report_to_proto(report, 0.5, busy_s=0.5)
        right = {"generation": generation, "report": message, "signature": signature}
        return pb.SignedReport(**(right | fields))

    def signed_answer(self, answer: Answer, /, **fields: Any) -> pb.SignedAnswer:
        """The part of the stage that it holds, as a message; `fields` replace its own."""
        assignment, numbers = self.assignment, (answer.prompt_tokens, answer.fed)
        said = (answer.version, answer.session, *numbers, answer.trace)
        receipt = answer_receipt(assignment.model_id, assignment.stage, *said)
        digest = receipt.digest(Domain(assignment.chain_id, assignment.settlement))
        right = {"part": answer_to_proto(answer), "signature": self.identity.sign_digest(digest)}
        return pb.SignedAnswer(**(right | fields))

    async def _messages(self, beats: bool) -> AsyncIterator[pb.NodeMessage]:
        while True:
            try:
                message = await asyncio.wait_for(self._outbox.get(), HEARTBEAT_S)
            except TimeoutError:
                if not beats:
                    continue
                message = pb.NodeMessage(heartbeat=pb.Heartbeat())
            if message is None:
                return
            yield message


@asynccontextmanager
async def a_round(*nodes: ScriptedNode) -> AsyncIterator[pb.RoundPlan]:
    """All nodes seated and their pipes as good as open; the plan of the next round. `nodes` are in stage order."""
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.seated())
        for node in nodes:
            formation = await node.hear("formation")
            node.send(pipes_open=pb.PipesOpen(generation=formation.generation))
        plans = [await node.hear("plan") for node in nodes]
        assert all(plan == plans[0] for plan in plans)
        yield plans[0]
