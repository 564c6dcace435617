"""What it takes to replay a unit: fetched from whoever keeps it, and checked against what its provider has signed.

Nothing is believed for who sent it. A tensor is the one with the signed digest, a state the one with the signed root.
Nothing is written to a disk.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Protocol, TypeVar

import safetensors
import torch
from safetensors import SafetensorError
from torch import Tensor

from commonweight.errors import CommonweightError, MalformedMessage
from commonweight.model.answers import Trace, split_trace, trace_bytes
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.stage import Stage, describe
from commonweight.rules.answer import Answer, piece_hash
from commonweight.rules.spec import ModelSpec
from commonweight.rules.state import MOMENTS_HASH
from commonweight.wire.evidence import StatePart
from commonweight.wire.tensors import Plan, size_of, to_bytes

HEADER_BYTES = 4096
HEADER_BYTES_PER_TENSOR = 512
"""What a served part of a state may have beyond its numbers."""
DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
"""As safetensors names them."""

T = TypeVar("T")


class Source(Protocol):
    """A node that may keep what an audit needs. All calls end within a deadline and raise CommonweightError."""

    @property
    def name(self) -> str:
        """For messages."""

    async def tensor(self, round_: int, digest: bytes, size: int) -> bytes | bytearray:
        """The tensor of this SHA-256 that crossed one of the node's sides; `size` bytes or an error."""

    async def state(self, round_: int, part: StatePart, *, after: bool, limit: int) -> bytes | bytearray:
        """A part of the state of the node's stage before or after the round, in safetensors' format; at most `limit`
        bytes. With the parameters comes MOMENTS_HASH.
        """

    async def gradient(self, round_: int, signed: bytes, *, limit: int) -> bytes | bytearray:
        """The gradient with this hash, of the node's load or what its stage was stepped with, in safetensors' format;
        at most `limit` bytes.
        """

    async def answer(self, round_: int, session: bytes, *, limit: int) -> bytes | bytearray:
        """The node's trace of the session, whose answer was sealed with the round; at most `limit` bytes."""

    async def version(self, round_: int, version: int, *, limit: int) -> bytes | bytearray:
        """The parameters that such an answer was generated with, in safetensors' format, with MOMENTS_HASH; at most
        `limit` bytes.
        """


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

        def check(data: bytes | bytearray) -> Tensor:
            found = sha256(data).digest()
            if len(data) != size_of(plan) or found != signed:
                raise MalformedMessage(f"{len(data)} bytes with SHA-256 {found.hex()} came.")
            return torch.frombuffer(data, dtype=plan[0]).view(plan[1])

        def fetch(source: Source) -> Awaitable[bytes | bytearray]:
            return source.tensor(self._round, signed, size_of(plan))

        return await self._first(self._sources, f"{what} ({signed.hex()})", fetch, check)

    async def parameters(self, stage: Stage, *, after: bool, root: bytes) -> tuple[dict[str, Tensor], bytes]:
        """The `Stage.parameters` before or after the round, of the version with the signed root, and the hash of its
        moments. Raises Withheld.
        """

        due = with_moments_hash(stage.parameters(), bytes(32))
        check = partial(_check_parameters, stage, self._round + after, root)
        return await self._part("parameters", due, check, after, root)

    async def version(self, stage: Stage, version: int, root: bytes) -> dict[str, Tensor]:
        """The `Stage.parameters` of the version with this root, which generated an answer. Raises Withheld."""
        due = with_moments_hash(stage.parameters(), bytes(32))

        def check(data: bytes | bytearray) -> dict[str, Tensor]:
            parameters, _ = _check_parameters(stage, version, root, read_tensors(data, due))
            return parameters

        def fetch(source: Source) -> Awaitable[bytes | bytearray]:
            return source.version(self._round, version, limit=_limit(due))

        what = f"the parameters of version {version} ({root.hex()})"
        return await self._first(self._sources[:1], what, fetch, check)

    async def answer(self, spec: ModelSpec, stage: int, answer: Answer) -> Trace:
        """The stage's trace of the answer, with the signed hashes. Raises Withheld."""

        def check(data: bytes | bytearray) -> Trace:
            trace = split_trace(spec, stage, answer.prompt_tokens, answer.fed, data)
            for name in ("ids", "taken", "passed"):
                signed = getattr(answer, name)
                if (found := piece_hash(getattr(trace, name))) != signed:
                    raise MalformedMessage(f"its {name} have SHA-256 {found.hex()}; signed is {signed.hex()}.")
            return trace

        def fetch(source: Source) -> Awaitable[bytes | bytearray]:
            limit = trace_bytes(spec, stage, answer.prompt_tokens, answer.fed)
            return source.answer(self._round, answer.session, limit=limit)

        return await self._first(self._sources[:1], f"the trace of session {answer.session.hex()}", fetch, check)

    async def moments(self, stage: Stage, *, after: bool, moments_hash: bytes) -> dict[str, Tensor]:
        """The `Stage.moments` with this hash, before or after the round. Raises Withheld."""

        def check(found: dict[str, Tensor]) -> dict[str, Tensor]:
            if (came := tensors_hash(found)) != moments_hash:
                raise MalformedMessage(f"moments with hash {came.hex()} came.")
            return found

        parameters = dict(stage.module.named_parameters())
        parts = stage.spec.training.optimizer_parts
        due = {f"{part}.{name}": like for part in parts for name, like in parameters.items()}
        return await self._part("moments", due, check, after, moments_hash)

    async def gradient(self, stage: Stage, signed: bytes) -> dict[str, Tensor]:
        """The gradient of the round with this `tensors_hash`, by parameter. Raises Withheld."""
        due = dict(stage.module.named_parameters())

        def check(data: bytes | bytearray) -> dict[str, Tensor]:
            found = read_tensors(data, due)
            if (came := tensors_hash(found)) != signed:
                raise MalformedMessage(f"a gradient with hash {came.hex()} came.")
            return found

        def fetch(source: Source) -> Awaitable[bytes | bytearray]:
            return source.gradient(self._round, signed, limit=_limit(due))

        return await self._first(self._sources[:1], f"the gradient {signed.hex()}", fetch, check)

    async def state(self, stage: Stage, *, after: bool, root: bytes) -> dict[str, Tensor]:
        """The whole `Stage.state` with the signed root, before or after the round. Raises Withheld."""
        parameters, moments_hash = await self.parameters(stage, after=after, root=root)
        return parameters | await self.moments(stage, after=after, moments_hash=moments_hash)

    async def _part(
        self,
        part: StatePart,
        due: Mapping[str, Tensor],
        check: Callable[[dict[str, Tensor]], T],
        after: bool,
        signed: bytes,
    ) -> T:
        def fetch(source: Source) -> Awaitable[bytes | bytearray]:
            return source.state(self._round, part, after=after, limit=_limit(due))

        what = f"the {part} {'after' if after else 'before'} the round ({signed.hex()})"
        return await self._first(self._sources[:1], what, fetch, lambda data: check(read_tensors(data, due)))

    async def _first(
        self,
        sources: Sequence[Source],
        what: str,
        fetch: Callable[[Source], Awaitable[bytes | bytearray]],
        check: Callable[[bytes | bytearray], T],
    ) -> T:
        """What the first source gives that has it. `check`, in a thread, raises MalformedMessage for anything else."""
        answers = []
        for source in sources:
            try:
                data = await fetch(source)
                self.fetched_bytes += len(data)
                return await asyncio.to_thread(check, data)
            except CommonweightError as error:
                answers.append(f"{source.name}: {error!s:.300}")
        raise Withheld(f"Nobody served {what}. {' '.join(answers) or 'There was nobody to ask.'}")


def _limit(due: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in due.values()) + HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(due)


def _check_parameters(
    stage: Stage, version: int, root: bytes, found: dict[str, Tensor]
) -> tuple[dict[str, Tensor], bytes]:
    """The parameters, and the moments' hash that was beside them. Raises MalformedMessage for another version's."""
    moments_hash = bytes(to_bytes(found.pop(MOMENTS_HASH)))
    if (came := stage.root_of(version, tensors_hash(found), moments_hash)) != root:
        raise MalformedMessage(f"parameters of a version with root {came.hex()} came.")
    return found, moments_hash


def read_tensors(data: bytes | bytearray, due: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in `data`, which may be anything, in safetensors' format. Raises MalformedMessage unless their names,
    dtypes and shapes are those of `due`.
    """
    try:
        parts = dict(safetensors.deserialize(bytes(data)))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise MalformedMessage(f"it is no safetensors: {error!s:.200}.") from error
    for name, like in due.items():
        part = parts.get(name)
        found = None if part is None else (part["dtype"], part["shape"])
        if found != (DTYPES[like.dtype], list(like.shape)):
            raise MalformedMessage(f"{name} is {found!s:.100}; due is {describe(like)}.")
    if len(parts) != len(due):
        raise MalformedMessage(f"there are {len(parts)} tensors; due are {len(due)}.")
    return {
        name: torch.frombuffer(parts[name]["data"], dtype=like.dtype).view(like.shape) for name, like in due.items()
    }
