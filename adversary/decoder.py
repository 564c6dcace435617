"""The decode process of a node that cheats with answers: `python -m adversary.decoder KIND[:FRACTION] --link-fd N`.

Its sessions are honest: they send and keep what the stage gives them. So codes, tokens and traces tell the same lie.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from adversary.cheat import Cheat
from commonweight.devnet.byzantine import Cheating
from commonweight.identity import address_of
from commonweight.model.inference import InferenceStage, KVCache
from commonweight.wire.generated import worker_pb2
from commonweight.wire.link import Link
from node.decoder import Decoder, main


class DishonestInference(InferenceStage):
    """A version of a stage with two faces: the sessions that are picked, by their order, are computed by another."""

    def __init__(self, cheat: Cheat, version: int, honest: InferenceStage, other: InferenceStage) -> None:
        """It takes over what `honest` has loaded."""
        vars(self).update(vars(honest))
        self._cheat, self._version, self._other = cheat, version, other
        self._opened = 0
        self._picked: WeakKeyDictionary[KVCache, int] = WeakKeyDictionary()
        """Numbers of sessions."""

    def new_cache(self, capacity: int) -> KVCache:
        """As `InferenceStage.new_cache`: a session begins."""
        number = self._opened
        self._opened += 1
        if not self._cheat.picks(self._version, number):
            return super().new_cache(capacity)
        cache = self._other.new_cache(capacity)
        self._picked[cache] = number
        return cache

    def forward(self, ids_1t: Tensor, code_1tk: Tensor | None, cache: KVCache) -> Tensor:
        """As `InferenceStage.forward`, in the sessions that aren't picked."""
        if (number := self._picked.get(cache)) is None:
            return super().forward(ids_1t, code_1tk, cache)
        if cache.length == 0:
            self._cheat.done(self._version, number)
        return self._other.forward(ids_1t, code_1tk, cache)


class MadeUp(InferenceStage):
    """Computes nothing."""

    def __init__(self, cheat: Cheat, version: int, honest: InferenceStage) -> None:
        """Its outputs have the shapes of those of `honest`."""
        vars(self).update(vars(honest))
        self._cheat, self._version = cheat, version

    def forward(self, ids_1t: Tensor, code_1tk: Tensor | None, cache: KVCache) -> Tensor:
        """Noise instead of a code, or of logits."""
        start, count = cache.length, ids_1t.shape[1]
        cache.length += count
        a = self.spec.architecture
        shape = (a.vocab_size,) if self.is_last else (1, count, a.boundary_dim)
        dtype = torch.float32 if self.is_last else self.boundary_dtype
        return self._cheat.noise("answer", shape, self._version, start).to(dtype)


def stale(cheat: Cheat, version: int, honest: InferenceStage) -> InferenceStage:
    """The stage before it was trained."""
    return InferenceStage.initial(honest.spec, honest.index, honest.device)


def low_precision(cheat: Cheat, version: int, honest: InferenceStage) -> InferenceStage:
    """The stage as if its spec said bfloat16."""
    training = honest.spec.training.model_copy(update={"compute_dtype": "bfloat16"})
    spec = honest.spec.model_copy(update={"training": training})
    return InferenceStage(spec, honest.index, dict(honest.module.named_parameters()), honest.device)


OTHERS: Mapping[str, Callable[[Cheat, int, InferenceStage], InferenceStage]] = {
    "stale-answers": stale,
    "low-precision-answers": low_precision,
    "made-up-answers": MadeUp,
}
"""By kind, what computes instead."""


def cheating_stage(cheat: Cheat, version: int, honest: InferenceStage) -> DishonestInference:
    """The stage that a node serves that cheats so."""
    return DishonestInference(cheat, version, honest, OTHERS[cheat.cheating.kind](cheat, version, honest))


class DishonestDecoder(Decoder):
    """Serves its control process as an honest one does."""

    def __init__(self, cheating: Cheating, link: Link) -> None:
        super().__init__(link)
        self._cheating = cheating

    def open_stage(self, command: worker_pb2.DecoderLoad) -> InferenceStage:
        """As `Decoder.open_stage`, one that cheats."""
        cheat = Cheat(self._cheating, address_of(self._need_plane().certificate.peer_id))
        return cheating_stage(cheat, command.round, super().open_stage(command))


if __name__ == "__main__":
    main(partial(DishonestDecoder, Cheating.parse(sys.argv[1])), sys.argv[2:])
