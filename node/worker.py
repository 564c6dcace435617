"""The compute worker: `python -m node.worker --link-fd N`, started by a node's control process.

Two threads. The main one computes (see trainer.py). The other runs an event loop with the data plane and the link to
the control process, and does nothing that keeps the interpreter's lock for long: Python that runs beside torch slows
a stage up to twelve times.
"""

import argparse
import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from commonweight.errors import CommonweightError, UnplannedMessage
from commonweight.events import log_to_stdout
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.wire.generated import control_pb2, worker_pb2
from commonweight.wire.link import Link, connect_link
from commonweight.wire.messages import report_to_proto
from commonweight.wire.pipe import Assembled
from commonweight.wire.tls import Certificate, peer_id_of
from node.flow import Slice, StagePlan
from node.pipes import DataPlane
from node.share import read_share
from node.stage_round import Activation, Gradient
from node.trainer import (
    NO_GENERATION,
    Abandon,
    Arrived,
    Follow,
    Forget,
    Item,
    Outlet,
    Quit,
    Restore,
    TrainedRound,
    Trainer,
    TrainRound,
)

SWITCH_INTERVAL_S = 0.0005
"""How long one thread may keep the other from the interpreter's lock: a tenth of Python's default."""


class Worker:
    """The I/O side. Its methods run on the event loop, unless they say otherwise."""

    def __init__(self, link: Link, inbox: "SimpleQueue[Item]", trainers: "SimpleQueue[Trainer | None]") -> None:
        """`trainers` gets the trainer for the main thread to run, or None where there is nothing to run."""
        self._link = link
        self._inbox = inbox
        self._trainers = trainers
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[worker_pb2.WorkerEvent] = asyncio.Queue()
        self._numerics = ""
        self._plane: DataPlane | None = None
        self._forming: asyncio.Task[None] | None = None
        self._generation = NO_GENERATION
        """The last that was formed."""

    async def run(self) -> None:
        """Serve the control process until it closes the link."""
        sender = asyncio.create_task(self._send_events())
        try:
            while (command := await self._link.receive(worker_pb2.WorkerCommand)) is not None:
                await self._obey(command)
        except CommonweightError as error:
            self._fail(0, error, fatal=True)
            await self._events.join()
        finally:
            sender.cancel()
            self._inbox.put(Quit())
            self._trainers.put(None)
            if self._plane is not None:
                await self._plane.close()

    async def _obey(self, command: worker_pb2.WorkerCommand) -> None:
        match command.WhichOneof("body"):
            case "listen":
                await self._listen(command.listen)
            case "start":
                await self._start(command.start)
            case "formation":
                await self._stop_forming()
                self._forming = asyncio.create_task(self._form(command.formation))
            case "plan":
                await self._plan(command.plan)
            case "pause":
                await self._stop_forming()
                self._generation = NO_GENERATION
                self._inbox.put(Abandon(command.pause.generation))
                if self._plane is not None:
                    await self._plane.close_pipes()
            case "follow":
                done: Future[bytes] = Future()
                done.add_done_callback(lambda done: self._call(self._followed, command.follow.round, done))
                self._inbox.put(Follow(command.follow.round, Path(command.follow.gradient), done))
            case "retain":
                self._inbox.put(Forget(command.retain.round, frozenset(command.retain.retained)))
            case other:
                raise UnplannedMessage(f"The control process sent {other}, which this worker doesn't know.")

    async def _listen(self, command: worker_pb2.WorkerListen) -> None:
        certificate = Certificate(command.certificate, command.private_key, peer_id_of(command.certificate))
        self._plane = DataPlane(certificate, self._take_activation, self._take_gradient, self._take_slice, self._break)
        port = await self._plane.listen(command.address)
        self._events.put_nowait(worker_pb2.WorkerEvent(listening=worker_pb2.WorkerListening(port=port)))

    async def _start(self, command: worker_pb2.WorkerStart) -> None:
        assert self._plane is not None, "listen comes before start"
        plane, spec = self._plane, parse_spec(command.spec)
        trainer = await asyncio.to_thread(
            lambda: self.open_trainer(
                spec,
                command.stage,
                state_dir=Path(command.state_dir),
                data_dir=Path(command.data_dir) if command.data_dir else None,
                device=command.device,
                compiles=command.compile,
                inbox=self._inbox,
                outlet=Outlet(
                    send_down=lambda *sent: self._call(plane.send_down, *sent),
                    send_up=lambda *sent: self._call(plane.send_up, *sent),
                    send_slice=lambda *sent: self._call(plane.send_slice, *sent),
                    report=lambda trained: self._call(self._report, trained),
                    fail=lambda *failure: self._call(self._fail_by, *failure),
                    late=lambda *late: self._call(self._late, *late),
                ),
            )
        )
        plane.plan = StagePlan(spec, command.stage, trainer.stage.frozen_hash, trainer.stage.numbers)
        self._numerics = trainer.numerics
        self._trainers.put(trainer)
        started = worker_pb2.WorkerStarted(frozen_hash=trainer.stage.frozen_hash)
        self._events.put_nowait(worker_pb2.WorkerEvent(started=started))

    def open_trainer(self, spec: ModelSpec, index: int, **options: Any) -> Trainer:
        """As `Trainer.open`; runs on a thread of its own."""
        return Trainer.open(spec, index, **options)

    async def _form(self, formation: control_pb2.Formation) -> None:
        """Open the pipes, and in a new generation go to the round's state, both at once; then say so."""
        assert self._plane is not None, "listen comes before a formation"
        restored: Future[None] = Future()
        if formation.generation == self._generation:
            restored.set_result(None)
        else:
            self._generation = formation.generation
            self._inbox.put(Restore(formation.generation, formation.round, restored))
        try:
            are_open, _ = await asyncio.gather(self._plane.form(formation), asyncio.wrap_future(restored))
        except CommonweightError as error:
            self._fail(formation.generation, error, fatal=restored.done() and restored.exception() is error)
            return
        if are_open:
            opened = control_pb2.PipesOpen(generation=formation.generation)
            self._events.put_nowait(worker_pb2.WorkerEvent(pipes_open=opened))

    async def _plan(self, plan: control_pb2.RoundPlan) -> None:
        plane = self._plane
        assert plane is not None, "listen comes before a plan"
        here = plane.plan
        assert here is not None, "start comes before a plan"
        share = read_share(plan, here.spec, here.stage, plane.node)
        await plane.begin(share)
        self._inbox.put(TrainRound(share))

    async def _stop_forming(self) -> None:
        task, self._forming = self._forming, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _take_activation(self, generation: int, node: str, arrived: Assembled) -> None:
        tokens, code = arrived.tensors
        digests = (arrived.digests[0], arrived.digests[1])
        at = arrived.round, arrived.microbatch
        self._inbox.put(Activation(generation, node, *at, tokens, code, digests, arrived.answered))

    def _take_gradient(self, generation: int, node: str, arrived: Assembled) -> None:
        at = arrived.round, arrived.microbatch
        self._inbox.put(Gradient(generation, node, *at, arrived.tensors[0], arrived.digests[0]))

    def _take_slice(self, generation: int, node: str, arrived: Slice) -> None:
        self._inbox.put(Arrived(generation, node, arrived))

    def _break(self, generation: int, error: CommonweightError, peer_id: str) -> None:
        self._fail(generation, error, fatal=False, peer_id=peer_id)

    def _call(self, method: Callable[..., None], *arguments: Any) -> None:
        """Run a method on the event loop; for the compute thread."""
        self._loop.call_soon_threadsafe(method, *arguments)

    def _report(self, trained: TrainedRound) -> None:
        assert self._plane is not None, "a round was trained over its pipes"
        stage = trained.report.stage
        message = report_to_proto(
            trained.report,
            trained.seconds,
            trained.busy_s,
            self._plane.count_bytes(stage + 1),
            self._plane.count_bytes(stage - 1),
        )
        message.numerics, message.revision = self._numerics, trained.revision
        report = worker_pb2.WorkerReport(generation=trained.generation, report=message)
        self._events.put_nowait(worker_pb2.WorkerEvent(report=report))

    def _followed(self, round_: int, done: "Future[bytes]") -> None:
        followed = worker_pb2.Followed(round=round_)
        try:
            followed.state_root = done.result()
        except CommonweightError as error:
            followed.code, followed.message = error.code, error.args[0]
        self._events.put_nowait(worker_pb2.WorkerEvent(followed=followed))

    def _fail_by(self, generation: int, error: CommonweightError, fatal: bool, node: str) -> None:
        assert self._plane is not None, "listen comes before a generation"
        self._fail(generation, error, fatal, self._plane.peer_id(node))

    def _late(self, generation: int, node: str, why: str) -> None:
        assert self._plane is not None, "a round is trained over its pipes"
        if peer_id := self._plane.peer_id(node):
            late = control_pb2.Late(generation=generation, peer_id=peer_id, why=why)
            self._events.put_nowait(worker_pb2.WorkerEvent(late=late))

    def _fail(self, generation: int, error: CommonweightError, fatal: bool, peer_id: str = "") -> None:
        failure = worker_pb2.WorkerFailure(
            generation=generation, code=error.code, message=error.args[0], fatal=fatal, peer_id=peer_id
        )
        self._events.put_nowait(worker_pb2.WorkerEvent(failure=failure))

    async def _send_events(self) -> None:
        while True:
            await self._link.send(await self._events.get())
            self._events.task_done()


def main(make: Callable[..., Worker] = Worker, arguments: Sequence[str] | None = None) -> None:
    """Run a worker until the control process closes the link. `arguments`: of the command line; None: all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link-fd", type=int, required=True)
    link_fd: int = parser.parse_args(arguments).link_fd
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log_to_stdout()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    inbox: SimpleQueue[Item] = SimpleQueue()
    trainers: SimpleQueue[Trainer | None] = SimpleQueue()

    async def serve() -> None:
        async with await connect_link(link_fd) as link:
            await make(link, inbox, trainers).run()

    io = threading.Thread(target=lambda: asyncio.run(serve()), name="io")
    io.start()
    if (trainer := trainers.get()) is not None:
        try:
            trainer.run()
        except BaseException:  # noqa: BLE001 - our bug, at the outermost edge: the I/O thread alone would live on
            traceback.print_exc()
            os._exit(1)
    io.join()


if __name__ == "__main__":
    main()
