"""A model that has answered, honestly or not, and what its stages keep of the answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import safetensors.torch
import torch

from commonweight.errors import MessageTooLarge, PeerUnreachable
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.inference import InferenceStage, choose_token
from commonweight.model.stage import Stage, train_round
from commonweight.rules.answer import CHOICE, Answer, pack_ids, session_id
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.report import NO_TENSOR
from commonweight.rules.spec import ModelSpec
from commonweight.wire.tensors import to_bytes
from tests.unit.tiny import all_stages, random_batches, tiny_spec

SPEC = tiny_spec(stages=3, sequence_length=96)
VERSION, ROUND = 2, 3
PROMPT = (3, 14, 15, 9, 26)
STEPS = (2, 3, *[1] * 60)
"""Tokens of each: a prompt in two, and the answer."""
NONCE = bytes(range(16))

Make = Callable[[ModelSpec, int], InferenceStage]


@dataclass
class Kept:
    """One stage's part, and who serves it."""

    name: str = "node"
    session: bytes = b""
    ids: bytes = b""
    taken: bytes = b""
    passed: bytes = b""
    temperature: float = 0.0
    seed: int = 0
    prompt_tokens: int = len(PROMPT)
    fed: int = 0
    parameters: bytes | None = None
    served: bytes | None = None
    """In place of the trace."""
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def answer(self) -> Answer:
        pieces = (self.ids, self.taken, self.passed)
        hashes = (sha256(piece).digest() if piece else NO_TENSOR for piece in pieces)
        return Answer(VERSION, self.session, NONCE, self.prompt_tokens, self.fed, *hashes, self.temperature, self.seed)

    @property
    def whole(self) -> bytes:
        """The trace."""
        return self.ids + self.taken + self.passed

    async def tensor(self, round_: int, digest: bytes, size: int) -> bytes:
        raise AssertionError("of training")

    async def state(self, round_: int, part: str, *, after: bool, limit: int) -> bytes:
        raise AssertionError("of training")

    async def trace(self, round_: int, session: bytes, limit: int) -> bytes:
        self.asked.append(("answer", round_, session))
        return _served(self.whole if self.served is None else self.served, limit)

    async def version(self, round_: int, version: int, *, limit: int) -> bytes:
        self.asked.append(("version", round_, version))
        return _served(self.parameters, limit)


class Server:
    """`Kept` as a source: there, `answer` is what is signed."""

    def __init__(self, kept: Kept) -> None:
        self.name, self.tensor, self.state, self.version = kept.name, kept.tensor, kept.state, kept.version
        self._kept = kept

    async def answer(self, round_: int, session: bytes, *, limit: int) -> bytes:
        return await self._kept.trace(round_, session, limit)


def _served(data: bytes | None, limit: int) -> bytes:
    if data is None:
        raise PeerUnreachable("not kept.")
    if len(data) > limit:
        raise MessageTooLarge("too large.")
    return data


@dataclass
class Model:
    """A version that was trained, and its parameters as nodes serve them."""

    spec: ModelSpec
    stages: list[Stage]
    roots: list[bytes]
    served: list[bytes]

    @classmethod
    def trained(cls, spec: ModelSpec = SPEC) -> "Model":
        stages = all_stages(spec)
        for round_ in range(VERSION):
            train_round(stages, random_batches(spec, round_))
        return cls.of(spec, stages)

    @classmethod
    def of(cls, spec: ModelSpec, stages: list[Stage]) -> "Model":
        """`stages` are at VERSION."""
        served = [
            safetensors.torch.save(with_moments_hash(stage.parameters(), tensors_hash(stage.moments())))
            for stage in stages
        ]
        return cls(spec, stages, [stage.state_root() for stage in stages], served)

    def inference(self, spec: ModelSpec, index: int) -> InferenceStage:
        """What an honest node generates with."""
        return InferenceStage(spec, index, dict(self.stages[index].module.named_parameters()))

    def answered(
        self,
        *,
        steps: Sequence[int] = STEPS,
        temperature: float = 0.0,
        seed: int = 0,
        lies: dict[int, Make] | None = None,
        choose: Callable[..., int] = choose_token,
        send: Callable[[int], int] = lambda chosen: chosen,
    ) -> list[Kept]:
        """Every stage's part. `lies` compute in place of some stages; `choose` in place of the last one, and `send`
        says what it sends in place of what it has chosen.
        """
        stages = [(lies or {}).get(index, self.inference)(self.spec, index) for index in range(self.spec.stages)]
        caches = [stage.new_cache(sum(steps)) for stage in stages]
        session = session_id(NONCE, pack_ids(PROMPT), temperature, seed)
        kept = [
            Kept(f"node {i}", session, temperature=temperature, seed=seed, parameters=p)
            for i, p in enumerate(self.served)
        ]
        due = list(PROMPT)
        for count in steps:
            ids = [due.pop(0) for _ in range(count)]
            flowing = None
            for stage, cache, mine in zip(stages, caches, kept, strict=True):
                mine.ids += pack_ids(ids)
                mine.fed += count
                mine.taken += b"" if flowing is None else bytes(to_bytes(flowing))
                flowing = stage.forward(torch.tensor([ids]), flowing, cache)
                if not stage.is_last:
                    mine.passed += bytes(to_bytes(flowing))
            position = caches[0].length
            token = choose(flowing, temperature, seed, position)
            if position >= len(PROMPT):
                kept[-1].passed += CHOICE.pack(token, float(flowing[token]))
                due.append(send(token))
        return kept


def unit(stage: int) -> Audit:
    return Audit(ROUND, stage, Kind.ANSWER, 4)


def low_precision(model: Model) -> Make:
    """Computes in bfloat16 what the spec wants in float32."""

    def make(spec: ModelSpec, index: int) -> InferenceStage:
        training = spec.training.model_copy(update={"compute_dtype": "bfloat16"})
        return model.inference(spec.model_copy(update={"training": training}), index)

    return make


def rounded(model: Model, bits: int) -> Make:
    """Has weights of so many bits' precision."""

    def make(spec: ModelSpec, index: int) -> InferenceStage:
        def cut(tensor: torch.Tensor) -> torch.Tensor:
            mantissa, exponent = torch.frexp(tensor)
            return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)

        parameters = dict(model.stages[index].module.named_parameters())
        return InferenceStage(spec, index, {name: cut(tensor.detach()) for name, tensor in parameters.items()})

    return make


def stale(spec: ModelSpec, index: int) -> InferenceStage:
    """Generates with version 0."""
    return InferenceStage.initial(spec, index)
