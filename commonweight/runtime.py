"""How a long-running command starts and ends."""

import asyncio
import gc
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from commonweight.events import emit, log_to_stdout


def run_until_stopped(main: Coroutine[Any, Any, None], leave: Callable[[], float] | None = None) -> None:
    """Run `main` with its events on stdout; SIGTERM and SIGINT cancel it, and it gets to clean up.

    With `leave` the first of them only calls that, and `main` has so many seconds as it returns to end by itself.
    """
    log_to_stdout()

    async def run() -> None:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        ways_to_end = [] if leave is None else [leave]

        def stop() -> None:
            if ways_to_end:
                loop.call_later(ways_to_end.pop()(), task.cancel)
            else:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        try:
            await task
        except asyncio.CancelledError:
            emit("stopped", why="asked to by a signal")

    gc.freeze()  # what is imported stays: in a coordinator looking through it was an eighth of the work
    asyncio.run(run())
