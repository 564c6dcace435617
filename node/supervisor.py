"""A node's compute worker, seen from its control process."""

import asyncio
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass

from commonweight.errors import WireError, WorkerDied
from commonweight.events import emit
from commonweight.wire.generated import worker_pb2
from commonweight.wire.link import Link, spawn_worker
from commonweight.wire.tls import Certificate

START_S = 60.0
"""For the worker to import torch and listen; a cold disk takes its time."""
STOP_S = 10.0
"""For the worker to finish the operation it is in."""


@dataclass
class WorkerProcess:
    """A running worker. `receive` and `send` raise WorkerDied once it is gone."""

    process: Process
    link: Link
    port: int
    """Of its data plane."""

    @classmethod
    async def start(cls, *, listen: str, certificate: Certificate, threads: int) -> "WorkerProcess":
        """Start a worker that listens on `listen` with this certificate."""
        process, link = await spawn_worker([sys.executable, "-m", "node.worker"], threads=threads)
        worker = cls(process, link, 0)
        try:
            await worker.send(
                worker_pb2.WorkerCommand(
                    listen=worker_pb2.WorkerListen(
                        address=listen, certificate=certificate.der, private_key=certificate.private_key_pem
                    )
                )
            )
            async with asyncio.timeout(START_S):
                event = await worker.receive()
        except TimeoutError:
            await worker.stop()
            raise WorkerDied(f"The compute worker said nothing for {START_S:g} s after its start.") from None
        except BaseException:
            await worker.stop()
            raise
        if event.WhichOneof("body") != "listening":
            await worker.stop()
            raise WorkerDied(f"The compute worker couldn't listen on {listen}: {event.failure.message}")
        worker.port = event.listening.port
        emit("worker.started", worker_pid=process.pid, port=worker.port)
        return worker

    async def send(self, command: worker_pb2.WorkerCommand) -> None:
        """Send a command."""
        try:
            await self.link.send(command)
        except WireError as error:
            raise await self._died() from error

    async def receive(self) -> worker_pb2.WorkerEvent:
        """The next event."""
        event = await self.link.receive(worker_pb2.WorkerEvent)
        if event is None:
            raise await self._died()
        return event

    async def stop(self) -> None:
        """End the worker: by closing its link, and with SIGKILL where it doesn't end in time."""
        await self.link.close()
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    async def _died(self) -> WorkerDied:
        await self.stop()
        code = self.process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return WorkerDied(
            f"The compute worker (pid {self.process.pid}) ended {how}. Its last words are on stderr; a kill by "
            "signal 9 often means that the machine ran out of memory."
        )
