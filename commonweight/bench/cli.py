"""`commonweight bench …`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure what this machine and its links can do."""


@app.command()
def pipeline(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="Measured turns of each contender.")] = 5,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeat. Default: both.")] = None,
) -> None:
    """Train a model of two stages over gRPC against plain PyTorch.

    Contenders take turns, one round each: our two worker processes with one thread each; the same model unsplit in
    one process with two threads, with the same microbatches and with its best ones; and torch.distributed.pipelining
    (Schedule1F1B over gloo) with the same stages. Takes about ten minutes on two idle cores. Only the ratios count.

    Example:
        commonweight bench pipeline --json pipeline.json
    """
    from dataclasses import asdict

    from commonweight.bench.measure import machine, publish
    from commonweight.bench.pipeline import PipelineBench, run_pipeline_bench
    from commonweight.errors import ConfigError

    dtypes = tuple(dtype or ("float32", "bfloat16"))
    if unknown := set(dtypes) - {"float32", "bfloat16"}:
        raise ConfigError(f"--dtype {', '.join(sorted(unknown))} isn't measured: take float32 or bfloat16.")
    bench, here = PipelineBench(pairs=pairs), machine()
    publish("pipeline", here, asdict(bench), run_pipeline_bench(bench, dtypes), json)


@app.command()
def decode(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="Measured turns of each contender.")] = 5,
) -> None:
    """Generate with a model of four stages over gRPC against the unsplit model.

    Contenders take turns, one answer each, one sequence at a time: our four decode processes with one thread each, and
    the same model with keys and values kept in one process, with one thread and with two. Takes about two minutes on
    two idle cores. Only the ratios count.

    Example:
        commonweight bench decode --json decode.json
    """
    from dataclasses import asdict

    from commonweight.bench.decode import DecodeBench, run_decode_bench
    from commonweight.bench.measure import machine, publish

    bench, here = DecodeBench(pairs=pairs), machine()
    publish("decode", here, asdict(bench), run_decode_bench(bench), json)


@app.command()
def merkle(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    turns: Annotated[int, typer.Option(min=1, max=1000, help="Measured turns.")] = 5,
    providers: Annotated[int, typer.Option(min=1, max=10_000_000, help="Leaves of the tree.")] = 100_000,
) -> None:
    """Build an epoch's tree: all leaves, the root, and every provider's proof.

    Processor time of one core. Takes about fifteen seconds.

    Example:
        commonweight bench merkle --json merkle.json
    """
    from dataclasses import asdict

    from commonweight.bench.measure import machine, publish
    from commonweight.bench.merkle import MerkleBench, run_merkle_bench

    bench, here = MerkleBench(providers, turns), machine()
    publish("merkle", here, asdict(bench), run_merkle_bench(bench), json)
