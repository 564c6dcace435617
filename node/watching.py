"""A node's own watch: it holds its model's every statement against the chain and against its receipts, and tells, or
contests, what is proposed against its owner's seats.
"""

import asyncio
import traceback
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from commonweight.chain.keys import Key
from commonweight.errors import CommonweightError, RpcUnreachable, SpecError
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.rules.statement import to_hex
from commonweight.watch.judge import OwnReceipt
from commonweight.wire.generated import control_pb2 as pb
from node.receipts import Receipts, Signed

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.watch.judge import Own
    from commonweight.watch.watcher import Watcher

CONNECT_RETRY_S = 5.0
"""Between attempts to reach a chain that is away when the node starts."""


@dataclass(frozen=True)
class WatchConfig:
    """Where the chain is that the node watches."""

    rpc_url: str
    registry: str
    key: Key
    """Posts the bonds of challenges and contests; the node's own."""
    mirrors: tuple[str, ...]
    """Base URLs of HTTP services that may have statements that the coordinator doesn't serve."""
    http: str | None
    """host:port on which it serves the statements that it keeps; None: it keeps them for itself."""
    contests: bool = False
    """Whether it contests what is proposed against its owner's seats."""


@dataclass
class Watch:
    """The receipts of a node, and its watcher once it knows its model. Without a config it only keeps receipts."""

    node: str
    """Its address."""
    payout: str
    folder: Path
    config: WatchConfig | None
    receipts: Receipts | None = None
    _task: "asyncio.Task[None] | None" = None
    _signing: Lock = field(default_factory=Lock)
    """A signature is promised, made and noted before the next one: a call that nobody awaits any more may still run."""

    def begin(self, assignment: pb.Assignment) -> None:
        """The node knows its model now. Later calls change nothing."""
        if self.receipts is not None:
            return
        spec = parse_spec(assignment.spec)
        folder = self.folder / "receipts" / assignment.model_id.hex()
        self.receipts = Receipts(folder, spec.economics.rounds_per_epoch)
        if self.config is not None:
            self._task = asyncio.create_task(self._run(spec, assignment, self.config), name="watch")

    def sign(
        self,
        identity: NodeIdentity,
        domain: Domain,
        generation: int,
        round_: int,
        receipt: Receipt,
        *,
        is_loaded: bool,
    ) -> bytes:
        """The node's signature of its report, which waits for the disk: call it off the event loop. A report without a
        load is credited nothing, and so not kept.

        Raises StateError where it has signed for this unit, or a later one.
        """
        assert self.receipts is not None, "a report comes after the assignment"
        with self._signing:
            self.receipts.promise(generation, round_, receipt.stage, receipt.output, is_loaded=is_loaded)
            signature = identity.sign_digest(receipt.digest(domain))
            if is_loaded:
                own = OwnReceipt(round=round_, stage=receipt.stage, generation=generation, signature=to_hex(signature))
                self.receipts.signed(own)
        return signature

    @property
    def last_signed(self) -> Signed | None:
        """The last unit that the node has signed for."""
        return None if self.receipts is None else self.receipts.last

    def credit(self, round_: int) -> None:
        """The coordinator has sealed this round. Waits for the disk, as `sign`."""
        if self.receipts is not None:
            with self._signing:
                self.receipts.seal(round_)

    async def close(self) -> None:
        """End the watcher."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, spec: ModelSpec, assignment: pb.Assignment, config: WatchConfig) -> None:
        from commonweight.http import serving_http

        try:
            watcher = await self._connected(spec, assignment, config)
            async with AsyncExitStack() as stack:
                if config.http is not None:
                    address = await stack.enter_async_context(serving_http(watcher.store.app(), config.http))
                    emit("statements.served", address=address)
                await watcher.run()
        except CommonweightError as error:  # training goes on without it, and the operator is told
            emit("watch.ended", code=error.code, message=error.args[0])
        except Exception as error:  # noqa: BLE001 - our bug, at the outermost edge: nobody would know that nobody watches
            traceback.print_exc()
            emit("watch.ended", code="INTERNAL", message=f"{type(error).__name__}: {error}")

    async def _connected(self, spec: ModelSpec, assignment: pb.Assignment, config: WatchConfig) -> "Watcher":
        while True:
            try:
                return await asyncio.to_thread(self._watcher, spec, assignment, config)
            except RpcUnreachable as error:
                emit("watch.failed", code=error.code, message=error.args[0], retry_s=CONNECT_RETRY_S)
                await asyncio.sleep(CONNECT_RETRY_S)  # JSON-RPC over HTTP has nothing to wait on

    def _watcher(self, spec: ModelSpec, assignment: pb.Assignment, config: WatchConfig) -> "Watcher":
        from commonweight.chain.registry import ModelRegistry
        from commonweight.chain.rpc import Chain
        from commonweight.chain.sender import Sender
        from commonweight.watch.store import StatementStore
        from commonweight.watch.watcher import Watcher

        chain = Chain.connect(config.rpc_url, assignment.chain_id)
        model = ModelRegistry(chain, config.registry).model(assignment.model_id)
        if spec.spec_hash != model.spec_hash:
            raise SpecError(
                f"The coordinator's spec hashes to {to_hex(spec.spec_hash)}; the model was registered with "
                f"{to_hex(model.spec_hash)}. No epoch can be judged by it. Ask the coordinator's operator, or stop "
                "this node: what it trains isn't the registered model."
            )
        store = StatementStore(self.folder / "statements")
        sender = Sender(chain, config.key)
        watcher = Watcher(spec, chain, model, store, config.mirrors, sender, node=self.node)
        if config.contests:
            watcher.contester = sender
        watcher.own = lambda epoch: self._own(watcher, epoch)
        return watcher

    def _own(self, watcher: "Watcher", epoch: int) -> "Own":
        from commonweight.watch.judge import Own

        assert self.receipts is not None, "begin made them"
        accounts = frozenset({self.payout})
        if watcher.model.terms.seat_stake:
            accounts = watcher.accounts_of(self.node)
        return Own(self.node, accounts, self.receipts.of_epoch(epoch))
