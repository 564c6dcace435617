"""What answers: the model, wherever it runs."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from commonweight.rules.spec import ModelSpec
from commonweight.wire.serving import Served


@dataclass(frozen=True)
class Generation:
    """One answer that has begun."""

    round: int
    """The version of the model: the one that was ready to train this round."""
    session: bytes
    """What the stages know it by."""
    tokens: AsyncGenerator[int, None]
    """As they are chosen. Raises CommonweightError where it can't go on; closing it frees what it holds."""


class Backend(Protocol):
    """A model that can be asked."""

    @property
    def spec(self) -> ModelSpec | None:
        """Of the model; None until it is known."""
        ...

    async def served_round(self) -> int | None:
        """The version that would answer now; None where there is none."""
        ...

    async def generate(self, ids: Sequence[int], max_tokens: int, temperature: float, seed: int) -> Generation:
        """Begin to answer. Raises WireError: NoRoom where it is busy."""
        ...

    async def report(self, served: Served) -> None:
        """Tell the coordinator what was served, so that who served is paid. May be repeated. Raises WireError."""
        ...
