"""What flows over a stage's pipes: the plan, the credit, and the frames that wait to be sent.

What comes in is checked against the plan before anything is allocated for it: microbatches come strictly in order, in
the spec's shapes, and never more than may be in flight.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from commonweight.errors import UnplannedMessage
from commonweight.model.boundary import boundary_plan, tokens_plan
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import pipe_pb2 as pb
from commonweight.wire.pipe import Assembler

Plan = tuple[tuple[torch.dtype, tuple[int, ...]], ...]


@dataclass(frozen=True)
class StagePlan:
    """What the pipes of one stage carry."""

    spec: ModelSpec
    stage: int
    frozen_hash: bytes

    @property
    def activation(self) -> Plan:
        """Token ids and code."""
        return tokens_plan(self.spec), boundary_plan(self.spec)

    @property
    def gradient(self) -> Plan:
        """One gradient, of the shape of the code."""
        return (boundary_plan(self.spec),)


class Flow:
    """What comes over one direction of a pipe: which microbatch is next, and how many may come."""

    def __init__(self, plan: Plan, microbatches: int, first_round: int, credit: int) -> None:
        """`credit`: how many may come before the first `grant`."""
        self._plan = plan
        self._microbatches = microbatches
        self._next = first_round * microbatches
        self._credit = credit
        self.assembler = Assembler(self._expect)

    def arrived(self) -> None:
        """The microbatch that was expected is here."""
        self._next += 1
        self._credit -= 1

    def grant(self) -> None:
        """One more may come."""
        self._credit += 1

    def _expect(self, round_: int, microbatch: int) -> Plan | None:
        if (round_, microbatch) != divmod(self._next, self._microbatches):
            return None
        if self._credit <= 0:
            raise UnplannedMessage(
                f"microbatch {microbatch} of round {round_} came before its turn: no more may be in flight."
            )
        return self._plan


@dataclass
class Pipe:
    """An open stream to a neighbour."""

    generation: int
    flow: Flow
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
