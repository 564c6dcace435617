"""The decode process: `python -m node.decoder --link-fd N`, started by a node's control process.

It generates with the published versions of the node's stage: with one, and for as long as sessions on the one before
last, with two. One thread does everything. It is a process of its own so that generating and training don't share an
interpreter.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from commonweight.errors import CommonweightError, PeerUnreachable, UnplannedMessage
from commonweight.events import emit, log_to_stdout
from commonweight.model.inference import InferenceStage
from commonweight.rules.spec import parse_spec
from commonweight.rules.stages import state_bytes
from commonweight.wire.generated import control_pb2, worker_pb2
from commonweight.wire.link import Link, connect_link
from commonweight.wire.messages import answer_to_proto
from commonweight.wire.tls import Certificate, peer_id_of
from node.answers import OpenTrace, emit_lost, write_trace
from node.checkpoint import Checkpoints
from node.decode_plane import DecodePlane, Version, until_first
from node.published import MAX_LOADED
from node.sessions import Room

MAX_UNWRITTEN, MAX_UNWRITTEN_BYTES = 256, 64 << 20
"""Traces, and bytes of them, that wait for the disk at a time; one alone may be larger."""
RESERVED_VERSIONS = 2
"""So many checkpoints always find room beside answers' traces."""


class Decoder:
    """What the control process asks for, done."""

    def __init__(self, link: Link) -> None:
        """Nothing is served before `run`."""
        self._link = link
        self._plane: DecodePlane | None = None
        self._room = Room(0)
        self._idle_s = 0.0
        self._ended: asyncio.Queue[OpenTrace] = asyncio.Queue(MAX_UNWRITTEN)
        """Sessions that are over."""
        self._unwritten_bytes = 0
        """Of their traces."""
        self._answers: Path | None = None
        """Where traces go; None: nowhere."""
        self._reserve_bytes = 0
        """That stay free on the disk for training."""

    async def run(self) -> None:
        """Serve the control process until it closes the link."""
        try:
            await until_first(self._obey_all(), self._sweep(), self._write_traces())
        finally:
            if self._plane is not None:
                await self._plane.close()

    async def _obey_all(self) -> None:
        while (command := await self._link.receive(worker_pb2.DecoderCommand)) is not None:
            await self._obey(command)

    async def _obey(self, command: worker_pb2.DecoderCommand) -> None:
        match command.WhichOneof("body"):
            case "listen":
                await self._listen(command.listen)
            case "load":
                await self._load(command.load)
            case "peers":
                await self._meet(command.peers)
            case other:
                raise UnplannedMessage(f"The control process sent {other}, which this decode process doesn't know.")

    async def _listen(self, command: worker_pb2.WorkerListen) -> None:
        certificate = Certificate(command.certificate, command.private_key, peer_id_of(command.certificate))
        plane = DecodePlane(certificate)
        try:
            port = await plane.listen(command.address)
        except CommonweightError as error:
            await self._fail(error, 0)
            return
        self._plane = plane
        await self._link.send(worker_pb2.DecoderEvent(listening=worker_pb2.WorkerListening(port=port)))

    async def _load(self, command: worker_pb2.DecoderLoad) -> None:
        plane, round_ = self._need_plane(), command.round
        self._room.limit, self._idle_s = command.cache_bytes, command.idle_s
        self._answers = Path(command.answers_dir) if command.answers_dir else None
        if round_ not in plane.versions:
            started_s = time.monotonic()
            try:
                stage = await asyncio.to_thread(self.open_stage, command)
            except CommonweightError as error:
                await self._fail(error, round_)
                return
            self._reserve_bytes = RESERVED_VERSIONS * state_bytes(stage.spec, stage.index)
            version = Version.of(stage, round_, self._room, plane.certificate, time.monotonic, self._keep)
            plane.versions[round_] = version
            emit("decode.ready", stage=stage.index, round=round_, seconds=round(time.monotonic() - started_s, 3))
            # Beside it the one that is served stays: one that some stage couldn't load makes way first.
            others = sorted(plane.versions.keys() - {round_}, key=lambda old: (plane.versions[old].is_met, old))
            for old in others[: 1 - MAX_LOADED]:
                await self._drop(old)
        await self._link.send(worker_pb2.DecoderEvent(loaded=worker_pb2.DecoderLoaded(round=round_)))

    def open_stage(self, command: worker_pb2.DecoderLoad) -> InferenceStage:
        """The stage at that version, its checkpoint checked against its state root; runs on a thread of its own.

        Raises CheckpointError.
        """
        spec, index = parse_spec(command.spec), command.stage
        if not command.state_dir:
            return InferenceStage.initial(spec, index, command.device)
        parameters = Checkpoints(Path(command.state_dir), spec, index).parameters(command.round)
        return InferenceStage(spec, index, parameters, command.device)

    async def _meet(self, peers: control_pb2.DecodePeers) -> None:
        plane = self._need_plane()
        plane.gateways = frozenset(peers.gateways)
        if (version := plane.versions.get(peers.round)) is None:
            return  # it was dropped meanwhile
        await version.meet(peers)
        for round_, older in plane.versions.items():
            older.sessions.retired = older.sessions.retired or round_ < peers.round

    async def _sweep(self) -> None:
        """End what nobody goes on with."""
        while True:
            await asyncio.sleep(min(self._idle_s / 4 or 1.0, 1.0))
            for round_, version in list(self._need_plane().versions.items()) if self._plane else ():
                version.sessions.expire(self._idle_s)
                if version.sessions.retired and not len(version.sessions):
                    await self._drop(round_)

    def _keep(self, trace: OpenTrace) -> None:
        if self._answers is None:
            return
        waiting = self._unwritten_bytes
        if self._ended.full() or (waiting and waiting + trace.size > MAX_UNWRITTEN_BYTES):
            why = f"{self._ended.qsize()} traces of {waiting:,} bytes wait for the disk"
            emit_lost(trace.version, trace.session, why)
            return
        self._unwritten_bytes += trace.size
        self._ended.put_nowait(trace)

    async def _write_traces(self) -> None:
        """Whatever keeps a trace from the disk costs its answer, and no other."""
        while True:
            trace = await self._ended.get()
            assert self._answers is not None, "otherwise none is kept"
            try:
                answer = await asyncio.to_thread(write_trace, self._answers, trace, self._reserve_bytes)
            except OSError as error:
                emit_lost(trace.version, trace.session, f"{self._answers}: {error.strerror or error}")
                continue
            finally:
                self._unwritten_bytes -= trace.size
            try:
                await self._link.send(worker_pb2.DecoderEvent(answer=answer_to_proto(answer)))
            except PeerUnreachable:
                return  # the node ends

    async def _drop(self, round_: int) -> None:
        version = self._need_plane().versions.pop(round_)
        await version.drop()
        emit("decode.dropped", stage=version.stage, round=round_)

    def _need_plane(self) -> DecodePlane:
        assert self._plane is not None, "listen comes first"
        return self._plane

    async def _fail(self, error: CommonweightError, round_: int) -> None:
        failure = worker_pb2.DecoderFailure(code=error.code, message=error.args[0], round=round_)
        await self._link.send(worker_pb2.DecoderEvent(failure=failure))


def main(make: Callable[[Link], Decoder] = Decoder, arguments: Sequence[str] | None = None) -> None:
    """Run until the control process closes the link. `arguments`: of the command line; None: all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link-fd", type=int, required=True)
    link_fd: int = parser.parse_args(arguments).link_fd
    log_to_stdout()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    async def serve() -> None:
        async with await connect_link(link_fd) as link:
            await make(link).run()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
