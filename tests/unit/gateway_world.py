"""A shop whose model says what the test wants, served over real HTTP."""

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commonweight.devnet.spec import devnet_spec
from commonweight.errors import CommonweightError
from commonweight.http import serving_http
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.answer import SESSION_BYTES
from commonweight.rules.spec import ModelSpec
from commonweight.wire.serving import Served
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

    text: Sequence[int] = b"Hello, world."
    """Its tokens, which are bytes."""
    failure: CommonweightError | None = None
    refusal: CommonweightError | None = None
    """Instead of the first token."""
    gate: asyncio.Semaphore | None = None
    """Acquired before each token."""
    spec: ModelSpec = SPEC
    asked: list[tuple[bytes, int, float, int]] = field(default_factory=list)
    sessions: list[bytes] = field(default_factory=list)
    reports: list[Served] = field(default_factory=list)
    coordinator: asyncio.Event | None = None
    """Set when it is there again; until then it answers no report."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer was asked for: its payment is taken."""
    ended: int = 0
    """Answers whose generator was closed, as it must be to free the stages."""

    async def served_round(self) -> int | None:
        return ROUND

    async def generate(self, ids: Sequence[int], max_tokens: int, temperature: float, seed: int) -> Generation:
        self.asked.append((bytes(ids), max_tokens, temperature, seed))
        self.begun.set()
        if self.refusal is not None:
            raise self.refusal
        self.sessions.append(secrets.token_bytes(SESSION_BYTES))
        return Generation(ROUND, self.sessions[-1], self._tokens(max_tokens))

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

    async def report(self, served: Served) -> None:
        if self.coordinator is not None:
            await self.coordinator.wait()
        self.reports.append(served)


class LongPieces(ByteTokenizer):
    """Each token is so much text that 60 of them fit into no buffer on the way to a buyer."""

    def decode(self, ids: Iterable[int]) -> str:
        return "a" * (len(list(ids)) << 18)


@asynccontextmanager
async def stalled_buyer(url: str, request: dict[str, Any], headers: str = "", times: int = 1) -> AsyncIterator[None]:
    """Somebody who asks, and reads nothing of the answers. `headers`: lines that end with CR LF."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(request).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port))) as buyer:
        buyer.sendall(times * (head.encode() + body))
        yield


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
