"""What flows over a stage's pipes: what may come, and the frames that wait to be sent.

What comes in is checked against the round's plan before anything is allocated for it: the planned microbatches, in the
spec's shapes, never more than may be in flight; and slices of the round's gradient, of the sizes that are due.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from commonweight.errors import MalformedMessage, UnplannedMessage
from commonweight.model.boundary import boundary_plan, tokens_plan
from commonweight.rules.averaging import slice_bytes
from commonweight.rules.spec import Averaging, ModelSpec
from commonweight.wire.channel import PIPE_PART_BYTES
from commonweight.wire.generated import pipe_pb2 as pb
from commonweight.wire.pipe import Assembled, Assembler
from commonweight.wire.slices import decode_slice

Plan = tuple[tuple[torch.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True)
class StagePlan:
    """What the pipes of one stage carry."""

    spec: ModelSpec
    stage: int
    frozen_hash: bytes
    numbers: int
    """Of the stage's gradient."""

    @property
    def activation(self) -> Plan:
        """Token ids and code."""
        return tokens_plan(self.spec), boundary_plan(self.spec)

    @property
    def gradient(self) -> Plan:
        """One gradient, of the shape of the code."""
        return (boundary_plan(self.spec),)


@dataclass
class _Due:
    """What may still come of a round."""

    microbatches: set[int]
    unanswered: int = 0
    more: int = 0
    """The round's window is wider by so many."""


class Flow:
    """What comes over one direction of a pipe between neighbours, each microbatch of a round once."""

    def __init__(self, plan: Plan, window: int | None = None) -> None:
        """`window`: so many of a round may have come that aren't answered; None: any number of those that may come."""
        self._plan = plan
        self._window = window
        self._rounds: dict[int, _Due] = {}
        self._assembler = Assembler(self._expect)

    def begin(self, round_: int, due: Iterable[int] = ()) -> None:
        """Of this round these microbatches may come from now on; of those before the last one nothing may any more."""
        self.forget(round_)
        self._rounds = {each: before for each, before in self._rounds.items() if each >= round_ - 1}
        self._rounds[round_] = _Due(set(due))

    def forget(self, round_: int) -> None:
        """Of this round nothing may come."""
        self._rounds.pop(round_, None)
        self._assembler.forget(round_)

    def allow(self, round_: int, microbatch: int) -> None:
        """This one, too."""
        if (due := self._rounds.get(round_)) is not None:
            due.microbatches.add(microbatch)

    def extend(self, round_: int, microbatches: Collection[int]) -> None:
        """These, too, at any time: the sender has the gradients of some of them, and waits for no answer."""
        if (due := self._rounds.get(round_)) is not None:
            due.microbatches.update(microbatches)
            due.more += len(microbatches)

    def answer(self, round_: int) -> None:
        """One that has come was answered."""
        if (due := self._rounds.get(round_)) is not None:
            due.unanswered -= 1

    def add(self, frame: pb.PipeFrame) -> Assembled | None:
        """Take the next frame; returns the microbatch that it completes. Raises WireError for what may not come."""
        assembled = self._assembler.add(frame)
        if assembled is not None and (due := self._rounds.get(assembled.round)) is not None:
            due.microbatches.discard(assembled.microbatch)
            due.unanswered += 1
        return assembled

    def _expect(self, round_: int, microbatch: int) -> Plan | None:
        due = self._rounds.get(round_)
        if due is None or microbatch not in due.microbatches:
            return None
        if self._window is not None and due.unanswered >= self._window + due.more:
            raise UnplannedMessage(
                f"microbatch {microbatch} of round {round_} came before its turn: {self._window} are in flight."
            )
        return self._plan


@dataclass(frozen=True, eq=False)
class Slice:
    """A slice of the round's gradient, as another replica has sent it."""

    round: int
    summed: bool
    """Whether it is the sender's slice, summed; otherwise what the sender adds to this node's."""
    numbers: Tensor
    """float32; shares the memory of what was received: never change it in place."""


@dataclass
class _DueSlices:
    """What may still come of a round."""

    numbers: dict[bool, int]
    """By `Slice.summed`."""
    coding: Averaging
    revision: int


class SliceFlow:
    """What comes over a pipe from another replica: at most one slice of either kind in a round, one after another.
    Where the plan is changed all begins again.
    """

    def __init__(self) -> None:
        self._rounds: dict[int, _DueSlices] = {}
        self._coming = -1
        """The round of what has come last."""
        self._buffer = bytearray()
        self._received = 0

    def begin(self, round_: int, due: Mapping[bool, int], coding: Averaging = "float32", revision: int = 0) -> None:
        """Of this round these may come from now on: by `Slice.summed`, how many numbers, which travel as `coding`; of
        those before the last one nothing may any more. `revision`: by which the stage's plan was changed last; what was
        sent before is passed over.
        """
        self.forget(round_)
        self._rounds = {each: before for each, before in self._rounds.items() if each >= round_ - 1}
        self._rounds[round_] = _DueSlices(dict(due), coding, revision)

    def forget(self, round_: int) -> None:
        """Of this round nothing may come."""
        self._rounds.pop(round_, None)
        if self._coming == round_:
            self._received = 0

    def add(self, frame: pb.PipeFrame) -> Slice | None:
        """Take the next frame; returns the slice that it completes. Raises WireError for what may not come."""
        if frame.WhichOneof("body") != "slice":
            raise MalformedMessage("A frame with a slice is due on the pipe between replicas; this one has none.")
        part, summed = frame.slice, frame.slice.summed
        due = self._rounds.get(part.round)
        if due is not None and part.revision < due.revision:
            return None
        data = part.data  # each access to the field copies it
        size = 0 if due is None else slice_bytes(due.numbers.get(summed, 0), due.coding)
        if due is None or not size:
            raise UnplannedMessage(f"A slice (summed: {summed}) of round {part.round} isn't due.")
        if part.offset != self._received or not 0 < len(data) <= min(PIPE_PART_BYTES, size - part.offset):
            raise MalformedMessage(
                f"A part of {len(data)} bytes at byte {part.offset} of a slice of {size}; due is byte {self._received}."
            )
        if not self._received:
            self._coming, self._buffer = part.round, bytearray(size)
        self._buffer[part.offset : part.offset + len(data)] = data
        self._received += len(data)
        if self._received < size:
            return None
        buffer, self._buffer, self._received = self._buffer, bytearray(), 0
        return Slice(part.round, summed, decode_slice(buffer, due.numbers.pop(summed), due.coding))


def slice_frames(round_: int, revision: int, summed: bool, data: bytes | memoryview) -> list[pb.PipeFrame]:
    """The frames of a slice, as `encode_slice` gives it."""
    return [
        pb.PipeFrame(
            slice=pb.SliceFrame(
                round=round_,
                revision=revision,
                summed=summed,
                offset=offset,
                data=bytes(data[offset : offset + PIPE_PART_BYTES]),
            )
        )
        for offset in range(0, len(data), PIPE_PART_BYTES)
    ]


@dataclass(eq=False)
class Pipe:
    """An open stream to a peer of the same generation."""

    generation: int
    peer: str
    """Its address."""
    flow: Flow | SliceFlow
    outbox: "asyncio.Queue[pb.PipeFrame]" = field(default_factory=asyncio.Queue)
    bytes_sent: int = 0
    """Of frames since they were last counted."""

    def put(self, frames: Sequence[pb.PipeFrame]) -> None:
        """Send these frames, in order."""
        for frame in frames:
            self.bytes_sent += frame.ByteSize()
            self.outbox.put_nowait(frame)

    def count_bytes(self) -> int:
        """Bytes sent since the last call."""
        count, self.bytes_sent = self.bytes_sent, 0
        return count
