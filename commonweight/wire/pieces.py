"""Putting pieces with keepers, and getting them back.

    connection = KeeperConnection(keeper, certificate)
    await connection.put(head, path)
    head = await connection.get(request, limit_bytes, path)

A keeper is believed nothing: what a piece must be is for who gets it to check.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from commonweight.errors import MalformedMessage, MessageTooLarge, PeerUnreachable
from commonweight.rules.keeping import KEY_SHARE_BYTES, MAX_MANIFEST_BYTES
from commonweight.wire.channel import PIPE_PART_BYTES
from commonweight.wire.evidence import Source, open_source
from commonweight.wire.generated import pieces_pb2 as pb
from commonweight.wire.generated import pieces_pb2_grpc
from commonweight.wire.status import wire_error
from commonweight.wire.tls import Certificate

TRANSFER_S = 30.0
"""For a piece, the connection included, and its bytes at MIN_BYTES_PER_S beside."""
MIN_BYTES_PER_S = 1 << 20
CONNECT_S = 5.0
SIGNATURE_BYTES = 65


def transfer_s(size: int) -> float:
    """How long a piece may be under way."""
    return TRANSFER_S + size / MIN_BYTES_PER_S


def check_head(head: pb.PieceHead) -> None:
    """Raises MalformedMessage where a field is missing, or longer than it can be."""
    if not 0 < len(head.manifest) <= MAX_MANIFEST_BYTES:
        raise MalformedMessage(f"A piece's manifest has {len(head.manifest)} bytes; 1 to {MAX_MANIFEST_BYTES} are due.")
    if len(head.signature) != SIGNATURE_BYTES or len(head.key_share) != KEY_SHARE_BYTES:
        raise MalformedMessage(
            f"A piece comes with a signature of {len(head.signature)} bytes and a key share of {len(head.key_share)}; "
            f"due are {SIGNATURE_BYTES} and {KEY_SHARE_BYTES}."
        )


async def parts_of(head: pb.PieceHead, path: Path) -> AsyncIterator[pb.PiecePart]:
    """The messages of a piece whose bytes are in a file. Raises OSError."""
    yield pb.PiecePart(head=head)
    with await asyncio.to_thread(path.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, PIPE_PART_BYTES):
            yield pb.PiecePart(data=data)


class KeeperConnection:
    """To one keeper; connects with the first call.

    Calls raise StateUnavailable where the keeper hasn't what is asked for, Refused where it doesn't let the caller,
    PeerUnreachable where it hasn't answered within the deadline, and what their docstrings say.
    """

    def __init__(self, keeper: Source, certificate: Certificate) -> None:
        """`certificate` is what was granted. Raises as `open_source`."""
        self._who = f"{keeper.peer_id} at {keeper.address}"
        self._channel = open_source(keeper, certificate)
        self._stub = pieces_pb2_grpc.KeepingStub(self._channel)

    async def put(self, head: pb.PieceHead, path: Path, size: int) -> None:
        """Have it keep the piece in a file of this size. Raises OSError where that can't be read."""
        await self._connect()
        try:
            await self._stub.Put(parts_of(head, path), timeout=transfer_s(size), wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise wire_error(error, self._who) from error

    async def get(self, request: pb.PieceRequest, limit_bytes: int, path: Path) -> pb.PieceHead:
        """Write what it keeps, at most so many bytes, to a file, and return what it says of it. Raises MalformedMessage
        and MessageTooLarge for other messages than those of a piece, and OSError.
        """
        await self._connect()
        call = self._stub.Get(request, timeout=transfer_s(limit_bytes), wait_for_ready=True)
        head: pb.PieceHead | None = None
        received = 0
        try:
            with await asyncio.to_thread(path.open, "wb") as file:
                async for part in call:
                    if part.HasField("head") != (head is None):
                        raise MalformedMessage(f"{self._who} sent a head after the first part, or none with it.")
                    if head is None:
                        check_head(part.head)
                        head = part.head
                    received += len(part.data)
                    if received > limit_bytes:
                        raise MessageTooLarge(f"{self._who} sent over {limit_bytes} bytes, more than a piece can have.")
                    await asyncio.to_thread(file.write, part.data)
        except grpc.aio.AioRpcError as error:
            raise wire_error(error, self._who) from error
        finally:
            call.cancel()
        if head is None:
            raise MalformedMessage(f"{self._who} sent nothing.")
        return head

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._channel.channel_ready()
        except TimeoutError:
            raise PeerUnreachable(
                f"No connection with {self._who} within {CONNECT_S:g} s: it is away, or admits somebody else."
            ) from None

    async def close(self) -> None:
        """End it, and every call."""
        await self._channel.close()
