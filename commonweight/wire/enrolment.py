"""How a node or a gateway makes itself known to a coordinator."""

from dataclasses import dataclass

import grpc

from commonweight.errors import PeerUnreachable, Refused
from commonweight.wire import PROTOCOL_VERSION
from commonweight.wire.channel import join_address, open_channel
from commonweight.wire.generated import control_pb2, control_pb2_grpc
from commonweight.wire.messages import split_peer
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate, fetch_certificate

CALL_S = 10.0
"""For one call to be answered."""


@dataclass(frozen=True)
class Enrolled:
    """Where a coordinator answers who is enrolled."""

    address: str
    """host:port of its services."""
    certificate: bytes
    """What it presents there (DER)."""


async def enrol(coordinator: str, certificate: Certificate) -> Enrolled:
    """Have `certificate` admitted by the coordinator at "PEERID@host:port".

    Raises Refused or IdentityMismatch where asking again won't help, PeerUnreachable where it may.
    """
    peer_id, host, port = split_peer(coordinator)
    theirs = await fetch_certificate(host, port, peer_id, CALL_S)
    address = join_address(host, port)
    request = control_pb2.EnrolRequest(certificate=certificate.der, protocol_version=PROTOCOL_VERSION)
    async with open_channel(address, certificate, theirs) as channel:
        try:
            answer = await control_pb2_grpc.EnrolmentStub(channel).Enrol(request, timeout=CALL_S, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            failure = wire_error(error, f"The coordinator at {address}")
            if isinstance(failure, Refused):
                raise failure from error
            raise PeerUnreachable(failure.args[0]) from error
    return Enrolled(join_address(host, answer.control_port), theirs)
