"""What a gateway asks the coordinator: which nodes generate. And what it tells it: what they have generated."""

import asyncio
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import grpc
from eth_utils.address import is_address

from commonweight.errors import ConfigError, MalformedMessage, PeerUnreachable, SpecError
from commonweight.rules.answer import served_receipt
from commonweight.rules.receipt import Receipt
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.wire.channel import open_channel, split_address
from commonweight.wire.enrolment import CALL_S, enrol
from commonweight.wire.generated import serving_pb2 as pb
from commonweight.wire.generated import serving_pb2_grpc
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate, check_certificate

MIN_REQUEST_ID_BYTES, MAX_REQUEST_ID_BYTES = 16, 32


@dataclass(frozen=True)
class Served:
    """One answer, as the gateway reports it."""

    request_id: bytes
    """16 to 32 bytes, never used before."""
    round: int
    """The version that answered."""
    session: bytes
    """Under which the stages generated it, SESSION_BYTES."""
    prompt_tokens: int
    completion_tokens: int
    """Delivered."""

    def receipt(self, model_id: bytes) -> Receipt:
        """What the gateway signs."""
        return served_receipt(model_id, self.round, self.session, self.prompt_tokens, self.completion_tokens)


@dataclass(frozen=True)
class StageAddress:
    """The node that holds a stage, as a gateway sees it."""

    peer_id: str
    decode_address: str
    """host:port of its decode process."""
    certificate: bytes
    """What that presents (DER)."""
    account: str
    """Who is paid for its part."""


@dataclass(frozen=True)
class Route:
    """The way of a token through the stages of one version of a model."""

    id: bytes
    """Equal ids, equal routes."""
    spec: ModelSpec
    model_id: bytes
    round: int
    """The version: the one that is ready to train this round."""
    stages: tuple[StageAddress, ...]


def route_id(message: pb.ServingRoute) -> bytes:
    """SHA-256 of all but the id itself."""
    rest = pb.ServingRoute()
    rest.CopyFrom(message)
    rest.ClearField("id")
    return sha256(rest.SerializeToString(deterministic=True)).digest()


def route_from_proto(message: pb.ServingRoute) -> Route:
    """The route in a message.

    Raises MalformedMessage where it has another number of stages than its spec, or a spec, address or account that is
    none, IdentityMismatch where a certificate isn't its node's.
    """
    try:
        spec = parse_spec(message.spec)
    except SpecError as error:
        raise MalformedMessage(f"The route's spec: {error.args[0]}") from error
    if len(message.stages) != spec.stages:
        raise MalformedMessage(f"The route has {len(message.stages)} stages; the model has {spec.stages}.")
    stages = []
    for number, stage in enumerate(message.stages):
        check_certificate(stage.certificate, stage.peer_id)
        try:
            split_address(stage.decode_address)
        except ConfigError as error:
            raise MalformedMessage(f"The address of stage {number}: {error.args[0]}") from error
        if not is_address(stage.account):
            raise MalformedMessage(f"The account of stage {number}, {stage.account!r:.60}, is not an address.")
        stages.append(StageAddress(stage.peer_id, stage.decode_address, stage.certificate, stage.account))
    return Route(message.id, spec, message.model_id, message.round, tuple(stages))


class ServingClient:
    """A gateway's connection to the coordinator at "PEERID@host:port".

    It enrols by itself, again where the coordinator was restarted. Calls raise WireError: NotServed where no version is
    served at the moment, Refused where this gateway isn't on the coordinator's list.
    """

    def __init__(self, coordinator: str, certificate: Certificate) -> None:
        """Nothing is sent before the first call."""
        self._coordinator = coordinator
        self._certificate = certificate
        self._channel: grpc.aio.Channel | None = None
        self._connecting = asyncio.Lock()

    async def route(self) -> Route:
        """The route of the version that is served."""
        return route_from_proto(await self._call("Route", pb.RouteRequest()))

    async def report(self, served: Served, signature: bytes) -> bool:
        """Say what was served, signed (r ‖ s ‖ v) by this gateway's key; whether the coordinator hears it first now.

        Reporting a request again changes nothing.
        """
        message = pb.ServedReport(
            request_id=served.request_id,
            round=served.round,
            prompt_tokens=served.prompt_tokens,
            completion_tokens=served.completion_tokens,
            session=served.session,
            signature=signature,
        )
        return bool((await self._call("Report", message)).recorded)

    async def close(self) -> None:
        """Close the connection; a later call opens another one."""
        if self._channel is not None:
            await self._discard(self._channel)

    async def _call(self, name: str, request: Any) -> Any:
        if (channel := self._channel) is not None:
            try:
                return await self._ask(channel, name, request)
            except PeerUnreachable:
                await self._discard(channel)  # the coordinator may have another certificate and port now
        async with self._connecting:
            if self._channel is None:
                enrolled = await enrol(self._coordinator, self._certificate)
                self._channel = open_channel(enrolled.address, self._certificate, enrolled.certificate)
            channel = self._channel
        try:
            return await self._ask(channel, name, request)
        except PeerUnreachable:
            await self._discard(channel)
            raise

    async def _ask(self, channel: grpc.aio.Channel, name: str, request: Any) -> Any:
        where = f"The coordinator {self._coordinator}"
        try:
            return await getattr(serving_pb2_grpc.ServingStub(channel), name)(
                request, timeout=CALL_S, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.CANCELLED:  # another call has found it gone, and closed the channel
                raise PeerUnreachable(f"{where} was lost.") from error
            raise wire_error(error, where) from error

    async def _discard(self, channel: grpc.aio.Channel) -> None:
        if self._channel is channel:
            self._channel = None
        await channel.close()
