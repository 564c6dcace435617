"""The coordinator's two gRPC services: enrolment of certificates, and one control stream per node."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
from eth_utils.address import is_address, to_checksum_address

from commonweight.errors import CommonweightError, MalformedMessage, Refused, WireError
from commonweight.events import emit
from commonweight.identity import address_of, recover_address
from commonweight.rules.report import report_receipt
from commonweight.wire import PROTOCOL_VERSION
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.messages import report_from_proto
from commonweight.wire.status import refuse
from commonweight.wire.tls import peer_id_of, peer_of
from coordinator.members import Member, Send, Submission
from coordinator.seats import Seats
from coordinator.serving import Serving, check_reachable
from coordinator.training import Training

SILENCE_S = 4.0
"""A node that says nothing for this long is lost; it sends a heartbeat every second."""
HEARTBEAT_S = 1.0
MAX_OUTBOX = 256
"""Messages that wait for a node that doesn't read; past that it is hung up on."""
MAX_CERTIFICATES_PER_NODE = 4
"""An old certificate that somebody replays can't push out the current one at once."""
MAX_ENROLLED = 4096
MAX_NUMERICS = 200
"""Characters of the name of a numerics class."""


class Admission:
    """Which nodes may take part, and the certificates that they have shown."""

    def __init__(self, allowed: frozenset[str], gateways: frozenset[str]) -> None:
        """`allowed`: addresses; empty: anyone whose certificate is its key's, up to MAX_ENROLLED nodes. `gateways` may
        connect, too, but not hold a stage unless they are allowed.
        """
        self._allowed = allowed
        self._gateways = gateways
        self._certificates: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()

    def enrol(self, certificate: bytes) -> str:
        """Let this certificate connect; returns its PeerId.

        Raises IdentityMismatch where it isn't bound to its key, Refused where the node may not take part.
        """
        peer_id = peer_id_of(certificate)
        address = address_of(peer_id)
        if address not in self._gateways:
            self.check_node(address)
            if peer_id not in self._certificates and len(self._certificates) >= MAX_ENROLLED:
                raise Refused(f"{MAX_ENROLLED} nodes are enrolled already. Try again later.")
        shown = self._certificates.setdefault(peer_id, OrderedDict())
        shown[certificate] = None
        shown.move_to_end(certificate)
        if len(shown) > MAX_CERTIFICATES_PER_NODE:
            shown.popitem(last=False)
        return peer_id

    def check_node(self, address: str) -> None:
        """Raises Refused where it may not hold a stage."""
        if self._allowed and address not in self._allowed:
            raise Refused(f"{address} is not on this coordinator's list of nodes. Ask its operator to allow it.")

    def admitted(self) -> Iterator[bytes]:
        """The certificates (DER) that may connect."""
        for shown in list(self._certificates.values()):
            yield from list(shown)

    def gateways(self) -> Iterator[bytes]:
        """Those of gateways."""
        for peer_id, shown in list(self._certificates.items()):
            if address_of(peer_id) in self._gateways:
                yield from list(shown)


@dataclass
class EnrolmentService(control_pb2_grpc.EnrolmentServicer):
    """Takes certificates, on a port that asks for none."""

    admission: Admission
    serving: Serving
    control_port: int

    async def Enrol(  # noqa: N802 - gRPC's name
        self, request: pb.EnrolRequest, context: grpc.aio.ServicerContext
    ) -> pb.EnrolResponse:
        """Admit a certificate and say where the control service is."""
        try:
            if request.protocol_version != PROTOCOL_VERSION:
                raise Refused(
                    f"This coordinator speaks protocol {PROTOCOL_VERSION}, the node {request.protocol_version}: "
                    "install the same release on both."
                )
            peer_id = self.admission.enrol(request.certificate)
            if address_of(peer_id) in self.serving.gateways:
                self.serving.gateways_changed()
        except CommonweightError as error:
            emit("enrolment.refused", code=error.code, message=error.args[0], peer=context.peer())
            await refuse(context, error)
        emit("enrolment.accepted", node=address_of(peer_id), peer_id=peer_id)
        return pb.EnrolResponse(control_port=self.control_port)


@dataclass
class ControlService(control_pb2_grpc.ControlServicer):
    """Passes what nodes say to the training, and back."""

    training: Training
    serving: Serving
    admission: Admission
    seats: Seats

    async def Attach(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[pb.NodeMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        """A node's stream, from its Join to its end."""
        outbox: asyncio.Queue[pb.CoordinatorMessage | CommonweightError] = asyncio.Queue(MAX_OUTBOX)

        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            if outbox.full():
                outbox.get_nowait()
                message = Refused(f"The node left {MAX_OUTBOX} messages unread.")
            outbox.put_nowait(message)

        reader = asyncio.create_task(self._read(requests, context, send))
        try:
            while not (reader.done() and outbox.empty()):
                try:
                    message = await asyncio.wait_for(outbox.get(), HEARTBEAT_S)
                except TimeoutError:
                    message = pb.CoordinatorMessage(heartbeat=pb.Heartbeat())
                if isinstance(message, CommonweightError):
                    await refuse(context, message)
                yield message
            await reader  # the node has ended its side; or a bug of ours is to be seen
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(
        self, requests: AsyncIterator[pb.NodeMessage], context: grpc.aio.ServicerContext, send: Send
    ) -> None:
        member: Member | None = None
        try:
            peer_id = peer_of(context, self.admission.admitted)
            self.admission.check_node(address_of(peer_id))
            member = await self._introduce(await self._next(requests), peer_id, send)
            self.training.join(member)
            while True:
                self._take(member, await self._next(requests))
        except (WireError, TimeoutError) as error:
            failure = error if isinstance(error, WireError) else Refused(f"The node was silent for {SILENCE_S:g} s.")
            emit("node.failed", node=member and member.node, code=failure.code, message=failure.args[0])
            send(failure)
        except (StopAsyncIteration, asyncio.CancelledError, grpc.RpcError):
            pass  # the stream ended; there is nobody left to tell
        finally:
            if member is not None:
                self.training.leave(member)

    @staticmethod
    async def _next(requests: AsyncIterator[pb.NodeMessage]) -> pb.NodeMessage:
        return await asyncio.wait_for(anext(requests), SILENCE_S)

    async def _introduce(self, message: pb.NodeMessage, peer_id: str, send: Send) -> Member:
        if message.WhichOneof("body") != "join":
            raise MalformedMessage(f"A node begins with a join, not with {message.WhichOneof('body')}.")
        join = message.join
        if (owner := peer_id_of(join.certificate)) != peer_id:
            raise Refused(f"The data plane's certificate is of {owner}, the connection of {peer_id}.")
        check_reachable("data plane", join.data_address)
        check_reachable("evidence service", join.evidence_address)
        if not is_address(join.payout_account):
            raise MalformedMessage(f"The payout account {join.payout_account!r:.60} is not an address.")
        node, wished = address_of(peer_id), to_checksum_address(join.payout_account)
        standing = await asyncio.to_thread(self.seats.standing, node, wished, self.training.stage_of(node))
        return Member(
            node=node,
            peer_id=peer_id,
            data_address=join.data_address,
            evidence_address=join.evidence_address,
            certificate=join.certificate,
            account=standing.account,
            has_data=join.has_data,
            stages=standing.stages,
            send=send,
        )

    def _take(self, member: Member, message: pb.NodeMessage) -> None:
        match message.WhichOneof("body"):
            case "heartbeat":
                pass
            case "pipes_open":
                self.training.open_pipes(member, message.pipes_open.generation)
            case "pipes_failed":
                failed = message.pipes_failed
                self.training.break_pipes(member, failed.generation, f"{failed.code}: {failed.why}"[:500])
            case "report":
                self._take_report(member, message.report)
            case "version_ready":
                self.serving.ready(member, message.version_ready)
            case "version_failed":
                self.serving.failed(member, message.version_failed)
            case other:
                raise MalformedMessage(f"A node doesn't send {other} here.")

    def _take_report(self, member: Member, signed: pb.SignedReport) -> None:
        report = report_from_proto(signed.report)
        if len(signed.report.numerics) > MAX_NUMERICS:
            raise MalformedMessage(f"numerics: at most {MAX_NUMERICS} characters.")
        place, tip = self.training.place, self.training.tip_of(report.round)
        if tip is None:
            raise Refused(
                f"The report is of round {report.round}, which has no beacon tip now; round {self.training.round} is "
                "being trained."
            )
        receipt = report_receipt(place.model_id, signed.generation, report, tip)
        signer = recover_address(receipt.digest(place.domain), signed.signature)
        if signer != member.node:
            raise Refused(f"The report of round {report.round} is signed by {signer}, not by {member.node}.")
        self.training.submit(
            member,
            Submission(member.node, member.account, signed.generation, report, signed.signature, signed.report),
        )
