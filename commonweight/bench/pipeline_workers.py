"""The compute workers of all stages of a model on this machine, driven without a coordinator.

What runs is what a node runs: the same processes, pipes, TLS, hashes and checkpoints. Only the plan comes from here.
"""

import asyncio
import secrets
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commonweight.bench.thread_times import ThreadTimes
from commonweight.errors import WorkerDied
from commonweight.identity import NodeIdentity
from commonweight.links.namespaces import Host
from commonweight.rules.canonical import canonical_json
from commonweight.rules.report import Report
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2, worker_pb2
from commonweight.wire.link import Link, spawn_worker
from commonweight.wire.messages import report_from_proto
from commonweight.wire.tls import Certificate, make_certificate

START_S = 120.0
ROUND_S = 600.0


@dataclass(frozen=True)
class StageRound:
    """One stage's part of a round."""

    report: Report
    bytes_down: int
    bytes_up: int
    ended_s: float = field(compare=False)
    """When its report was here (`time.monotonic`)."""


@dataclass
class _Worker:
    process: Process
    link: Link
    certificate: Certificate
    node: bytes
    """Its address."""
    host: str
    """Where it listens."""
    port: int = 0

    async def expect(self, kind: str) -> worker_pb2.WorkerEvent:
        event = await self.link.receive(worker_pb2.WorkerEvent)
        if event is None or event.WhichOneof("body") != kind:
            what = event.failure.message if event is not None else "it ended"
            raise WorkerDied(f"A worker should have said {kind}; instead: {what}")
        return event

    async def trained(self) -> StageRound:
        report = (await self.expect("report")).report.report
        return StageRound(report_from_proto(report), report.bytes_down, report.bytes_up, time.monotonic())


class PipelineWorkers:
    """Use as an async context manager: on entry the pipes are open, on exit no process is left."""

    def __init__(
        self,
        spec: ModelSpec,
        data: Path,
        state: Path,
        *,
        threads: int = 1,
        hosts: Sequence[Host] = (),
        environment: Mapping[str, str] | None = None,
        compiles: bool = False,
    ) -> None:
        """Workers for all stages of `spec`, with `threads` compute threads each. `hosts`: where each runs; none: all
        on this one. `environment`: added to theirs. `compiles`: as nodes with --compile.
        """
        self._spec = spec
        self._data = data
        self._state = state
        self._threads = threads
        self._hosts = hosts
        self._environment = environment
        self._compiles = compiles
        self._workers: list[_Worker] = []

    async def __aenter__(self) -> "PipelineWorkers":
        try:
            async with asyncio.timeout(START_S):
                await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            await worker.link.close()
        for worker in self._workers:
            await worker.process.wait()

    async def train(self, round_: int) -> list[StageRound]:
        """Train one round; the parts are in stage order. Rounds come one after another from 0."""
        (parts,) = await self.train_rounds(range(round_, round_ + 1))
        return parts

    async def train_rounds(self, rounds: range) -> list[list[StageRound]]:
        """Train these rounds, each planned ahead of the one before."""
        parts = []
        await self._plan(rounds.start)
        for round_ in rounds:
            if round_ + 1 < rounds.stop:
                await self._plan(round_ + 1)
            async with asyncio.timeout(ROUND_S):
                parts.append([await worker.trained() for worker in self._workers])
            await self._broadcast(retain=worker_pb2.Retain(round=round_, retained=[round_]))
        return parts

    @property
    def tokens_per_round(self) -> int:
        """That are trained."""
        return self._spec.training.tokens_per_round

    def thread_times(self) -> list[ThreadTimes]:
        """Of each stage's worker, until now."""
        return [ThreadTimes.of(worker.process.pid) for worker in self._workers]

    async def _start(self) -> None:
        for stage in range(self._spec.stages):
            host = self._hosts[stage] if self._hosts else None
            identity = NodeIdentity(secrets.token_bytes(32))
            command = [sys.executable, "-m", "node.worker"]
            argv = host.inside(command) if host else command
            process, link = await spawn_worker(argv, self._environment, threads=self._threads)
            address = bytes.fromhex(identity.address[2:])
            where = host.address if host else "127.0.0.1"
            self._workers.append(_Worker(process, link, make_certificate(identity), address, where))
        for worker in self._workers:
            listen = worker_pb2.WorkerListen(
                address=f"{worker.host}:0",
                certificate=worker.certificate.der,
                private_key=worker.certificate.private_key_pem,
            )
            await worker.link.send(worker_pb2.WorkerCommand(listen=listen))
        for stage, worker in enumerate(self._workers):
            worker.port = (await worker.expect("listening")).listening.port
            start = worker_pb2.WorkerStart(
                spec=canonical_json(self._spec.model_dump()),
                stage=stage,
                state_dir=str(self._state / f"stage-{stage}"),
                data_dir=str(self._data) if stage == 0 else "",
                device="cpu",
                compile=self._compiles,
            )
            await worker.link.send(worker_pb2.WorkerCommand(start=start))
        for stage, worker in enumerate(self._workers):
            await worker.expect("started")
            formation = control_pb2.Formation(generation=1, round=0)
            formation.previous.extend(map(_neighbour, self._workers[:stage][-1:]))
            formation.next.extend(map(_neighbour, self._workers[stage + 1 :][:1]))
            await worker.link.send(worker_pb2.WorkerCommand(formation=formation))
        for worker in self._workers:
            await worker.expect("pipes_open")

    async def _plan(self, round_: int) -> None:
        count = self._spec.training.microbatches_per_round
        stages = [control_pb2.StagePlan(members=[worker.node], assignment=[0] * count) for worker in self._workers]
        await self._broadcast(plan=control_pb2.RoundPlan(generation=1, round=round_, stages=stages))

    async def _broadcast(self, **body: Any) -> None:
        for worker in self._workers:
            await worker.link.send(worker_pb2.WorkerCommand(**body))


def _neighbour(worker: _Worker) -> control_pb2.Neighbour:
    return control_pb2.Neighbour(
        peer_id=worker.certificate.peer_id,
        data_address=f"{worker.host}:{worker.port}",
        certificate=worker.certificate.der,
    )
