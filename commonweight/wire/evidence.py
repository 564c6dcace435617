"""Fetching what nodes keep of their rounds: what an auditor does.

    async with EvidenceClient(certificate) as client:
        tokens = await client.fetch_tensor(source, round_, digest, size, timeout_s=30)
        parameters = await client.fetch_state(source, round_, "parameters", after=False, max_bytes=limit, timeout_s=300)
        trace = await client.fetch_answer(source, round_, session, max_bytes=limit, timeout_s=30)

A source is believed nothing, but only sizes are looked at here: what the bytes hash to is for who asked for them.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

import grpc

from commonweight.errors import MalformedMessage, MessageTooLarge, PeerUnreachable
from commonweight.wire.channel import PIPE_FRAME_BYTES, PIPE_PART_BYTES, PIPE_PING_TIMEOUT_MS, open_channel
from commonweight.wire.generated import evidence_pb2 as pb
from commonweight.wire.generated import evidence_pb2_grpc
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate, check_certificate

StatePart = Literal["parameters", "moments"]

EVIDENCE_PART_BYTES = PIPE_PART_BYTES
"""In one part, at most."""
MAX_RETAINED_ROUNDS = 16
"""A node keeps evidence of so many sealed rounds at most, the last ones: who audits must be no further behind."""
CONNECT_S = 5.0
"""For a node that has just been started again to listen."""
MAX_CONNECTIONS = 8
"""That an auditor keeps, to the sources that it has asked last: one audit has three."""


@dataclass(frozen=True)
class Source:
    """A node that may have evidence."""

    peer_id: str
    address: str
    """host:port of its Evidence service."""
    certificate: bytes
    """What it presents there (DER)."""


def open_source(source: Source, certificate: Certificate) -> grpc.aio.Channel:
    """A channel to what the node serves there, opened with `certificate`, which it was granted; connects with the first
    call. Raises IdentityMismatch where the source's certificate isn't its own, and ConfigError where its address is
    none.
    """
    check_certificate(source.certificate, source.peer_id)
    return open_channel(
        source.address,
        certificate,
        source.certificate,
        max_message_bytes=PIPE_FRAME_BYTES,
        ping_timeout_ms=PIPE_PING_TIMEOUT_MS,
    )


class EvidenceClient:
    """An auditor's connections; each is opened with the first fetch from its source, and MAX_CONNECTIONS are kept.

    Fetches raise EvidenceMissing where the source doesn't keep what is asked for, MalformedMessage or MessageTooLarge
    where it sends something else, IdentityMismatch where the certificate isn't its own, Refused or PeerUnreachable
    where it doesn't let this auditor fetch, isn't there, or hasn't sent all of it `timeout_s` after the call.
    """

    def __init__(self, certificate: Certificate) -> None:
        """`certificate` is what the nodes were told that the auditor presents."""
        self._certificate = certificate
        self._channels: dict[Source, grpc.aio.Channel] = {}
        """The one that was asked last is the last."""

    async def fetch_tensor(self, source: Source, round_: int, digest: bytes, size: int, *, timeout_s: float) -> bytes:
        """`size` bytes that should have this SHA-256, and have crossed one of the source's sides in the round."""
        request = pb.EvidenceRequest(round=round_, tensor=digest)
        return await self._fetch(source, request, size, size, timeout_s)

    async def fetch_state(
        self, source: Source, round_: int, part: StatePart, *, after: bool, max_bytes: int, timeout_s: float
    ) -> bytes:
        """A part of the state of the source's stage before or after the round, in safetensors' format."""
        if part == "parameters":
            request = pb.EvidenceRequest(round=round_, parameters_after=after)
        else:
            request = pb.EvidenceRequest(round=round_, moments_after=after)
        return await self._fetch(source, request, 1, max_bytes, timeout_s)

    async def fetch_gradient(
        self, source: Source, round_: int, gradient_hash: bytes, *, max_bytes: int, timeout_s: float
    ) -> bytes:
        """The gradient of the round that should have this hash, in safetensors' format: the sum over the source's load,
        or what its stage was stepped with.
        """
        request = pb.EvidenceRequest(round=round_, gradient=gradient_hash)
        return await self._fetch(source, request, 1, max_bytes, timeout_s)

    async def fetch_answer(
        self, source: Source, round_: int, session: bytes, *, max_bytes: int, timeout_s: float
    ) -> bytes:
        """The source's trace of an answer that was sealed with the round: ids, what came in, and what went out."""
        return await self._fetch(source, pb.EvidenceRequest(round=round_, answer=session), 1, max_bytes, timeout_s)

    async def fetch_version(
        self, source: Source, round_: int, version: int, *, max_bytes: int, timeout_s: float
    ) -> bytes:
        """The parameters that an answer was generated with, which was sealed with the round, in safetensors' format."""
        return await self._fetch(source, pb.EvidenceRequest(round=round_, version=version), 1, max_bytes, timeout_s)

    async def _fetch(
        self, source: Source, request: pb.EvidenceRequest, least: int, most: int, timeout_s: float
    ) -> bytes:
        """What is sent. Nothing is kept of it before its size is known to be in range."""
        channel = await self._channel(source)
        try:
            async with asyncio.timeout(min(CONNECT_S, timeout_s)):
                await channel.channel_ready()
        except TimeoutError:
            raise PeerUnreachable(
                f"No connection with {source.peer_id} at {source.address} within {min(CONNECT_S, timeout_s):g} s."
            ) from None
        call = evidence_pb2_grpc.EvidenceStub(channel).Fetch(request, timeout=timeout_s, wait_for_ready=True)
        parts: list[bytes] = []
        size = received = 0
        try:
            async for part in call:
                if not parts:
                    size = part.size
                    if not least <= size <= most:
                        raise MessageTooLarge(f"{source.peer_id} would send {size} bytes; due are {least} to {most}.")
                parts.append(part.data)
                received += len(parts[-1])
                if not parts[-1] or received > size:
                    raise MalformedMessage(
                        f"{source.peer_id} sent an empty part, or more than the {size} bytes it said."
                    )
        except grpc.aio.AioRpcError as error:
            raise wire_error(error, f"{source.peer_id} at {source.address}") from error
        finally:
            call.cancel()
        if received != size or not parts:
            raise MalformedMessage(f"{source.peer_id} ended after {received} of {size} bytes.")
        return b"".join(parts)

    async def _channel(self, source: Source) -> grpc.aio.Channel:
        channel = self._channels.pop(source, None)
        if channel is None:
            channel = open_source(source, self._certificate)
        self._channels[source] = channel
        if len(self._channels) > MAX_CONNECTIONS:
            await self._channels.pop(next(iter(self._channels))).close()
        return channel

    async def close(self) -> None:
        """Close all connections."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def __aenter__(self) -> "EvidenceClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
