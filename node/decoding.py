"""The generating side of a node's control process: keeps published versions, and the decode process that has them, and
signs what that says of answers.

It never disturbs training: a decode process that dies is started again, after a while that grows, for as long as the
node runs.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from commonweight.errors import CheckpointError, WorkerDied
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.wire.channel import advertised_address
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.generated import worker_pb2
from commonweight.wire.messages import answer_to_proto
from node.answers import Unrecorded, answers_folder, keep_traces, kept_parts
from node.published import MAX_LOADED, keep_published
from node.supervisor import DecoderProcess

SESSION_IDLE_S = 60.0
"""A session without a step for this long is ended: its gateway, or the reader of its answer, is gone."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.2, 60.0

Say = Callable[[pb.NodeMessage], None]
"""Puts a message on the stream to the coordinator."""


@dataclass(frozen=True)
class DecodeConfig:
    """What a node generates with."""

    directory: Path
    """The node's, with its checkpoints."""
    listen: str
    """host:port of the decode process; port 0 takes a free one."""
    advertise: str | None
    """host or host:port by which gateways and neighbours reach it, where that isn't where it listens."""
    cache_bytes: int
    """For keys, values and traces of all sessions together."""
    device: str


class Decoding:
    """See the module. Methods run on the event loop."""

    def __init__(
        self, config: DecodeConfig, identity: NodeIdentity, start: Callable[[], Awaitable[DecoderProcess]]
    ) -> None:
        """No process is started, by `start`, before a version is to be loaded."""
        self._config = config
        self._start = start
        self._unrecorded = Unrecorded(identity)
        self._assignment = pb.Assignment()
        self._process: DecoderProcess | None = None
        self._loads: dict[int, worker_pb2.DecoderLoad] = {}
        """Wanted versions, by round."""
        self._peers: dict[int, pb.DecodePeers] = {}
        self._ready: set[int] = set()
        self._wanted = asyncio.Event()
        self._backoff_s = FIRST_BACKOFF_S
        self._is_restored = False
        """Whether the parts of an earlier process are said again, too."""
        self._send_up: Say | None = None
        """From `begin` to `end`."""

    def begin(self, assignment: pb.Assignment, say: Say) -> None:
        """A coordinator took this node, and listens. What it may not have recorded is said again."""
        self._assignment, self._send_up = assignment, say
        for signed in self._unrecorded.parts.values():
            self._say(pb.NodeMessage(answer=signed))

    def end(self) -> None:
        """The coordinator is gone: it is told nothing before it takes this node again."""
        self._send_up = None

    def recorded(self, answer: pb.AnswerRecorded) -> None:
        """The coordinator has this part."""
        self._unrecorded.recorded(answer.session)

    async def publish(self, assignment: pb.Assignment, publish: pb.Publish, needed: Collection[int]) -> None:
        """Keep a version and, where asked, load it; beside it, what answers that are audited `needed`.

        Returns once it is kept, and traces and parts of what isn't any more are gone. The first time what an earlier
        process may not have been able to say of answers by these versions is said again.
        """
        stage, round_, directory = assignment.stage, publish.round, self._config.directory
        folder, answers = directory / "published" / f"stage-{stage}", answers_folder(directory, stage)
        # The one that is served. Until its neighbours are known it is the one that was to be loaded before.
        beside = max(self._peers, default=max(self._loads, default=None))
        try:
            checkpoints = directory / f"stage-{stage}"
            kept = await asyncio.to_thread(keep_published, checkpoints, folder, round_, beside, needed)
        except CheckpointError as error:
            emit("decode.failed", round=round_, code=error.code, message=error.args[0])
            self._say_failed(round_, error.code, error.args[0])
            return
        await asyncio.to_thread(keep_traces, answers, kept)
        self._unrecorded.keep(kept)
        if not self._is_restored:
            for part in await asyncio.to_thread(kept_parts, answers, kept):
                self._say(pb.NodeMessage(answer=self._unrecorded.sign(assignment, answer_to_proto(part))))
            self._is_restored = True
        if not publish.load:
            return
        if round_ in self._ready:
            self._say_ready(round_)
            return
        self._loads[round_] = worker_pb2.DecoderLoad(
            spec=assignment.spec,
            stage=stage,
            round=round_,
            state_dir=str(folder),
            device=self._config.device,
            cache_bytes=self._config.cache_bytes,
            idle_s=SESSION_IDLE_S,
            answers_dir=str(answers),
        )
        others = sorted(self._loads.keys() - {round_}, key=lambda old: (old == beside, old))
        for old in others[: 1 - MAX_LOADED]:
            del self._loads[old]
            self._peers.pop(old, None)
            self._ready.discard(old)
        self._wanted.set()
        await self._send(worker_pb2.DecoderCommand(load=self._loads[round_]))

    async def meet(self, peers: pb.DecodePeers) -> None:
        """Pass on who may speak with the decode process."""
        self._peers[peers.round] = peers
        await self._send(worker_pb2.DecoderCommand(peers=peers))

    async def run(self) -> None:
        """Keep a decode process running from the first version that is to be loaded on, until cancelled."""
        try:
            while True:
                await self._wanted.wait()
                try:
                    await self._serve()
                except WorkerDied as error:
                    emit("decode.died", code=error.code, message=error.args[0], retry_s=self._backoff_s)
                    self._process = None
                    for round_ in self._ready:
                        self._say_failed(round_, error.code, error.args[0], retrying=True)
                    self._ready.clear()
                await asyncio.sleep(self._backoff_s)
                self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)
        finally:
            if self._process is not None:
                await self._process.stop()

    async def _serve(self) -> None:
        """One decode process, from its start to its end. Raises WorkerDied."""
        self._process = process = await self._start()
        for load in list(self._loads.values()):
            await process.send(worker_pb2.DecoderCommand(load=load))
        for peers in list(self._peers.values()):
            await process.send(worker_pb2.DecoderCommand(peers=peers))
        while True:
            event = await process.receive()
            match event.WhichOneof("body"):
                case "loaded" if event.loaded.round in self._loads:
                    self._backoff_s = FIRST_BACKOFF_S
                    self._ready.add(event.loaded.round)
                    self._say_ready(event.loaded.round)
                case "answer":
                    self._say(pb.NodeMessage(answer=self._unrecorded.sign(self._assignment, event.answer)))
                case "failure":
                    failure = event.failure
                    emit("decode.failed", round=failure.round, code=failure.code, message=failure.message)
                    self._loads.pop(failure.round, None)
                    if not self._loads:
                        self._wanted.clear()
                    self._say_failed(failure.round, failure.code, failure.message)

    async def _send(self, command: worker_pb2.DecoderCommand) -> None:
        if self._process is not None:
            try:
                await self._process.send(command)
            except WorkerDied:
                return  # `run` finds it, too, and says so

    def _say_ready(self, round_: int) -> None:
        assert self._process is not None, "it has said so"
        address = advertised_address(self._config.listen, self._config.advertise, self._process.port)
        self._say(pb.NodeMessage(version_ready=pb.VersionReady(round=round_, decode_address=address)))

    def _say_failed(self, round_: int, code: str, why: str, *, retrying: bool = False) -> None:
        failed = pb.VersionFailed(round=round_, code=code, why=why[:500], retrying=retrying)
        self._say(pb.NodeMessage(version_failed=failed))

    def _say(self, message: pb.NodeMessage) -> None:
        if self._send_up is not None:
            self._send_up(message)
