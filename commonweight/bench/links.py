"""`bench links`: the worker pipeline over links that are slow, long and lose packets, against itself over none of that.

Each worker has a network namespace of its own, so that the kernel's TCP carries what goes between them, and what is
lost has to be sent again. It sleeps before each microbatch, as if it computed for that long: otherwise the cores of
this machine, which all share, would be what is measured.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from commonweight.bench.measure import Result, Summary, compare, interleave
from commonweight.bench.pipeline import PipelineBench
from commonweight.bench.pipeline_workers import PipelineWorkers, StageRound
from commonweight.errors import ConfigError, StateError
from commonweight.failpoints import SLOW_VARIABLE
from commonweight.links.link import LinkShape, parse_shape, parse_time
from commonweight.links.names import ANY
from commonweight.links.namespaces import Namespaces
from commonweight.links.path import PathStatistics
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.spec import ModelSpec

LOOPBACK = "unlimited:0ms"
MODES = {"none": "with a flush", "delayed": "delayed", "look_ahead": "asynchronous"}
"""Of a spec's `asynchrony`, by what they are called in results."""
TARGETS = {
    ("80mbit:50ms", "none"): 0.9,
    ("80mbit:50ms", "look_ahead"): 0.98,
    ("8mbit:50ms", "look_ahead"): 0.95,
    ("80mbit:50ms:loss=1%", "look_ahead"): 0.95,
}
"""The least of loopback that is wanted, by link and asynchrony, where the boundary is compressed."""


@dataclass(frozen=True)
class LinksBench:
    """What is measured. Raises ConfigError."""

    stages: int = 2
    d_model: int = 256
    boundary_dims: tuple[int, ...] = (2, 32, 256)
    n_layers: int = 2
    """As few as two stages can have; `slow` stands for the others."""
    slow: str = "120ms"
    """What each worker sleeps before each microbatch."""
    links: tuple[str, ...] = ("80mbit:50ms", "8mbit:50ms", "80mbit:50ms:loss=1%")
    """Between any two workers, each way."""
    asynchrony: tuple[str, ...] = ("none", "look_ahead")
    congestion: str = ""
    """Of the workers' TCP; empty: this machine's."""
    sequence_length: int = 256
    microbatches: int = 16
    rounds: int = 4
    """In a turn that are counted. The one before them isn't: the pipes have been idle, and TCP starts again."""
    turns: int = 3
    seed: int = 0
    """Of losses and jitter."""

    def __post_init__(self) -> None:
        for link in self.links:
            parse_shape(link)
        parse_time(self.slow)
        if unknown := set(self.asynchrony) - MODES.keys():
            raise ConfigError(f"--asynchrony {', '.join(sorted(unknown))} isn't known: take {', '.join(MODES)}.")

    @property
    def model(self) -> PipelineBench:
        """What is trained, but for its boundary."""
        return PipelineBench(
            stages=self.stages,
            d_model=self.d_model,
            n_layers=max(self.n_layers, self.stages),
            sequence_length=self.sequence_length,
            microbatch_sequences=2,
            microbatches=self.microbatches,
        )


@dataclass
class LinkedPipeline:
    """Workers that are joined by links of one kind."""

    world: Namespaces
    workers: PipelineWorkers
    rounds: int
    """In a turn that are counted."""
    parts: list[list[StageRound]] = field(default_factory=list)
    """Of the last turn, round by round."""

    async def train(self, turn: int) -> float:
        """Tokens per second, from the end of the turn's first round to that of its last one."""
        in_turn = 1 + self.rounds
        self.parts = await self.workers.train_rounds(range(turn * in_turn, (turn + 1) * in_turn))
        first_s, last_s = (max(part.ended_s for part in parts) for parts in (self.parts[0], self.parts[-1]))
        return self.rounds * self.workers.tokens_per_round / (last_s - first_s)

    async def paths(self) -> list[PathStatistics]:
        """What the links have carried since they began."""
        return list((await self.world.shaper.statistics()).paths.values())


def run_links_bench(bench: LinksBench, tell: Callable[[str], None]) -> list[Result]:
    """All results, boundary by boundary. Raises ConfigError where there can be no namespaces."""
    with tempfile.TemporaryDirectory() as scratch, asyncio.Runner() as runner:
        data = Path(scratch) / "data"
        manifest = build_dataset(default_corpus(), data, ByteTokenizer())
        results = []
        for boundary_dim in bench.boundary_dims:
            for mode in bench.asynchrony:
                model = replace(bench.model, boundary_dim=boundary_dim)
                spec = model.spec(manifest.hash, manifest.tokens, "float32", bench.stages, mode)
                folder = Path(scratch) / f"{boundary_dim}-{mode}"
                folder.mkdir()
                results += _measure(bench, spec, data, folder, runner, tell)
        return results


def _measure(
    bench: LinksBench, spec: ModelSpec, data: Path, folder: Path, runner: asyncio.Runner, tell: Callable[[str], None]
) -> list[Result]:
    """One boundary and asynchrony, over all links in turn."""
    k, mode = spec.architecture.boundary_dim, spec.training.asynchrony
    title = f"k {k}, {MODES[mode]}"
    slow = folder / "slow"
    slow.write_text(str(parse_time(bench.slow)))
    stack = AsyncExitStack()

    async def start(link: str, state: Path) -> LinkedPipeline:
        names = [f"stage-{stage}" for stage in range(spec.stages)]
        world = await stack.enter_async_context(Namespaces(names, seed=bench.seed, congestion=bench.congestion))
        await world.shaper.shape(ANY, ANY, parse_shape(link))
        hosts = list(world.hosts.values())
        workers = PipelineWorkers(spec, data, state, hosts=hosts, environment={SLOW_VARIABLE: str(slow)})
        return LinkedPipeline(world, await stack.enter_async_context(workers), bench.rounds)

    def turn_of(link: str, pipeline: LinkedPipeline) -> Callable[[int], float]:
        def train(turn: int) -> float:
            rate = runner.run(pipeline.train(turn))
            tell(f"{title}, turn {turn}, {link}: {rate:,.0f} tokens/s")
            return rate

        return train

    try:
        pipelines = {
            link: runner.run(start(link, folder / str(number))) for number, link in enumerate((LOOPBACK, *bench.links))
        }
        speeds = interleave({link: turn_of(link, pipeline) for link, pipeline in pipelines.items()}, bench.turns)
        carried = {link: runner.run(pipelines[link].paths()) for link in bench.links}
    finally:
        runner.run(stack.aclose())

    tokens = (1 + bench.rounds) * spec.training.tokens_per_round
    crossed = sum(part.bytes_down + part.bytes_up for parts in pipelines[LOOPBACK].parts for part in parts)
    (congestion, *_) = (host.congestion for host in pipelines[LOOPBACK].world.hosts.values())
    results = [
        Result(f"{title}: a boundary, both ways", "bytes/token", Summary.of([crossed / tokens / (spec.stages - 1)]))
    ]
    for link in bench.links:
        target = TARGETS.get((link, mode)) if k < spec.architecture.d_model else None
        name = f"{title}: {link}, {congestion}"
        results.append(compare(f"{name}, over loopback", "tokens/s", speeds[link], speeds[LOOPBACK], target))
        results += count_packets(name, parse_shape(link), carried[link])
    return results


def count_packets(name: str, shape: LinkShape, paths: Sequence[PathStatistics]) -> list[Result]:
    """How many these paths have not carried. Raises StateError where they lose packets, but lost none."""
    lost, dropped = sum(path.lost for path in paths), sum(path.dropped for path in paths)
    if shape.loss and not lost:
        raise StateError(f"{name}: no packet was lost. Give more --turns or --rounds, or a link that loses more.")
    return [
        Result(f"{name}: packets lost", "packets", Summary.of([lost])),
        Result(f"{name}: packets dropped by a full queue", "packets", Summary.of([dropped])),
    ]
