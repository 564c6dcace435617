"""What goes to a node's worker, in order: an order for a round whose state isn't there yet waits until it is, and what
follows with it.
"""

import asyncio
from collections import deque

from commonweight.errors import WorkerDied
from commonweight.wire.generated import worker_pb2
from node.state import StageState
from node.supervisor import WorkerProcess


class Orders:
    """Of one attachment. Methods run on the event loop, and raise WorkerDied."""

    def __init__(self, worker: WorkerProcess, state: StageState) -> None:
        self._worker = worker
        self._state = state
        self._waiting: deque[tuple[worker_pb2.WorkerCommand, int]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def give(self, command: worker_pb2.WorkerCommand, round_: int) -> None:
        """Send it as soon as the state at the start of `round_` is there, after those that were given before."""
        if not self._waiting and self._state.has(round_):
            await self._worker.send(command)
            return
        self._waiting.append((command, round_))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())

    async def drop(self) -> None:
        """What waits is void."""
        self._waiting.clear()
        task, self._sender = self._sender, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _send(self) -> None:
        try:
            while self._waiting:
                command, round_ = self._waiting[0]
                await self._state.wait_for(round_)
                await self._worker.send(command)
                self._waiting.popleft()
        except WorkerDied:
            return  # whoever listens to the worker says so
        self._sender = None
