"""Nodes without a worker: they speak the Control protocol as real ones do, and report rounds that nobody has trained.

A process of them: reads one JSON object from standard input, runs until standard input ends. All nodes report of the
same imagined tensors, so that their reports agree, at the end of each round's time.
"""

import asyncio
import contextlib
import hashlib
import json
import sys
from dataclasses import dataclass, field

from commonweight.errors import PeerUnreachable
from commonweight.identity import NodeIdentity
from commonweight.rules.receipt import Domain
from commonweight.rules.report import NO_TENSOR, Hop, Report, report_receipt
from commonweight.wire.attachment import Attachment, Backoff, Finished, attach, together
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import report_to_proto
from commonweight.wire.tls import make_certificate

NOWHERE = "127.0.0.1:9"
"""Where nobody opens a pipe or asks for evidence."""


@dataclass(frozen=True)
class LightNodes:
    """One process of them."""

    coordinator: str
    """PEERID@host:port."""
    first: int
    """Number of the first; keys follow from the numbers."""
    count: int
    nodes: int
    """In all processes."""
    stages: int
    microbatches: int
    round_s: float
    """From when a round may be begun, planned and the one before it sealed, to the last report."""
    joins_per_s: float


def light_identity(number: int) -> NodeIdentity:
    """The key of a light node, which holds nothing."""
    return NodeIdentity(hashlib.sha256(f"commonweight.bench.light/{number}".encode()).digest())


@dataclass
class LightNode:
    """One of them."""

    shared: LightNodes
    number: int
    _plan: pb.RoundPlan | None = None
    """Of the round that it is to report."""
    _ahead: pb.RoundPlan | None = None
    """Of the round after that."""
    _assignment: pb.Assignment = field(default_factory=pb.Assignment)
    _reporting: "asyncio.Task[None] | None" = None

    async def run(self) -> None:
        """Take part until cancelled, and come back when it is hung up on, as a node does."""
        await asyncio.sleep((self.number - self.shared.first) / self.shared.joins_per_s)
        identity, backoff = light_identity(self.number), Backoff()
        certificate = make_certificate(identity)
        join = pb.Join(
            data_address=NOWHERE,
            evidence_address=NOWHERE,
            certificate=certificate.der,
            payout_account=identity.address,
            has_data=True,
            stays=True,
        )
        while True:
            try:
                async with attach(self.shared.coordinator, certificate, pb.NodeMessage(join=join)) as coordinator:
                    await self._obey(coordinator, identity)
            except Finished:
                return
            except PeerUnreachable as error:
                await backoff.wait(error)
            finally:
                self._forget()

    async def _obey(self, coordinator: Attachment, identity: NodeIdentity) -> None:
        while True:
            message = await coordinator.receive()
            match message.WhichOneof("body"):
                case "assignment":
                    self._assignment = message.assignment
                case "version":
                    coordinator.send(pb.NodeMessage(version=pb.HasVersion(round=message.version.round)))
                case "formation":
                    coordinator.send(pb.NodeMessage(pipes_open=pb.PipesOpen(generation=message.formation.generation)))
                case "plan" if self._plan is not None and message.plan.round > self._plan.round:
                    self._ahead = message.plan
                case "plan":
                    self._begin(coordinator, identity, message.plan)
                case "sealed":
                    ahead = None if message.sealed.next_taken_back else self._ahead
                    self._forget()
                    if ahead is not None:
                        self._begin(coordinator, identity, ahead)
                case "pause":
                    self._forget()

    def _begin(self, coordinator: Attachment, identity: NodeIdentity, plan: pb.RoundPlan) -> None:
        self._forget()
        self._plan = plan
        self._reporting = asyncio.create_task(self._report(coordinator, identity, plan))

    def _forget(self) -> None:
        self._plan = self._ahead = None
        if self._reporting is not None:
            self._reporting.cancel()

    async def _report(self, coordinator: Attachment, identity: NodeIdentity, plan: pb.RoundPlan) -> None:
        shared, stage = self.shared, self._assignment.stage
        # Gradients come back through the stages in the last tenth of a round.
        await asyncio.sleep(shared.round_s * (0.9 + 0.1 * self.number / shared.nodes))
        of_stage, address = plan.stages[stage], bytes.fromhex(identity.address[2:])
        load = [j for j, member in enumerate(of_stage.assignment) if of_stage.members[member] == address]
        report = imagined_report(plan.round, stage, load, shared.stages, shared.microbatches)
        commitments = report.commitments(shared.microbatches)
        said = (plan.round, stage, commitments, plan.beacon_tip)
        receipt = report_receipt(self._assignment.model_id, plan.generation, *said)
        digest = receipt.digest(Domain(self._assignment.chain_id, self._assignment.settlement))
        seconds = shared.round_s
        message = report_to_proto(report, seconds, busy_s=seconds * len(load) / shared.microbatches)
        message.revision = of_stage.revision
        signature = identity.sign_digest(digest)
        signed = pb.SignedReport(generation=plan.generation, report=message, signature=signature)
        coordinator.send(pb.NodeMessage(report=signed))


def imagined_report(round_: int, stage: int, load: list[int], stages: int, microbatches: int) -> Report:
    """What a replica would report, had it trained its load; such reports of all replicas agree."""

    def hashed(*words: object) -> bytes:
        return hashlib.sha256("/".join(map(str, words)).encode()).digest()

    def crossing(kind: str, boundary: int, j: int) -> bytes:
        return NO_TENSOR if boundary in (0, stages) else hashed(kind, round_, boundary, j)

    summed = hashed("gradient", round_, stage)
    return Report(
        round=round_,
        stage=stage,
        hops=tuple(
            Hop(
                microbatch=j,
                tokens=hashed("tokens", round_, j),
                activation_in=crossing("activation", stage, j),
                activation_out=crossing("activation", stage + 1, j),
                gradient_in=crossing("gradient", stage + 1, j),
                gradient_out=crossing("gradient", stage, j),
                sketch=hashed("sketch", round_, stage, j),
                loss=2.0 if stage == stages - 1 else 0.0,
            )
            for j in load
        ),
        gradient_hash=summed if len(load) == microbatches else hashed("gradient", round_, stage, load),
        round_gradient_hash=summed,
        state_before=hashed("state", round_, stage),
        state_after=hashed("state", round_ + 1, stage),
    )


async def _until_input_ends() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    raise EOFError


async def _run(shared: LightNodes) -> None:
    nodes = [LightNode(shared, number) for number in range(shared.first, shared.first + shared.count)]
    with contextlib.suppress(EOFError):
        await together(_until_input_ends(), *(node.run() for node in nodes))


if __name__ == "__main__":
    asyncio.run(_run(LightNodes(**json.loads(sys.stdin.buffer.readline()))))
