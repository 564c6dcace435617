"""A coordinator, assembled from its parts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from commonweight.chain.contracts import EpochSettlement, ModelRegistry
from commonweight.chain.keys import Key
from commonweight.chain.records import ModelTerms
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.errors import ConfigError, InsufficientFunds
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.rules.report import Domain
from commonweight.rules.spec import ModelSpec
from commonweight.wire.channel import join_address, serve, split_address
from commonweight.wire.generated import control_pb2_grpc
from commonweight.wire.tls import Certificate, enrolment_credentials, make_certificate, server_credentials
from coordinator.ledger import Ledger
from coordinator.service import Admission, ControlService, EnrolmentService
from coordinator.settlement import Settlement
from coordinator.training import Place, Training

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
    """Folder where the epochs' statements are published."""
    allowed: frozenset[str]
    """Addresses of the nodes that may take part; empty: anyone."""
    end_epoch: int | None
    """Stop when this many epochs are final; None: go on."""


async def run_coordinator(config: CoordinatorConfig) -> None:
    """Coordinate until the last epoch is final, or until SIGTERM."""
    chain = await asyncio.to_thread(Chain.connect, config.rpc_url, config.chain_id)
    if await asyncio.to_thread(chain.balance_wei, config.key.address) == 0:
        raise InsufficientFunds(
            f"The coordinator's account {config.key.address} holds nothing on chain {config.chain_id}, so it can't pay "
            "for proposing epochs. Send it some of the chain's currency."
        )
    registered = await asyncio.to_thread(ModelRegistry(chain, config.registry).model, config.model_id)
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
    training = Training(config.spec, place, ledger, progress, end_round)
    settlement = Settlement(
        config.spec,
        place,
        ledger,
        chain,
        EpochSettlement(chain, registered.settlement, Sender(chain, config.key)),
        config.statements,
    )
    certificate = make_certificate(NodeIdentity(config.key.secret))
    async with _serving(config, training, certificate):
        tasks = [
            asyncio.create_task(training.run(), name="training"),
            asyncio.create_task(settlement.run(training, config.end_epoch), name="settlement"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            emit("coordinator.finished", epochs=config.end_epoch)
            training.say_finished()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    ledger.close()


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
async def _serving(config: CoordinatorConfig, training: Training, certificate: Certificate) -> AsyncIterator[None]:
    """Both services, from the moment they are announced to the end of the last call."""
    host, _ = split_address(config.listen)
    admission = Admission(config.allowed)
    async with AsyncExitStack() as stack:
        control, control_port = await serve(
            [(control_pb2_grpc.add_ControlServicer_to_server, ControlService(training, admission))],
            join_address(host, config.control_port),
            server_credentials(certificate, admission.admitted),
        )
        stack.push_async_callback(control.stop, SHUTDOWN_S)
        enrolment, port = await serve(
            [(control_pb2_grpc.add_EnrolmentServicer_to_server, EnrolmentService(admission, control_port))],
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
            round=training.round,
        )
        yield
