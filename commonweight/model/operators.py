"""One operator of torch: its arguments as text, and running it again from nothing but its record and its tensors.

    rerun_operator(record, tensors).hash == record.hash

Whoever computes in the same numerics class can so check one operator of a replay without the replay.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils._pytree import tree_leaves

from commonweight.errors import MalformedMessage
from commonweight.model.hashing import tensors_hash
from commonweight.rules.canonical import MAX_INTEGER
from commonweight.rules.recording import MAX_TENSORS_BYTES, OperatorRecord
from commonweight.rules.statement import to_hex

REPEATABLE = frozenset(
    {
        "aten._foreach_mul_.Scalar",
        "aten._foreach_norm.Scalar",
        "aten._fused_adamw_.default",
        "aten._log_softmax.default",
        "aten._log_softmax_backward_data.default",
        "aten._scaled_dot_product_flash_attention_for_cpu.default",
        "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
        "aten._to_copy.default",
        "aten._unsafe_view.default",
        "aten.add.Tensor",
        "aten.add_.Tensor",
        "aten.addcdiv_.default",
        "aten.addmm.default",
        "aten.aminmax.default",
        "aten.cat.default",
        "aten.clone.default",
        "aten.copy_.default",
        "aten.div.Scalar",
        "aten.div.Tensor",
        "aten.div_.Tensor",
        "aten.embedding.default",
        "aten.embedding_dense_backward.default",
        "aten.ge.Scalar",
        "aten.linalg_vector_norm.default",
        "aten.lt.Scalar",
        "aten.mean.dim",
        "aten.mm.default",
        "aten.mul.Scalar",
        "aten.mul.Tensor",
        "aten.mul_.Tensor",
        "aten.neg.default",
        "aten.new_full.default",
        "aten.nll_loss_backward.default",
        "aten.nll_loss_forward.default",
        "aten.ones_like.default",
        "aten.pow.Tensor_Scalar",
        "aten.rsqrt.default",
        "aten.silu.default",
        "aten.silu_backward.default",
        "aten.slice_backward.default",
        "aten.sqrt.default",
        "aten.stack.default",
        "aten.sub.Tensor",
        "aten.sum.default",
        "aten.sum.dim_IntList",
        "aten.zero_.default",
    }
)
"""What a replay of a stage on a CPU consists of. A record comes from anybody: nothing else is run."""
MAX_MADE_BYTES = 16 * MAX_TENSORS_BYTES
"""That running an operator again may take beside its inputs; it is refused before anything is allocated."""

_CONSTANTS: dict[str, tuple[Any, ...]] = {
    "dtype": (
        *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool),
        *(torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64),
    ),
    "layout": (torch.strided,),
    "memory_format": (torch.contiguous_format, torch.preserve_format, torch.channels_last),
}
_NAMES = {value: {kind: str(value).removeprefix("torch.")} for kind, values in _CONSTANTS.items() for value in values}
_VALUES = {kind: {str(value).removeprefix("torch."): value for value in values} for kind, values in _CONSTANTS.items()}


def write_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """{"args", "kwargs"} as canonical JSON has them.

    Tensors become {"tensor": number} in their order, floats {"float": shortest decimal}, large integers {"int":
    decimal}, and {"dtype"}, {"device"} (its type), {"layout"} and {"memory_format"} name torch's constants. Raises
    MalformedMessage for what has no such form.
    """
    numbers = iter(range(2**31))
    return {
        "args": [_write(value, numbers) for value in args],
        "kwargs": {name: _write(value, numbers) for name, value in kwargs.items()},
    }


def _write(value: Any, numbers: Iterator[int]) -> Any:
    match value:
        case Tensor():
            return {"tensor": next(numbers)}
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) <= MAX_INTEGER else {"int": str(value)}
        case float():
            return {"float": repr(value)}
        case torch.device():
            return {"device": value.type}
        case list() | tuple():
            return [_write(each, numbers) for each in value]
        case torch.dtype() | torch.layout() | torch.memory_format() if value in _NAMES:
            return _NAMES[value]
    raise MalformedMessage(f"An operator's argument is a {type(value).__name__}, which has no form in a record.")


def read_arguments(
    arguments: Any, tensors: Sequence[Tensor], device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that `write_arguments` has written, with these tensors. Raises MalformedMessage."""
    try:
        args, kwargs = arguments["args"], arguments["kwargs"]
        return tuple(_read(value, tensors, device) for value in args), {
            str(name): _read(value, tensors, device) for name, value in kwargs.items()
        }
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise MalformedMessage(f"The record's arguments can't be read: {error!r:.200}.") from error


def _read(value: Any, tensors: Sequence[Tensor], device: torch.device) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case list():
            return [_read(each, tensors, device) for each in value]
        case {"tensor": int(number)} if 0 <= number < len(tensors):
            return tensors[number]
        case {"float": str(text)}:
            return float(text)
        case {"int": str(text)}:
            return int(text)
        case {"device": str()}:
            return device
        case {"dtype": name} | {"layout": name} | {"memory_format": name}:
            return _VALUES[next(iter(value))][name]
    raise MalformedMessage(f"The record has the argument {value!r:.100}, which this version doesn't know.")


def tensors_of(values: Any) -> list[Tensor]:
    """Those in arguments or results, in their order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def tensors_made(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> list[Tensor]:
    """What the operator `func` has computed: its results, else the arguments that it has changed in place."""
    found = tensors_of(result)
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write or func._schema.returns:
            continue
        found += tensors_of(args[position] if position < len(args) else kwargs.get(argument.name))
    return found


def tensor_hash(tensor: Tensor) -> str:
    """As a record names a tensor."""
    return to_hex(tensors_hash({"": tensor}))


@torch.no_grad()
def rerun_operator(record: OperatorRecord, tensors: bytes, device: str | torch.device = "cpu") -> OperatorRecord:
    """The record with the outputs that this machine computes, on as many threads as torch has now.

    `tensors` is safetensors with the record's "input.0" and so on; both may be anything. Raises MalformedMessage where
    the inputs aren't the record's, or the operator isn't one that a replay consists of, or fails on them. It says
    something about another machine's result only in that machine's numerics class.
    """
    if record.operator not in REPEATABLE:
        raise MalformedMessage(f"{record.operator} is no operator of a replay that can be run again here.")
    device = torch.device(device)
    given = [tensor.to(device) for tensor in _inputs(record, tensors)]
    _, name, overload = record.operator.split(".")
    func = getattr(getattr(torch.ops.aten, name), overload)
    try:
        shapes = [tensor.to("meta") for tensor in given]
        args, kwargs = read_arguments(record.arguments, shapes, torch.device("meta"))
        size = sum(made.nbytes for made in tensors_of(func(*args, **kwargs)))
        if size > MAX_MADE_BYTES:
            raise MalformedMessage(f"Running {record.operator} again would take {size} bytes.")
        args, kwargs = read_arguments(record.arguments, given, device)
        outputs = tensors_made(func, args, kwargs, func(*args, **kwargs))
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, MalformedMessage):
            raise
        raise MalformedMessage(f"{record.operator} fails on the record's inputs: {error!s:.300}") from error
    return record.model_copy(update={"outputs": tuple(map(tensor_hash, outputs))})


def _inputs(record: OperatorRecord, tensors: bytes) -> list[Tensor]:
    try:
        found = safetensors.torch.load(tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise MalformedMessage(f"The operator's tensors are no safetensors: {error!s:.200}.") from error
    if len(record.strides) != len(record.inputs):
        raise MalformedMessage(f"The record has {len(record.inputs)} inputs, and strides of {len(record.strides)}.")
    given = []
    for number, (due, strides) in enumerate(zip(record.inputs, record.strides, strict=True)):
        if (tensor := found.get(f"input.{number}")) is not None:
            given.append(_laid_out(tensor, strides))
        if tensor is None or tensor_hash(given[-1]) != due:
            raise MalformedMessage(f"Input {number} isn't the one that the record names ({due}), with its strides.")
    return given


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A copy with these strides."""
    if len(strides) != tensor.ndim:
        raise MalformedMessage(f"A tensor of {tensor.ndim} dimensions has {len(strides)} strides.")
    # A stride of 0 repeats one number; it is written once.
    shape = [1 if stride == 0 else size for size, stride in zip(tensor.shape, strides, strict=True)]
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if span * tensor.itemsize > MAX_MADE_BYTES:
        raise MalformedMessage(f"Strides of {list(strides)} take {span * tensor.itemsize} bytes.")
    if math.prod(shape) == 0:
        return tensor
    base = torch.empty_strided(shape, strides, dtype=tensor.dtype)
    return base.copy_(tensor[tuple(slice(size) for size in shape)]).expand(tensor.shape)
