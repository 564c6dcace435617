"""A gateway that sells a scripted model's answers on a real chain, and a buyer with money.

The model is the only thing that is made up: it says what a test needs. Run as a program, this is that gateway as a
process of its own: `python -m tests.integration.gateway_market CONFIG.json`.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from x402 import x402Client
from x402.client_base import SpendControlAsset
from x402.http.clients.httpx import x402AsyncTransport
from x402.mechanisms.evm.exact.client import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from commonweight.buyer import Offer, sign
from commonweight.chain.keys import Key
from commonweight.chain.records import Authorization
from commonweight.events import emit
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.wire.serving import Served
from gateway.backend import Generation
from gateway.ledger import Order, OrderRow, to_order
from gateway.payments import read_payment
from gateway.pricing import Price
from gateway.run import GatewayConfig, open_till, sell
from gateway.shop import Limits, Shop
from gateway.till import Till
from tests.integration.chain_world import BUYER, CAROL, COORDINATOR, DOLLAR, ChainWorld
from tests.unit.gateway_world import SPEC, Scripted, open_shop

CASHIER = CAROL
PRICE = Price(prompt_per_mtok=2_000_000, completion_per_mtok=3_000_000)
"""2 units for each token of prompt, 3 for each of the answer."""
FUNDS = 100 * DOLLAR
PROMPT = "Say: "
REQUEST: dict[str, Any] = {"model": SPEC.name, "prompt": PROMPT, "max_tokens": 40}
QUOTE = PRICE.cost(len(PROMPT), 40)


def config_of(
    world: ChainWorld,
    folder: Path,
    rpc_url: str | None = None,
    limits: Limits | None = None,
    confirmations: int = 0,
    key: Key = CASHIER,
) -> GatewayConfig:
    return GatewayConfig(
        coordinator="",
        key=key,
        rpc_url=rpc_url or world.chain.rpc_url,
        chain_id=world.chain.chain_id,
        registry=world.registry_address,
        model_id=world.model.model_id,
        price=PRICE,
        tokenizer=ByteTokenizer(),
        ledger_url=f"sqlite:///{folder / 'gateway.db'}",
        listen="127.0.0.1:0",
        limits=limits or Limits(),
        confirmations=confirmations,
    )


def open_market(world: ChainWorld, key: Key = CASHIER) -> None:
    """The gateway's key becomes a cashier, and the buyer gets money."""
    world.router(COORDINATOR).set_cashier(key.address, True)
    world.usd().mint(BUYER.address, FUNDS - world.usd().balance_of(BUYER.address))


@dataclass
class Market:
    """A gateway that is open, and what is needed to buy from it."""

    world: ChainWorld
    url: str
    shop: Shop
    till: Till
    folder: Path

    def spent(self) -> int:
        """By the buyer, in the end: all of it must have come to the router."""
        spent = FUNDS - self.world.usd().balance_of(BUYER.address)
        assert self.world.router().unswept() == spent
        return spent

    async def settled(self) -> int:
        """What was spent once all is collected."""
        await self.shop.cashier.drain(30)
        return await asyncio.to_thread(self.spent)

    def orders(self) -> list[Order]:
        """All of the ledger."""
        return all_orders(self.folder / "gateway.db")

    def http(self, key: Key = BUYER) -> httpx.AsyncClient:
        """The x402 package's own paying client."""
        wallet = x402Client()
        wallet.register(self.till.terms.network, ExactEvmScheme(EthAccountSigner(key.account)))
        terms = self.till.terms
        allowed = SpendControlAsset(network=terms.network, asset=terms.domain.token, max_amount_per_payment=str(FUNDS))
        wallet.set_spend_controls({"allowed_assets": [allowed]})
        return httpx.AsyncClient(transport=x402AsyncTransport(wallet), timeout=30)

    def payment(self, amount: int = QUOTE, key: Key = BUYER, **changes: Any) -> str:
        """A PAYMENT-SIGNATURE header; `changes` are of the offer that is signed, `now` says when."""
        terms = self.till.terms
        now = changes.pop("now", self.world.chain.timestamp())
        offer = Offer(
            amount=amount,
            chain_id=terms.domain.chain_id,
            token=terms.domain.token,
            pay_to=terms.router,
            timeout_s=terms.timeout_s,
            domain=terms.domain,
            requirements=terms.requirements(amount),
        )
        return sign(replace(offer, **changes), key, now)

    def authorization(self, header: str) -> Authorization:
        return read_payment(header, self.till.terms)

    async def post(self, payment: str | None = None, **changes: Any) -> httpx.Response:
        """One request, as it is."""
        headers = {} if payment is None else {"PAYMENT-SIGNATURE": payment}
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.post(f"{self.url}/v1/completions", json=REQUEST | changes, headers=headers)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as http:
            return await http.get(self.url + path)


def all_orders(file: Path) -> list[Order]:
    """Of a ledger that may be in use."""
    engine = create_engine(f"sqlite:///{file}")
    with Session(engine) as session:
        return [to_order(row) for row in session.scalars(select(OrderRow))]


@asynccontextmanager
async def market(
    world: ChainWorld,
    folder: Path,
    backend: Scripted,
    *,
    rpc_url: str | None = None,
    limits: Limits | None = None,
    confirmations: int = 0,
    key: Key = CASHIER,
) -> AsyncIterator[Market]:
    """A gateway in this process."""
    await asyncio.to_thread(open_market, world, key)
    till = await asyncio.to_thread(open_till, config_of(world, folder, rpc_url, limits, confirmations, key))
    async with open_shop(backend, folder, price=PRICE, till=till, limits=limits) as (url, shop):
        yield Market(world, url, shop, till, folder)


@dataclass
class ProcessConfig:
    """Of a gateway in a process of its own."""

    rpc_url: str
    chain_id: int
    registry: str
    model_id: str
    folder: str
    confirmations: int = 0
    text: str = "Hello, world. " * 4


class Told(Scripted):
    """Tells whoever reads its process's events what was asked for and what was reported."""

    async def generate(self, *asked: Any) -> Generation:
        generation = await super().generate(*asked)
        emit("scripted.answered", session=generation.session.hex())
        return generation

    async def report(self, served: Served) -> None:
        emit("scripted.reported", session=served.session.hex(), completion_tokens=served.completion_tokens)


def main() -> None:
    from commonweight.runtime import run_until_stopped

    fields = ProcessConfig(**json.loads(Path(sys.argv[1]).read_text()))
    config = GatewayConfig(
        coordinator="",
        key=CASHIER,
        rpc_url=fields.rpc_url,
        chain_id=fields.chain_id,
        registry=fields.registry,
        model_id=bytes.fromhex(fields.model_id),
        price=PRICE,
        tokenizer=ByteTokenizer(),
        ledger_url=f"sqlite:///{Path(fields.folder) / 'gateway.db'}",
        listen="127.0.0.1:0",
        confirmations=fields.confirmations,
    )

    async def run() -> None:
        till = await asyncio.to_thread(open_till, config)
        await sell(config, Told(fields.text.encode()), till, _for_ever())

    run_until_stopped(run())


async def _for_ever() -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
