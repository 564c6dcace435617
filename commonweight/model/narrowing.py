"""From "these two replays differ" to the first operator that did (refereed delegation, as in Verde, arXiv 2502.19405).

Two parties record the same replay, and show each other the hashes of their records (commonweight/rules/recording.py).
Within one numerics class these are equal, or the first that isn't names the layer and the operator. Its tensors are
what anybody needs to compute that one operator again (commonweight/model/operators.py). Across classes almost every
operator's bits differ, so narrowing says nothing there.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from commonweight.errors import MessageTooLarge
from commonweight.model.operators import tensor_hash, tensors_made, tensors_of, write_arguments
from commonweight.model.replay import replay_microbatch, step_from
from commonweight.model.stage import Stage
from commonweight.rules.recording import MAX_OPERATORS, MAX_TENSORS_BYTES, OperatorRecord

Phase = Literal["forward", "backward", "step"]

_UNDEFINED = ("aten.empty", "aten.new_empty")
"""Operators whose outputs are whatever was in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """A replay's operators in the order in which they ran."""

    records: tuple[OperatorRecord, ...]
    tensors: dict[str, Tensor]
    """Those of one record, if asked for and if they have at most MAX_TENSORS_BYTES: "input.0", "output.0" and so on;
    contiguous copies on the CPU, as safetensors takes them.
    """


def record(
    stage: Stage,
    microbatches: Sequence[Tensor],
    inputs: Sequence[Tensor | None],
    output_gradients: Sequence[Tensor | None],
    summed: Mapping[str, Tensor] | None = None,
    extract: int | None = None,
) -> Recording:
    """Every operator of a replay on what `stage` holds, and the tensors of record `extract`, if there is one.

    Microbatches, inputs and gradients are as in `replay`. Then comes the step, with the gradient `summed`, or else with
    what the microbatches came to. Views, which compute nothing, aren't recorded. The bits are those of a replay that
    isn't recorded. Raises what `replay` does, MalformedMessage for an argument that can't be written down, and
    MessageTooLarge for more than MAX_OPERATORS.
    """
    recorder = _Recorder(extract)
    with recorder.attached(stage.module):
        for number, given in enumerate(zip(microbatches, inputs, output_gradients, strict=True)):
            recorder.microbatch = number
            tokens, code, gradient = map(_dense, given)
            assert tokens is not None
            with recorder:
                replay_microbatch(stage, tokens, code, gradient)
        recorder.phase, recorder.microbatch = "step", None
        with recorder:
            step_from(stage, summed)
    return Recording(tuple(recorder.records), recorder.wanted)


def _dense(tensor: Tensor | None) -> Tensor | None:
    """A copy: where a tensor came from has left it laid out in memory one way or another, and records have strides."""
    return None if tensor is None else tensor.clone(memory_format=torch.contiguous_format)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator below autograd; changes none.

    Which module an operator belongs to is known in the forward pass from hooks. Autograd numbers the nodes it makes
    there, so in the backward pass the running node's number tells the module.
    """

    def __init__(self, wanted: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[OperatorRecord] = []
        self.wanted: dict[str, Tensor] = {}
        self.microbatch: int | None = None
        self.phase: Phase = "forward"
        self._index = wanted
        self._scopes = ["boundary"]
        self._starts: list[int] = []
        """Node numbers at which a scope begins..."""
        self._names: list[str] = []
        """...and its name."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nobody compiles this; to be skipped by torch's compiler it would import it, 1.1 s of CPU time and 80 MB."""
        return False

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
        given = tensors_of((args, kwargs))
        kept = self._kept("input", given)
        inputs, strides = tuple(map(tensor_hash, given)), tuple(tensor.stride() for tensor in given)
        result = func(*args, **kwargs)
        made = tensors_made(func, args, kwargs, result)
        if made:
            if len(self.records) == MAX_OPERATORS:
                raise MessageTooLarge(f"The replay has more than {MAX_OPERATORS} operators: too many for a recording.")
            if len(self.records) == self._index and _size(given) + _size(made) <= MAX_TENSORS_BYTES:
                self.wanted = kept | self._kept("output", made)
            phase, layer = self._place()
            self.records.append(
                OperatorRecord(
                    microbatch=self.microbatch,
                    phase=phase,
                    layer=layer,
                    operator=str(func),
                    arguments=write_arguments(args, kwargs),
                    inputs=inputs,
                    strides=strides,
                    outputs=tuple(map(tensor_hash, made)),
                )
            )
        return result

    def _place(self) -> tuple[Phase, str]:
        node = torch._C._current_autograd_node()
        if node is None:
            return self.phase, self._scopes[-1]
        position = bisect_right(self._starts, node._sequence_nr()) - 1
        # The node that adds to a weight's gradient has the largest number there is, and so the last name: "boundary".
        return "backward", self._names[position] if position >= 0 else "boundary"

    def _kept(self, kind: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Copies, while the wanted record is made: the operator may change its inputs."""
        if len(self.records) != self._index or _size(tensors) > MAX_TENSORS_BYTES:
            return {}
        return {f"{kind}.{i}": tensor.detach().cpu().clone().contiguous() for i, tensor in enumerate(tensors)}


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
