"""One round on one stage: the microbatches of a share are drawn or arrive, are sent on, and answered.

Follows 1F1B: a gradient that is there goes first, and no more microbatches are sent on than the window says, which
follows how long their gradients take.

What crosses a side of the stage is kept, for auditors, and for whoever takes over the load of a neighbour that is lost:
an activation that had been sent to it goes out again; and where one comes a second time, from its successor, it is
answered with the gradient that was computed of the first. Both are the bits that they were.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from commonweight.errors import EvidenceMissing, NonFiniteTensor, UnplannedMessage
from commonweight.failpoints import slow_down
from commonweight.model.boundary import boundary_plan, tokens_plan
from commonweight.model.data import Dataset
from commonweight.model.stage import Forward, Stage
from commonweight.rules.assignment import Pace, update
from commonweight.rules.placement import hedge_deadline_s, in_flight
from commonweight.rules.report import NO_TENSOR, Hop
from commonweight.rules.stages import in_flight_limit
from commonweight.wire.generated.pipe_pb2 import PipeFrame
from commonweight.wire.pipe import digest, encode
from commonweight.wire.tensors import Plan, to_bytes
from node.share import Share
from node.traces import Trace

Send = Callable[[Share, str, int, Sequence[PipeFrame]], None]
"""(as planned, to whom, microbatch, frames); returns at once and is safe from the compute thread."""


@dataclass(frozen=True)
class Activation:
    """A microbatch from the previous stage."""

    generation: int
    node: str
    """Who has sent it."""
    round: int
    microbatch: int
    tokens: Tensor
    """[batch, time + 1]"""
    code: Tensor
    """[batch, time, k], in the boundary's dtype"""
    digests: tuple[bytes, bytes]
    answered: bool = False
    """The sender has its gradient already, from a node that was lost."""


@dataclass(frozen=True)
class Gradient:
    """A microbatch's gradient from the next stage."""

    generation: int
    node: str
    """Who has sent it."""
    round: int
    microbatch: int
    gradient: Tensor
    """[batch, time, k], in the boundary's dtype"""
    digest: bytes


class _Taken(NamedTuple):
    """An activation, without its tensors."""

    node: str
    digests: tuple[bytes, bytes]
    answered: bool


@dataclass
class _Pending:
    """A microbatch that was sent on and waits for its gradient."""

    microbatch: int
    forward: Forward
    hop: dict[str, Any]


@dataclass
class StageRound:
    """What a trainer knows of a round: the one that it trains, has trained last, or will train next."""

    share: Share
    """As it was planned last."""
    stage: Stage
    dataset: Dataset | None
    """On the first stage."""
    trace: Trace
    gradients: Trace
    """What it is stepped with, before clipping, by parameter; and this node's part of that."""
    send_down: Send
    """One microbatch's activation (token ids, code), to the next stage."""
    send_up: Send
    """One microbatch's gradient, to the previous stage; no frames: it needs none."""
    answers: dict[str, Pace]
    """By node of the next stage, how long its gradients took, in this round and before."""
    window: int
    """How many microbatches may be sent on and not answered."""
    overlapped_s: Mapping[str, float] = field(default_factory=dict)
    """By node of the next stage, the shortest time in which a gradient of the round before came, where that is under
    way still: none of this round's comes as fast as when nothing is in flight.
    """
    alone_s: float = math.inf
    """Since when the round before is sealed, so that its neighbours have nothing else to do (`time.monotonic`)."""
    busy_s: float = 0.0
    """Seconds that it computed."""
    late: set[str] = field(default_factory=set)
    """Nodes of the next stage that are known to be."""
    _to_draw: deque[int] = field(default_factory=deque)
    _activations: deque[Activation] = field(default_factory=deque)
    """That have come and wait for their turn."""
    _gradients: dict[int, Gradient] = field(default_factory=dict)
    """Likewise."""
    _taken: dict[int, _Taken] = field(default_factory=dict)
    """By microbatch, as it came last."""
    _sent: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """By microbatch, the digests of what was sent on."""
    _sent_s: dict[int, float] = field(default_factory=dict)
    """When it was, of what isn't answered (`time.monotonic`)."""
    _fastest_s: dict[str, float] = field(default_factory=dict)
    """By node of the next stage, the shortest time in which a gradient came in this round, or those it overlaps."""
    _answered_s: list[float] = field(default_factory=list)
    """When gradients came (`time.monotonic`)."""
    _in_flight: dict[int, _Pending] = field(default_factory=dict)
    _hops: dict[int, Hop] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage.is_first:
            self._to_draw.extend(self.share.load)

    @property
    def is_computed(self) -> bool:
        """Whether the whole load is."""
        return len(self._hops) == len(self.share.load)

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Of what is computed, in the order in which the gradients were added."""
        return tuple(self._hops.values())

    def keep(self, item: Activation | Gradient) -> None:
        """Something has come from a neighbour. Raises UnplannedMessage, or EvidenceMissing, for an activation that came
        before from another node, and can't be answered again.
        """
        microbatch = item.microbatch
        if isinstance(item, Gradient):
            if item.node == self.share.next.get(microbatch) and microbatch in self._in_flight:
                self._gradients.setdefault(microbatch, item)
                if (sent_s := self._sent_s.pop(microbatch, None)) is not None:
                    self._note_answer(item.node, sent_s, time.monotonic())
        elif item.node == self.share.previous.get(microbatch):  # else it comes from a node that was lost
            before = self._taken.get(microbatch)
            self._taken[microbatch] = _Taken(item.node, item.digests, item.answered)
            if before is None:
                self._activations.append(item)
            elif before.digests != item.digests:
                raise UnplannedMessage(
                    f"Microbatch {microbatch} of round {self.share.round} came from {item.node} otherwise than from "
                    f"{before.node}, which it replaces."
                )
            elif microbatch in self._hops:
                self._answer(microbatch, self._read(self._hops[microbatch].gradient_out, self._code))

    @property
    def fastest_s(self) -> Mapping[str, float]:
        """By node of the next stage, the shortest time in which a gradient came since nothing was in flight."""
        return self._fastest_s

    @property
    def in_flight(self) -> int:
        """How many microbatches are sent on and not answered."""
        return len(self._in_flight)

    def compute(self, elsewhere: int = 0) -> bool:
        """Compute what is next; False where nothing can be before something else has come. `elsewhere`: how many
        microbatches of another round are in flight.
        """
        if self._gradients:
            gradient = self._gradients.pop(next(iter(self._gradients)))
            self._backward(self._in_flight.pop(gradient.microbatch), gradient)
        elif self.in_flight + elsewhere < self.window and (self._to_draw or self._activations):
            pending = self._forward()
            if self.stage.is_last:
                self._backward(pending, None)
            else:
                self._in_flight[pending.microbatch] = pending
        else:
            return False
        return True

    @property
    def next_window(self) -> int:
        """That of the next round, by what was seen in this one."""
        least, times = in_flight_limit(self.stage.spec, self.stage.index), self._answered_s
        if len(times) < 2 or times[-1] <= times[0]:
            return max(least, self.window)
        return in_flight(least, (len(times) - 1) / (times[-1] - times[0]), max(self._fastest_s.values()))

    def discard(self) -> None:
        """The round is void, unless it is finished."""
        self.trace.discard()
        self.gradients.discard()

    def next_late(self) -> tuple[float, str]:
        """When the next node is late (`time.monotonic`), and which; infinity where none can be.

        A microbatch that is sent a second time has no deadline, and none has while the round before isn't sealed: the
        other may still be stepping.
        """
        deadlines = []
        for microbatch, sent_s in self._sent_s.items():
            node = self.share.next[microbatch]
            if (answer_s := self.answers.get(node, Pace()).microbatch_s) is not None and node not in self.late:
                deadlines.append((max(sent_s, self.alone_s) + hedge_deadline_s(answer_s), node))
        return min(deadlines, default=(math.inf, ""))

    def revise(self, share: Share) -> None:
        """The round was planned anew: what went to a node that is lost goes to its successor.

        Raises EvidenceMissing.
        """
        before, self.share = self.share, share
        if self.stage.is_first:
            self._to_draw.extend(microbatch for microbatch in share.load if microbatch not in before.load)
        for microbatch, (tokens, code) in self._sent.items():
            if (node := share.next[microbatch]) != before.next[microbatch]:
                self._sent_s.pop(microbatch, None)
                tensors = self._read(tokens, tokens_plan(self.stage.spec)), self._read(code, self._code)
                answered = microbatch not in self._in_flight or microbatch in self._gradients
                frames = self._encode(microbatch, tensors, answered=answered)
                self.send_down(share, node, microbatch, frames)

    def _note_answer(self, node: str, sent_s: float, now_s: float) -> None:
        answer_s = now_s - (max(sent_s, self.alone_s) if self.alone_s < now_s else sent_s)
        self.answers[node] = update(self.answers.get(node, Pace()), 1, answer_s)
        fastest_s = self._fastest_s.get(node, self.overlapped_s.get(node, math.inf))
        self._fastest_s[node] = min(fastest_s, now_s - sent_s)
        self._answered_s.append(now_s)

    @property
    def _code(self) -> Plan:
        return boundary_plan(self.stage.spec)

    def _forward(self) -> _Pending:
        round_ = self.share.round
        if self._to_draw:
            assert self.dataset is not None, "the first stage has the text"
            microbatch, code = self._to_draw.popleft(), None
            tokens = self.dataset.microbatch(round_, microbatch)
            digests = digest(tokens), NO_TENSOR
        else:
            arrived = self._activations.popleft()
            microbatch, tokens, code = arrived.microbatch, arrived.tokens, arrived.code
            digests = arrived.digests
        hop: dict[str, Any] = {"tokens": digests[0], "activation_in": digests[1], "activation_out": NO_TENSOR}
        with self._computing():
            slow_down()
            forward = self.stage.forward(tokens, code)
        if isinstance(forward.output, Tensor):
            output = forward.output.cpu()
            frames = self._encode(microbatch, (tokens, output))
            self.send_down(self.share, self.share.next[microbatch], microbatch, frames)
            hop |= {"activation_out": self._trace(output), "loss": 0.0}
            self._sent[microbatch], self._sent_s[microbatch] = (digests[0], hop["activation_out"]), time.monotonic()
        else:
            if not math.isfinite(forward.output):
                raise NonFiniteTensor(
                    f"The loss of round {round_}, microbatch {microbatch} is {forward.output}: training has diverged. "
                    "Register the model with a lower learning_rate or grad_clip."
                )
            hop["loss"] = forward.output
        self._trace(tokens, digests[0])
        if code is not None:
            self._trace(code, digests[1])
        return _Pending(microbatch, forward, hop)

    def _backward(self, pending: _Pending, gradient: Gradient | None) -> None:
        microbatch, hop = pending.microbatch, pending.hop
        hop["gradient_in"] = NO_TENSOR if gradient is None else gradient.digest
        hop["gradient_out"] = NO_TENSOR
        with self._computing():
            result = self.stage.backward(pending.forward, None if gradient is None else gradient.gradient)
        if result is not None:
            result = result.cpu()
            self._answer(microbatch, result)
            hop["gradient_out"] = self._trace(result)
        hop["sketch"] = self.stage.sketch()
        if gradient is not None:
            self._trace(gradient.gradient, gradient.digest)
        self._hops[microbatch] = Hop(microbatch=microbatch, **hop)

    def _answer(self, microbatch: int, gradient: Tensor) -> None:
        """Send the gradient to who has sent the activation last, unless another one will send it again."""
        taken = self._taken[microbatch]
        if taken.node == self.share.previous[microbatch]:
            frames = () if taken.answered else self._encode(microbatch, (gradient,))
            self.send_up(self.share, taken.node, microbatch, frames)

    def _encode(self, microbatch: int, tensors: Sequence[Tensor], *, answered: bool = False) -> Sequence[PipeFrame]:
        return encode(self.share.round, microbatch, tensors, revision=self.share.revision, answered=answered)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        self.busy_s += time.monotonic() - started_s

    def _trace(self, tensor: Tensor, known: bytes | None = None) -> bytes:
        """Keep what has crossed a side of the stage; its digest, which may be known."""
        name = known or digest(tensor)
        self.trace.add(name, to_bytes(tensor))
        return name

    def _read(self, name: bytes, plan: Plan) -> Tensor:
        """What has crossed a side of the stage."""
        data = self.trace.read(name)
        if data is None:
            raise EvidenceMissing(
                f"Tensor {name.hex()[:16]}… of round {self.share.round}, which a successor needs, isn't kept here any "
                "more: the disk of --dir is full or fails."
            )
        dtype, shape = plan
        return torch.frombuffer(data, dtype=dtype).view(shape)
