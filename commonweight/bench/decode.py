"""`bench decode`: one token at a time through the decode processes of four stages, against the unsplit model."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from commonweight.bench.decode_workers import DecodeWorkers
from commonweight.bench.measure import Result, Summary, compare, interleave
from commonweight.bench.pipeline import PipelineBench
from commonweight.bench.processes import Baseline
from commonweight.identity import NodeIdentity
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generation import Generator, open_generator
from commonweight.wire.tls import make_certificate

RATIO_TARGET, HOP_LIMIT_MS = 0.4, 0.9
GATEWAY = NodeIdentity(b"\x01" * 32)


@dataclass(frozen=True)
class DecodeBench:
    """What is measured: a Llama-style decoder of 25 M parameters at version 0, cut in four, one sequence at a time."""

    stages: int = 4
    d_model: int = 512
    boundary_dim: int = 64
    n_layers: int = 8
    sequence_length: int = 512
    prompt_tokens: int = 16
    tokens: int = 128
    """Of one answer: a turn."""
    threads: tuple[int, ...] = (1, 2)
    """Of the unsplit model, which is compared with at its best. A stage has one."""
    pairs: int = 5

    @property
    def hops(self) -> int:
        """From the gateway through all stages and back."""
        return self.stages + 1

    @property
    def prompt(self) -> list[int]:
        """Token ids."""
        return [(7 * n) % 251 for n in range(self.prompt_tokens)]

    def spec(self) -> ModelSpec:
        """The model."""
        shape = PipelineBench(
            d_model=self.d_model,
            boundary_dim=self.boundary_dim,
            n_layers=self.n_layers,
            sequence_length=self.sequence_length,
        )
        return shape.spec("0x" + "00" * 32, self.sequence_length + 1, "float32", self.stages)


@dataclass(frozen=True)
class Answer:
    """One turn of ours."""

    seconds: float
    computed_s: float
    """By all stages together."""


@contextmanager
def stages(bench: DecodeBench, spec: ModelSpec, folder: Path) -> Iterator[Callable[[], Answer]]:
    """Decode processes with one thread each, which keep traces in `folder`; what is yielded generates one answer."""
    gateway = make_certificate(GATEWAY)

    async def answer(workers: DecodeWorkers, generator: Generator) -> Answer:
        started_s = time.perf_counter()
        count = len([token async for token in generator.generate(bench.prompt, bench.tokens)])
        seconds = time.perf_counter() - started_s
        assert count == bench.tokens, "an answer has as many tokens as were asked for"
        ended = [await worker.hear("decode.session") for worker in workers.workers]
        return Answer(seconds, sum(event.fields["computed_s"] for event in ended))

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            workers = runner.run(stack.enter_async_context(DecodeWorkers(spec, gateway, answers=folder)))
            generator = runner.run(stack.enter_async_context(open_generator(workers.route(), gateway)))
            yield lambda: runner.run(answer(workers, generator))
        finally:
            runner.run(stack.aclose())


def run_decode_bench(bench: DecodeBench) -> list[Result]:
    """All results."""
    spec = bench.spec()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "spec.json").write_bytes(canonical_json(spec.model_dump()))
        order = {"kind": "generate", "spec": str(folder / "spec.json"), "prompt": bench.prompt, "tokens": bench.tokens}
        turns: list[Answer] = []

        def unsplit(threads: int) -> Callable[[int], float]:
            baseline = Baseline([order], threads)
            stack.callback(baseline.close)
            return lambda turn: bench.tokens / baseline.train(turn)

        generate = stack.enter_context(stages(bench, spec, folder))

        def ours(_: int) -> float:
            turns.append(generate())
            return bench.tokens / turns[-1].seconds

        values = interleave({"ours": ours} | {str(n): unsplit(n) for n in bench.threads}, bench.pairs)
    measured = turns[-bench.pairs :]
    rates = {n: values[str(n)] for n in bench.threads}
    best = max(rates, key=lambda n: Summary.of(rates[n]).median)
    per_token_ms = 1000 / bench.tokens
    return [
        *(
            compare(
                f"unsplit, {n} thread{'s' if n > 1 else ''}{', the best' if n == best else ''}",
                "tokens/s",
                values["ours"],
                rates[n],
                RATIO_TARGET if n == best else None,
            )
            for n in bench.threads
        ),
        Result(
            "overhead of a hop",
            "ms",
            Summary.of([per_token_ms * (turn.seconds - turn.computed_s) / bench.hops for turn in measured]),
            limit=HOP_LIMIT_MS,
        ),
        Result(
            f"compute of all {bench.stages} stages",
            "ms/token",
            Summary.of([per_token_ms * turn.computed_s for turn in measured]),
        ),
    ]
