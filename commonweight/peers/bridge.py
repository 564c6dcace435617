"""libp2p speaks trio, everything else here asyncio: trio runs in a thread of its own, and is called across.

A call takes about 60 µs. What breaks in trio ends the trio side as a whole, and is told by `died`, on which the
asyncio side waits beside its own work: a process never goes on with half of itself.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar, TypeVarTuple

import trio

from commonweight.errors import PeerUnreachable

STOP_S = 5.0
"""For the trio side to end once it is asked to."""

T = TypeVar("T")
R = TypeVar("R")
Args = TypeVarTuple("Args")


class TrioThread(Generic[T]):
    """One context manager, entered in a trio loop in a thread of its own, and calls into that loop."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        """`opened` is called in the thread, by `start`, and left in the thread, by `stop`."""
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self.died: asyncio.Future[None] = self._loop.create_future()
        """Raises what ended the trio side, if it ends before `stop`."""
        self._started: asyncio.Future[T] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._stopping = False
        self._pending: set[asyncio.Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="trio", daemon=True)
        # Set in the thread, and read by the asyncio side only after `_started`.
        self._token: trio.lowlevel.TrioToken
        self._scope = trio.CancelScope()
        self._calls: trio.Nursery

    async def start(self) -> T:
        """What the context manager gives, once it is entered. Raises what entering it raises."""
        self._thread.start()
        try:
            return await asyncio.shield(self._started)
        except asyncio.CancelledError:
            self._stopping = True
            self._started.add_done_callback(lambda _: self._soon(self._scope.cancel))
            raise

    async def acall(self, function: "Callable[[*Args], Awaitable[R]]", *args: *Args) -> R:
        """What `function(*args)` gives or raises in the trio loop; cancelling this cancels that.

        Raises PeerUnreachable where the trio side ends meanwhile, or has ended.
        """
        future: asyncio.Future[R] = self._loop.create_future()
        scope = trio.CancelScope()

        async def call() -> None:
            try:
                with scope:
                    result = await function(*args)
            except Exception as error:  # noqa: BLE001 - raised on the other side
                self._tell(_fail, future, error)
            else:
                if not scope.cancelled_caught:
                    self._tell(_succeed, future, result)

        def begin() -> None:
            if self._scope.cancel_called:  # the nursery takes nobody any more
                self._tell(_fail, future, _ended())
            else:
                self._calls.start_soon(call)

        if self._ended.is_set():
            raise _ended()
        self._pending.add(future)
        self._soon(begin)
        try:
            return await future
        except asyncio.CancelledError:
            self._soon(scope.cancel)
            raise
        finally:
            self._pending.discard(future)

    def tell(self, function: "Callable[[*Args], object]", *args: *Args) -> None:
        """From the trio loop: call `function(*args)` in the asyncio loop soon, and don't wait for it."""
        self._tell(function, *args)

    async def stop(self) -> None:
        """Leave the context manager and end the thread; calls still under way raise PeerUnreachable.

        Raises TimeoutError where the trio side doesn't end within STOP_S. May be called again, and before `start`.
        """
        self._stopping = True
        if self._thread.ident is None:
            return
        self._started.add_done_callback(lambda _: self._soon(self._scope.cancel))
        async with asyncio.timeout(STOP_S):
            await self._ended.wait()

    def _soon(self, function: Callable[[], object]) -> None:
        """In the trio loop; or never, where that has ended: then `_end` tells whoever waits."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(function)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._main)
        except BaseException as raised:  # noqa: BLE001 - the thread's outermost edge: `died` or `start` raises it
            error = raised
        self._tell(self._end, error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with self._opened() as value:
            with self._scope:  # the calls end first, then the context is left as by anyone else
                async with trio.open_nursery() as self._calls:
                    self._tell(_succeed, self._started, value)
                    await trio.sleep_forever()

    def _end(self, error: BaseException | None) -> None:
        self._ended.set()
        for future in self._pending:
            _fail(future, _ended())
        if not self._started.done():
            self._started.set_exception(error or _ended())
        elif not self._stopping:
            self.died.set_exception(error or _ended())

    def _tell(self, function: "Callable[[*Args], object]", *args: *Args) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            assert self._loop.is_closed(), "only a closed loop refuses a call"


def _succeed(future: "asyncio.Future[R]", result: R) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _ended() -> PeerUnreachable:
    return PeerUnreachable("The libp2p side of this process has ended. Start the process again.")
