"""Sources of evidence that are nodes, reached over the network with a limit to the patience with each."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from commonweight.errors import PeerUnreachable
from commonweight.wire import evidence
from commonweight.wire.generated import control_pb2 as pb

PATIENCE_S = 20.0
"""With a node during one audit, in all, beyond the time that its bytes take at BYTES_PER_S."""
BYTES_PER_S = 1 << 20

T = TypeVar("T")


class NodeSource:
    """A `referee.sources.Source`: one node during one audit.

    A node that was once not there costs its patience once, however many tensors are asked for.
    """

    def __init__(self, client: evidence.EvidenceClient, message: pb.EvidenceSource) -> None:
        """`client` presents the certificate that nodes let fetch."""
        self.name = message.peer_id
        self._client = client
        self._node = evidence.Source(message.peer_id, message.address, message.certificate)
        self._patience_s = PATIENCE_S

    async def tensor(self, round_: int, digest: bytes, size: int) -> bytes:
        """As `Source.tensor`."""
        return await self._ask(
            size, lambda limit_s: self._client.fetch_tensor(self._node, round_, digest, size, timeout_s=limit_s)
        )

    async def state(self, round_: int, part: evidence.StatePart, *, after: bool, limit: int) -> bytes:
        """As `Source.state`."""
        return await self._ask(
            limit,
            lambda limit_s: self._client.fetch_state(
                self._node, round_, part, after=after, max_bytes=limit, timeout_s=limit_s
            ),
        )

    async def gradient(self, round_: int, signed: bytes, *, limit: int) -> bytes:
        """As `Source.gradient`."""
        return await self._ask(
            limit,
            lambda limit_s: self._client.fetch_gradient(self._node, round_, signed, max_bytes=limit, timeout_s=limit_s),
        )

    async def answer(self, round_: int, session: bytes, *, limit: int) -> bytes:
        """As `Source.answer`."""
        return await self._ask(
            limit,
            lambda limit_s: self._client.fetch_answer(self._node, round_, session, max_bytes=limit, timeout_s=limit_s),
        )

    async def version(self, round_: int, version: int, *, limit: int) -> bytes:
        """As `Source.version`."""
        return await self._ask(
            limit,
            lambda limit_s: self._client.fetch_version(self._node, round_, version, max_bytes=limit, timeout_s=limit_s),
        )

    async def _ask(self, size: int, fetch: Callable[[float], Awaitable[T]]) -> T:
        if self._patience_s <= 0:
            raise PeerUnreachable(f"it took over {PATIENCE_S:g} s more than its bytes take; it isn't asked any more.")
        self._patience_s += size / BYTES_PER_S
        started_s = time.monotonic()
        try:
            return await fetch(self._patience_s)
        finally:
            self._patience_s -= time.monotonic() - started_s
