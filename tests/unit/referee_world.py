"""Rounds that some nodes train, honestly or not, with what they report and keep of them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from commonweight.errors import MessageTooLarge, PeerUnreachable
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.stage import Stage
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.report import NO_TENSOR, Hop, Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.tensors import digest, to_bytes
from tests.unit.tiny import random_batches, tiny_spec

SPEC = tiny_spec(stages=3, grad_clip="1")
MICROBATCHES = SPEC.training.microbatches_per_round


class Node:
    """A provider of one stage: computes, keeps what crossed its sides, and serves it. What is here is honest."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        self.spec, self.stage = spec, Stage(spec, index)
        self.name = f"node {index}"
        self.tensors: dict[bytes, bytes] = {}
        self.states: dict[tuple[int, str, bool], bytes] = {}
        """By round, part, and whether after it."""
        self.gradients: dict[tuple[int, bytes], bytes] = {}
        """By round and hash."""

    def keep(self, tensor: Tensor | None) -> bytes:
        if tensor is None:
            return NO_TENSOR
        self.tensors[digest(tensor)] = bytes(to_bytes(tensor))
        return digest(tensor)

    def keep_state(self, round_: int, *, after: bool) -> None:
        parameters, moments = self.stage.parameters(), self.stage.moments()
        served = with_moments_hash(parameters, tensors_hash(moments))
        self.states[round_, "parameters", after] = safetensors.torch.save(served)
        self.states[round_, "moments", after] = safetensors.torch.save(moments)

    def forward(self, microbatch: int, tokens: Tensor, code: Tensor | None) -> Any:
        return self.stage.forward(tokens, code)

    def output(self, microbatch: int, output: Tensor) -> Tensor:
        return output

    def loss(self, microbatch: int, loss: float) -> float:
        return loss

    def backward(self, microbatch: int, pending: Any, gradient: Tensor | None) -> Tensor | None:
        return self.stage.backward(pending, gradient)

    def returned(self, microbatch: int, gradient: Tensor) -> Tensor:
        return gradient

    def sketch(self, microbatch: int) -> bytes:
        return self.stage.sketch()

    def gradient_hash(self) -> bytes:
        return self.stage.gradient_hash()

    def step(self) -> None:
        self.stage.step()

    def keep_gradient(self, round_: int, gradient_hash: bytes) -> None:
        gradient = {name: tensor.contiguous() for name, tensor in self.stage.gradients().items()}
        self.gradients[round_, gradient_hash] = safetensors.torch.save(gradient)

    def replace_gradient(self, gradient: Mapping[str, Tensor]) -> None:
        for name, tensor in self.stage.gradients().items():
            tensor.copy_(gradient[name])

    async def tensor(self, round_: int, wanted: bytes, size: int) -> bytes:
        if wanted not in self.tensors:
            raise PeerUnreachable("not kept.")
        return self.tensors[wanted]

    async def state(self, round_: int, part: str, *, after: bool, limit: int) -> bytes:
        if (round_, part, after) not in self.states:
            raise PeerUnreachable("not kept.")
        if len(self.states[round_, part, after]) > limit:
            raise MessageTooLarge("too large.")
        return self.states[round_, part, after]

    async def gradient(self, round_: int, signed: bytes, *, limit: int) -> bytes:
        if (round_, signed) not in self.gradients:
            raise PeerUnreachable("not kept.")
        if len(self.gradients[round_, signed]) > limit:
            raise MessageTooLarge("too large.")
        return self.gradients[round_, signed]


@dataclass
class World:
    """A model that some nodes train, and their reports."""

    nodes: list[Node]
    """Of each stage one."""
    reports: dict[tuple[int, int], Report] = field(default_factory=dict)
    """Of these, by round and stage."""
    others: dict[int, list[Node]] = field(default_factory=dict)
    """Further replicas, by stage."""
    others_reports: dict[tuple[int, int, int], Report] = field(default_factory=dict)
    """By round, stage and replica, from 1."""
    order: Sequence[int] = ()
    """In which microbatches are computed, if not in that of their numbers; the replicas of a stage take turns."""

    def replicas(self, stage: int) -> list[Node]:
        return [self.nodes[stage], *self.others.get(stage, ())]

    def report(self, unit: Audit) -> Report:
        """Of whose work it is."""
        if unit.replica:
            return self.others_reports[unit.round, unit.stage, unit.replica]
        return self.reports[unit.round, unit.stage]

    def train(self, round_: int, batches: list[Tensor]) -> None:
        crews = [self.replicas(stage) for stage in range(len(self.nodes))]
        hops: dict[Node, list[dict[str, Any]]] = {node: [] for crew in crews for node in crew}
        before = {node: node.stage.state_root() for node in hops}
        for node in hops:
            node.keep_state(round_, after=False)
        for number, tokens in ((number, batches[number]) for number in self.order or range(len(batches))):
            pending, code = [], None
            path = [crew[number % len(crew)] for crew in crews]
            for node, mine in ((node, hops[node]) for node in path):
                mine.append({"microbatch": number, "loss": 0.0})
                mine[-1] |= {"tokens": node.keep(tokens), "activation_in": node.keep(code)}
                pending.append(node.forward(number, tokens, code))
                if isinstance(result := pending[-1].output, float):
                    code = None
                    mine[-1]["loss"] = node.loss(number, result)
                else:
                    code = node.output(number, result)
                mine[-1]["activation_out"] = node.keep(code)
            gradient = None
            for node, mine in ((node, hops[node]) for node in reversed(path)):
                mine[-1]["gradient_in"] = node.keep(gradient)
                gradient = node.backward(number, pending.pop(), gradient)
                gradient = None if gradient is None else node.returned(number, gradient)
                mine[-1]["gradient_out"] = node.keep(gradient)
                mine[-1]["sketch"] = node.sketch(number)
        for stage, crew in enumerate(crews):
            own = {node: node.gradient_hash() for node in crew}
            for node in crew:
                node.keep_gradient(round_, own[node])
            summed = own[crew[0]]
            if len(crew) > 1:
                total = {name: tensor.clone() for name, tensor in crew[0].stage.gradients().items()}
                for node in crew[1:]:
                    for name, tensor in node.stage.gradients().items():
                        total[name] += tensor
                summed = tensors_hash(total)
                for node in crew:
                    node.replace_gradient(total)
                    node.keep_gradient(round_, summed)
            for replica, node in enumerate(crew):
                node.step()
                node.keep_state(round_, after=True)
                mine = tuple(Hop(**hop) for hop in hops[node])
                states = before[node], node.stage.state_root()
                report = Report(round_, stage, mine, own[node], summed, *states)
                if replica:
                    self.others_reports[round_, stage, replica] = report
                else:
                    self.reports[round_, stage] = report

    def sources(self, stage: int, replica: int = 0) -> list[Node]:
        """Who may have what an audit of this stage needs: whose work it is, then the neighbours."""
        near = [
            node for other in (stage - 1, stage + 1) if 0 <= other < len(self.nodes) for node in self.replicas(other)
        ]
        return [self.replicas(stage)[replica], *near]


@dataclass
class Text:
    """Stands for the data set."""

    def microbatch(self, round_: int, microbatch: int) -> Tensor:
        return batches_of(SPEC, round_)[microbatch]


def batches_of(spec: ModelSpec, round_: int) -> list[Tensor]:
    return [tokens.to(torch.uint8) for tokens in random_batches(spec, round_)]


def train(lie: Callable[..., Node] = Node, at: int = -1, spec: ModelSpec = SPEC, rounds: int = 2) -> World:
    """Two rounds; the provider of stage `at` is a `lie`."""
    world = World([(lie if index == at else Node)(spec, index) for index in range(spec.stages)])
    for round_ in range(rounds):
        world.train(round_, batches_of(spec, round_))
    return world


def train_divided(lie: Callable[..., Node] = Node, at: int = -1, rounds: int = 2) -> World:
    """The same, where stages 1 and 2 have two replicas, and the second of stage `at` is a `lie`: replica 0 computes
    microbatches 2 and 0, in this order, replica 1 only 1.
    """
    others = {stage: [(lie if stage == at else Node)(SPEC, stage)] for stage in (1, 2)}
    world = World([Node(SPEC, stage) for stage in range(SPEC.stages)], others=others, order=(2, 0, 1))
    for round_ in range(rounds):
        world.train(round_, batches_of(SPEC, round_))
    return world


def whole(stage: int, round_: int = 1, replica: int = 0) -> Audit:
    return Audit(round_, stage, Kind.ROUND, None, replica)


def single(stage: int, microbatch: int = 1, round_: int = 1, replica: int = 0) -> Audit:
    return Audit(round_, stage, Kind.LOSS if stage == SPEC.stages - 1 else Kind.MICROBATCH, microbatch, replica)


class WrongOutput(Node):
    def output(self, microbatch: int, output: Tensor) -> Tensor:
        return output.nextafter(output + 1) if microbatch == 1 else output


class WrongGradient(Node):
    def returned(self, microbatch: int, gradient: Tensor) -> Tensor:
        return -gradient if microbatch == 1 else gradient


class WrongLoss(Node):
    def loss(self, microbatch: int, loss: float) -> float:
        return loss * (1 - 2**-50) if microbatch == 1 else loss


class WrongHash(Node):
    def gradient_hash(self) -> bytes:
        return bytes(32)


class FalseGradient(Node):
    """Adds to the gradient of each microbatch what nobody asked for; its sketches are of this."""

    where: Collection[int] = range(MICROBATCHES)
    size = 1.0
    """Beside the gradient's."""

    def backward(self, microbatch: int, pending: Any, gradient: Tensor | None) -> Tensor | None:
        back = super().backward(microbatch, pending, gradient)
        if microbatch in self.where:
            self.falsify()
        return back

    def falsify(self) -> None:
        generator = torch.Generator().manual_seed(self.stage.index)
        for gradient in self.stage.gradients().values():
            length = self.size * gradient.norm() / gradient.numel() ** 0.5
            gradient += length * torch.randn(gradient.shape, generator=generator)


class HiddenGradient(FalseGradient):
    """Does so in the last microbatch alone."""

    where = (MICROBATCHES - 1,)


class HugeGradient(HiddenGradient):
    size = 20.0


class OtherSum(FalseGradient):
    """Does so when it has the sketches of what is true."""

    where = ()

    def gradient_hash(self) -> bytes:
        self.falsify()
        return super().gradient_hash()


class OtherServed(OtherSum):
    """Signs and serves another gradient than that which it has stepped with: the true one."""

    def gradient_hash(self) -> bytes:
        self.true = {name: tensor.clone() for name, tensor in self.stage.gradients().items()}
        return super().gradient_hash()

    def step(self) -> None:
        for name, tensor in self.stage.gradients().items():
            tensor.copy_(self.true[name])
        super().step()


class FalseSketch(Node):
    """Computes what is due, and says that one microbatch gave something else."""

    def sketch(self, microbatch: int) -> bytes:
        return bytes(32) if microbatch == 1 else super().sketch(microbatch)


class NoSketch(Node):
    def sketch(self, microbatch: int) -> bytes:
        return bytes(32)


class Cancelling(Node):
    """Sends to the stage before, where it can, almost the opposite of what it sent before."""

    sent: Tensor

    def returned(self, microbatch: int, gradient: Tensor) -> Tensor:
        if microbatch == 0:
            self.sent = gradient
        return self.sent * (1e-6 - 1) if microbatch == 1 else gradient


class NoStep(Node):
    """Saves the optimizer's work: the next version has the same numbers."""

    def step(self) -> None:
        self.stage.load(self.stage.state(), self.stage.round + 1)


class StaleWeights(Node):
    """Computes with version 0, whatever it signs."""

    def forward(self, microbatch: int, tokens: Tensor, code: Tensor | None) -> Any:
        if microbatch == 0:
            self.stage.load(Stage(self.spec, self.stage.index).state(), self.stage.round)
        return super().forward(microbatch, tokens, code)


class HalfPrecision(Node):
    """Computes in bfloat16 what the spec wants in float32."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__(spec, index)
        training = spec.training.model_copy(update={"compute_dtype": "bfloat16"})
        self.stage = Stage(spec.model_copy(update={"training": training}), index)


class OtherStart(Node):
    """Starts from other weights than the spec's."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__(spec, index)
        with torch.no_grad():
            next(self.stage.module.parameters()).add_(1e-3)


class OtherRounding(Node):
    """An honest machine of another class: every result is off by a rounding, or some where more is summed."""

    def __init__(self, spec: ModelSpec, index: int) -> None:
        super().__init__(spec, index)
        self.generator = torch.Generator().manual_seed(index)

    def blur(self, tensor: Tensor, size: float = 1e-7) -> Tensor:
        return tensor * (1 + size * torch.randn(tensor.shape, generator=self.generator))

    def output(self, microbatch: int, output: Tensor) -> Tensor:
        return self.blur(output)

    def loss(self, microbatch: int, loss: float) -> float:
        return loss * (1 + 1e-7)

    def returned(self, microbatch: int, gradient: Tensor) -> Tensor:
        return self.blur(gradient)

    def backward(self, microbatch: int, pending: Any, gradient: Tensor | None) -> Tensor | None:
        back = super().backward(microbatch, pending, gradient)
        for summed in self.stage.gradients().values():
            summed.copy_(self.blur(summed, 3e-6))
        return back


class OtherStep(Node):
    """An honest machine of another class, whose step alone is off by a rounding."""

    def step(self) -> None:
        super().step()
        for parameter in self.stage.parameters().values():
            parameter.copy_(parameter.nextafter(parameter + 1))
