"""A coordinator, assembled from its parts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette

from commonweight.chain.keys import Key
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import ModelTerms
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.errors import ConfigError, InsufficientFunds
from commonweight.events import emit
from commonweight.http import serving_http
from commonweight.identity import NodeIdentity
from commonweight.peers.config import PeersConfig
from commonweight.rules.answer import KEPT_VERSIONS
from commonweight.rules.canonical import canonical_json
from commonweight.rules.receipt import Domain
from commonweight.rules.spec import ModelSpec
from commonweight.watch.store import StatementStore
from commonweight.wire.channel import join_address, serve, split_address
from commonweight.wire.generated import control_pb2_grpc, referee_pb2, serving_pb2_grpc
from commonweight.wire.referee import Referee, RefereeConfig, Replays, audit_limit_s
from commonweight.wire.tls import Certificate, enrolment_credentials, make_certificate, server_credentials
from coordinator.announcing import Announcing
from coordinator.answers import Answers
from coordinator.attendance import Reception
from coordinator.auditing import Auditing
from coordinator.auditors import Auditors
from coordinator.beacons import Beacons
from coordinator.disputes import Disputes
from coordinator.gateways import ServingService
from coordinator.holders import Holders
from coordinator.ledger import Ledger
from coordinator.members import Place
from coordinator.panel import Panel
from coordinator.seats import Seats, recheck_seats
from coordinator.service import Admission, ControlService, EnrolmentService
from coordinator.serving import Serving
from coordinator.settlement import Settlement
from coordinator.slashing import Slashing
from coordinator.training import Training

SHUTDOWN_S = 2.0
"""For the nodes to read their last message."""


@dataclass(frozen=True)
class CoordinatorConfig:
    """What one coordinator runs with."""

    spec: ModelSpec
    key: Key
    ledger_url: str
    """SQLAlchemy URL."""
    listen: str
    """host:port of the enrolment service."""
    control_port: int
    """Of the control service, on the same host; 0 takes a free one."""
    advertise: str | None
    """host by which nodes reach it, where that isn't the one it listens on."""
    rpc_url: str
    chain_id: int
    registry: str
    model_id: bytes
    statements: Path
    """Folder where the epochs' statements are kept."""
    http: str
    """host:port on which they are served."""
    statements_url: str | None
    """Base URL that goes into the proposals, where it isn't the one that `http` and `advertise` give."""
    confirmations: int
    """Blocks on top of an epoch's finalisation before the next is built on it."""
    allowed: frozenset[str]
    """Addresses of the nodes that may take part; empty: anyone."""
    gateways: frozenset[str]
    """Addresses of the gateways that may generate through the nodes."""
    durable: bool
    """Nodes report a round only when there are pieces of the state that it led to."""
    end_epoch: int | None
    """Stop when this many epochs are final; None: go on."""
    data: Path | None
    """The packed text, for audits of the tokens; without it these stay undecided."""
    referee_device: str
    referee_threads: int
    peers: PeersConfig | None = None
    """How it announces itself; None: nodes are told where it is."""


async def run_coordinator(config: CoordinatorConfig) -> None:
    """Coordinate until the last epoch is final, or until SIGTERM."""
    chain = await asyncio.to_thread(Chain.connect, config.rpc_url, config.chain_id)
    if await asyncio.to_thread(chain.balance_wei, config.key.address) == 0:
        raise InsufficientFunds(
            f"The coordinator's account {config.key.address} holds nothing on chain {config.chain_id}, so it can't pay "
            "for proposing epochs. Send it some of the chain's currency."
        )
    registry = ModelRegistry(chain, config.registry)
    registered = await asyncio.to_thread(registry.model, config.model_id)
    first_block = await asyncio.to_thread(registry.registration_block, config.model_id)
    if registered.spec_hash != config.spec.spec_hash:
        raise ConfigError(
            f"Model 0x{config.model_id.hex()} was registered with spec 0x{registered.spec_hash.hex()}; the given "
            f"spec hashes to 0x{config.spec.spec_hash.hex()}. Give the spec that was registered."
        )
    check_terms(config.spec, registered.terms)
    place = Place(config.model_id, Domain(config.chain_id, registered.settlement))
    ledger = Ledger(config.ledger_url)
    progress = await asyncio.to_thread(
        lambda: ledger.open_model(
            model_id=config.model_id,
            spec_hash=config.spec.spec_hash,
            settlement=registered.settlement,
            chain_id=config.chain_id,
        )
    )
    per_epoch = config.spec.economics.rounds_per_epoch
    end_round = None if config.end_epoch is None else config.end_epoch * per_epoch
    admission = Admission(config.allowed, config.gateways)
    serving = Serving(
        config.spec,
        place,
        ledger,
        config.gateways,
        admission.gateways,
        round=progress.round,
        versions=await asyncio.to_thread(ledger.published, KEPT_VERSIONS),
    )
    await serving.resume()
    sender = Sender(chain, config.key)
    contract = EpochSettlement(chain, registered.settlement, sender, first_block=first_block)
    certificate = make_certificate(NodeIdentity(config.key.secret))
    store = StatementStore(config.statements)
    evidence = StatementStore(config.statements / "evidence", "evidence")
    referee = _referee_config(config, certificate)
    holders, auditors = Holders(), Auditors(config.spec, place)
    identity = NodeIdentity(config.key.secret)
    announcing = None if config.peers is None else Announcing(identity, config.peers, config.model_id)
    replays = Replays(lambda: Referee.start(referee), None if announcing is None else announcing.reach_evidence)
    disputes = Disputes(config.spec, place, certificate.der, holders, auditors, replays)
    beacons = Beacons(per_epoch, ledger, contract, registered, config.confirmations)
    panel = Panel(
        spec=config.spec,
        place=place,
        ledger=ledger,
        key=config.key,
        panels=beacons,
        evidence=evidence,
        holders=holders,
        auditors=auditors,
        replays=replays,
        certificate=certificate.der,
        disputes=disputes,
    )
    auditing = Auditing(config.spec, ledger, panel)
    await auditing.resume()
    training = Training(
        config.spec, place, ledger, progress, end_round, beacons, auditing, serving, durable=config.durable
    )
    auditing.fraud = training.convict
    for proven in await asyncio.to_thread(ledger.convicted):
        training.convict(proven.node, proven.stage)
    answers = Answers(config.spec, place, ledger, serving)
    seats = Seats(chain, registered, first_block)
    async with (
        serving_http(Starlette(routes=[*store.routes(), *evidence.routes()]), config.http) as http,
        _serving(
            config,
            admission,
            ControlService(admission, Reception(training, serving, answers, auditors, seats)),
            ServingService(serving),
            certificate,
        ) as address,
    ):
        base_url = (
            config.statements_url
            or f"http://{join_address(config.advertise or split_address(http)[0], split_address(http)[1])}"
        )
        router = RevenueRouter(chain, registered.router, sender)
        settlement = Settlement(
            config.spec, place, ledger, chain, contract, registered, router, store, base_url, config.confirmations
        )
        tasks = [
            asyncio.create_task(training.run(), name="training"),
            asyncio.create_task(beacons.run(training, config.end_epoch), name="beacons"),
            asyncio.create_task(auditing.run(training.reconsider), name="auditing"),
            asyncio.create_task(settlement.run(training, auditing, config.end_epoch), name="settlement"),
            asyncio.create_task(recheck_seats(training, auditors, seats, per_epoch), name="seats"),
        ]
        if announcing is not None:
            announced = announcing.run(
                chain_id=config.chain_id, registry=config.registry, address=address, certificate=certificate.der
            )
            tasks.append(asyncio.create_task(announced, name="announcing"))
        if registered.terms.seat_stake:
            providers = ProviderRegistry(chain, registered.terms.providers, sender, first_block=first_block)
            slashing = Slashing(place, ledger, providers, base_url)
            auditing.convicted = slashing.wake
            tasks.append(asyncio.create_task(slashing.run(), name="slashing"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            emit("coordinator.finished", epochs=config.end_epoch)
            training.say_finished()
            auditors.say_finished()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    ledger.close()


def _referee_config(config: CoordinatorConfig, certificate: Certificate) -> RefereeConfig:
    start = referee_pb2.RefereeStart(
        spec=canonical_json(config.spec.model_dump()),
        certificate=certificate.der,
        private_key=certificate.private_key_pem,
        data_dir=str(config.data or ""),
        device=config.referee_device,
    )
    return RefereeConfig(start, config.referee_threads, audit_limit_s(config.spec))


def check_terms(spec: ModelSpec, terms: ModelTerms) -> None:
    """Raise ConfigError where the chain would mint by other terms than the spec's: then no epoch could be settled."""
    economics = spec.economics
    pairs = {
        "max_supply": (int(economics.max_supply), terms.max_supply),
        "initial_emission": (int(economics.initial_emission), terms.initial_emission),
        "halving_epochs": (economics.halving_epochs, terms.halving_epochs),
        "designer_bps": (economics.designer_bps, terms.designer_bps),
        "data_bps": (economics.data_bps, terms.data_bps),
        "stages": (spec.stages, terms.stages),
    }
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            raise ConfigError(
                f"The model was registered with {name} {found}; its spec says {wanted}. Register it again with the "
                "spec's terms: what is on chain never changes."
            )


@asynccontextmanager
async def _serving(
    config: CoordinatorConfig,
    admission: Admission,
    nodes: ControlService,
    gateways: ServingService,
    certificate: Certificate,
) -> AsyncIterator[str]:
    """All services, from the moment they are announced to the end of the last call; where nodes enrol."""
    host, _ = split_address(config.listen)
    async with AsyncExitStack() as stack:
        control, control_port = await serve(
            [
                (control_pb2_grpc.add_ControlServicer_to_server, nodes),
                (serving_pb2_grpc.add_ServingServicer_to_server, gateways),
            ],
            join_address(host, config.control_port),
            server_credentials(certificate, admission.expected),
        )
        stack.push_async_callback(control.stop, SHUTDOWN_S)
        enrolment, port = await serve(
            [
                (
                    control_pb2_grpc.add_EnrolmentServicer_to_server,
                    EnrolmentService(admission, gateways.serving, control_port),
                )
            ],
            config.listen,
            enrolment_credentials(certificate),
        )
        stack.push_async_callback(enrolment.stop, None)  # nobody is to come any more
        address = join_address(config.advertise or host, port)
        emit(
            "coordinator.listening",
            peer=f"{certificate.peer_id}@{address}",
            enrolment_address=address,
            control_port=control_port,
            round=nodes.reception.training.round,
        )
        yield address
