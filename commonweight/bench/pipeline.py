"""`bench pipeline`: stages over gRPC on this machine against PyTorch without any of it."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commonweight.bench.measure import Result, Summary, compare, interleave
from commonweight.bench.pipeline_workers import PipelineWorkers, StageRound
from commonweight.errors import WorkerDied
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec, build_spec
from commonweight.wire.link import worker_environment

SAME_TARGET, BEST_TARGET, TORCH_TARGET = 0.95, 0.9, 1.1
START_S = 120.0


@dataclass(frozen=True)
class PipelineBench:
    """What is measured: a Llama-style decoder of 6.6 M parameters, cut in two."""

    stages: int = 2
    d_model: int = 256
    boundary_dim: int = 32
    n_layers: int = 8
    sequence_length: int = 256
    microbatch_sequences: int = 2
    microbatches: int = 16
    pairs: int = 5
    best_of: tuple[int, ...] = (1, 2, 4, 8)
    """Sequences per microbatch that the unsplit model tries before the best is compared with."""

    def spec(self, manifest: str, tokens: int, dtype: str, stages: int) -> ModelSpec:
        """The model at one precision."""
        return build_spec(
            {
                "format": "commonweight.model/5",
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


class Baseline:
    """Baseline processes that train a round when told, together."""

    def __init__(self, orders: list[dict[str, Any]], threads: int) -> None:
        environment = {**os.environ, **worker_environment(threads)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "commonweight.bench.baseline"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                text=True,
            )
            for _ in orders
        ]
        for process, order in zip(self._processes, orders, strict=True):
            self._tell(process, order)
        for process in self._processes:
            self._hear(process)

    def train(self, round_: int) -> float:
        """Train a round; seconds of the slowest process."""
        for process in self._processes:
            self._tell(process, {"round": round_})
        return max(float(self._hear(process)["seconds"]) for process in self._processes)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @staticmethod
    def _tell(process: "subprocess.Popen[str]", order: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    @staticmethod
    def _hear(process: "subprocess.Popen[str]") -> dict[str, Any]:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise WorkerDied(f"A baseline process ended with exit code {process.wait()}.")


@contextmanager
def workers(spec: ModelSpec, data: Path, state: Path) -> Iterator[Callable[[int], list[StageRound]]]:
    """A pipeline of one-thread workers; the function that is yielded trains one round."""
    with asyncio.Runner() as runner:
        pipeline = PipelineWorkers(spec, data, state)
        runner.run(pipeline.__aenter__())
        try:
            yield lambda round_: runner.run(pipeline.train(round_))
        finally:
            runner.run(pipeline.__aexit__())


def run_pipeline_bench(bench: PipelineBench, dtypes: tuple[str, ...]) -> list[Result]:
    """All results, precision by precision."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        manifest = build_dataset(default_corpus(), data, ByteTokenizer())
        results = []
        for dtype in dtypes:
            spec = bench.spec(manifest.hash, manifest.tokens, dtype, bench.stages)
            results += _measure(bench, spec, data, Path(scratch) / dtype)
        return results


def _measure(bench: PipelineBench, spec: ModelSpec, data: Path, scratch: Path) -> list[Result]:
    scratch.mkdir()
    spec_file = scratch / "spec.json"
    spec_file.write_bytes(canonical_json(spec.model_dump()))
    order = {"spec": str(spec_file), "data": str(data)}
    tokens = spec.training.tokens_per_round
    with ExitStack() as stack:

        def unsplit(sequences: int) -> Baseline:
            baseline = Baseline([order | {"kind": "unsplit", "sequences": sequences}], threads=2)
            stack.callback(baseline.close)
            return baseline

        def rate(baseline: Baseline, shape: ModelSpec = spec) -> Callable[[int], float]:
            return lambda round_: shape.training.tokens_per_round / baseline.train(round_)

        candidates = {sequences: unsplit(sequences) for sequences in bench.best_of}
        trial = interleave({str(n): rate(baseline) for n, baseline in candidates.items()}, 2)
        best = max(candidates, key=lambda n: sum(trial[str(n)]))
        for sequences, baseline in candidates.items():
            if sequences not in (best, bench.microbatch_sequences):
                baseline.close()

        def torch_pipeline(name: str, shape: ModelSpec) -> Baseline:
            file = scratch / f"{name}.json"
            file.write_bytes(canonical_json(shape.model_dump()))
            ranks = [
                {"kind": "torch", "rank": rank, "spec": str(file), "data": str(data), "store": str(scratch / name)}
                for rank in range(spec.stages)
            ]
            baseline = Baseline(ranks, threads=1)
            stack.callback(baseline.close)
            return baseline

        small = _with_microbatches(spec, sequences=1, microbatches=8)
        torch_same, torch_small = torch_pipeline("torch-same", spec), torch_pipeline("torch-small", small)
        train = stack.enter_context(workers(spec, data, scratch / "state"))
        last: list[StageRound] = []

        def ours(round_: int) -> float:
            nonlocal last
            started_s = time.perf_counter()
            last = train(round_)
            return tokens / (time.perf_counter() - started_s)

        values = interleave(
            {
                "ours": ours,
                "same": rate(candidates[bench.microbatch_sequences]),
                "best": rate(candidates[best]),
                "torch_same": rate(torch_same),
                "torch_small": rate(torch_small, small),
            },
            bench.pairs,
        )
    dtype, ours_rate = spec.training.compute_dtype, values["ours"]
    shape = f"{bench.microbatches} × {bench.microbatch_sequences}"
    bytes_per_token = [
        (above.bytes_down + below.bytes_up) / tokens for above, below in zip(last, last[1:], strict=False)
    ]
    return [
        compare(f"{dtype}: unsplit, 2 threads, {shape}", "tokens/s", ours_rate, values["same"], SAME_TARGET),
        compare(
            f"{dtype}: unsplit, 2 threads, best: {best} a time", "tokens/s", ours_rate, values["best"], BEST_TARGET
        ),
        compare(f"{dtype}: torch 1F1B over gloo, 8 × 1", "tokens/s", ours_rate, values["torch_small"], TORCH_TARGET),
        compare(f"{dtype}: torch 1F1B over gloo, {shape}", "tokens/s", ours_rate, values["torch_same"], None),
        Result(f"{dtype}: a boundary, both ways", "bytes/token", Summary.of(bytes_per_token)),
    ]


def _with_microbatches(spec: ModelSpec, *, sequences: int, microbatches: int) -> ModelSpec:
    shape = {"microbatch_sequences": sequences, "microbatches_per_round": microbatches}
    return spec.model_copy(update={"training": spec.training.model_copy(update=shape)})
