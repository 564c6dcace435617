"""What a recorded replay is made of, so that two of them can be held against each other without a tensor.

A **recording** is a row of hashes, 32 bytes each: that of the numerics class in which the replay was computed, then
that of each operator, in the order in which they ran. Within one class the recordings of two honest replays are equal.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from eth_hash.auto import keccak
from pydantic import Field

from commonweight.rules.canonical import content_hash
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.spec import Hash, Record

MAX_OPERATORS = 100_000
"""Of one recording: more don't fit a control message."""
MAX_RECORD_BYTES = 2 << 20
"""Of an operator's canonical JSON: the optimizer's names four tensors for each parameter of a stage."""
MAX_TENSORS_BYTES = 4 << 20
"""Of the tensors that one operator took and gave; beyond that they aren't shown."""

Index = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stride = Annotated[int, Field(ge=0, le=2**53 - 1)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.]{1,200}$")]


class OperatorRecord(Record):
    """One operator's execution."""

    microbatch: Index | None
    """None in the step that ends a round."""
    phase: Literal["forward", "backward", "step"]
    layer: Name
    """The module's name, such as "layers.3.attention.norm". "stream" is what lies between sublayers, "boundary" what is
    done to a tensor that comes or goes, and on the last stage the loss.
    """
    operator: Name
    """As torch names it, with its overload: "aten.add.Tensor"."""
    arguments: Any
    """{"args": […], "kwargs": {…}} as canonical JSON, tensors by their number: see `commonweight.model.operators`."""
    inputs: tuple[Hash, ...]
    """SHA-256 of each tensor's dtype, shape and bytes (`tensors_hash`), in the order of the arguments."""
    strides: tuple[tuple[Stride, ...], ...]
    """Of the inputs. They decide bits, too: with other ones a kernel may vectorize otherwise."""
    outputs: tuple[Hash, ...]
    """Of each result; arguments that were changed in place come last."""

    @property
    def hash(self) -> bytes:
        """Keccak-256 of the record's canonical JSON."""
        return content_hash(self.model_dump(mode="json"))

    def __str__(self) -> str:
        """For people, tensors as "·": "aten.add.Tensor(·, 1e-05)"."""
        shown = [_shown(value) for value in self.arguments["args"]]
        shown += [f"{name}={_shown(value)}" for name, value in sorted(self.arguments["kwargs"].items())]
        return f"{self.operator}({', '.join(shown)})"


def join_hashes(numerics: str, records: Iterable[OperatorRecord]) -> bytes:
    """The recording of a replay in this numerics class."""
    return keccak(numerics.encode()) + b"".join(record.hash for record in records)


def operator_hash(recording: bytes, index: int) -> bytes:
    """That of operator `index`, from 0; empty where the recording ends before."""
    return recording[(index + 1) * HASH_BYTES : (index + 2) * HASH_BYTES]


def first_difference(ours: bytes, theirs: bytes) -> int | None:
    """The number of the first operator in which two recordings differ.

    That may be one that only one of them has. None where they are equal, and where they are of two numerics classes,
    between which honest replays differ, too.
    """
    if ours == theirs or operator_hash(ours, -1) != operator_hash(theirs, -1):
        return None
    index = 0
    while operator_hash(ours, index) == operator_hash(theirs, index):
        index += 1
    return index


def _shown(value: Any) -> str:
    match value:
        case {"tensor": _}:
            return "·"
        case dict():
            return ", ".join(str(each) for each in value.values())
        case list():
            return f"[{', '.join(map(_shown, value))}]"
    return str(value)
