"""Framing of microbatches on a stage pipe: tensors to frames, and frames back to tensors, with no socket in
it.

A sender sends one microbatch after another, each as one frame or, over 1 MiB, as consecutive parts. So a receiver
holds at most one unfinished microbatch, of a size that its own plan says.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from commonweight.errors import MalformedMessage, MessageTooLarge, UnplannedMessage
from commonweight.wire.channel import PIPE_PART_BYTES
from commonweight.wire.generated import pipe_pb2, tensor_pb2
from commonweight.wire.tensors import (
    Plan,
    check_finite,
    check_header,
    digest,
    from_buffer,
    header_of,
    size_of,
    to_bytes,
)

MAX_MICROBATCH_BYTES = 1 << 31
"""All tensors of one microbatch in one direction."""
MAX_TENSORS = 16

Expect = Callable[[int, int], Sequence[Plan] | None]
"""From round and microbatch to the tensors that are due, or None where none are."""


@dataclass(frozen=True)
class Assembled:
    """One microbatch as it came.

    The tensors share the memory of what was received: never change them in place.
    """

    round: int
    microbatch: int
    tensors: tuple[Tensor, ...]
    digests: tuple[bytes, ...]
    """SHA-256 of each tensor's bytes; `digest(tensor)` of the sender's."""
    answered: bool = False
    """Of an activation: the sender has its gradient already."""


def encode(
    round_: int, microbatch: int, tensors: Sequence[Tensor], *, revision: int = 0, answered: bool = False
) -> list[pipe_pb2.PipeFrame]:
    """The frames of one microbatch, each with at most 1 MiB of tensor bytes; the headers are in the first.

    `revision` is that of the sender's plan; `answered` as in `Assembled`.
    Raises NonFiniteTensor for NaN or infinity, MalformedMessage for a dtype that doesn't travel,
    MessageTooLarge over MAX_MICROBATCH_BYTES.
    """
    for tensor in tensors:
        check_finite(tensor)
    headers = [header_of(tensor) for tensor in tensors]
    views = [to_bytes(tensor) for tensor in tensors]
    total = sum(view.nbytes for view in views)
    if not views or len(views) > MAX_TENSORS or total > MAX_MICROBATCH_BYTES:
        raise MessageTooLarge(
            f"A microbatch of {len(views)} tensors with {total} bytes doesn't travel: at most {MAX_TENSORS} "
            f"tensors and {MAX_MICROBATCH_BYTES} bytes, at least one tensor. Make the spec's microbatch "
            "smaller."
        )
    frames, offset = [], 0
    for part in _parts(views):
        tensor_frame = pipe_pb2.TensorFrame(
            round=round_,
            microbatch=microbatch,
            headers=headers if offset == 0 else (),
            offset=offset,
            data=part,
            revision=revision,
            answered=answered,
        )
        frames.append(pipe_pb2.PipeFrame(tensor=tensor_frame))
        offset += len(part)
    return frames


class Assembler:
    """Turns the frames of one direction of one pipe back into microbatches, and refuses what wasn't planned.

    Invariants: nothing is allocated for a microbatch before its headers equal the plan; at most one microbatch is
    unfinished. After an error the pipe is to be closed: what follows on it has no meaning.
    """

    def __init__(self, expect: Expect) -> None:
        self._expect = expect
        self._partial: _Partial | None = None

    def add(self, frame: pipe_pb2.PipeFrame) -> Assembled | None:
        """Take the next frame; returns the microbatch that it completes, or None.

        Raises UnplannedMessage, MalformedMessage, MessageTooLarge or NonFiniteTensor.
        """
        if frame.WhichOneof("body") != "tensor":
            raise MalformedMessage("A frame with a tensor is due on the pipe; this one has none.")
        part = frame.tensor
        data = part.data  # each access to the field copies it
        if len(data) > PIPE_PART_BYTES:
            raise MessageTooLarge(f"A part of {len(data)} bytes is over the limit of {PIPE_PART_BYTES}.")
        if self._partial is None:
            self._partial = self._begin(part)
        complete = self._partial.take(part, data)
        if complete is None:
            return None
        partial, self._partial = self._partial, None
        return partial.finish(complete)

    def forget(self, round_: int) -> None:
        """Nothing more comes of a microbatch of this round that is unfinished."""
        if self._partial is not None and self._partial.round == round_:
            self._partial = None

    def _begin(self, part: pipe_pb2.TensorFrame) -> "_Partial":
        where = f"microbatch {part.microbatch} of round {part.round}"
        plan = self._expect(part.round, part.microbatch)
        if plan is None:
            raise UnplannedMessage(f"{where} isn't planned, or has come before.")
        if not part.headers:
            raise MalformedMessage(f"{where} begins with a part that has no headers.")
        if len(part.headers) != len(plan):
            raise UnplannedMessage(f"{where} has {len(plan)} tensors by plan; {len(part.headers)} are announced.")
        for header, (dtype, shape) in zip(part.headers, plan, strict=True):
            check_header(header, dtype, shape)
        sizes = tuple(size_of(each) for each in plan)
        return _Partial(part.round, part.microbatch, tuple(part.headers), sizes, part.answered)


@dataclass
class _Partial:
    """A microbatch of which the first `received` bytes have come."""

    round: int
    microbatch: int
    headers: tuple[tensor_pb2.TensorHeader, ...]
    sizes: tuple[int, ...]
    answered: bool
    received: int = 0
    buffer: bytearray | None = field(default=None, repr=False)

    def take(self, part: pipe_pb2.TensorFrame, data: bytes) -> bytes | bytearray | None:
        """Add a part; returns the bytes of all tensors when that was the last."""
        total = sum(self.sizes)
        where = f"microbatch {self.microbatch} of round {self.round}"
        if (part.round, part.microbatch) != (self.round, self.microbatch):
            raise MalformedMessage(
                f"{where} is cut short at byte {self.received} of {total}: the next part is of microbatch "
                f"{part.microbatch} of round {part.round}."
            )
        if part.headers and self.received:
            raise MalformedMessage(f"{where} begins again at byte {self.received} of {total}.")
        if part.offset != self.received:
            raise MalformedMessage(f"{where} goes on at byte {part.offset}; due is byte {self.received} of {total}.")
        if not data:
            raise MalformedMessage(f"{where} has an empty part at byte {self.received} of {total}.")
        end = self.received + len(data)
        if end > total:
            raise MalformedMessage(f"{where} has {total} bytes by plan; this part goes on to byte {end}.")
        if len(data) == total:
            return data
        if self.buffer is None:
            self.buffer = bytearray(total)
        self.buffer[self.received : end] = data
        self.received = end
        return self.buffer if end == total else None

    def finish(self, data: bytes | bytearray) -> Assembled:
        """The tensors over `data`, hashed and checked for NaN and infinity."""
        view, offset = memoryview(data), 0
        tensors, digests = [], []
        for header, size in zip(self.headers, self.sizes, strict=True):
            tensor = from_buffer(header, data, offset)
            check_finite(tensor)
            tensors.append(tensor)
            digests.append(hashlib.sha256(view[offset : offset + size]).digest())
            offset += size
        return Assembled(self.round, self.microbatch, tuple(tensors), tuple(digests), self.answered)


def _parts(views: Sequence[memoryview]) -> Iterator[bytes]:
    """The concatenation of `views` in parts of at most 1 MiB; every byte is copied once."""
    pending: list[memoryview] = []
    room = PIPE_PART_BYTES
    for view in views:
        start = 0
        while start < view.nbytes:
            piece = view[start : start + room]
            pending.append(piece)
            start += piece.nbytes
            room -= piece.nbytes
            if room == 0:
                yield b"".join(pending)
                pending, room = [], PIPE_PART_BYTES
    if pending:
        yield b"".join(pending)


__all__ = ["MAX_MICROBATCH_BYTES", "Assembled", "Assembler", "Expect", "digest", "encode"]
