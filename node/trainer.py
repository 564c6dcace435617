"""The compute side of a worker: trains its stage, round by round, on the main thread and on nothing else.

It reads one queue, which holds in order what the coordinator wants and what peers sent. When a round's microbatches are
computed (see stage_round.py) the stage's replicas add up their gradients, and step. The next round may be planned by
then. Where training is asynchronous it is computed, by another `Stage`, when there is nothing to do for this one;
otherwise what comes of it early waits.
"""

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from commonweight.errors import CheckpointError, CommonweightError, PeerUnreachable, UnplannedMessage
from commonweight.model.compiling import compile_stage
from commonweight.model.data import Dataset
from commonweight.model.numerics import numerics_class
from commonweight.model.stage import Stage
from commonweight.rules.assignment import Pace
from commonweight.rules.averaging import slice_bytes
from commonweight.rules.following import FOLLOWED_ROUNDS
from commonweight.rules.report import NO_TENSOR, Report
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import in_flight_limit
from node.averaging import Adder, SendSlice
from node.checkpoint import Checkpoints
from node.flow import Slice
from node.meta import stored_root
from node.share import Share
from node.stage_round import Activation, Gradient, Send, StageRound
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
class Follow:
    """Step from the version that is ready to train `round` with this gradient, which others had, and keep what results:
    its state root.
    """

    round: int
    gradient: Path
    done: "Future[bytes]"


@dataclass(frozen=True)
class Forget:
    """The rounds up to `round` are sealed: of what is kept of them only `retained` is still wanted."""

    round: int
    retained: Collection[int]


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
Item = Restore | TrainRound | Follow | Abandon | Forget | FromPeer | Quit


@dataclass(frozen=True)
class TrainedRound:
    """A round that this stage has finished: stepped, checkpointed, ready to be signed."""

    generation: int
    revision: int
    """By which the stage's plan was changed last."""
    report: Report
    seconds: float
    busy_s: float
    """Of them, that it computed on its load."""


@dataclass
class Outlet:
    """Where the trainer's results go; each call returns at once and is safe from the compute thread."""

    send_down: Send
    """One microbatch's activation (token ids, code), to a node of the next stage."""
    send_up: Send
    """One microbatch's gradient, to a node of the previous stage; no frames where it needs none."""
    send_slice: SendSlice
    report: Callable[[TrainedRound], None]
    fail: Callable[[int, CommonweightError, bool, str], None]
    """(generation, error, whether the worker ends, the node whose doing it is: empty where it is none's)."""
    late: Callable[[int, str, str], None]
    """(generation, which node of the next stage is, what is known of it)."""


class _Interrupted(Exception):
    """Something else than this round is wanted now."""

    def __init__(self, item: Item) -> None:
        super().__init__(item)
        self.item = item


class _NoSlice(PeerUnreachable):
    """Another replica has failed this one."""

    def __init__(self, node: str, stage: int) -> None:
        super().__init__(f"{node}, another replica of stage {stage}, sent no slice of the gradient in time.")
        self.node = node


class _Revised(Exception):
    """The stage's part of the plan was changed: others add up their gradients than thought."""


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
    spare: Stage | None = None
    """Where training is asynchronous: takes turns with `stage`, and computes the round ahead."""
    generation: int = NO_GENERATION
    _root: bytes = b""
    _answers: dict[str, Pace] = field(default_factory=dict)
    """By node of the next stage, how long its gradients took."""
    _window: int = 0
    """How many microbatches may be sent on and not answered in the next round; 0 before the first."""
    _round: StageRound | None = None
    """That is being trained, or was trained last in this generation."""
    _before: StageRound | None = None
    """That was trained before it: others may not be done with it, and lose a node."""
    _ahead: StageRound | None = None
    """That comes after it, where that is planned."""
    _slices: dict[tuple[int, str, bool], Slice] = field(default_factory=dict)
    """By round, the sender, and whether it is summed."""

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
        compiles: bool = False,
    ) -> Self:
        """The trainer of a stage, at version 0: the first formation says which checkpoint is wanted.

        Raises CheckpointError, DataError on a first stage whose text isn't the spec's, or ConfigError where it can't be
        compiled.
        """
        if compiles:
            make_stage = partial(_make_compiled, make_stage, state_dir / "compiled")
        stage = make_stage(spec, index, device=device)
        checkpoints = Checkpoints(state_dir, spec, index)
        state_bytes = sum(tensor.nbytes for tensor in stage.state().values())
        traces, gradients = (
            Traces(state_dir / name, reserve_bytes=2 * state_bytes) for name in ("traces", "gradients")
        )
        dataset = Dataset.open(data_dir, spec) if stage.is_first and data_dir else None
        numerics = numerics_class(device, spec, compiles=compiles)
        spare = make_stage(spec, index, device=device, blank=True) if spec.training.is_asynchronous else None
        return cls(spec, stage, checkpoints, traces, gradients, dataset, inbox, outlet, numerics, make_stage, spare)

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
                with self._telling():
                    if self._before is not None and share.revises(self._before.share):
                        self._round, self._before = self._before, None
                    if self._round is not None and share.revises(self._round.share):
                        self._revise(share)
                    else:
                        self._restore(share.round)  # who trains for the first time has fetched it meanwhile
                        self._train(share)
            case Follow(round_, gradient, done):
                if done.set_running_or_notify_cancel():
                    try:
                        done.set_result(self._follow(round_, gradient))
                    except CommonweightError as error:
                        done.set_exception(error)
            case Abandon(generation) if generation == self.generation:
                self._abandon()
            case Forget(round_, retained):
                self.checkpoints.retain(retained)
                self.traces.retain(round_, retained)
                self.round_gradients.retain(round_, retained, last=FOLLOWED_ROUNDS)
                for planned in (self._round, self._ahead):
                    if planned is not None and planned.share.round == round_ + 1:
                        planned.alone_s = min(planned.alone_s, time.monotonic())
            case Activation() | Gradient() | Arrived() if item.generation == self.generation:
                with self._telling():
                    self._keep(item)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong with a round ends this node's part in the generation, and is told."""
        generation = self.generation
        try:
            yield
        except CommonweightError as error:
            self._abandon()
            # Numbers that overflow here may be a neighbour's doing: no reason to end this node.
            node = error.node if isinstance(error, _NoSlice) else ""
            self.outlet.fail(generation, error, isinstance(error, CheckpointError), node)

    def _abandon(self) -> None:
        """What still comes of this generation is void, a plan, too: parts of its rounds are missing."""
        self.generation = NO_GENERATION
        self._forget()

    def _forget(self) -> None:
        for round_ in (self._before, self._round, self._ahead):
            if round_ is not None:
                round_.discard()
        self._before = self._round = self._ahead = None
        self._slices.clear()
        self.stage.discard_gradients()
        if self.spare is not None:
            self.spare.discard_gradients()

    def _restore(self, round_: int) -> None:
        stored = stored_root(self.checkpoints.folder, round_)
        if self.stage.round != round_ or (stored is not None and stored != self._root):
            if round_ == 0:
                self.stage = self.make_stage(self.spec, self.stage.index, device=self.stage.device)
            else:
                self.checkpoints.load(self.stage, round_)
            self._root = b""
        self._root = self._root or self.stage.state_root()

    def _follow(self, round_: int, path: Path) -> bytes:
        self._restore(round_)
        try:
            gradient = safetensors.torch.load_file(path, device=str(self.stage.device))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"The gradient in {path} can't be read: {error}") from error
        self.stage.take_gradient(gradient)
        self.stage.step()
        self._root = self.checkpoints.save(self.stage)
        return self._root

    def _keep(self, item: FromPeer) -> None:
        if isinstance(item, Arrived):
            self._slices[item.slice.round, item.node, item.slice.summed] = item.slice
            return
        for round_ in (self._before, self._round, self._ahead):
            if round_ is not None and round_.share.round == item.round:
                round_.keep(item)

    def _open(self, share: Share, stage: Stage) -> StageRound:
        self._slices = {of: kept for of, kept in self._slices.items() if of[0] != share.round}
        return StageRound(
            share=share,
            stage=stage,
            dataset=self.dataset,
            trace=self.traces.begin(share.round),
            gradients=self.round_gradients.begin(share.round),
            send_down=self.outlet.send_down,
            send_up=self.outlet.send_up,
            answers=self._answers,
            overlapped_s=self._round.fastest_s if self._round is not None and stage is self.spare else {},
            window=self._window or in_flight_limit(self.spec, self.stage.index),
        )

    def _train(self, share: Share) -> None:
        """Train this round, and those that are planned when the one before is done."""
        if self._round is not None and self._round.share.round != share.round - 1:
            self._round = None
        self._ahead = self._open(share, self.stage)
        self._ahead.alone_s = time.monotonic()
        while self._ahead is not None:
            self._before, self._round, self._ahead = self._round, self._ahead, None
            self.outlet.report(self._train_round(self._round))

    def _train_round(self, round_: StageRound) -> TrainedRound:
        started_s = time.monotonic()
        self._slices = {of: kept for of, kept in self._slices.items() if of[0] >= round_.share.round}
        while True:
            while not round_.is_computed:
                self._drain()
                if not round_.compute(self._in_flight_ahead) and not self._compute_ahead():
                    self._wait()
            try:
                own_hash, total = self._add_up(round_)
                break
            except _Revised:
                continue
        self._window = round_.next_window
        return self._finish(round_, own_hash, total, started_s)

    def _add_up(self, round_: StageRound) -> tuple[bytes, Tensor | None]:
        """The hash of this node's gradient, and what the stage is stepped with; None where that is this gradient.

        It is the sum of all replicas' gradients, or the mean of their movements where they step alone otherwise.
        """
        share, training = round_.share, self.spec.training
        own_hash = self._keep_gradient(round_) if share.load else NO_TENSOR
        if not training.averages_in(share.round):
            return own_hash, None
        if training.moves_anchor(share.round) and share.load:
            self.stage.weigh_movement(len(share.load) / training.microbatches_per_round)
        if len(share.members) > 1:
            return own_hash, self._sum(share)
        return own_hash, self.stage.flat_gradient() if training.steps_alone else None

    def _finish(self, round_: StageRound, own_hash: bytes, total: Tensor | None, started_s: float) -> TrainedRound:
        share, before, round_hash = round_.share, self._root, own_hash
        if total is not None:
            self.stage.replace_gradient(total)
            round_hash = self._keep_gradient(round_)
        self.stage.step()
        if self._ahead is not None and self._ahead.stage is self.spare:
            self.stage, self.spare = self.spare, self.stage
        self._root = self.checkpoints.save(self.stage)
        round_.trace.finish()
        round_.gradients.finish()
        report = Report(share.round, self.stage.index, round_.hops, own_hash, round_hash, before, self._root)
        seconds = time.monotonic() - started_s
        return TrainedRound(share.generation, share.stage_revision, report, seconds, round_.busy_s)

    def _revise(self, share: Share) -> None:
        """The round that is being trained, or was trained last, was planned anew."""
        round_ = self._round
        assert round_ is not None, "a plan is changed that there is"
        is_changed = share.stage_revision != round_.share.stage_revision
        if is_changed and self.stage.round != share.round:
            raise UnplannedMessage(
                f"The plan of round {share.round} was changed when this node had stepped already: it comes back to the "
                "round before."
            )
        self._take_back()
        if is_changed:
            self._slices.clear()
        round_.revise(share)

    def _plan_ahead(self, share: Share) -> None:
        self._take_back()
        stage = self.stage
        if self.spare is not None:
            self.spare.ahead_of(stage)
            stage = self.spare
        self._ahead = self._open(share, stage)

    def _take_back(self) -> None:
        """What was planned ahead is void."""
        if self._ahead is not None:
            self._ahead.discard()
            self._ahead = None

    def _compute_ahead(self) -> bool:
        """Compute what can be of the next round; False where nothing can."""
        round_, ahead = self._round, self._ahead
        assert round_ is not None, "it comes before the next one"
        return ahead is not None and ahead.stage is self.spare and ahead.compute(round_.in_flight)

    @property
    def _in_flight_ahead(self) -> int:
        return 0 if self._ahead is None else self._ahead.in_flight

    def _keep_gradient(self, round_: StageRound) -> bytes:
        """Keep the gradient as it is now; its hash."""
        gradient_hash = self.stage.gradient_hash()
        gradient = {name: tensor.contiguous() for name, tensor in self.stage.gradients().items()}
        round_.gradients.add(gradient_hash, memoryview(safetensors.torch.save(gradient)))
        return gradient_hash

    @cached_property
    def _adder(self) -> Adder:
        return Adder(self.spec.training.averaging, self.stage.numbers)

    def _sum(self, share: Share) -> Tensor:
        """The sum of all contributors' gradients."""
        gradient = self.stage.flat_gradient() if share.load else None
        return self._adder.add_up(share, gradient, self.outlet.send_slice, partial(self._slice, share))

    def _slice(self, share: Share, node: str, summed: bool, numbers: int) -> Tensor:
        """A slice from another replica, once it has come. Raises _Revised."""
        deadline = time.monotonic() + SLICE_S + slice_bytes(numbers, "float32") / MIN_BYTES_PER_S
        of = share.round, node, summed
        while numbers and of not in self._slices:
            if self.inbox.empty() and self._compute_ahead():
                continue
            try:
                self._take(self.inbox.get(timeout=max(0.0, deadline - time.monotonic())))
            except Empty:
                raise _NoSlice(node, self.stage.index) from None
            if self._round is not None and self._round.share.stage_revision != share.stage_revision:
                raise _Revised
        return self._slices.pop(of).numbers if numbers else torch.empty(0)

    def _drain(self) -> None:
        while not self.inbox.empty():
            self._take(self.inbox.get())

    def _wait(self) -> None:
        """For what is next; who is late meanwhile is told of."""
        given_up_s = time.monotonic() + STALL_S
        while True:
            rounds = [each for each in (self._round, self._ahead) if each is not None]
            (late_s, node), round_ = min(((each.next_late(), each) for each in rounds), key=itemgetter(0))
            try:
                return self._take(self.inbox.get(timeout=max(0.0, min(late_s, given_up_s) - time.monotonic())))
            except Empty:
                if late_s >= given_up_s:
                    raise PeerUnreachable(
                        f"Round {round_.share.round} got nothing from a neighbour for {STALL_S:g} s. Its log says what "
                        "it waits for."
                    ) from None
            round_.late.add(node)
            usual_s = self._answers[node].microbatch_s
            why = f"{node} has not answered in round {round_.share.round}; its gradients take {usual_s:.2g} s otherwise"
            self.outlet.late(self.generation, node, why)

    def _take(self, item: Item) -> None:
        if isinstance(item, FromPeer | Abandon) and item.generation != self.generation:
            return  # of a generation that is over
        if isinstance(item, FromPeer):
            self._keep(item)
        elif isinstance(item, Forget):
            self._serve(item)
        elif isinstance(item, TrainRound) and item.generation == self.generation:
            self._replan(item)
        else:
            self._forget()
            raise _Interrupted(item)

    def _replan(self, item: TrainRound) -> None:
        """A plan came while a round is trained."""
        share, round_, before = item.share, self._round, self._before
        assert round_ is not None, "it is trained"
        if share.revises(round_.share):
            self._revise(share)
        elif share.round == round_.share.round + 1:
            self._plan_ahead(share)
        elif before is not None and share.revises(before.share):
            self._take_back()
            round_.discard()
            self.stage.discard_gradients()
            raise _Interrupted(item)
        else:
            self._forget()
            raise _Interrupted(item)


def _make_compiled(make_stage: Callable[..., Stage], folder: Path, *arguments: Any, **options: Any) -> Stage:
    stage = make_stage(*arguments, **options)
    compile_stage(stage, folder)
    return stage
