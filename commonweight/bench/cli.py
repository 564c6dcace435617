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

    dtypes = _dtypes(dtype)
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
def tunnel(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    pairs: Annotated[int, typer.Option(min=1, max=1000, help="Measured turns of each contender.")] = 5,
) -> None:
    """Call a peer through libp2p against calling it directly.

    Contenders take turns: messages of 1 MiB there and back, one after another, over a channel with mutual TLS to
    another process; opened to its port, and to a tunnel through two libp2p hosts in processes of their own. Takes half
    a minute on two idle cores. Only the ratios count.

    Example:
        commonweight bench tunnel --json tunnel.json
    """
    from dataclasses import asdict

    from commonweight.bench.measure import machine, publish
    from commonweight.bench.tunnel import TunnelBench, run_tunnel_bench

    bench, here = TunnelBench(pairs=pairs), machine()
    publish("tunnel", here, asdict(bench), run_tunnel_bench(bench), json)


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


@app.command()
def verification(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    audits: Annotated[int, typer.Option(min=1, max=10_000_000, help="Honest ones, in a class and across.")] = 10_000,
    epochs: Annotated[int, typer.Option(min=10, max=10_000_000, help="To simulate for each cheat.")] = 10_000,
    bias_rounds: Annotated[int, typer.Option(min=2, max=10_000, help="Of training with a bias.")] = 60,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of beacons, cheats and noise.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A small model in place of the devnet's.")] = False,
) -> None:
    """Measure whether audits find cheats, spare the honest, and are worth what they cost.

    Audits honest rounds that other processes trained, within one numerics class and across; audits every kind of lie;
    simulates cheats against the rules; measures processor time; and trains with the largest bias that passes. Takes
    about ten minutes on two idle cores.

    Example:
        commonweight bench verification --json verification.json
    """
    from dataclasses import asdict

    from rich.console import Console

    from commonweight.bench.measure import machine, print_results, save
    from commonweight.bench.verification import run_verification_bench
    from commonweight.bench.verification_world import VerificationBench

    here = machine()
    bench = VerificationBench(audits, epochs, bias_rounds, seed, is_small=quick)
    sections = run_verification_bench(bench, Console(stderr=True).print)
    save("verification", here, asdict(bench), [result for results in sections.values() for result in results], json)
    for section, results in sections.items():
        print_results(section, results)


@app.command()
def calibrate(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    rounds: Annotated[int, typer.Option(min=3, max=10_000, help="Rounds to train; three of them are compared.")] = 20,
    dtype: Annotated[list[str] | None, typer.Option(help="float32 or bfloat16; repeat. Default: both.")] = None,
    device: Annotated[str, typer.Option(help="One more machine to compare with, such as cuda.")] = "",
) -> None:
    """Measure how far honest machines differ, and which tolerance tells them from cheats.

    Trains the devnet's model in one process and does its rounds again in others: with other thread counts, attention
    kernels, instruction sets and maths libraries, with sequences apart, and on a GPU if one is given. Exits with 1
    where two settings of one numerics class computed other bits: an audit would convict an honest provider. The same
    settings generate answers step by step, which are held against replays in chunks, and so are lies about them.
    Exits with 1 also where an honest answer doesn't pass. Takes about ten minutes on two idle cores.

    Example:
        commonweight bench calibrate --json calibration.json
    """
    from rich.console import Console

    from commonweight.bench.calibration import Calibration, run_calibration, show, to_results
    from commonweight.bench.measure import machine, save

    here, calibration = machine(), Calibration(rounds, _dtypes(dtype), device)
    calibrated = run_calibration(calibration)
    results = [result for each in calibrated for result in to_results(each)]
    config = {
        "rounds": rounds,
        "replayed": calibration.replayed,
        "classes": {each.dtype: each.classes for each in calibrated},
    }
    save("calibrate", here, config, results, json)
    for part in (part for each in calibrated for part in show(each)):
        Console(width=140).print(part)
    if any(each.failures or each.refused for each in calibrated):
        raise typer.Exit(1)


def _dtypes(given: list[str] | None) -> tuple[str, ...]:
    from commonweight.errors import ConfigError

    dtypes = tuple(given or ("float32", "bfloat16"))
    if unknown := set(dtypes) - {"float32", "bfloat16"}:
        raise ConfigError(f"--dtype {', '.join(sorted(unknown))} isn't measured: take float32 or bfloat16.")
    return dtypes
