"""A node's child processes, seen from its control process: the compute worker and the decode process."""

import asyncio
import sys
from abc import ABC, abstractmethod
from asyncio.subprocess import Process
from collections.abc import Sequence
from typing import ClassVar, Generic, Self, TypeVar

import grpc

from commonweight.errors import WireError, WorkerDied
from commonweight.events import emit
from commonweight.wire.channel import local_address, open_channel
from commonweight.wire.generated import worker_pb2
from commonweight.wire.link import Link, end_worker, spawn_worker
from commonweight.wire.tls import Certificate

START_S = 60.0
"""For a child to import torch and listen; a cold disk takes its time."""
STOP_S = 10.0
"""For a child to finish the operation it is in."""
PING_TIMEOUT_MS = 5_000
"""For a child to answer a ping. gRPC answers on threads of its own, whatever the child computes."""
CONNECT_S = 10.0
"""For one that didn't to take another connection."""

C = TypeVar("C", worker_pb2.WorkerCommand, worker_pb2.DecoderCommand)
E = TypeVar("E", worker_pb2.WorkerEvent, worker_pb2.DecoderEvent)


class Child(ABC, Generic[C, E]):
    """A running child that listens on a port. `receive` and `send` raise WorkerDied once it is gone."""

    module: ClassVar[str]
    name: ClassVar[str]
    """For people."""
    command: type[C]
    event: type[E]

    def __init__(self, process: Process, link: Link) -> None:
        """Use `start`."""
        self.process = process
        self.link = link
        self.port = 0
        """On which it listens."""
        self._watching: asyncio.Task[None] | None = None
        self._silent = False

    @classmethod
    async def start(cls, *, listen: str, certificate: Certificate, threads: int, arguments: Sequence[str] = ()) -> Self:
        """Start one that listens on `listen` with this certificate. `arguments` come first on its command line."""
        process, link = await spawn_worker([sys.executable, "-m", cls.module, *arguments], threads=threads)
        child = cls(process, link)
        try:
            where = worker_pb2.WorkerListen(
                address=listen, certificate=certificate.der, private_key=certificate.private_key_pem
            )
            await child.send(cls.command(listen=where))
            async with asyncio.timeout(START_S):
                event = await child.receive()
        except TimeoutError:
            await child.stop()
            raise WorkerDied(f"The {cls.name} said nothing for {START_S:g} s after its start.") from None
        except BaseException:
            await child.stop()
            raise
        if event.WhichOneof("body") != "listening":
            await child.stop()
            raise WorkerDied(f"The {cls.name} couldn't listen on {listen}: {event.failure.message}")
        child.port = event.listening.port
        child._watching = asyncio.create_task(child._watch(local_address(listen, child.port), certificate))
        child.announce()
        return child

    @abstractmethod
    def announce(self) -> None:
        """Emit that it was started."""

    async def send(self, command: C) -> None:
        """Send a command."""
        try:
            await self.link.send(command)
        except WireError as error:
            raise await self._died() from error

    async def receive(self) -> E:
        """The next event."""
        event = await self.link.receive(self.event)
        if event is None:
            raise await self._died()
        return event

    async def stop(self) -> None:
        """End it: by closing its link, and with SIGKILL where it doesn't end in time."""
        if self._watching is not None:
            self._watching.cancel()
        await end_worker(self.process, self.link, STOP_S)

    async def _watch(self, address: str, certificate: Certificate) -> None:
        """Kill it when it falls silent, as a stopped one does: neighbours and coordinator would wait for it."""
        # Any holder of the child's certificate may connect to it, and this process is one.
        async with open_channel(address, certificate, certificate.der, ping_timeout_ms=PING_TIMEOUT_MS) as channel:
            try:
                while True:
                    async with asyncio.timeout(CONNECT_S):
                        await channel.channel_ready()
                    await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            except TimeoutError:
                self._silent = True
                if self.process.returncode is None:
                    self.process.kill()

    async def _died(self) -> WorkerDied:
        await self.stop()
        if self._silent:
            return WorkerDied(
                f"The {self.name} (pid {self.process.pid}) answered no ping for {PING_TIMEOUT_MS / 1000:g} s, took no "
                f"connection for {CONNECT_S:g} s, and was killed: it was stopped, or hangs. If this machine is short "
                "of memory or processors, run less beside the node."
            )
        code = self.process.returncode
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        return WorkerDied(
            f"The {self.name} (pid {self.process.pid}) ended {how}. Its last words are on stderr; a kill by "
            "signal 9 often means that the machine ran out of memory."
        )


class WorkerProcess(Child[worker_pb2.WorkerCommand, worker_pb2.WorkerEvent]):
    """The compute worker."""

    module, name = "node.worker", "compute worker"
    command, event = worker_pb2.WorkerCommand, worker_pb2.WorkerEvent

    def announce(self) -> None:
        """As `Child.announce`."""
        emit("worker.started", worker_pid=self.process.pid, port=self.port)


class DecoderProcess(Child[worker_pb2.DecoderCommand, worker_pb2.DecoderEvent]):
    """The decode process."""

    module, name = "node.decoder", "decode process"
    command, event = worker_pb2.DecoderCommand, worker_pb2.DecoderEvent

    def announce(self) -> None:
        """As `Child.announce`."""
        emit("decode.started", decode_pid=self.process.pid, port=self.port)
