"""A shop whose model says what the test wants, served over real HTTP."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from commonweight.devnet.spec import devnet_spec
from commonweight.errors import CommonweightError
from commonweight.http import serving_http
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.spec import ModelSpec
from gateway.app import make_app
from gateway.backend import Generation
from gateway.ledger import Ledger
from gateway.pricing import Price
from gateway.shop import Limits, Shop
from gateway.till import Till

SPEC = devnet_spec(4, 0, "0x" + "ab" * 32, 10**6)
ROUND = 30
FREE = Price(0, 0)


@dataclass
class Scripted:
    """A Backend that says `text`, then fails with `failure` if there is one."""

    text: bytes = b"Hello, world."
    failure: CommonweightError | None = None
    refusal: CommonweightError | None = None
    """Instead of the first token."""
    gate: asyncio.Semaphore | None = None
    """Acquired before each token."""
    spec: ModelSpec = SPEC
    asked: list[tuple[bytes, int, float, int]] = field(default_factory=list)
    reports: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first answer was asked for: its payment is taken."""
    ended: int = 0
    """Answers whose generator was closed, as it must be to free the stages."""

    async def served_round(self) -> int | None:
        return ROUND

    async def generate(self, ids: Sequence[int], max_tokens: int, temperature: float, seed: int) -> Generation:
        self.asked.append((bytes(ids), max_tokens, temperature, seed))
        self.begun.set()
        if self.refusal is not None:
            raise self.refusal
        return Generation(ROUND, self._tokens(max_tokens))

    async def _tokens(self, max_tokens: int) -> AsyncGenerator[int, None]:
        try:
            for token in self.text[:max_tokens]:
                if self.gate is not None:
                    await self.gate.acquire()
                yield token
            if self.failure is not None:
                raise self.failure
            while True:
                yield 0
        finally:
            self.ended += 1

    async def report(self, request_id: bytes, round_: int, prompt_tokens: int, completion_tokens: int) -> None:
        self.reports.append((request_id, round_, prompt_tokens, completion_tokens))


@asynccontextmanager
async def open_shop(
    backend: Scripted,
    folder: Path,
    *,
    price: Price = FREE,
    till: Till | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[tuple[str, Shop]]:
    """The shop and its URL."""
    shop = Shop(
        backend=backend,
        tokenizer=ByteTokenizer(),
        price=price,
        ledger=Ledger(f"sqlite:///{folder / 'gateway.db'}"),
        till=till,
        limits=limits or Limits(),
    )
    async with serving_http(make_app(shop), "127.0.0.1:0") as address:
        yield f"http://{address}", shop
        await shop.close(finish_s=0, collect_s=10)
    shop.ledger.close()
