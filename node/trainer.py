"""The compute side of a worker: trains its stage, round by round, on the main thread and on nothing else.

It reads one queue, which holds in order what the coordinator wants and what peers sent. Within a round it follows
1F1B: a gradient that is there goes first, and no more microbatches are sent on than `in_flight_limit` says. Then the
stage's replicas add up their gradients, and step.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

import safetensors.torch
import torch
from torch import Tensor

from commonweight.errors import CheckpointError, CommonweightError, NonFiniteTensor, PeerUnreachable
from commonweight.failpoints import slow_down
from commonweight.model.data import Dataset
from commonweight.model.numerics import numerics_class
from commonweight.model.stage import Forward, Stage
from commonweight.rules.averaging import slice_bounds
from commonweight.rules.report import NO_TENSOR, Hop, Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import in_flight_limit
from commonweight.wire.generated.pipe_pb2 import PipeFrame
from commonweight.wire.pipe import digest, encode
from commonweight.wire.tensors import to_bytes
from node.checkpoint import Checkpoints
from node.flow import FLOAT_BYTES, Slice
from node.share import Share
from node.traces import Traces

STALL_S = 120.0
"""A round in which nothing arrives for this long is given up."""
SLICE_S = 30.0
"""For a slice of the gradient from another replica, and its bytes at MIN_BYTES_PER_S beside."""
MIN_BYTES_PER_S = 1 << 20
NO_GENERATION = 0
"""Generations count from 1."""


@dataclass(frozen=True)
class Restore:
    """Go to the state at the start of `round`; what belongs to an earlier generation is void from now on."""

    generation: int
    round: int
    done: "Future[None]"


@dataclass(frozen=True)
class TrainRound:
    """Train a round."""

    share: Share

    @property
    def generation(self) -> int:
        """In which it was planned."""
        return self.share.generation


@dataclass(frozen=True)
class Abandon:
    """The generation is over: forget the round that is being trained."""

    generation: int


@dataclass(frozen=True)
class Forget:
    """The rounds up to `round` are sealed: of what is kept of them only `retained` is still wanted."""

    round: int
    retained: Collection[int]


@dataclass(frozen=True)
class Activation:
    """A microbatch from the previous stage."""

    generation: int
    microbatch: int
    tokens: Tensor
    """[batch, time + 1]"""
    code: Tensor
    """[batch, time, k], in the boundary's dtype"""
    digests: tuple[bytes, bytes]


@dataclass(frozen=True)
class Gradient:
    """A microbatch's gradient from the next stage."""

    generation: int
    microbatch: int
    gradient: Tensor
    """[batch, time, k], in the boundary's dtype"""
    digest: bytes


@dataclass(frozen=True)
class Arrived:
    """A slice of the round's gradient from another replica."""

    generation: int
    node: str
    slice: Slice


@dataclass(frozen=True)
class Quit:
    """End the process."""


FromPeer = Activation | Gradient | Arrived
Item = Restore | TrainRound | Abandon | Forget | FromPeer | Quit


@dataclass(frozen=True)
class TrainedRound:
    """A round that this stage has finished: stepped, checkpointed, ready to be signed."""

    generation: int
    report: Report
    seconds: float
    busy_s: float
    """Of them, that it computed on its load."""


@dataclass
class Outlet:
    """Where the trainer's results go; each call returns at once and is safe from the compute thread."""

    send_down: Callable[[int, Sequence[PipeFrame]], None]
    """One microbatch's activation (token ids, code), to the next stage."""
    send_up: Callable[[int, Sequence[PipeFrame]], None]
    """One microbatch's gradient, to the previous stage."""
    send_slice: Callable[[str, int, bool, Tensor], None]
    """(to whom, round, whether it is summed, its numbers)."""
    report: Callable[[TrainedRound], None]
    fail: Callable[[int, CommonweightError, bool], None]
    """(generation, error, whether the worker ends)."""


class _Interrupted(Exception):
    """Something else than this round is wanted now."""

    def __init__(self, item: Item) -> None:
        super().__init__(item)
        self.item = item


@dataclass
class _Pending:
    """A microbatch that was sent on and waits for its gradient."""

    microbatch: int
    forward: Forward
    hop: dict[str, Any]


@dataclass
class Trainer:
    """One stage and its queue."""

    spec: ModelSpec
    stage: Stage
    checkpoints: Checkpoints
    traces: Traces
    round_gradients: Traces
    """Of each round what it was stepped with, before clipping, by parameter; and this node's part of that."""
    dataset: Dataset | None
    """On the first stage."""
    inbox: "SimpleQueue[Item]"
    outlet: Outlet
    numerics: str
    """What decides the bits of what it computes."""
    make_stage: Callable[..., Stage] = Stage
    """With Stage's arguments: the stage at version 0."""
    generation: int = NO_GENERATION
    _root: bytes = b""
    _busy_s: float = 0.0
    """That it computed in this round."""
    _activations: deque[Activation] = field(default_factory=deque)
    _gradients: deque[Gradient] = field(default_factory=deque)
    _slices: dict[tuple[str, bool], Slice] = field(default_factory=dict)
    """By the sender, and whether it is summed."""

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        index: int,
        *,
        state_dir: Path,
        data_dir: Path | None,
        device: str,
        inbox: "SimpleQueue[Item]",
        outlet: Outlet,
        make_stage: Callable[..., Stage] = Stage,
    ) -> Self:
        """The trainer of a stage, at version 0: the first formation says which checkpoint is wanted.

        Raises CheckpointError, or DataError on a first stage whose text isn't the spec's.
        """
        stage = make_stage(spec, index, device=device)
        checkpoints = Checkpoints(state_dir, spec, index)
        state_bytes = sum(tensor.nbytes for tensor in stage.state().values())
        traces, gradients = (
            Traces(state_dir / name, reserve_bytes=2 * state_bytes) for name in ("traces", "gradients")
        )
        dataset = Dataset.open(data_dir, spec) if stage.is_first and data_dir else None
        numerics = numerics_class(device, spec)
        return cls(spec, stage, checkpoints, traces, gradients, dataset, inbox, outlet, numerics, make_stage)

    def run(self) -> None:
        """Serve the queue until Quit."""
        item: Item = self.inbox.get()
        while not isinstance(item, Quit):
            try:
                self._serve(item)
            except _Interrupted as interruption:
                item = interruption.item
            else:
                item = self.inbox.get()

    def _serve(self, item: Item) -> None:
        match item:
            case Restore(generation, round_, done):
                self.generation = generation
                self._forget()
                if not done.set_running_or_notify_cancel():
                    return  # the formation was given up before its turn came
                try:
                    self._restore(round_)
                    done.set_result(None)
                except CommonweightError as error:
                    done.set_exception(error)
            case TrainRound(share) if share.generation == self.generation:
                generation = share.generation
                try:
                    self._restore(share.round)  # who trains for the first time has fetched it meanwhile
                    self.outlet.report(self._train(share))
                except CommonweightError as error:
                    self._abandon()
                    # Numbers that overflow here may be a neighbour's doing: no reason to end this node.
                    self.outlet.fail(generation, error, isinstance(error, CheckpointError))
            case Abandon(generation) if generation == self.generation:
                self._abandon()
            case Forget(round_, retained):
                self.checkpoints.retain(retained)
                self.traces.retain(round_, retained)
                self.round_gradients.retain(round_, retained)
            case Activation() | Gradient() | Arrived() if item.generation == self.generation:
                self._keep(item)

    def _abandon(self) -> None:
        """What still comes of this generation is void, a plan, too: parts of its rounds are missing."""
        self.generation = NO_GENERATION
        self._forget()

    def _forget(self) -> None:
        self._activations.clear()
        self._gradients.clear()
        self._slices.clear()
        self.stage.discard_gradients()

    def _restore(self, round_: int) -> None:
        if self.stage.round != round_:
            if round_ == 0:
                self.stage = self.make_stage(self.spec, self.stage.index, device=self.stage.device)
            else:
                self.checkpoints.load(self.stage, round_)
            self._root = b""
        self._root = self._root or self.stage.state_root()

    def _keep(self, item: FromPeer) -> None:
        match item:
            case Activation():
                self._activations.append(item)
            case Gradient():
                self._gradients.append(item)
            case Arrived(_, node, slice_):
                self._slices[node, slice_.summed] = slice_

    def _train(self, share: Share) -> TrainedRound:
        started_s = time.monotonic()
        limit = in_flight_limit(self.spec, self.stage.index)
        to_draw = deque(share.load if self.stage.is_first else ())
        in_flight: dict[int, _Pending] = {}
        hops: list[Hop] = []
        self._busy_s = 0.0
        self.traces.begin(share.round)
        while len(hops) < len(share.load):
            self._drain()
            if self._gradients:
                gradient = self._gradients.popleft()
                hops.append(self._backward(share.round, in_flight.pop(gradient.microbatch), gradient))
            elif len(in_flight) < limit and (to_draw or self._activations):
                pending = self._forward(share.round, to_draw.popleft() if to_draw else None)
                if self.stage.is_last:
                    hops.append(self._backward(share.round, pending, None))
                else:
                    in_flight[pending.microbatch] = pending
            else:
                self._wait(share.round)
        return self._finish(share, tuple(hops), started_s)

    def _forward(self, round_: int, drawn: int | None) -> _Pending:
        """`drawn`: the microbatch whose tokens are to be drawn; None: the one that came first."""
        if drawn is not None:
            assert self.dataset is not None, "the first stage has the text"
            microbatch, tokens, code = drawn, self.dataset.microbatch(round_, drawn), None
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
            self.outlet.send_down(microbatch, encode(round_, microbatch, (tokens, output)))
            hop |= {"activation_out": self._trace(output), "loss": 0.0}
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

    def _backward(self, round_: int, pending: _Pending, gradient: Gradient | None) -> Hop:
        hop = pending.hop
        hop["gradient_in"] = NO_TENSOR if gradient is None else gradient.digest
        hop["gradient_out"] = NO_TENSOR
        with self._computing():
            result = self.stage.backward(pending.forward, None if gradient is None else gradient.gradient)
        if result is not None:
            result = result.cpu()
            self.outlet.send_up(pending.microbatch, encode(round_, pending.microbatch, (result,)))
            hop["gradient_out"] = self._trace(result)
        hop["sketch"] = self.stage.sketch()
        if gradient is not None:
            self._trace(gradient.gradient, gradient.digest)
        return Hop(microbatch=pending.microbatch, **hop)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        self._busy_s += time.monotonic() - started_s

    def _trace(self, tensor: Tensor, known: bytes | None = None) -> bytes:
        """Keep what has crossed a side of the stage; its digest, which may be known."""
        name = known or digest(tensor)
        self.traces.add(name, to_bytes(tensor))
        return name

    def _finish(self, share: Share, hops: tuple[Hop, ...], started_s: float) -> TrainedRound:
        round_, before = share.round, self._root
        self.round_gradients.begin(round_)
        own_hash = self._keep_gradient() if hops else NO_TENSOR
        if len(share.members) > 1:
            self.stage.replace_gradient(self._sum(share))
        round_hash = own_hash if share.members == (share.node,) else self._keep_gradient()
        self.stage.step()
        self._root = self.checkpoints.save(self.stage)
        self.traces.finish()
        self.round_gradients.finish()
        report = Report(round_, self.stage.index, hops, own_hash, round_hash, before, self._root)
        return TrainedRound(share.generation, report, time.monotonic() - started_s, self._busy_s)

    def _keep_gradient(self) -> bytes:
        """Keep the gradient as it is now; its hash."""
        gradient_hash = self.stage.gradient_hash()
        gradient = {name: tensor.contiguous() for name, tensor in self.stage.gradients().items()}
        self.round_gradients.add(gradient_hash, memoryview(safetensors.torch.save(gradient)))
        return gradient_hash

    def _sum(self, share: Share) -> Tensor:
        """The sum of all contributors' gradients: see commonweight/rules/averaging.py."""
        adders, numbers = share.contributors, self.stage.numbers
        bounds = {node: slice_bounds(numbers, len(adders), index) for index, node in enumerate(adders)}
        others = [node for node in share.members if node != share.node]
        total = torch.empty(numbers)
        if share.node in adders:
            own = self.stage.flat_gradient()
            for node in others:
                if node in adders:
                    self.outlet.send_slice(node, share.round, False, own[slice(*bounds[node])])
            begin, end = bounds[share.node]
            parts = [own[begin:end] if node == share.node else self._slice(node, False, end - begin) for node in adders]
            summed = parts[0].clone()
            for part in parts[1:]:
                summed += part
            for node in others:
                self.outlet.send_slice(node, share.round, True, summed)
            total[begin:end] = summed
        for node in adders:
            if node != share.node:
                begin, end = bounds[node]
                total[begin:end] = self._slice(node, True, end - begin)
        return total

    def _slice(self, node: str, summed: bool, numbers: int) -> Tensor:
        """A slice from another replica, once it has come."""
        deadline = time.monotonic() + SLICE_S + numbers * FLOAT_BYTES / MIN_BYTES_PER_S
        while numbers and (node, summed) not in self._slices:
            try:
                self._take(self.inbox.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                raise PeerUnreachable(
                    f"{node}, another replica of stage {self.stage.index}, sent no slice of the gradient in time."
                ) from None
        return self._slices.pop((node, summed)).numbers if numbers else torch.empty(0)

    def _drain(self) -> None:
        while not self.inbox.empty():
            self._take(self.inbox.get())

    def _wait(self, round_: int) -> None:
        try:
            self._take(self.inbox.get(timeout=STALL_S))
        except Empty:
            raise PeerUnreachable(
                f"Round {round_} got nothing from a neighbour for {STALL_S:g} s. Its log says what it waits for."
            ) from None

    def _take(self, item: Item) -> None:
        if isinstance(item, FromPeer | Abandon) and item.generation != self.generation:
            return  # of a generation that is over
        if isinstance(item, FromPeer):
            self._keep(item)
        elif isinstance(item, Forget):
            self._serve(item)
        else:
            self._forget()
            raise _Interrupted(item)
