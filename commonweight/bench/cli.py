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
    stages: Annotated[list[int] | None, typer.Option(min=2, max=8, help="Repeat for several. Default: 2.")] = None,
    microbatches: Annotated[int, typer.Option(min=1, max=1024, help="In a round.")] = 16,
    sequences: Annotated[int, typer.Option(min=1, max=64, help="In a microbatch.")] = 4,
    against: Annotated[
        list[str] | None,
        typer.Option(help="unsplit, compiled (the same by torch.compile), torch or hivemind; repeat. See below."),
    ] = None,
    hivemind_python: Annotated[Path | None, typer.Option(help="A Python that has hivemind.")] = None,
    hivemind_venv: Annotated[
        Path | None, typer.Option(help="A folder for a virtual environment with hivemind; made if it isn't there.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile ours, as nodes with --compile do.")] = False,
) -> None:
    """Train a model of some stages over gRPC against plain PyTorch and against hivemind.

    Contenders take turns, four rounds each: our worker processes with one thread each, with a flush after each round
    and without; the same model unsplit in one process with two threads, with the same microbatches and with its best
    ones; torch.distributed.pipelining (Schedule1F1B over gloo) with the same stages; with --compile the unsplit model
    compiled, too; and, if asked for, hivemind's servers and RemoteExperts with the same stages. Takes about twenty
    minutes on two idle cores. Only the ratios count.

    Example:
        commonweight bench pipeline --json pipeline.json
    """
    from dataclasses import asdict, replace

    from commonweight.bench.hivemind_python import ask_versions, make_hivemind_python
    from commonweight.bench.measure import machine, publish
    from commonweight.bench.pipeline import AGAINST, PipelineBench, run_pipeline_bench
    from commonweight.errors import ConfigError

    dtypes, counts = _dtypes(dtype), tuple(stages or (2,))
    rivals = tuple(against or ("unsplit", *(("compiled",) if compiled else ()), "torch"))
    if unknown := set(rivals) - set(AGAINST):
        raise ConfigError(f"--against {', '.join(sorted(unknown))} isn't known: take {', '.join(AGAINST)}.")
    versions = {}
    if "hivemind" in rivals:
        if (hivemind_python is None) == (hivemind_venv is None):
            raise ConfigError("--against hivemind needs --hivemind-python PATH or --hivemind-venv FOLDER, not both.")
        hivemind_python = hivemind_python or make_hivemind_python(hivemind_venv or Path())
        versions = ask_versions(hivemind_python)
    bench = PipelineBench(
        microbatches=microbatches,
        microbatch_sequences=sequences,
        pairs=pairs,
        against=rivals,
        hivemind_python=str(hivemind_python) if versions else "",
        compiles=compiled,
    )
    here, results = machine(), []
    for count in counts:
        results += run_pipeline_bench(replace(bench, stages=count), dtypes)
    config = asdict(bench) | {"stages": counts, "dtypes": dtypes, "hivemind_python": versions}
    publish("pipeline", here, config, results, json)


@app.command()
def convergence(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    target_loss: Annotated[float, typer.Option(min=0.1, max=10, help="Nats per byte, of held-out text.")] = 2.0,
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000, help="A run is given up after these.")] = 400,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    learning_rate: Annotated[
        list[str] | None, typer.Option(help="Repeat; a model's best counts. Default: 0.001, 0.003.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, max=2**53 - 1, help="Repeat. Default: 1.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="8, 16, 32 (k = d/8 and so on), delayed, look_ahead or alone; repeat. Default: all."),
    ] = None,
    d_model: Annotated[int, typer.Option(min=64, max=4096, help="Width of the models, a multiple of 64.")] = 256,
) -> None:
    """Count the tokens that compressed and asynchronous models take to a loss that a dense synchronous one reaches.

    Trains a dense model of 8.5 M parameters, models with k = d/8, d/16 and d/32 that are as large, the dense one in
    both asynchronous ways, and as two replicas that step alone and average every eight rounds, on this Python's library
    sources, in one process with all cores, until each has the target loss on sources that it isn't trained on. Takes up
    to seven hours on two idle cores; --rounds, --against and --d-model bound it.

    Example:
        commonweight bench convergence --json convergence.json
    """
    from dataclasses import asdict, replace

    from rich.console import Console

    from commonweight.bench.convergence import Convergence, run_convergence
    from commonweight.bench.measure import machine, publish
    from commonweight.errors import ConfigError

    (known,), here = _dtypes([dtype]), machine()
    every = (*map(str, Convergence.over), *Convergence.asynchrony, "alone")
    rivals = set(against or every)
    if unknown := rivals - set(every):
        raise ConfigError(f"--against {', '.join(sorted(unknown))} isn't known: take {', '.join(every)}.")
    if d_model % 64:
        raise ConfigError(f"--d-model {d_model} isn't a multiple of 64: take 64, 128, 192 and so on.")
    bench = Convergence(
        shape=replace(Convergence().shape, d_model=d_model),
        over=tuple(over for over in Convergence.over if str(over) in rivals),
        asynchrony=tuple(mode for mode in Convergence.asynchrony if mode in rivals),
        averaging_rounds=Convergence.averaging_rounds if "alone" in rivals else (),
        dtype=known,
        target_loss=target_loss,
        max_rounds=rounds,
        learning_rates=tuple(learning_rate or Convergence.learning_rates),
        seeds=tuple(seed or Convergence.seeds),
    )
    results, runs = run_convergence(bench, Console(stderr=True).print)
    publish("convergence", here, asdict(bench) | runs, results, json)


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
def coordinator(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    nodes: Annotated[int, typer.Option(min=2, max=4096, help="That are connected.")] = 1000,
    stages: Annotated[int, typer.Option(min=2, max=1000, help="Between which they are divided.")] = 100,
    round_s: Annotated[float, typer.Option(min=0.5, max=600, help="Seconds between a node's reports.")] = 10.0,
    joins_per_s: Annotated[float, typer.Option(min=0.1, max=1000, help="How fast they come.")] = 10.0,
) -> None:
    """Measure what a coordinator needs for many nodes: processor time, and memory that mustn't grow.

    Starts a chain, a coordinator, and nodes that have no worker but say all that nodes say: heartbeats each second, and
    signed reports of rounds. Measures once all have a part in a round, for five minutes. Takes eight minutes on two
    idle cores, and 1 GB of memory.

    Example:
        commonweight bench coordinator --json coordinator.json
    """
    from dataclasses import asdict

    from rich.console import Console

    from commonweight.bench.coordinator_load import CoordinatorBench, run_coordinator_bench
    from commonweight.bench.measure import machine, publish

    bench, here = CoordinatorBench(nodes, stages, round_s=round_s, joins_per_s=joins_per_s), machine()
    publish("coordinator", here, asdict(bench), run_coordinator_bench(bench, Console(stderr=True).print), json)


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


@app.command()
def swarm(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="churn, replicas or links; repeat. Default: all.")] = None,
    turns: Annotated[int, typer.Option(min=1, max=1000, help="Measured turns of each contender.")] = 1,
    stages: Annotated[int, typer.Option(min=2, max=8, help="Of the devnet's model.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of a run without kills; two aren't counted.")] = 8,
    churn_rounds: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Of a run with kills, and of the one it is compared with.")
    ] = 24,
    kill_every: Annotated[
        str, typer.Option(metavar="SECONDS", help="A node is killed in every such stretch of time.")
    ] = "30s",
    slow: Annotated[
        str, typer.Option(metavar="TIME", help="Every node sleeps so long before each microbatch.")
    ] = "200ms",
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="RATE:DELAY", help="Between all nodes; repeat. Default: 80mbit:50ms, 8mbit:50ms."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of weights, data and kills.")] = 0,
) -> None:
    """Train on devnets while nodes are killed, with a second replica of each stage, and over slow links.

    Contenders take turns, a devnet each: two replicas of each stage with kills against the same without; two against
    one; links with a rate and a delay against loopback through the same proxy, with a flush and asynchronously. Nodes
    sleep before each microbatch, as if they computed for so long: otherwise all would share this machine's cores. Takes
    about a quarter of an hour. Only the ratios count.

    Example:
        commonweight bench swarm --json swarm.json
    """
    from dataclasses import asdict

    from rich.console import Console

    from commonweight.bench.measure import machine, publish
    from commonweight.bench.swarm import SwarmBench, run_swarm_bench

    bench = SwarmBench(
        parts=tuple(part or SwarmBench.parts),
        stages=stages,
        rounds=rounds,
        churn_rounds=churn_rounds,
        kill_every=kill_every,
        slow=slow,
        links=tuple(link or SwarmBench.links),
        turns=turns,
        seed=seed,
    )
    here = machine()
    results, runs = run_swarm_bench(bench, Console(stderr=True).print)
    publish("swarm", here, asdict(bench) | {"runs": runs}, results, json)


@app.command()
def links(
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, too.")] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RATE:DELAY[:loss=LOSS]",
            help="Between neighbours; repeat. Default: 80mbit:50ms, 8mbit:50ms, 80mbit:50ms:loss=1%.",
        ),
    ] = None,
    boundary_dim: Annotated[
        list[int] | None,
        typer.Option(min=1, max=256, help="Numbers per token over a boundary, of 256; repeat. Default: 2, 32, 256."),
    ] = None,
    asynchrony: Annotated[
        list[str] | None, typer.Option(help="none, delayed or look_ahead; repeat. Default: none, look_ahead.")
    ] = None,
    congestion: Annotated[
        str, typer.Option(help="TCP congestion control, such as reno. Default: this machine's.")
    ] = "",
    turns: Annotated[int, typer.Option(min=1, max=1000, help="Measured turns of each contender.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="In a turn, after one that isn't counted.")] = 4,
    stages: Annotated[int, typer.Option(min=2, max=8, help="Of the model.")] = 2,
    slow: Annotated[
        str, typer.Option(metavar="TIME", help="Every worker sleeps so long before each microbatch.")
    ] = "120ms",
    seed: Annotated[int, typer.Option(min=0, max=2**53 - 1, help="Of losses and jitter.")] = 0,
) -> None:
    """Train a model of some stages over slow, long and lossy links against the same over loopback.

    Each stage's worker process runs in a network namespace of its own; packets between them go over links with a rate,
    a delay and losses, and the kernel's TCP sends again what is lost. Contenders take turns, each with its own workers:
    the links, and one without rate, delay or loss; with a flush after each round and asynchronously; at three widths of
    the boundary, of which the last isn't compressed. Needs root and /dev/net/tun. Takes about half an hour. Only the
    ratios count.

    Example:
        commonweight bench links --json links.json
    """
    from dataclasses import asdict

    from rich.console import Console

    from commonweight.bench.links import LinksBench, run_links_bench
    from commonweight.bench.measure import machine, publish

    bench = LinksBench(
        stages=stages,
        boundary_dims=tuple(boundary_dim or LinksBench.boundary_dims),
        slow=slow,
        links=tuple(link or LinksBench.links),
        asynchrony=tuple(asynchrony or LinksBench.asynchrony),
        congestion=congestion,
        rounds=rounds,
        turns=turns,
        seed=seed,
    )
    here = machine()
    publish("links", here, asdict(bench), run_links_bench(bench, Console(stderr=True).print), json)


def _dtypes(given: list[str] | None) -> tuple[str, ...]:
    from commonweight.errors import ConfigError

    dtypes = tuple(given or ("float32", "bfloat16"))
    if unknown := set(dtypes) - {"float32", "bfloat16"}:
        raise ConfigError(f"--dtype {', '.join(sorted(unknown))} isn't measured: take float32 or bfloat16.")
    return dtypes
