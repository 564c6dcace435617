"""The compute worker of a node that cheats: `python -m adversary.worker KIND[:FRACTION] --link-fd N`."""

import sys
from collections.abc import Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any

from torch import Tensor

from adversary.adaptive import adapt
from adversary.cheat import Cheat
from adversary.lazy import Cached, Copied, NoBackward, Noise, NoWeightGradients, Zeros
from adversary.stage import DishonestStage
from adversary.tampering import (
    Biased,
    FalseLoss,
    FlippedGradient,
    HiddenGradient,
    LowPrecision,
    ScaledGradient,
    UnderTolerance,
    UnseenGradient,
)
from adversary.versions import FalseRoot, NoStep, Stale
from commonweight.devnet.byzantine import Cheating
from commonweight.identity import address_of
from commonweight.model.data import Dataset
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec
from commonweight.wire.link import Link
from node.trainer import Item, Trainer
from node.worker import Worker, main

STAGES: Mapping[str, type[DishonestStage]] = {
    "zeros": Zeros,
    "noise": Noise,
    "cached": Cached,
    "copied": Copied,
    "no-backward": NoBackward,
    "no-weight-gradients": NoWeightGradients,
    "biased": Biased,
    "under-tolerance": UnderTolerance,
    "low-precision": LowPrecision,
    "false-loss": FalseLoss,
    "scaled-gradient": ScaledGradient,
    "flipped-gradient": FlippedGradient,
    "hidden-gradient": HiddenGradient,
    "unseen-gradient": UnseenGradient,
    "stale": Stale,
    "no-step": NoStep,
    "false-root": FalseRoot,
    "adaptive": Zeros,
    "flood": Zeros,
    "collude": Zeros,
}
"""By kind: those that are about what a stage computes."""
FOREIGN = "torch of tomorrow"
"""A numerics class that no auditor has."""
ROUNDS_AWAY = 1000
"""How much later the text is due that is drawn instead."""


class WrongData(Dataset):
    """Draws other text than is due."""

    cheat: Cheat

    def microbatch(self, round_: int, microbatch: int) -> Tensor:
        """As `Dataset.microbatch`, in the units that aren't picked."""
        if not self.cheat.picks(round_, microbatch):
            return super().microbatch(round_, microbatch)
        self.cheat.done(round_, microbatch)
        return super().microbatch(round_ + ROUNDS_AWAY, microbatch)


def open_trainer(cheat: Cheat, spec: ModelSpec, index: int, **options: Any) -> Trainer:
    """As `Trainer.open`, for a stage that is trained dishonestly."""
    kind = cheat.cheating.kind
    if kind == "adaptive":
        cheat = adapt(cheat, spec, tell=True)
    make_stage = partial(STAGES[kind], cheat) if kind in STAGES else Stage
    trainer = Trainer.open(spec, index, make_stage=make_stage, **options)
    if kind == "wrong-data" and trainer.stage.is_first:
        trainer.dataset = wrong = WrongData.open(options["data_dir"], spec)
        wrong.cheat = cheat
    if kind == "under-tolerance":
        trainer.numerics = FOREIGN
    return trainer


class DishonestWorker(Worker):
    """Serves its control process as an honest one does."""

    def __init__(
        self, cheating: Cheating, link: Link, inbox: "SimpleQueue[Item]", trainers: "SimpleQueue[Trainer | None]"
    ) -> None:
        super().__init__(link, inbox, trainers)
        self._cheating = cheating

    def open_trainer(self, spec: ModelSpec, index: int, **options: Any) -> Trainer:
        """As `Worker.open_trainer`, for a stage that is trained dishonestly."""
        assert self._plane is not None, "listen comes before start"
        cheat = Cheat(self._cheating, address_of(self._plane.certificate.peer_id))
        return open_trainer(cheat, spec, index, **options)


if __name__ == "__main__":
    main(partial(DishonestWorker, Cheating.parse(sys.argv[1])), sys.argv[2:])
