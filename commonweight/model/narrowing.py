"""From "these two replays differ" to the first operator that did (refereed delegation, as in Verde, arXiv 2502.19405).

Two parties record the same replay. Within one numerics class their records are equal, or the first that isn't names the
layer and the operator. If its inputs agree, its tensors are what anybody needs to compute that one operator again.
Across classes almost every operator's bits differ, so narrowing says nothing there.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from commonweight.model.hashing import tensors_hash
from commonweight.model.replay import finish_round, replay_microbatch
from commonweight.model.stage import Stage

Phase = Literal["forward", "backward", "step"]

_UNDEFINED = ("aten.empty", "aten.new_empty")
"""Operators whose outputs are whatever was in memory."""


@dataclass(frozen=True, slots=True)
class OperatorRecord:
    """One operator's execution. Views, which compute nothing, aren't recorded."""

    microbatch: int
    """Of those given, from 0; -1 in the step."""
    phase: Phase
    layer: str
    """The module's name, such as "layers.3.attention.norm". "stream" is what lies between sublayers, "boundary" what is
    done to a tensor that comes or goes, and on the last stage the loss.
    """
    operator: str
    """With its arguments, tensors as "·": "aten.add.Tensor(·, 1e-05)"."""
    inputs: tuple[bytes, ...]
    """`tensors_hash` of each tensor, in the order of the arguments."""
    strides: tuple[tuple[int, ...], ...]
    """Of the inputs. They decide bits, too: with other ones a kernel may vectorize otherwise."""
    outputs: tuple[bytes, ...]
    """`tensors_hash` of each result; arguments that were changed in place come last."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A replay's operators in the order in which they ran."""

    records: tuple[OperatorRecord, ...]
    tensors: dict[str, Tensor]
    """Those of one record, if asked for: "input.0", "output.0" and so on; contiguous copies on the CPU, as safetensors
    takes them. Who computes the operator again gives them the record's strides first.
    """


@dataclass(frozen=True, slots=True)
class Difference:
    """The first record in which two replays differ; `index` is what `record(extract=)` takes."""

    index: int
    what: Literal["operator", "inputs", "outputs"]
    """"operator": another one, other numbers or strides, or none on one side. "inputs": tensors that no operator made,
    such as weights. "outputs": the same operator on the same tensors gave something else.
    """
    ours: OperatorRecord | None
    theirs: OperatorRecord | None


def record(
    stage: Stage,
    state: Mapping[str, Tensor],
    round_: int,
    microbatches: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    output_gradients: Sequence[Tensor | None],
    *,
    extract: int | None = None,
) -> Recording:
    """Every operator of `replay` with these arguments, and the tensors of record `extract`.

    The bits are those of a replay that isn't recorded. Raises what `replay` does, and IndexError where there is no such
    record.
    """
    stage.load(state, round_)
    whole = len(microbatches) == stage.spec.training.microbatches_per_round
    recorder = _Recorder(extract)
    with recorder.attached(stage.module), recorder:
        for given in zip(microbatches, inputs, output_gradients, strict=True):
            replay_microbatch(stage, *given, accumulate=whole)
            recorder.microbatch += 1
        if whole:
            recorder.phase, recorder.microbatch = "step", -1
            finish_round(stage)
    if extract is not None and not 0 <= extract < len(recorder.records):
        raise IndexError(f"operator {extract} doesn't exist: the replay has {len(recorder.records)}")
    return Recording(tuple(recorder.records), recorder.wanted)


def first_difference(ours: Sequence[OperatorRecord], theirs: Sequence[OperatorRecord]) -> Difference | None:
    """Where two replays begin to differ; None where they don't."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if replace(one, inputs=(), outputs=()) != replace(other, inputs=(), outputs=()):
            return Difference(index, "operator", one, other)
        if one.inputs != other.inputs:
            return Difference(index, "inputs", one, other)
        if one.outputs != other.outputs:
            return Difference(index, "outputs", one, other)
    if len(ours) == len(theirs):
        return None
    index = min(len(ours), len(theirs))
    longer, shorter = (ours[index], None) if len(ours) > index else (None, theirs[index])
    return Difference(index, "operator", longer, shorter)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator below autograd; changes none.

    Which module an operator belongs to is known in the forward pass from hooks. Autograd numbers the nodes it makes
    there, so in the backward pass the running node's number tells the module.
    """

    def __init__(self, wanted: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[OperatorRecord] = []
        self.wanted: dict[str, Tensor] = {}
        self.microbatch = 0
        self.phase: Phase = "forward"
        self._index = wanted
        self._scopes = ["boundary"]
        self._starts: list[int] = []
        """Node numbers at which a scope begins..."""
        self._names: list[str] = []
        """...and its name."""

    @contextmanager
    def attached(self, module: nn.Module) -> Iterator[None]:
        """While this lasts, `module` and its parts tell where the forward pass is."""
        handles = []
        for name, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(lambda *_, name=name: self._enter(name or "stream")))
            handles.append(part.register_forward_hook(lambda *_: self._leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> None:
        outer = self._scopes[-1]
        # The rotary embedding is everybody's: "layers.3.attention.rotary".
        self._scopes.append(name if outer in ("boundary", "stream") or name.startswith(outer) else f"{outer}.{name}")
        self._mark()

    def _leave(self) -> None:
        self._scopes.pop()
        self._mark()

    def _mark(self) -> None:
        self._starts.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
        self._names.append(self._scopes[-1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or str(func).startswith(_UNDEFINED):
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        kept = self._keep("input", given)
        inputs = tuple(_hash(tensor) for tensor in given)
        strides = tuple(tensor.stride() for tensor in given)
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        made += _changed(func, args, kwargs)
        if made:
            self.wanted |= kept | self._keep("output", made)
            phase, layer = self._place()
            outputs = tuple(_hash(tensor) for tensor in made)
            name = f"{func}({_written(args, kwargs)})"
            self.records.append(OperatorRecord(self.microbatch, phase, layer, name, inputs, strides, outputs))
        return result

    def _place(self) -> tuple[Phase, str]:
        node = torch._C._current_autograd_node()
        if node is None:
            return self.phase, self._scopes[-1]
        position = bisect_right(self._starts, node._sequence_nr()) - 1
        # The node that adds to a weight's gradient has the largest number there is, and so the last name: "boundary".
        return "backward", self._names[position] if position >= 0 else "boundary"

    def _keep(self, kind: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        if len(self.records) != self._index:
            return {}
        return {f"{kind}.{i}": tensor.detach().cpu().clone().contiguous() for i, tensor in enumerate(tensors)}


def _hash(tensor: Tensor) -> bytes:
    return tensors_hash({"": tensor})


def _changed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that `func` changes in place and doesn't return."""
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write or func._schema.returns:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _written(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    shown = [repr(tree_map_only(Tensor, lambda _: _Dot(), value)) for value in args]
    shown += [f"{name}={tree_map_only(Tensor, lambda _: _Dot(), value)!r}" for name, value in kwargs.items()]
    return ", ".join(shown)


class _Dot:
    def __repr__(self) -> str:
        return "·"
