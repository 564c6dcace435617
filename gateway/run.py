"""A gateway, assembled from its parts."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from commonweight.chain.keys import Key
from commonweight.chain.records import RegisteredModel
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.errors import ConfigError, InsufficientFunds
from commonweight.events import emit
from commonweight.http import serving_http
from commonweight.identity import NodeIdentity
from commonweight.model.tokenizer import Tokenizer
from commonweight.rules.receipt import Domain
from commonweight.wire.serving import Route, Served, ServingClient
from commonweight.wire.tls import make_certificate
from gateway.app import make_app
from gateway.backend import Backend
from gateway.cashier import REPORTS_AT_ONCE
from gateway.ledger import Ledger
from gateway.payments import Terms
from gateway.pipeline import Pipeline
from gateway.pricing import Price
from gateway.shop import Limits, Shop
from gateway.till import Till

SETTLE_S = 600
"""An authorisation must be good for so long after its answer: a chain may be away, or reorganise, for some minutes."""
RECEIPT_S = 60.0
"""For a transaction to be mined; after that the chain is asked whether it was, and it may be sent again."""
FINISH_S = 20.0
"""After SIGTERM answers may go on for so long."""
COLLECT_S = 30.0
"""Then what they cost is collected; what isn't by then is collected after the next start."""


@dataclass(frozen=True)
class GatewayConfig:
    """What one gateway runs with."""

    coordinator: str
    """PEERID@host:port."""
    key: Key
    """Pays the gas, is a cashier of the model's router, and signs what is reported."""
    rpc_url: str
    chain_id: int
    registry: str
    model_id: bytes
    price: Price
    tokenizer: Tokenizer
    ledger_url: str
    """SQLAlchemy URL."""
    listen: str
    """host:port; plain HTTP, so a proxy with TLS belongs before what others can reach."""
    limits: Limits = field(default_factory=Limits)
    confirmations: int = 0
    """Blocks on top of a collection that make it one for good."""


async def run_gateway(config: GatewayConfig) -> None:
    """Sell answers until SIGTERM."""
    model = await asyncio.to_thread(registered_model, config)
    till = None if config.price.is_free else await asyncio.to_thread(open_till, config)
    certificate = make_certificate(NodeIdentity(config.key.secret))
    pipeline = Pipeline(
        ServingClient(config.coordinator, certificate),
        certificate,
        lambda route: check_model(config, model, route),
        reports_signer(config, model),
    )
    try:
        await sell(config, pipeline, till, pipeline.keep_current())
    finally:
        await pipeline.close()


async def sell(config: GatewayConfig, backend: Backend, till: Till | None, until: Coroutine[Any, Any, None]) -> None:
    """Sell what `backend` answers for as long as `until` runs; when that is cancelled, end in good order."""
    # Chain and database block. A chain that is slow must not keep what is delivered from being recorded: each request
    # has a thread, and one that was cut perhaps another; each collection and report has one, /healthz and the look at
    # what was collected.
    threads = ThreadPoolExecutor(3 * config.limits.concurrent + REPORTS_AT_ONCE + 2)
    asyncio.get_running_loop().set_default_executor(threads)
    shop = Shop(
        backend=backend,
        tokenizer=config.tokenizer,
        price=config.price,
        ledger=await asyncio.to_thread(Ledger, config.ledger_url),
        till=till,
        limits=config.limits,
    )
    await shop.cashier.resume()
    async with serving_http(make_app(shop), config.listen) as address:
        emit("gateway.listening", url=f"http://{address}", cashier=config.key.address)
        tasks = [asyncio.ensure_future(until)]
        if till is not None:
            tasks.append(asyncio.create_task(shop.cashier.keep_looking()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await shop.close(FINISH_S, COLLECT_S)
    shop.ledger.close()


def registered_model(config: GatewayConfig) -> RegisteredModel:
    """What the registry says about the model. Raises ChainError. Blocks."""
    return ModelRegistry(Chain.connect(config.rpc_url, config.chain_id), config.registry).model(config.model_id)


def reports_signer(config: GatewayConfig, model: RegisteredModel) -> Callable[[Served], bytes]:
    """Signs with the gateway's key what is reported to this model's coordinator."""
    identity, domain = NodeIdentity(config.key.secret), Domain(config.chain_id, model.settlement)
    return lambda served: identity.sign_digest(served.receipt(model.model_id).digest(domain))


def open_till(config: GatewayConfig) -> Till:
    """The model's router with the gateway's key. Raises ChainError, and ConfigError where the key is no cashier.

    Blocks.
    """
    chain = Chain.connect(config.rpc_url, config.chain_id)
    registry = ModelRegistry(chain, config.registry)
    model = registry.model(config.model_id)
    address = config.key.address
    if chain.balance_wei(address) == 0:
        raise InsufficientFunds(
            f"The gateway's account {address} holds nothing on chain {config.chain_id}, so it can't pay for collecting "
            "payments. Send it some of the chain's currency."
        )
    sender = Sender(chain, config.key, receipt_timeout_s=RECEIPT_S)
    first_block = registry.registration_block(config.model_id)
    router = RevenueRouter(chain, model.router, sender, first_block=first_block)
    if model.coordinator != address and not router.is_cashier(address):
        raise ConfigError(
            f"{address} is no cashier of the router {model.router}, so it can't collect payments. The coordinator "
            f"{model.coordinator} lets it: `commonweight revenue cashier {address}`."
        )
    token = Token(chain, model.terms.revenue_token)
    terms = Terms(token.domain(), router.address, serve_s=int(config.limits.answer_s), settle_s=SETTLE_S)
    return Till(terms, router, token, sender, config.confirmations)


def check_model(config: GatewayConfig, model: RegisteredModel, route: Route) -> None:
    """Raise ConfigError where the coordinator serves another model than the registered one, or with another tokenizer
    than is given here.
    """
    spec = route.spec
    if route.model_id != config.model_id:
        raise ConfigError(
            f"The coordinator serves model 0x{route.model_id.hex()}; payments would go to 0x{config.model_id.hex()}. "
            "Give the --model-id or the --coordinator that belongs to the other."
        )
    if spec.spec_hash != model.spec_hash:
        raise ConfigError(
            f"The coordinator serves a spec that hashes to 0x{spec.spec_hash.hex()}; the model was registered with "
            f"0x{model.spec_hash.hex()}. Nothing of it is sold. Give the --coordinator of {model.coordinator}."
        )
    if config.tokenizer.hash != spec.data.tokenizer:
        raise ConfigError(
            f"Model {spec.name} has the tokenizer {spec.data.tokenizer}; the given one is {config.tokenizer.hash}. "
            "Give --tokenizer with the model's tokenizer.json, or 'bytes'."
        )
