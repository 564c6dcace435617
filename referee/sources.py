"""What it takes to replay a unit: fetched from whoever keeps it, and checked against what its provider has signed.

Nothing is believed for who sent it. A tensor is the one with the signed digest, a state the one with the signed root.
Nothing is written to a disk.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Protocol, TypeVar

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from commonweight.errors import CommonweightError, MalformedMessage
from commonweight.model.stage import Stage, describe
from commonweight.wire.tensors import Plan, size_of

HEADER_BYTES = 4096
HEADER_BYTES_PER_TENSOR = 512
"""What a served state may have beyond its numbers."""

T = TypeVar("T")


class Source(Protocol):
    """A node that may keep what an audit needs. Both calls end within a deadline and raise CommonweightError."""

    @property
    def name(self) -> str:
        """For messages."""

    async def tensor(self, round_: int, digest: bytes, size: int) -> bytes | bytearray:
        """The tensor of this SHA-256 that crossed one of the node's sides; `size` bytes or an error."""

    async def state(self, round_: int, *, after: bool, limit: int) -> bytes | bytearray:
        """The state of the node's stage before or after the round in safetensors' format; at most `limit` bytes."""


class Withheld(Exception):
    """Something that nobody served; the message says what, and what each source answered."""


class Evidence:
    """What the sources keep of one round. The first of them holds the audited stage; all may have its tensors."""

    def __init__(self, round_: int, sources: Sequence[Source]) -> None:
        self._round = round_
        self._sources = sources
        self.fetched_bytes = 0

    async def tensor(self, what: str, signed: bytes, plan: Plan) -> Tensor:
        """The tensor with the signed digest: read-only. Raises Withheld, naming `what`."""

        async def ask(source: Source) -> Tensor:
            data = await source.tensor(self._round, signed, size_of(plan))
            self.fetched_bytes += len(data)
            found = await asyncio.to_thread(lambda: sha256(data).digest())
            if len(data) != size_of(plan) or found != signed:
                raise MalformedMessage(f"{len(data)} bytes with SHA-256 {found.hex()} came.")
            return torch.frombuffer(data, dtype=plan[0]).view(plan[1])

        return await _first(self._sources, ask, f"{what} ({signed.hex()})")

    async def state(self, stage: Stage, *, after: bool, root: bytes) -> dict[str, Tensor]:
        """The `Stage.state` with the signed root, before or after the round. Raises Withheld."""
        version = self._round + after

        async def ask(source: Source) -> dict[str, Tensor]:
            data = await source.state(self._round, after=after, limit=_state_limit(stage))
            self.fetched_bytes += len(data)
            state = await asyncio.to_thread(read_state, data, stage)
            del data
            found = await asyncio.to_thread(stage.root_of, state, version)
            if found != root:
                raise MalformedMessage(f"a state with root {found.hex()} came.")
            return state

        what = f"the state {'after' if after else 'before'} the round ({root.hex()})"
        return await _first(self._sources[:1], ask, what)


def read_state(data: bytes | bytearray, stage: Stage) -> dict[str, Tensor]:
    """The state in `data`, which may be anything. Raises MalformedMessage unless it is one of this stage."""
    expected = stage.state()
    try:
        parts = dict(safetensors.deserialize(bytes(data)))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise MalformedMessage(f"the state is no safetensors: {error!s:.200}.") from error
    for name, due in expected.items():
        part = parts.get(name)
        found = None if part is None else (part["dtype"], part["shape"])
        if found != ("F32", list(due.shape)):
            raise MalformedMessage(f"the state has {name} as {found!s:.100}; due is {describe(due)}.")
    if len(parts) != len(expected):
        raise MalformedMessage(f"the state has {len(parts)} tensors; stage {stage.index} has {len(expected)}.")
    return {
        name: torch.frombuffer(parts[name]["data"], dtype=torch.float32).view(due.shape)
        for name, due in expected.items()
    }


def _state_limit(stage: Stage) -> int:
    state = stage.state()
    numbers = sum(tensor.nbytes for tensor in state.values())
    return numbers + HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(state)


async def _first(sources: Sequence[Source], ask: Callable[[Source], Awaitable[T]], what: str) -> T:
    """What the first source gives that has it."""
    answers = []
    for source in sources:
        try:
            return await ask(source)
        except CommonweightError as error:
            answers.append(f"{source.name}: {error!s:.300}")
    raise Withheld(f"Nobody served {what}. {' '.join(answers) or 'There was nobody to ask.'}")
