"""Stages whose weights aren't those that their state roots promise."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adversary.cheat import Cheat
from adversary.stage import DishonestStage
from commonweight.model.stage import Forward
from commonweight.rules.spec import ModelSpec

AGE = 2
"""Rounds between stale weights and those due."""


class Stale(DishonestStage):
    """Computes a round with the parameters of `AGE` rounds ago, and steps from those that are due."""

    def __init__(self, cheat: Cheat, spec: ModelSpec, index: int, **options: Any) -> None:
        """As `DishonestStage`."""
        super().__init__(cheat, spec, index, **options)
        self._versions: dict[int, list[Tensor]] = {}
        """Copies of the parameters, by the round that they are ready for."""
        self._due: list[Tensor] | None = None
        """The parameters that belong here, while older ones stand in."""

    def forward(self, tokens: Tensor, code: Tensor | None) -> Forward:
        """As `Stage.forward`; before the round's first one the parameters may change."""
        if self.forwarded == 0:
            kept = {number: version for number, version in self._versions.items() if number >= self.round - AGE}
            self._versions = kept | {self.round: [parameter.detach().clone() for parameter in self._all]}
            if self.cheat.picks(self.round) and self.round - AGE in kept:
                self.cheat.done(self.round)
                self._due = self._versions[self.round]
                self._put(kept[self.round - AGE])
        self.forwarded += 1
        return super().forward(tokens, code)

    def step(self) -> float:
        """As `Stage.step`, with the gradient at another place."""
        self._put_back()
        return super().step()

    def load(self, state: Mapping[str, Tensor], round_: int) -> None:
        """As `Stage.load`."""
        self._put_back()
        super().load(state, round_)

    def discard_gradients(self) -> None:
        """As `Stage.discard_gradients`."""
        self._put_back()
        super().discard_gradients()

    def parameters(self) -> dict[str, Tensor]:
        """As `Stage.parameters`; those due, also while older ones stand in."""
        own = super().parameters()
        return own if self._due is None else dict(zip(own, self._due, strict=True))

    @property
    def _all(self) -> list[Tensor]:
        return list(self._parameters.values())

    def _put_back(self) -> None:
        due, self._due = self._due, None
        if due is not None:
            self._put(due)

    @torch.no_grad()
    def _put(self, version: list[Tensor]) -> None:
        torch._foreach_copy_(self._all, version)


class NoStep(DishonestStage):
    """Goes on to the next round with the same weights."""

    def step(self) -> float:
        """As `Stage.step`, in the rounds that aren't picked."""
        if not self.cheat.picks(self.round):
            return super().step()
        self.cheat.done(self.round)
        self.load(self.state(), self.round + 1)
        return 0.0


class FalseRoot(DishonestStage):
    """Says that its next state has a root that no state has."""

    def root_of(self, round_: int, parameters_hash: bytes, moments_hash: bytes) -> bytes:
        """As `Stage.root_of`, after the rounds that aren't picked."""
        if round_ == 0 or not self.cheat.picks(round_ - 1):
            return super().root_of(round_, parameters_hash, moments_hash)
        self.cheat.done(round_ - 1)
        return self.cheat.made_up_hash(round_)
