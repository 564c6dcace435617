"""A gateway put together as the command does it: what it is told, how much it does at a time, how it ends."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from commonweight import http
from commonweight.chain.local import LocalChain
from commonweight.chain.records import Authorization
from commonweight.errors import ConfigError, PeerUnreachable
from commonweight.identity import NodeIdentity, recover_address
from commonweight.rules.answer import SESSION_BYTES, served_receipt
from commonweight.rules.receipt import Domain
from commonweight.wire import serving
from commonweight.wire.channel import serve
from commonweight.wire.enrolment import Enrolled
from commonweight.wire.generated import serving_pb2, serving_pb2_grpc
from commonweight.wire.serving import Route, ServingClient
from commonweight.wire.status import refuse
from commonweight.wire.tls import make_certificate, server_credentials
from gateway import app, run
from gateway.cashier import Cashier
from gateway.ledger import Ledger, Order, State
from gateway.pipeline import Pipeline
from gateway.run import GatewayConfig, check_model, open_till, registered_model, reports_signer, run_gateway, sell
from gateway.shop import Limits
from gateway.till import Collected, Till
from tests.integration.chain_world import BUYER, ChainWorld, build_world
from tests.integration.gateway_market import PRICE, REQUEST, Market, config_of, open_market
from tests.unit.gateway_world import FREE, SPEC, LongPieces, Scripted, stalled_buyer

pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def registered_world() -> Iterator[ChainWorld]:
    with LocalChain.start("embedded", accounts=12) as local:
        yield build_world(local)


@asynccontextmanager
async def selling(
    config: GatewayConfig, backend: Scripted, till: Till | None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """Its URL. At the end it is stopped, as a signal does."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(name: str, /, **fields: Any) -> None:
        if name == "gateway.listening":
            listening.set_result(fields["url"])

    monkeypatch.setattr(run, "emit", hear)
    gateway = asyncio.create_task(sell(config, backend, till, _for_ever()))
    yield await listening
    gateway.cancel()
    await asyncio.wait({gateway}, timeout=20)
    assert gateway.cancelled()


async def _for_ever() -> None:
    await asyncio.Event().wait()


class Serving:
    """A coordinator's side of a gateway: one that serves `spec`."""

    route_served: Route

    def __init__(self, *_: object) -> None:
        pass

    async def route(self) -> Route:
        return self.route_served

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("price", [PRICE, FREE], ids=["sold", "given away"])
async def test_a_model_that_is_not_the_registered_one_is_not_sold(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, price: Any
) -> None:
    """The coordinator may be another one, or lie."""
    await asyncio.to_thread(open_market, world)
    monkeypatch.setattr(run, "ServingClient", Serving)
    Serving.route_served = Route(b"\x01", SPEC, world.model.model_id, 30, ())
    config = replace(config_of(world, tmp_path), price=price)
    with pytest.raises(ConfigError, match=f"0x{world.terms.spec_hash.hex()}.* {world.model.coordinator}"):
        async with asyncio.timeout(20):
            await run_gateway(config)


async def test_the_model_that_is_registered_is_sold(world: ChainWorld, tmp_path: Path) -> None:
    config, route = config_of(world, tmp_path), Route(b"\x01", SPEC, world.model.model_id, 30, ())
    model = await asyncio.to_thread(registered_model, config)
    registered = replace(model, terms=replace(model.terms, spec_hash=SPEC.spec_hash))
    check_model(config, registered, route)
    with pytest.raises(ConfigError, match="The coordinator serves model 0x0404"):
        check_model(config, registered, replace(route, model_id=b"\x04" * 32))


class Reported(serving_pb2_grpc.ServingServicer):
    """A coordinator whose answer to the first report is lost."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[bytes] = asyncio.Queue()
        self._is_known = False

    async def Report(self, request: serving_pb2.ServedReport, context: grpc.aio.ServicerContext) -> Any:
        self.reports.put_nowait(request.SerializeToString())
        if not self._is_known:
            self._is_known = True
            await refuse(context, PeerUnreachable("The database is away."))
        return serving_pb2.ServedReceipt(recorded=False)


async def test_what_a_killed_gateway_has_delivered_is_reported_signed_and_byte_for_byte_the_same_again(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, session = config_of(world, tmp_path), b"\x05" * SESSION_BYTES
    model = await asyncio.to_thread(registered_model, config)
    mine, theirs = (make_certificate(NodeIdentity(secret)) for secret in (config.key.secret, b"\x22" * 32))
    coordinator = Reported()
    server, port = await serve(
        [(serving_pb2_grpc.add_ServingServicer_to_server, coordinator)],
        "127.0.0.1:0",
        server_credentials(theirs, lambda: [mine.der]),
    )

    async def enrolled(*_: object) -> Enrolled:
        return Enrolled(f"127.0.0.1:{port}", theirs.der)

    monkeypatch.setattr(serving, "enrol", enrolled)
    killed = Ledger(config.ledger_url)
    payment = Authorization(BUYER.address, 100, 0, 2**63, b"\x01" * 32, bytes(65))
    order = Order(b"\x01" * 16, bytes(32), payment, expires=1_000, prompt_tokens=5)
    killed.accept(order, 100, {})
    killed.record_delivered(replace(order, round=30, session=session, completion_tokens=7))
    killed.close()

    reports = []
    for _ in range(2):
        ledger, client = Ledger(config.ledger_url), ServingClient("", mine)
        pipeline = Pipeline(client, mine, lambda _: None, reports_signer(config, model))
        cashier = Cashier(ledger, None, pipeline, 1)
        await cashier.resume()
        async with asyncio.timeout(20):
            reports.append(await coordinator.reports.get())
        await cashier.drain(20 if len(reports) == 2 else 0)
        assert len(ledger.unreported()) == 2 - len(reports)
        await pipeline.close()
        ledger.close()
    await server.stop(grace=0)

    assert reports[0] == reports[1]
    report = serving_pb2.ServedReport.FromString(reports[0])
    assert (report.request_id, report.round, report.session) == (order.request_id, 30, session)
    assert (report.prompt_tokens, report.completion_tokens) == (5, 7)
    digest = served_receipt(model.model_id, 30, session, 5, 7).digest(Domain(config.chain_id, model.settlement))
    assert recover_address(digest, report.signature) == config.key.address


async def test_as_many_charges_are_collected_at_a_time_as_answers_are_given(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for its block; on a slow chain fewer would fall behind until their payments expire."""
    at_once = 9
    together = threading.Barrier(at_once, timeout=10)
    config = config_of(world, tmp_path, limits=Limits(concurrent=at_once))
    await asyncio.to_thread(open_market, world)
    till = await asyncio.to_thread(open_till, config)

    def collect(order: Order) -> Collected:
        together.wait()
        return Collected("0x", order.charge)

    monkeypatch.setattr(till, "collect", collect)
    async with selling(config, Scripted(), till, monkeypatch) as url:
        place = Market(world, url, None, till, tmp_path)  # type: ignore[arg-type]
        answers = await asyncio.gather(*(place.post(place.payment()) for _ in range(at_once)))
        assert [answer.status_code for answer in answers] == [200] * at_once
        assert [order.state for order in place.orders()] == [State.COLLECTED] * at_once
    assert not together.broken


async def test_a_buyer_that_reads_no_further_keeps_no_gateway_from_ending(
    world: ChainWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SEND_S", 0.1)
    monkeypatch.setattr(run, "FINISH_S", 2)
    monkeypatch.setattr(http, "SHUTDOWN_S", 0)
    tokens = 60
    config, backend = replace(config_of(world, tmp_path), price=FREE, tokenizer=LongPieces()), Scripted([1] * tokens)
    async with selling(config, backend, None, monkeypatch) as url:
        stalled = stalled_buyer(url, REQUEST | {"max_tokens": tokens, "stream": True})
        await stalled.__aenter__()
        await backend.begun.wait()
    assert backend.ended == 1
    await stalled.__aexit__(None, None, None)
