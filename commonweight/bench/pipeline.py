"""`bench pipeline`: stages over gRPC on this machine against PyTorch without any of it."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from commonweight.bench.measure import Result, Summary, compare, interleave
from commonweight.bench.pipeline_workers import PipelineWorkers, StageRound
from commonweight.bench.processes import Baseline
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.rules.stages import in_flight_limit

HIVEMIND_MODULE = "commonweight.bench.hivemind_peer"
AGAINST = ("unsplit", "compiled", "torch", "hivemind")


@dataclass(frozen=True)
class PipelineBench:
    """What is measured: a Llama-style decoder of 6.6 M parameters, cut in two."""

    stages: int = 2
    d_model: int = 256
    boundary_dim: int = 32
    n_layers: int = 8
    sequence_length: int = 256
    microbatch_sequences: int = 4
    microbatches: int = 16
    rounds: int = 4
    """In a turn, each planned ahead of the one before; the next turn begins when the last one is done."""
    asynchrony: tuple[str, ...] = ("none", "look_ahead")
    """What is measured: as in a spec."""
    pairs: int = 5
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Sequences per microbatch that the unsplit model tries before the best is compared with."""
    against: tuple[str, ...] = ("unsplit", "torch")
    """Of AGAINST."""
    hivemind_python: str = ""
    """A Python with hivemind, where it is compared with."""
    compiles: bool = False
    """Whether ours is."""

    def spec(self, manifest: str, tokens: int, dtype: str, stages: int, asynchrony: str = "none") -> ModelSpec:
        """The model at one precision."""
        return build_spec(
            {
                "format": "commonweight.model/7",
                "name": "bench",
                "seed": 1,
                "stages": stages,
                "architecture": {
                    "vocab_size": 256,
                    "d_model": self.d_model,
                    "boundary_dim": self.boundary_dim,
                    "n_layers": self.n_layers,
                    "n_heads": 4,
                    "n_kv_heads": 4,
                    "d_ff": 4 * self.d_model,
                    "rope_theta": 10_000,
                    "norm_eps": "0.00001",
                },
                "training": {
                    "sequence_length": self.sequence_length,
                    "microbatch_sequences": self.microbatch_sequences,
                    "microbatches_per_round": self.microbatches,
                    "compute_dtype": dtype,
                    "boundary_dtype": dtype,
                    "learning_rate": "0.001",
                    "final_learning_rate": "0.001",
                    "warmup_rounds": 0,
                    "decay_rounds": 0,
                    "beta1": "0.9",
                    "beta2": "0.95",
                    "adam_eps": "0.00000001",
                    "weight_decay": "0.1",
                    "grad_clip": "1",
                    "asynchrony": asynchrony,
                    "averaging": "float32",
                    "averaging_rounds": 1,
                    "outer_learning_rate": "0.7",
                    "outer_momentum": "0.9",
                },
                "verification": {
                    "round_rate": "0",
                    "microbatch_rate": "0",
                    "data_rate": "0",
                    "answer_rate": "0",
                    "known_bad_rate": "0",
                    "tolerance": "0.00001",
                },
                "data": {"tokenizer": "bytes", "manifest": manifest, "tokens": tokens},
                "economics": {
                    "rounds_per_epoch": 30,
                    "max_supply": "1000000",
                    "initial_emission": "1000",
                    "halving_epochs": 4,
                    "designer_bps": 0,
                    "data_bps": 0,
                },
            }
        )


@dataclass(frozen=True)
class Targets:
    """The least ratios that are wanted; None where nothing is."""

    same: float | None = None
    best: float | None = None
    torch: float | None = None
    hivemind: float | None = None

    @classmethod
    def of(cls, spec: ModelSpec) -> "Targets":
        """With a flush they are for two stages, with a core each; without one for four, too."""
        if spec.training.is_asynchronous:
            return cls(best=1.05) if spec.stages in (2, 4) else cls()
        if spec.stages != 2:
            return cls()
        if spec.training.compute_dtype == "bfloat16":
            return cls(same=0.95, best=0.95, torch=1.4, hivemind=3.0)
        return cls(same=0.95, best=0.97, torch=1.14, hivemind=3.0)


@dataclass
class Ours:
    """A pipeline of one-thread workers, and what its measured turns were made of."""

    pipeline: PipelineWorkers
    runner: asyncio.Runner
    rounds: int
    """In a turn."""
    parts: list[list[StageRound]] = field(default_factory=list)
    """Of the last turn, round by round."""
    shares: list[list[tuple[float, float]]] = field(default_factory=list)
    """By turn and stage, of the turn's seconds: those that its compute thread, and all its others, had a processor."""

    def train(self, turn: int) -> float:
        """Train the rounds of a turn; tokens per second."""
        before, started_s = self.pipeline.thread_times(), time.perf_counter()
        rounds = range(turn * self.rounds, (turn + 1) * self.rounds)
        self.parts = self.runner.run(self.pipeline.train_rounds(rounds))
        seconds = time.perf_counter() - started_s
        self.shares.append(
            [
                ((now.main_s - then.main_s) / seconds, (now.others_s - then.others_s) / seconds)
                for now, then in zip(self.pipeline.thread_times(), before, strict=True)
            ]
        )
        return self.rounds * self.pipeline.tokens_per_round / seconds


@contextmanager
def workers(spec: ModelSpec, data: Path, state: Path, rounds: int, *, compiles: bool = False) -> Iterator[Ours]:
    """A pipeline of one-thread workers, until the context ends."""
    with asyncio.Runner() as runner:
        pipeline = PipelineWorkers(spec, data, state, compiles=compiles)
        runner.run(pipeline.__aenter__())
        try:
            yield Ours(pipeline, runner, rounds)
        finally:
            runner.run(pipeline.__aexit__())


def run_pipeline_bench(bench: PipelineBench, dtypes: tuple[str, ...]) -> list[Result]:
    """All results, precision by precision."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        manifest = build_dataset(default_corpus(), data, ByteTokenizer())
        results = []
        for dtype in dtypes:
            specs = {
                mode: bench.spec(manifest.hash, manifest.tokens, dtype, bench.stages, mode) for mode in bench.asynchrony
            }
            results += _measure(bench, specs, data, Path(scratch) / dtype)
        return results


def _measure(bench: PipelineBench, specs: dict[str, ModelSpec], data: Path, scratch: Path) -> list[Result]:
    """One precision; `specs` by asynchrony."""
    scratch.mkdir()
    with ExitStack() as stack:
        rivals = _rivals(bench, next(iter(specs.values())), data, scratch, stack)
        ours = {
            mode: stack.enter_context(workers(spec, data, scratch / mode, bench.rounds, compiles=bench.compiles))
            for mode, spec in specs.items()
        }
        turns = {mode: each.train for mode, each in ours.items()} | {name: each.rate for name, each in rivals.items()}
        values = interleave(turns, bench.pairs)
    results = []
    for mode, spec in specs.items():
        how = f", {mode}" if spec.training.is_asynchronous else ""
        title, targets = f"{spec.stages} stages, {spec.training.compute_dtype}{how}", Targets.of(spec)
        for name, rival in rivals.items():
            target = getattr(targets, rival.kind) if rival.kind else None
            results.append(compare(f"{title}: {name}", "tokens/s", values[mode], values[name], target))
        results += _bounds(title, spec, ours[mode], bench.pairs)
    return results


@dataclass(frozen=True)
class _Rival:
    baseline: Baseline
    tokens_per_round: int
    rounds: int
    """In a turn."""
    kind: str = ""
    """Of Targets, where there is one."""
    how: dict[str, Any] = field(default_factory=dict)
    """What the baseline is told of each round."""

    def rate(self, turn: int) -> float:
        seconds = [self.baseline.train(turn * self.rounds + number, **self.how) for number in range(self.rounds)]
        return self.rounds * self.tokens_per_round / sum(seconds)


def _rivals(bench: PipelineBench, spec: ModelSpec, data: Path, scratch: Path, stack: ExitStack) -> dict[str, _Rival]:
    """What ours is compared with, by name; all end with `stack`."""
    shape = f"{bench.microbatches} × {bench.microbatch_sequences}"

    def order(spec: ModelSpec, name: str) -> dict[str, Any]:
        file = scratch / f"{name}.json"
        file.write_bytes(canonical_json(spec.model_dump()))
        return {"spec": str(file), "data": str(data), "store": str(scratch / name)}

    def rival(kind: str, spec: ModelSpec, orders: list[dict[str, Any]], threads: int, **how: Any) -> _Rival:
        baseline = Baseline(orders, threads, **how)
        stack.callback(baseline.close)
        return _Rival(baseline, spec.training.tokens_per_round, bench.rounds, kind)

    rivals: dict[str, _Rival] = {}
    for name, compiles in (("unsplit", False), ("compiled", True)):
        if name not in bench.against:
            continue
        plain = order(spec, name) | {"kind": "unsplit", "compile": compiles}
        sizes = sorted({*bench.best_of, bench.microbatch_sequences})
        tried = {n: rival("", spec, [plain | {"sequences": n}], threads=2) for n in sizes}
        rates = interleave({str(n): replace(each, rounds=1).rate for n, each in tried.items()}, 2)
        best = max(tried, key=lambda n: sum(rates[str(n)]))
        for sequences in tried.keys() - {best, bench.microbatch_sequences}:
            tried[sequences].baseline.close()
        same, fastest = ("", "") if compiles else ("same", "best")  # targets are over plain PyTorch
        rivals[f"{name}, 2 threads, {shape}"] = replace(tried[bench.microbatch_sequences], kind=same)
        rivals[f"{name}, 2 threads, best: {best} a time"] = replace(tried[best], kind=fastest)
    if "torch" in bench.against:
        small = _with_microbatches(spec, sequences=1, microbatches=8)
        for name, shaped, kind in (("8 × 1", small, "torch"), (shape, spec, "")):
            ranks = order(shaped, f"torch-{shaped.training.microbatches_per_round}") | {"kind": "torch"}
            orders = [ranks | {"rank": rank} for rank in range(spec.stages)]
            rivals[f"torch 1F1B over gloo, {name}"] = rival(kind, shaped, orders, threads=1)
    if bench.hivemind_python:
        how = {"python": bench.hivemind_python, "module": HIVEMIND_MODULE, "log": scratch / "hivemind.log"}
        chained = rival("hivemind", spec, [order(spec, "hivemind")], threads=1, **how)
        rivals[f"hivemind, {shape}, one at a time"] = replace(chained, how={"in_flight": 1})
        in_flight = in_flight_limit(spec, 0)
        rivals[f"hivemind, {shape}, {in_flight} in flight"] = replace(chained, how={"in_flight": in_flight})
    return rivals


def _bounds(title: str, spec: ModelSpec, ours: Ours, pairs: int) -> list[Result]:
    """What crossed the boundaries, and what each stage did with its time in the measured turns."""
    tokens = ours.rounds * spec.training.tokens_per_round
    down = [sum(part.bytes_down for part in of_stage) for of_stage in zip(*ours.parts, strict=True)]
    up = [sum(part.bytes_up for part in of_stage) for of_stage in zip(*ours.parts, strict=True)]
    crossed = [(above + below) / tokens for above, below in zip(down, up[1:], strict=False)]
    results = [Result(f"{title}: a boundary, both ways", "bytes/token", Summary.of(crossed))]
    for stage in range(spec.stages):
        of_stage = [turn[stage] for turn in ours.shares[-pairs:]]
        for name, values in (
            ("computes, hashes, writes", [computing for computing, _ in of_stage]),
            ("waits", [1 - computing for computing, _ in of_stage]),
            ("transport, beside it", [transport for _, transport in of_stage]),
        ):
            results.append(Result(f"{title}: stage {stage} {name}", "of time", Summary.of(values)))
    return results


def _with_microbatches(spec: ModelSpec, *, sequences: int, microbatches: int) -> ModelSpec:
    shape = {"microbatch_sequences": sequences, "microbatches_per_round": microbatches}
    return spec.model_copy(update={"training": spec.training.model_copy(update=shape)})
