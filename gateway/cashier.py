"""What happens after an answer: its charge is collected, and the coordinator is told who served it.

Both outlast a chain or a coordinator that is away, and a restart: what is to be done stands in the ledger. What was
collected is looked after until it is deep enough in the chain, and collected again where a reorganisation undoes it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from commonweight.errors import CommonweightError
from commonweight.events import emit
from commonweight.wire.serving import Served
from gateway.backend import Backend
from gateway.ledger import Ledger, Order
from gateway.till import Collected, Lost, Till

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
LOOK_S = 15.0
"""Between two looks at what isn't collected for good."""
REPORTS_AT_ONCE = 8
"""Each waits for the coordinator as long as a call may take."""

T = TypeVar("T")


class Cashier:
    """Works on closed orders until they are done."""

    def __init__(self, ledger: Ledger, till: Till | None, backend: Backend, at_once: int) -> None:
        """`till` is None where nothing is sold. `at_once`: so many transactions wait for their receipts at a time."""
        self._ledger, self._till, self._backend = ledger, till, backend
        self._collecting, self._reporting = asyncio.Semaphore(at_once), asyncio.Semaphore(REPORTS_AT_ONCE)
        self._tasks: set[asyncio.Task[object]] = set()

    async def resume(self) -> None:
        """Take up what an earlier process left: it may have been killed at any point."""
        interrupted = await asyncio.to_thread(self._ledger.close_all)
        mined = await asyncio.to_thread(self._ledger.mined)
        served = await asyncio.to_thread(self._ledger.served)
        for order in served:
            self.collect(order)
        unreported = await asyncio.to_thread(self._ledger.unreported)
        for order in unreported:
            self.report(order)
        emit(
            "gateway.resumed",
            interrupted=len(interrupted),
            to_collect=len(served),
            to_confirm=len(mined),
            to_report=len(unreported),
        )

    def collect(self, order: Order) -> asyncio.Task[Collected | Lost]:
        """Begin to collect a served order's charge."""
        return self._start(self._collect(order))

    def report(self, order: Order) -> None:
        """Begin to tell the coordinator about a closed order with delivered tokens."""
        self._start(self._report(order))

    async def keep_looking(self) -> None:
        """Look after what was collected, and forget answers that have expired, for as long as the gateway runs."""
        while True:
            try:
                await asyncio.to_thread(self._ledger.forget_answers, int(time.time()))
                await self.look()
            except CommonweightError as error:
                emit("payment.unconfirmed", code=error.code, message=str(error), retry_s=LOOK_S)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Settle each collection that is deep enough, and begin to collect again what the chain has lost.

        Raises ChainError and LedgerError where that can't be told.
        """
        till = self._till
        assert till is not None, "who sells has a till"
        if not (mined := await asyncio.to_thread(self._ledger.mined)):
            return
        deep = await asyncio.to_thread(till.confirmed_block)
        for order in mined:
            assert order.transaction is not None, "it was mined"
            request, transaction = order.request_id, order.transaction
            block = await asyncio.to_thread(till.block_of, transaction)
            if block is None:
                await asyncio.to_thread(self._ledger.record_unmined, request)
                emit("payment.reorganised", request=request.hex(), transaction=transaction)
                self.collect(order)
            elif block <= deep:
                await asyncio.to_thread(self._ledger.record_collected, request, transaction)
                emit("payment.confirmed", request=request.hex(), transaction=transaction)

    async def drain(self, deadline_s: float) -> None:
        """Wait until all that was begun is done; what isn't by then is left to the next start."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=deadline_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Awaitable[T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _collect(self, order: Order) -> Collected | Lost:
        till, payment = self._till, order.authorization
        assert till is not None, "who sells has a till"

        def collect() -> Collected | Lost:
            outcome = till.collect(order)
            if isinstance(outcome, Collected):
                record = self._ledger.record_mined if till.confirmations else self._ledger.record_collected
                record(order.request_id, outcome.transaction)
            else:
                self._ledger.record_written_off(order.request_id)
            return outcome

        def failed(error: CommonweightError, retry_s: float) -> None:
            emit(
                "payment.failed",
                request=order.request_id.hex(),
                code=error.code,
                message=str(error),
                retry_s=retry_s,
            )

        outcome = await self._until_done(self._collecting, lambda: asyncio.to_thread(collect), failed)
        request = order.request_id.hex()
        if isinstance(outcome, Collected):
            emit(
                "payment.collected",
                request=request,
                payer=payment.from_,
                charged=str(outcome.charged),
                refunded=str(payment.value - outcome.charged),
                transaction=outcome.transaction,
            )
        else:
            emit(
                "payment.written_off",
                request=request,
                payer=payment.from_,
                charge=str(order.charge),
                why=outcome.why,
            )
        return outcome

    async def _report(self, order: Order) -> None:
        assert order.round is not None, "an answer comes from a version"
        assert order.session is not None, "which generates it in a session"
        served = Served(order.request_id, order.round, order.session, order.prompt_tokens, order.completion_tokens)

        async def attempt() -> None:
            await self._backend.report(served)
            await asyncio.to_thread(self._ledger.record_reported, order.request_id)

        def failed(error: CommonweightError, retry_s: float) -> None:
            emit(
                "report.failed",
                request=order.request_id.hex(),
                code=error.code,
                message=str(error),
                retry_s=retry_s,
            )

        await self._until_done(self._reporting, attempt, failed)

    async def _until_done(
        self,
        turns: asyncio.Semaphore,
        attempt: Callable[[], Awaitable[T]],
        failed: Callable[[CommonweightError, float], None],
    ) -> T:
        retry_s = FIRST_RETRY_S
        while True:
            async with turns:
                try:
                    return await attempt()
                except CommonweightError as error:
                    failed(error, retry_s)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
