"""The coordinator's two gRPC services: enrolment of certificates, and one control stream per node or auditor."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc

from commonweight.errors import CommonweightError, Refused, WireError
from commonweight.events import emit
from commonweight.identity import address_of
from commonweight.wire import PROTOCOL_VERSION
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.status import refuse
from commonweight.wire.tls import certificate_of, peer_id_of, peer_of
from coordinator.attendance import AttendingAuditor, AttendingNode, Reception
from coordinator.members import Send
from coordinator.serving import Serving

SILENCE_S = 4.0
"""A node that says nothing for this long is lost; it sends a heartbeat every second."""
HEARTBEAT_S = 1.0
MAX_OUTBOX = 256
"""Messages that wait for a node that doesn't read; past that it is hung up on."""
MAX_CERTIFICATES_PER_NODE = 4
"""An old certificate that somebody replays can't push out the current one at once."""
MAX_ENROLLED = 4096
MAX_EXPECTED = 1024
"""Certificates that may connect at a time; of more, the newest. Each connection keeps a copy of all of them (2.5 KB
each), and each handshake after a change reads them all."""


class Admission:
    """Which nodes may take part, and the certificates that they have shown."""

    def __init__(self, allowed: frozenset[str], gateways: frozenset[str]) -> None:
        """`allowed`: addresses; empty: anyone whose certificate is its key's, up to MAX_ENROLLED nodes. `gateways` may
        connect, too, but not hold a stage unless they are allowed.
        """
        self._allowed = allowed
        self._gateways = gateways
        self._certificates: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()
        self._expected: dict[bytes, None] = {}
        """Those that were enrolled, and hadn't connected when the last one was."""
        self._arrived: set[bytes] = set()
        """Those of them that have connected since.

        They stay until another one comes: gRPC (1.85, issue 36693) may use what it knew of a server's certificates
        after it has replaced and freed it. What it replaces is still held by a connection if it is replaced only when
        somebody is about to connect.
        """
        self._gateway_peers: set[str] = set()
        """PeerIds of the gateways that have enrolled."""

    def enrol(self, certificate: bytes) -> str:
        """Let this certificate connect; returns its PeerId.

        Raises IdentityMismatch where it isn't bound to its key, Refused where the node may not take part.
        """
        peer_id = peer_id_of(certificate)
        address = address_of(peer_id)
        is_gateway = address in self._gateways
        if not is_gateway:
            self.check_node(address)
            if peer_id not in self._certificates and len(self._certificates) >= MAX_ENROLLED:
                raise Refused(f"{MAX_ENROLLED} nodes are enrolled already. Try again later.")
        shown = self._certificates.setdefault(peer_id, OrderedDict())
        shown[certificate] = None
        shown.move_to_end(certificate)
        if len(shown) > MAX_CERTIFICATES_PER_NODE:
            shown.popitem(last=False)
        if is_gateway:
            self._gateway_peers.add(peer_id)
        self._arrived.discard(certificate)
        waiting = [each for each in self._expected if each not in self._arrived and each != certificate]
        self._arrived.clear()
        self._expected = dict.fromkeys([*waiting, certificate][-MAX_EXPECTED:])
        return peer_id

    def arrived(self, certificate: bytes) -> None:
        """Its holder has connected. A connection outlives this; for the next it enrols again."""
        if certificate in self._expected:
            self._arrived.add(certificate)

    def check_node(self, address: str) -> None:
        """Raises Refused where it may not hold a stage."""
        if self._allowed and address not in self._allowed:
            raise Refused(f"{address} is not on this coordinator's list of nodes. Ask its operator to allow it.")

    def admitted(self) -> Iterator[bytes]:
        """The certificates (DER) of all who may take part."""
        for shown in list(self._certificates.values()):
            yield from list(shown)

    def expected(self) -> Iterator[bytes]:
        """Those of whoever may connect now: nodes enrol before each connection, gateways come back by themselves."""
        yield from list(self._expected)
        yield from self.gateways()

    def gateways(self) -> Iterator[bytes]:
        """Those of gateways."""
        for peer_id in list(self._gateway_peers):
            yield from list(self._certificates[peer_id])


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
    """Holds the streams of who attends: what they say goes where it belongs, and what they are told to them."""

    admission: Admission
    reception: Reception

    async def Attach(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[pb.NodeMessage], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.CoordinatorMessage]:
        """A node's or an auditor's stream, from its first message to its end."""
        outbox: asyncio.Queue[pb.CoordinatorMessage | CommonweightError] = asyncio.Queue(MAX_OUTBOX)
        unread = Refused(f"The node left {MAX_OUTBOX} messages unread.")

        def send(message: pb.CoordinatorMessage | CommonweightError) -> None:
            if outbox.full():
                emit("node.failed", node=address_of(peer_of(context)), code=unread.code, message=unread.args[0])
                while not outbox.empty():
                    outbox.get_nowait()
                outbox.put_nowait(unread)
                reader.cancel()  # what it says doesn't count any more; why, it is told when it reads again
            elif not reader.done():
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
        attending: AttendingNode | AttendingAuditor | None = None
        try:
            peer_id = peer_of(context, self.admission.admitted)
            self.admission.check_node(address_of(peer_id))
            self.admission.arrived(certificate_of(context))
            attending = await self.reception.introduce(await self._next(requests), peer_id, send)
            while True:
                await attending.take(await self._next(requests))
        except (WireError, TimeoutError) as error:
            failure = error if isinstance(error, WireError) else Refused(f"The node was silent for {SILENCE_S:g} s.")
            emit("node.failed", node=attending and attending.node, code=failure.code, message=failure.args[0])
            send(failure)
        except (StopAsyncIteration, asyncio.CancelledError, grpc.RpcError):
            pass  # the stream ended; there is nobody left to tell
        finally:
            if attending is not None:
                attending.leave()

    @staticmethod
    async def _next(requests: AsyncIterator[pb.NodeMessage]) -> pb.NodeMessage:
        message = asyncio.ensure_future(anext(requests))
        try:
            # In two halves: where this process was busy for one, what has come meanwhile is read in the other.
            for _ in range(2):
                done, _pending = await asyncio.wait({message}, timeout=SILENCE_S / 2)
                if done:
                    return message.result()
            raise TimeoutError
        finally:
            message.cancel()
