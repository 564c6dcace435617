"""Replicas of one stage, with a state of some twenty chunks, that offer it in the test's process; and what can be wrong
with them.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from commonweight.identity import NodeIdentity
from commonweight.model.stage import Stage, train_round
from commonweight.rules.spec import ModelSpec
from commonweight.wire.evidence import Source
from commonweight.wire.generated import state_pb2 as pb
from commonweight.wire.state import CHUNK_BYTES
from commonweight.wire.tls import make_certificate
from node.checkpoint import Checkpoints
from node.evidence import Evidence
from node.fetching import RoundGradient, Version
from node.offering import Offering
from node.published import version_path
from node.traces import Traces
from tests.unit.tiny import random_batches, tiny_spec

STAGE, ROUND = 1, 1
SPEC = tiny_spec(stages=2, n_layers=14, d_model=128, d_ff=512, boundary_dim=32)
NEWCOMER = make_certificate(NodeIdentity(b"\x51" * 32))
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Kept:
    """A node's directory with the version that is ready to train ROUND, and the gradient that led to it."""

    directory: Path
    version: Version
    gradient: RoundGradient

    @property
    def checkpoint(self) -> Path:
        return version_path(self.directory / f"stage-{STAGE}", ROUND)

    @property
    def chunks(self) -> list[int]:
        """Of each of the version's files how many there are."""
        names = ("parameters.safetensors", "moments.safetensors")
        return [-(-(self.checkpoint / name).stat().st_size // CHUNK_BYTES) for name in names]

    def copy(self, directory: Path) -> "Kept":
        shutil.copytree(self.directory, directory)
        return Kept(directory, self.version, self.gradient)


def train(directory: Path, spec: ModelSpec = SPEC, seed: int = 0) -> Kept:
    """Train the stage for one round, as a node does."""
    folder = directory / f"stage-{STAGE}"
    stages = [Stage(spec, index) for index in range(spec.stages)]
    stage, gradients, found = stages[STAGE], Traces(folder / "gradients", 0), []
    step = stage.step

    def keep_and_step() -> float:
        found.append(stage.gradient_hash())
        kept = gradients.begin(0)
        gradient = {name: tensor.contiguous() for name, tensor in stage.gradients().items()}
        kept.add(found[0], memoryview(safetensors.torch.save(gradient)))
        kept.finish()
        return step()

    stage.step = keep_and_step  # type: ignore[method-assign]
    train_round(stages, random_batches(spec, seed)[:1])
    root = Checkpoints(folder, spec, STAGE).save(stage)
    version = Version(spec, STAGE, ROUND, root, stage.frozen_hash)
    return Kept(directory, version, RoundGradient(spec, STAGE, 0, found[0]))


class Watched(Offering):
    """Notes which chunks it is asked for; `before` is awaited before each of them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.manifests = 0
        self.chunks: list[tuple[int, int]] = []
        """File and index."""

    async def before(self, request: pb.ChunkRequest) -> None:
        """Nothing, on an honest one."""

    async def Manifest(self, request: pb.Kept, context: Any) -> pb.StateManifest:
        self.manifests += 1
        return await super().Manifest(request, context)

    async def Chunk(self, request: pb.ChunkRequest, context: Any) -> pb.StateChunk:
        self.chunks.append((request.file, request.index))
        await self.before(request)
        return await super().Chunk(request, context)


class SilentAboutManifests(Watched):
    async def Manifest(self, request: pb.Kept, context: Any) -> pb.StateManifest:
        self.manifests += 1
        await asyncio.Event().wait()
        raise AssertionError


class SilentAboutChunks(Watched):
    async def before(self, request: pb.ChunkRequest) -> None:
        await asyncio.Event().wait()


class LiesOnce(Watched):
    """In the second chunk that it is asked for."""

    async def Chunk(self, request: pb.ChunkRequest, context: Any) -> pb.StateChunk:
        answer = await super().Chunk(request, context)
        if self.chunks.index((request.file, request.index)) == 1:
            answer.data = bytes([answer.data[0] ^ 1]) + answer.data[1:]
        return answer


class Gated(Watched):
    """Answers `free` chunks, then nothing before `gate` is set."""

    free = 0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gate, self.held_up = asyncio.Event(), asyncio.Event()

    async def before(self, request: pb.ChunkRequest) -> None:
        if len(self.chunks) > self.free:
            self.held_up.set()
            await self.gate.wait()


@dataclass
class Replica:
    """One that runs."""

    source: Source
    offering: Watched


@asynccontextmanager
async def replicas(
    *kinds: tuple[Kept, Callable[[Path], Watched]], granted: tuple[bytes, ...] = (NEWCOMER.der,)
) -> AsyncIterator[list[Replica]]:
    """One of each, with its own key."""
    running, servers = [], []
    try:
        for number, (kept, make) in enumerate(kinds):
            certificate = make_certificate(NodeIdentity(bytes([0x61 + number]) * 32))
            offering, evidence = make(kept.directory), Evidence(kept.directory, certificate)
            offering.begin(STAGE)
            for der in granted:
                offering.grant(der)
            await evidence.listen("127.0.0.1:0", offering)
            servers.append((evidence, offering))
            source = Source(certificate.peer_id, f"127.0.0.1:{evidence.port}", certificate.der)
            running.append(Replica(source, offering))
        yield running
    finally:
        for evidence, offering in servers:
            await evidence.close()
            offering.close()
