"""One stage of the model: what a provider holds, computes and steps.

A round is `microbatches_per_round` times `forward` and `backward`, in any interleaving that runs the
backwards in the order of their microbatches, then `step`. On one build of torch, one kind of device and one
thread count all results are the same bits, in whatever process; `state_root` after the round follows from the
spec and the data.

Where training is asynchronous two stages can take turns, so that a round begins before the one before it ends:

    other.ahead_of(stage)    the next round can be computed with `other` from here on
    stage.step()             `other` is now the version to save, and to step next; then it is `stage.ahead_of(other)`
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from commonweight.errors import CheckpointError, MalformedMessage, NonFiniteTensor
from commonweight.model.adamw import AdamW
from commonweight.model.decoder import Decoder
from commonweight.model.hashing import tensors_hash
from commonweight.model.initial import frozen_tensors, initialize
from commonweight.model.schedule import learning_rate
from commonweight.model.sketch import Sketched, pack_sketch, sketch_factors, sketch_sums
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_layers
from commonweight.rules.state import state_root


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """One microbatch on its way: what goes on, and what `Stage.backward` needs (freed by it)."""

    output: Tensor | float
    """The code for the next stage [b, t, k] in the boundary dtype; from the last stage the mean loss in nats."""
    leaf: Tensor | None
    result: Tensor


class Stage:
    """Stage `index` of the model at the version that is ready to train `round`; built at version 0.

    `dtype` float64 is for reference computations: all arithmetic and the boundary are float64 then, whatever
    the spec says. `frozen_hash` is the `tensors_hash` of U and F (of nothing where dense), equal on all stages that
    can be chained. A `blank` stage is cheap to make: its parameters are undefined, and it has no moments, until
    `load`; it shares U and F, which are public, with other blank ones. Raises IndexError where the spec has no such
    stage.
    """

    def __init__(
        self,
        spec: ModelSpec,
        index: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        blank: bool = False,
    ) -> None:
        if not 0 <= index < spec.stages:
            raise IndexError(f"stage {index} doesn't exist: the model has stages 0 to {spec.stages - 1}")
        training = spec.training
        self.spec, self.index, self.round = spec, index, 0
        self.is_first, self.is_last = index == 0, index == spec.stages - 1
        self.device, self.dtype = torch.device(device), dtype
        exact = dtype == torch.float64
        self.boundary_dtype: torch.dtype = dtype if exact else getattr(torch, training.boundary_dtype)
        self._autocast = training.compute_dtype == "bfloat16" and not exact
        # A power of two, so that scaling rounds nothing: see `backward`.
        self._gradient_scale = float(1 << (training.tokens_per_round.bit_length() - 1))

        module = Decoder(
            spec.architecture,
            stage_layers(spec)[index],
            training.sequence_length,
            first=self.is_first,
            last=self.is_last,
        )
        self.module = module.to(self.device, dtype)
        self.run_module: Callable[[Tensor, Tensor | None], Tensor] = self.module
        """What computes the module: itself, or a compiled program of it (commonweight/model/compiling.py)."""
        self._parameters = dict(self.module.named_parameters())
        if blank:
            frozen, self.frozen_hash = frozen_tensors(spec.architecture, spec.seed, self.device, dtype)
            if module.subspace is not None:
                module.subspace.U, module.subspace.F = frozen["U"], frozen["F"]
        else:
            initialize(self.module, spec.architecture, spec.seed)
            frozen = {} if module.subspace is None else dict(module.subspace.named_buffers())
            self.frozen_hash = tensors_hash(frozen)
        self._optimizer = None if blank else AdamW(self._parameters, training)

    def forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """Run one microbatch through the stage.

        `tokens` are integers [b, t + 1]: inputs are all but the last, targets all but the first. `code`
        [b, t, k] in the boundary dtype is the output of the stage before, None on the first stage. Raises
        MalformedMessage for wrong shapes, a wrong dtype or a token outside the vocabulary: both may come from
        a peer.
        """
        self._check_input(tokens, code)
        ids = tokens.to(self.device, torch.int64)
        leaf = None if code is None else code.detach().to(self.device, self.dtype).requires_grad_()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            result = self.run_module(ids[:, :-1], leaf)
        if not self.is_last:
            return Forward(result.detach().to(self.boundary_dtype).contiguous(), leaf, result)
        loss = F.cross_entropy(result.to(self.dtype).flatten(0, 1), ids[:, 1:].flatten())
        return Forward(loss.item(), leaf, loss)

    def backward(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """Add one microbatch's share of the round's gradient, that of loss / microbatches_per_round.

        `gradient` is what the next stage's `backward` returned for this microbatch, None on the last stage;
        the result is for the stage before, None from the first. Both are [b, t, k] in the boundary dtype and
        hold dL/dc times the largest power of two in tokens_per_round: about the gradient of one token's own
        loss, so that float16 doesn't flush it to zero in a large round. Raises MalformedMessage for a wrong
        shape or dtype.
        """
        torch.autograd.backward(self._objective(pending, gradient))
        return None if pending.leaf is None else self._outgoing(pending.leaf.grad)

    def input_gradient(self, pending: Forward, gradient: Tensor | None) -> Tensor | None:
        """What `backward` returns, bit for bit, without adding to the round's gradient: cheaper by the products that
        only the weights' gradients need, and free on the first stage.
        """
        objective = self._objective(pending, gradient)
        if pending.leaf is None:
            return None
        return self._outgoing(torch.autograd.grad(objective, pending.leaf)[0])

    def _objective(self, pending: Forward, gradient: Tensor | None) -> Tensor:
        """The scalar to differentiate: its gradient is the microbatch's share of the round's."""
        if self.is_last:
            assert gradient is None, "the last stage starts the backward pass"
            return pending.result * (1 / self.spec.training.microbatches_per_round)
        self._check_boundary("gradient", gradient, tuple(pending.result.shape))
        assert gradient is not None
        # A scalar: to compare the shape of a gradient that it is given, autograd imports a compiler of 35 MB.
        return (pending.result * (gradient.to(self.device, self.dtype) / self._gradient_scale)).sum()

    def _outgoing(self, gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        return (gradient * self._gradient_scale).to(self.boundary_dtype)

    def gradients(self) -> dict[str, Tensor]:
        """The gradient accumulated so far, by parameter name: the live tensors. `step` clips them in
        place.
        """
        found = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        assert len(found) == len(self._parameters), "no microbatch has been through backward"
        return found

    @property
    def numbers(self) -> int:
        """Of its gradient."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def flat_gradient(self) -> Tensor:
        """The gradient accumulated so far as one vector on the CPU, a copy: see commonweight/rules/averaging.py."""
        return torch.cat([gradient.flatten() for _, gradient in sorted(self.gradients().items())]).cpu()

    def replace_gradient(self, flat: Tensor) -> None:
        """Take this vector for the gradient; as `flat_gradient` has it."""
        position = 0
        for _, parameter in sorted(self._parameters.items()):
            part = flat[position : position + parameter.numel()]
            parameter.grad = part.view(parameter.shape).to(self.device, copy=True)
            position += parameter.numel()

    def take_gradient(self, gradient: Mapping[str, Tensor]) -> None:
        """Take a copy of these tensors, by parameter name, for the gradient. Raises MalformedMessage, and changes
        nothing, where they aren't this stage's.
        """
        found = {name: describe(tensor) for name, tensor in gradient.items()}
        if found != (own := {name: describe(parameter) for name, parameter in self._parameters.items()}):
            other = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
            raise MalformedMessage(
                f"This is no gradient of stage {self.index} of {self.spec.name}: {other[0]} is "
                f"{found.get(other[0], 'missing')} instead of {own.get(other[0], 'nothing')}."
            )
        for name, parameter in self._parameters.items():
            parameter.grad = gradient[name].to(self.device, copy=True)

    def gradient_hash(self) -> bytes:
        """The `tensors_hash` of the round's gradient (32 bytes); to be taken before `step`."""
        return tensors_hash(self.gradients())

    def sketch(self) -> bytes:
        """Of the gradient accumulated so far, as a report has it after each microbatch (32 bytes)."""
        return pack_sketch(sketch_sums(self.gradients(), self._factors))

    def sketched(self, gradient: Mapping[str, Tensor] | None = None) -> Sketched:
        """The gradient accumulated so far, or another one of this stage, by parameter name."""
        gradient = self.gradients() if gradient is None else gradient
        norm = torch.nn.utils.get_total_norm(list(gradient.values())).item()
        return Sketched(sketch_sums(gradient, self._factors), norm)

    def step(self) -> float:
        """Clip, take one AdamW step at the round's learning rate, and be ready for the next round.

        Each stage clips its own norm to grad_clip / sqrt(stages), so the whole model's stays under grad_clip
        without an exchange; 0 is no clipping. Where replicas step alone, and this is a round in which they average, the
        gradient is the sum of what they made by `weigh_movement`, and steps the anchor, unclipped. Returns the norm
        before clipping. Raises NonFiniteTensor, and changes nothing, where the gradient holds NaN or infinity.
        """
        training = self.spec.training
        gradients = self.gradients()
        if training.moves_anchor(self.round):
            norm = self._checked_norm(gradients)
            self._adamw.step_anchor(gradients)
        else:
            norm = self._clip(gradients)
            rate = learning_rate(training, self.round)
            self._adamw.write_next(self._parameters, rate)
            self._adamw.step(gradients, rate)
        self.discard_gradients()
        self.round += 1
        return norm

    def weigh_movement(self, part: float) -> None:
        """Where replicas that step alone average in this round, make of the gradient what is averaged: how far the step
        with it leads from the anchor, times the part of the round's microbatches that the gradient is of. Raises as
        `step` does.
        """
        gradients = self.gradients()
        self._clip(gradients)
        rate = learning_rate(self.spec.training, self.round)
        for name, movement in self._adamw.movement(gradients, rate).items():
            self._parameters[name].grad = movement.mul_(part)

    def _clip(self, gradients: Mapping[str, Tensor]) -> float:
        norm = self._checked_norm(gradients)
        limit = float(self.spec.training.grad_clip) / math.sqrt(self.spec.stages)
        if 0 < limit < norm:
            torch._foreach_mul_(list(gradients.values()), limit / norm)
        return norm

    def _checked_norm(self, gradients: Mapping[str, Tensor]) -> float:
        training = self.spec.training
        norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
        if not math.isfinite(norm):
            raise NonFiniteTensor(
                f"The gradient of stage {self.index} in round {self.round} has norm {norm}. Nothing was "
                "changed; discard this round. If it happens again, the model diverges: a new spec needs a lower "
                f"learning_rate than {training.learning_rate}."
            )
        return norm

    def ahead_of(self, stage: "Stage") -> None:
        """Become the version after that of `stage`, of which only the parameters are known as yet.

        The next round can be computed with it while `stage` computes its own. Once `stage` has stepped, this one is the
        whole version, with the gradient that it has by then; the two share what the optimizer keeps. Between the two
        `stage` mustn't `load`. `stage` itself is the whole version, too, until this one steps. Pending gradients are
        discarded.
        """
        training = self.spec.training
        assert training.is_asynchronous, "the next version takes this round's gradient"
        assert self is not stage, "it takes two"
        assert (self.spec, self.index) == (stage.spec, stage.index), "both are of one model and stage"
        self.discard_gradients()
        optimizer = stage._adamw
        optimizer.write_next(self._parameters, learning_rate(training, stage.round))
        self._optimizer, self.round = optimizer, stage.round + 1

    def discard_gradients(self) -> None:
        """Forget the microbatches of this round."""
        # None instead of zeros: the first microbatch's gradient becomes the accumulator without an addition.
        for parameter in self._parameters.values():
            parameter.grad = None

    def parameters(self) -> dict[str, Tensor]:
        """The parameters under "parameter.": the live tensors."""
        return {f"parameter.{name}": parameter.detach() for name, parameter in self._parameters.items()}

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments under "moment1." and "moment2."; where training is asynchronous the master weights under
        "master."; where replicas step alone the "anchor." and its "velocity.": the live tensors.
        """
        return self._adamw.state()

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments: the live tensors.

        With `round`, which is also Adam's step count, this is all that training goes on from. Copy what must
        outlive the next step.
        """
        return self.parameters() | self.moments()

    def load(self, state: Mapping[str, Tensor], round_: int) -> None:
        """Take over a `state()` of this stage that is ready to train `round_`; pending gradients are
        discarded.

        Raises CheckpointError, and changes nothing, where names, shapes or dtypes are not exactly this
        stage's.
        """
        if self._optimizer is None:
            self._optimizer = AdamW(self._parameters, self.spec.training)
        own = self.parameters() | self._optimizer.state()
        faults = [f"{name} is missing" for name in own if name not in state]
        faults += [f"{name} is not of this stage" for name in state if name not in own]
        for name in own.keys() & state.keys():
            found, expected = describe(state[name]), describe(own[name])
            if found != expected:
                faults.append(f"{name} is {found} instead of {expected}")
        if round_ < 0:
            faults.append(f"round {round_} is negative")
        if faults:
            more = f" and {len(faults) - 3} more faults" if len(faults) > 3 else ""
            raise CheckpointError(
                f"The state doesn't fit stage {self.index} of {self.spec.name}: "
                f"{'; '.join(sorted(faults)[:3])}{more}. Take it from a provider of the same model and stage."
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.discard_gradients()
        self.round = self._optimizer.round = round_

    def state_root(self) -> bytes:
        """The hash of this version (32 bytes): round, frozen tensors, parameters and moments."""
        return self.root_of(self.round, tensors_hash(self.parameters()), tensors_hash(self.moments()))

    def root_of(self, round_: int, parameters_hash: bytes, moments_hash: bytes) -> bytes:
        """The `state_root` that this stage has where its parts have these hashes."""
        return state_root(round_, self.frozen_hash, parameters_hash, moments_hash)

    @cached_property
    def _factors(self) -> dict[str, Tensor]:
        return sketch_factors(
            {name: parameter.detach() for name, parameter in self._parameters.items()}, self.spec.seed
        )

    @property
    def _adamw(self) -> AdamW:
        assert self._optimizer is not None, "a blank stage has no moments until it is loaded"
        assert self._optimizer.round == self.round, "another stage shares the moments, which are of its version"
        return self._optimizer

    def _check_input(self, tokens: Tensor, code: Tensor | None) -> None:
        length, vocab = self.spec.training.sequence_length, self.spec.architecture.vocab_size
        if tokens.ndim != 2 or not 2 <= tokens.shape[1] <= length + 1 or tokens.dtype.is_floating_point:
            raise MalformedMessage(
                f"Tokens are {describe(tokens)}; expected integers [b, t + 1], t from 1 to {length}."
            )
        lowest, highest = torch.aminmax(tokens.to(torch.int64))
        if lowest < 0 or highest >= vocab:
            raise MalformedMessage(f"Tokens {int(lowest)} to {int(highest)} aren't all in the vocabulary of {vocab}.")
        if self.is_first:
            assert code is None, "the first stage starts from the embedding"
        else:
            shape = (tokens.shape[0], tokens.shape[1] - 1, self.spec.architecture.boundary_dim)
            self._check_boundary("code", code, shape)

    def _check_boundary(self, what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        if tensor is None or tensor.dtype != self.boundary_dtype or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else describe(tensor)
            expected = describe(torch.empty(shape, dtype=self.boundary_dtype, device="meta"))
            raise MalformedMessage(f"The {what} for stage {self.index} is {found}; expected {expected}.")


def state_parts(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The `Stage.parameters` and the `Stage.moments` of a `Stage.state`."""
    parameters = {name: tensor for name, tensor in state.items() if name.startswith("parameter.")}
    return parameters, {name: tensor for name, tensor in state.items() if name not in parameters}


def describe(tensor: Tensor) -> str:
    """Dtype and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def train_round(stages: Sequence[Stage], batches: Sequence[Tensor]) -> list[float]:
    """Train one whole round through all stages of a model in this process, and step each. As `accumulate`; all of the
    round is the load of one replica.
    """
    losses = accumulate(stages, batches)
    for stage in stages:
        if stage.spec.training.moves_anchor(stage.round):
            stage.weigh_movement(1.0)
        stage.step()
    return losses


def accumulate(stages: Sequence[Stage], batches: Sequence[Tensor]) -> list[float]:
    """Add the gradients of these microbatches [b, t + 1] in order. Returns the loss of each in nats. The
    arithmetic is that of the same stages over the wire: the same order, and the same casts at the boundaries.
    """
    losses = []
    for tokens in batches:
        pending: list[Forward] = []
        code: Tensor | None = None
        for stage in stages:
            pending.append(stage.forward(tokens, code))
            output = pending[-1].output
            if isinstance(output, Tensor):
                code = output
            else:
                losses.append(output)
        gradient: Tensor | None = None
        for stage in reversed(stages):
            gradient = stage.backward(pending.pop(), gradient)
    return losses
