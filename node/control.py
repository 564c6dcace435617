"""A node's control process: keeps its worker running and its stream to the coordinator open, and signs reports.

It holds the node's key; the worker holds the stage. What the coordinator says goes on to the worker, what the worker
has done is signed and goes to the coordinator. If the coordinator is gone the node comes back to it, for as long as it
takes; if the worker dies it is started again from its checkpoint. If the node moves to another stage both children are
ended, and others begin there; what auditors may still ask for of the stage before is served on.
"""

import asyncio
from typing import Any

from commonweight.errors import PeerUnreachable, WorkerDied
from commonweight.events import emit
from commonweight.locating import Lookup, make_locator
from commonweight.peers.offered import Offered
from commonweight.wire.attachment import Attachment, Backoff, Finished, attach, together, until_one_ends
from commonweight.wire.channel import advertised_address
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.tls import make_certificate
from node.attending import Moved, Session
from node.config import NodeConfig
from node.decoding import DecodeConfig, Decoding
from node.evidence import Evidence
from node.routing import Routing
from node.state import StageState
from node.supervisor import DecoderProcess, WorkerProcess
from node.watching import Watch

MAX_WORKER_DEATHS = 3
"""In a row, without a finished round between them."""
LEAVE_S = 8.0
"""For the end of the round that is being trained, when the node is asked to stop. Who goes earlier has computed for
nothing: others of its stage replay its load.
"""


class Node:
    """One provider node."""

    def __init__(self, config: NodeConfig) -> None:
        """Nothing is started before `run`."""
        self.config = config
        self.certificate = make_certificate(config.identity)
        self._worker: WorkerProcess | None = None
        self._decoding = self._make_decoding()
        self._evidence = self.make_evidence()
        self._state = StageState(config.directory, self.certificate, config.identity)
        self._watch = Watch(config.identity.address, config.payout, config.directory, config.watch)
        offered = Offered()
        self._locator = make_locator(config.coordinator, config.identity, offered)
        self._routing = (
            Routing(self._locator, offered, config.identity.address) if isinstance(config.coordinator, Lookup) else None
        )
        self._started: tuple[bytes, int] | None = None
        """Spec and stage that the worker was started with."""
        self._stage: int | None = None
        """That it holds, once it knows."""
        self._deaths = 0
        self._backoff = Backoff()
        self._leaving = asyncio.Event()
        self._is_attached = False

    def _make_decoding(self) -> Decoding:
        """The generating side of one stage."""
        config = self.config
        decode = DecodeConfig(
            directory=config.directory,
            listen=config.decode_listen,
            advertise=config.decode_advertise,
            cache_bytes=config.cache_bytes,
            device=config.device,
        )
        return Decoding(decode, config.identity, self.start_decoder)

    def make_evidence(self) -> Evidence:
        """Its service for auditors."""
        return Evidence(self.config.directory, self.certificate)

    async def start_worker(self) -> WorkerProcess:
        """Start its compute worker."""
        config = self.config
        return await WorkerProcess.start(listen=config.listen, certificate=self.certificate, threads=config.threads)

    async def start_decoder(self) -> DecoderProcess:
        """Start its decode process."""
        config = self.config
        decoder = await DecoderProcess.start(
            listen=config.decode_listen, certificate=self.certificate, threads=config.threads
        )
        if self._routing is not None:
            self._routing.serve("decode", config.decode_listen, decoder.port)
        return decoder

    def make_session(self, worker: WorkerProcess, coordinator: Attachment) -> Session:
        """What obeys the coordinator during one attachment."""
        return Session(*self.session_parts(worker, coordinator))

    def session_parts(self, worker: WorkerProcess, coordinator: Attachment) -> tuple[Any, ...]:
        """What a session is made of."""
        return self.config, worker, coordinator, self._watch, self._decoding, self._evidence, self._state

    def leave(self) -> float:
        """End `run` once the work in the round that is being trained is done. Returns after how many seconds that is
        to be waited for no longer.
        """
        seconds = LEAVE_S if self._is_attached else 0.0
        emit("node.leaving", within_s=seconds)
        self._leaving.set()
        return seconds

    async def run(self) -> None:
        """Take part until the coordinator has no more work for this node, or until cancelled."""
        emit(
            "node.started",
            node=self.config.identity.address,
            peer_id=self.config.identity.peer_id,
            payout=self.config.payout,
        )
        await self._evidence.listen(self.config.evidence_listen, self._state.offering, self._state.keeping)
        if self._routing is not None:
            self._routing.serve("evidence", self.config.evidence_listen, self._evidence.port)
        try:
            await until_one_ends(self._hold_stages(), self._locator.run())
        finally:
            await self._watch.close()
            await self._evidence.close()
            await self._state.close()
            if self._worker is not None:
                await self._worker.stop()

    async def _hold_stages(self) -> None:
        """One after another, until the coordinator has no more work."""
        while True:
            try:
                await until_one_ends(self._train(), self._decoding.run())
                return
            except Moved:
                if self._worker is not None:
                    await self._worker.stop()
                self._worker = self._stage = None
                self._decoding = self._make_decoding()
                await self._state.vacate()

    async def _train(self) -> None:
        """Take part with one stage. Raises Moved."""
        while True:
            try:
                await self._ensure_worker()
                await self._attend()
            except Finished:
                if self._leaving.is_set():
                    emit("node.left")
                else:
                    emit("node.finished")
                return
            except WorkerDied as error:
                if self._worker is not None:
                    await self._worker.stop()
                    self._worker = None
                self._deaths += 1
                emit("worker.died", code=error.code, message=error.args[0])
                if self._deaths >= MAX_WORKER_DEATHS:
                    raise
            except PeerUnreachable as error:
                if self._leaving.is_set():
                    return
                await self._backoff.wait(error)

    async def _ensure_worker(self) -> None:
        if self._worker is None:
            self._started = None
            self._worker = await self.start_worker()
            if self._routing is not None:
                self._routing.serve("data", self.config.listen, self._worker.port)

    async def _attend(self) -> None:
        """One attachment to the coordinator, from enrolment to the end of its stream."""
        worker = self._worker
        assert worker is not None, "a node attends with its worker running"
        join = self._join(worker)
        async with attach(await self._locator.coordinator(), self.certificate, join) as coordinator:
            session = self.make_session(worker, coordinator)
            session.started = self._started
            session.routing = self._routing
            address = join.join.data_address
            session.on_assigned = lambda stage: self._hold(stage, address)
            self._is_attached = True
            try:
                await together(session.obey(), session.relay(), session.find_ways(), self._ask_to_leave(coordinator))
            finally:
                self._is_attached = False
                self._decoding.end()
                self._started = session.started
                if session.attached:
                    self._backoff.reset()
                if session.rounds:
                    self._deaths = 0
                await session.pause()

    def _hold(self, stage: int, address: str) -> None:
        """The node holds this stage; its data plane is at `address`. Raises Moved where it held another one."""
        if self._stage not in (None, stage):
            raise Moved  # it was told so when it had just lost the coordinator
        self._stage = stage
        self._locator.announce(address, self.certificate.der, stage)

    async def _ask_to_leave(self, coordinator: Attachment) -> None:
        await self._leaving.wait()
        coordinator.send(pb.NodeMessage(leave=pb.Leave()))

    def _join(self, worker: WorkerProcess) -> pb.NodeMessage:
        config = self.config
        join = pb.Join(
            data_address=advertised_address(config.listen, config.advertise, worker.port),
            certificate=self.certificate.der,
            payout_account=config.payout,
            has_data=config.data is not None,
            evidence_address=advertised_address(config.evidence_listen, config.evidence_advertise, self._evidence.port),
            stays=config.stays,
        )
        return pb.NodeMessage(join=join)
