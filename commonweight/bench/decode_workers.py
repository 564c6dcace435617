"""The decode processes of all stages of a model on this machine, driven without nodes or a coordinator.

What runs is what a node runs: the same processes, streams and TLS. Only the route comes from here.
"""

import asyncio
import secrets
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commonweight.errors import WorkerDied
from commonweight.events import Event, parse_event
from commonweight.identity import NodeIdentity
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2, worker_pb2
from commonweight.wire.link import Link, spawn_worker
from commonweight.wire.serving import Route, StageAddress
from commonweight.wire.tls import Certificate, make_certificate

START_S = 120.0


@dataclass
class DecodeWorker:
    """One stage's process."""

    process: Process
    link: Link
    certificate: Certificate
    port: int = 0
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    """What it has written to its stdout."""
    _reader: "asyncio.Task[None] | None" = None

    def follow(self) -> None:
        """Begin to fill `events`."""
        self._reader = asyncio.create_task(self._read())

    async def hear(self, name: str) -> Event:
        """The next event of that name; others are passed over."""
        async with asyncio.timeout(START_S):
            while (event := await self.events.get()).name != name:
                pass
        return event

    async def _read(self) -> None:
        assert self.process.stdout is not None, "it was started with a pipe"
        async for line in self.process.stdout:
            if (event := parse_event(line)) is not None:
                self.events.put_nowait(event)

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    async def command(self, **body: Any) -> None:
        """Tell it something."""
        await self.link.send(worker_pb2.DecoderCommand(**body))

    async def expect(self, kind: str) -> worker_pb2.DecoderEvent:
        """Its next event, which is of this kind."""
        async with asyncio.timeout(START_S):
            event = await self.link.receive(worker_pb2.DecoderEvent)
        if event is None or event.WhichOneof("body") != kind:
            what = event.failure.message if event is not None else "it ended"
            raise WorkerDied(f"A decode process should have said {kind}; instead: {what}")
        return event


class DecodeWorkers:
    """Use as an async context manager: on entry all stages can generate, on exit no process is left."""

    def __init__(
        self,
        spec: ModelSpec,
        gateway: Certificate,
        *,
        state: Path | None = None,
        round_: int = 0,
        threads: int = 1,
        cache_bytes: int = 1 << 28,
        idle_s: float = 60.0,
        answers: Path | None = None,
    ) -> None:
        """Of the version `round_` in state/stage-S, or of version 0. Traces of answers go to answers/stage-S."""
        self.spec, self.gateway, self.workers = spec, gateway, list[DecodeWorker]()
        self.round = round_
        """The version that routes lead through."""
        self._state, self._answers, self._threads = state, answers, threads
        self._cache_bytes, self._idle_s = cache_bytes, idle_s

    async def __aenter__(self) -> "DecodeWorkers":
        try:
            every = range(self.spec.stages)
            self.workers.extend(await asyncio.gather(*(self._spawn() for _ in every)))
            await asyncio.gather(*(self.load(stage, self.round) for stage in every))
            for stage in every:
                await self.introduce(stage, self.round)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            await worker.link.close()
        for worker in self.workers:
            await worker.process.wait()

    def route(self, round_: int | None = None) -> Route:
        """Through all of them."""
        stages = tuple(
            StageAddress(w.certificate.peer_id, w.address, w.certificate.der, "0x" + "00" * 20) for w in self.workers
        )
        return Route(b"", self.spec, bytes(32), self.round if round_ is None else round_, stages)

    async def restart(self, stage: int) -> None:
        """Another process in the place of one that has ended, and its neighbours told of it."""
        self.workers[stage] = await self._spawn()
        await self.load(stage, self.round)
        for each in range(self.spec.stages):
            await self.introduce(each, self.round)

    async def load(self, stage: int, round_: int) -> None:
        """Have a version loaded, with the limit on memory that is set."""
        load = worker_pb2.DecoderLoad(
            spec=canonical_json(self.spec.model_dump()),
            stage=stage,
            round=round_,
            state_dir=str(self._state / f"stage-{stage}") if self._state else "",
            device="cpu",
            cache_bytes=self._cache_bytes,
            idle_s=self._idle_s,
            answers_dir=str(self._answers / f"stage-{stage}") if self._answers else "",
        )
        await self.workers[stage].command(load=load)
        await self.workers[stage].expect("loaded")

    async def limit(self, stage: int, *, cache_bytes: int | None = None, idle_s: float | None = None) -> None:
        """Set what a stage's sessions may take, and how long they may rest; None: as from the start."""
        before = self._cache_bytes, self._idle_s
        self._cache_bytes, self._idle_s = cache_bytes or self._cache_bytes, idle_s or self._idle_s
        await self.load(stage, self.round)
        self._cache_bytes, self._idle_s = before

    async def introduce(self, stage: int, round_: int) -> None:
        """Tell a stage who its neighbours are."""
        peers = control_pb2.DecodePeers(round=round_)
        if stage > 0:
            peers.previous.CopyFrom(_neighbour(self.workers[stage - 1]))
        if stage + 1 < self.spec.stages:
            peers.next.CopyFrom(_neighbour(self.workers[stage + 1]))
        if stage in (0, self.spec.stages - 1):
            peers.gateways.append(self.gateway.der)
        await self.workers[stage].command(peers=peers)

    async def _spawn(self) -> DecodeWorker:
        certificate = make_certificate(NodeIdentity(secrets.token_bytes(32)))
        command = [sys.executable, "-m", "node.decoder"]
        process, link = await spawn_worker(command, threads=self._threads, stdout=asyncio.subprocess.PIPE)
        worker = DecodeWorker(process, link, certificate)
        worker.follow()
        listen = worker_pb2.WorkerListen(
            address="127.0.0.1:0", certificate=certificate.der, private_key=certificate.private_key_pem
        )
        await worker.command(listen=listen)
        worker.port = (await worker.expect("listening")).listening.port
        return worker


def _neighbour(worker: DecodeWorker) -> control_pb2.Neighbour:
    return control_pb2.Neighbour(
        peer_id=worker.certificate.peer_id, data_address=worker.address, certificate=worker.certificate.der
    )
