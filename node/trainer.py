"""The compute side of a worker: trains its stage, round by round, on the main thread and on nothing else.

It reads one queue, which holds in order what the coordinator wants and what neighbours sent. Within a round it follows
1F1B: a gradient that is there goes first, and no more microbatches are sent on than `in_flight_limit` says.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

import safetensors.torch
from torch import Tensor

from commonweight.errors import CheckpointError, CommonweightError, NonFiniteTensor, PeerUnreachable
from commonweight.model.data import Dataset
from commonweight.model.numerics import numerics_class
from commonweight.model.stage import Forward, Stage
from commonweight.rules.report import NO_TENSOR, Hop, Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import in_flight_limit
from commonweight.wire.generated.pipe_pb2 import PipeFrame
from commonweight.wire.pipe import digest, encode
from commonweight.wire.tensors import to_bytes
from node.checkpoint import Checkpoints
from node.traces import Traces

STALL_S = 120.0
"""A round in which nothing arrives for this long is given up."""
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
    """Train this round."""

    generation: int
    round: int


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
class Quit:
    """End the process."""


Item = Restore | TrainRound | Abandon | Forget | Activation | Gradient | Quit


@dataclass(frozen=True)
class TrainedRound:
    """A round that this stage has finished: stepped, checkpointed, ready to be signed."""

    generation: int
    report: Report
    seconds: float


@dataclass
class Outlet:
    """Where the trainer's results go; each call returns at once and is safe from the compute thread."""

    send_down: Callable[[Sequence[PipeFrame]], None]
    """One microbatch's activation (token ids, code), to the next stage."""
    send_up: Callable[[Sequence[PipeFrame]], None]
    """One microbatch's gradient, to the previous stage."""
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
    """Of each round one entry: what it was stepped with, before clipping, by parameter."""
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
    _activations: deque[Activation] = field(default_factory=deque)
    _gradients: deque[Gradient] = field(default_factory=deque)

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
            case TrainRound(generation, round_) if generation == self.generation:
                try:
                    self.outlet.report(self._train(round_))
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
            case Activation(generation) | Gradient(generation) if generation == self.generation:
                self._keep(item)

    def _abandon(self) -> None:
        """What still comes of this generation is void, a plan, too: parts of its rounds are missing."""
        self.generation = NO_GENERATION
        self._forget()

    def _forget(self) -> None:
        self._activations.clear()
        self._gradients.clear()
        self.stage.discard_gradients()

    def _restore(self, round_: int) -> None:
        if self.stage.round != round_:
            if round_ == 0:
                self.stage = self.make_stage(self.spec, self.stage.index, device=self.stage.device)
            else:
                self.checkpoints.load(self.stage, round_)
            self._root = b""
        self._root = self._root or self.stage.state_root()

    def _keep(self, item: Activation | Gradient) -> None:
        if isinstance(item, Activation):
            self._activations.append(item)
        else:
            self._gradients.append(item)

    def _train(self, round_: int) -> TrainedRound:
        started_s = time.monotonic()
        count = self.spec.training.microbatches_per_round
        limit = in_flight_limit(self.spec, self.stage.index)
        in_flight: deque[_Pending] = deque()
        hops: list[Hop] = []
        forwarded = 0
        self.traces.begin(round_)
        while len(hops) < count:
            self._drain()
            if self._gradients:
                hops.append(self._backward(round_, len(hops), in_flight.popleft(), self._gradients.popleft()))
            elif forwarded < count and len(in_flight) < limit and (self.stage.is_first or self._activations):
                pending = self._forward(round_, forwarded)
                forwarded += 1
                if self.stage.is_last:
                    hops.append(self._backward(round_, len(hops), pending, None))
                else:
                    in_flight.append(pending)
            else:
                self._wait(round_)
        return self._finish(round_, tuple(hops), started_s)

    def _forward(self, round_: int, microbatch: int) -> _Pending:
        if self.dataset is not None:
            tokens, code = self.dataset.microbatch(round_, microbatch), None
            digests = digest(tokens), NO_TENSOR
        else:
            arrived = self._activations.popleft()
            assert arrived.microbatch == microbatch, "the pipe delivers in order"
            tokens, code, digests = arrived.tokens, arrived.code, arrived.digests
        hop: dict[str, Any] = {"tokens": digests[0], "activation_in": digests[1], "activation_out": NO_TENSOR}
        forward = self.stage.forward(tokens, code)
        if isinstance(forward.output, Tensor):
            output = forward.output.cpu()
            self.outlet.send_down(encode(round_, microbatch, (tokens, output)))
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
        return _Pending(forward, hop)

    def _backward(self, round_: int, microbatch: int, pending: _Pending, gradient: Gradient | None) -> Hop:
        assert gradient is None or gradient.microbatch == microbatch, "the pipe delivers in order"
        hop = pending.hop
        hop["gradient_in"] = NO_TENSOR if gradient is None else gradient.digest
        hop["gradient_out"] = NO_TENSOR
        result = self.stage.backward(pending.forward, None if gradient is None else gradient.gradient)
        if result is not None:
            result = result.cpu()
            self.outlet.send_up(encode(round_, microbatch, (result,)))
            hop["gradient_out"] = self._trace(result)
        hop["sketch"] = self.stage.sketch()
        if gradient is not None:
            self._trace(gradient.gradient, gradient.digest)
        return Hop(**hop)

    def _trace(self, tensor: Tensor, known: bytes | None = None) -> bytes:
        """Keep what has crossed a side of the stage; its digest, which may be known."""
        name = known or digest(tensor)
        self.traces.add(name, to_bytes(tensor))
        return name

    def _finish(self, round_: int, hops: tuple[Hop, ...], started_s: float) -> TrainedRound:
        gradient_hash = self._keep_gradient(round_)
        before = self._root
        self.stage.step()
        self._root = self.checkpoints.save(self.stage)
        self.traces.finish()
        self.round_gradients.finish()
        report = Report(round_, self.stage.index, hops, gradient_hash, before, self._root)
        return TrainedRound(self.generation, report, time.monotonic() - started_s)

    def _keep_gradient(self, round_: int) -> bytes:
        """Keep what the round is to be stepped with; its hash."""
        gradient_hash = self.stage.gradient_hash()
        gradient = {name: tensor.contiguous() for name, tensor in self.stage.gradients().items()}
        self.round_gradients.begin(round_)
        self.round_gradients.add(gradient_hash, memoryview(safetensors.torch.save(gradient)))
        return gradient_hash

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
        if isinstance(item, Activation | Gradient | Abandon) and item.generation != self.generation:
            return  # of a generation that is over
        if isinstance(item, Activation | Gradient):
            self._keep(item)
        elif isinstance(item, Forget):
            self._serve(item)
        else:
            self._forget()
            raise _Interrupted(item)
