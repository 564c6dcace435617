"""`commonweight sim …`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from commonweight.errors import ConfigError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Simulate a swarm that doesn't fit on this machine."""


@app.command()
def run(
    providers: Annotated[int, typer.Option(help="At the start, and on average; each runs one node.")] = 10_000,
    stages: Annotated[int, typer.Option(help="Of the model, which grows with them: four layers in each.")] = 8,
    hours: Annotated[float, typer.Option(help="To simulate.")] = 3.0,
    churn_per_hour: Annotated[
        float, typer.Option(help="How many leave without a word, as a part of all; as many come.")
    ] = 0.2,
    round_s: Annotated[
        float, typer.Option(help="What a round would take the providers of the start if nothing were lost.")
    ] = 400.0,
    gradient_bytes: Annotated[
        float, typer.Option(help="Per parameter, as replicas send it to be averaged; bfloat16: 2.")
    ] = 0.1,
    seed: Annotated[int, typer.Option(help="Of everything that is left to chance.")] = 0,
    shadow: Annotated[bool, typer.Option(help="Measure newcomers by a replay before they get work.")] = True,
    redivide: Annotated[bool, typer.Option(help="Divide what isn't begun once more, every minute of a round.")] = True,
    rebalance: Annotated[bool, typer.Option(help="Move replicas from strong stages to weak ones.")] = True,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results to this file, too.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Draw pictures there, as PNG files.")] = None,
) -> None:
    """Simulate providers who come and go, against the best that they could do.

    Who computes what, who gets which stage, what work is worth and who owns what for it is decided by the functions by
    which a coordinator decides it. Speeds, links and lifetimes are drawn from the seed; docs/benchmarks.md says from
    what, and what is left out. Ten thousand providers take about ten seconds of one core for an hour.

    \b
    Example:
      commonweight sim run --json sim.json --plots sim
      commonweight sim run --providers 1000 --churn-per-hour 1 --hours 1
    """
    _require("simpy", *(["matplotlib"] if plots else []))
    from dataclasses import asdict

    from rich.console import Console

    from commonweight.bench.measure import save
    from commonweight.sim.options import SimOptions
    from commonweight.sim.ownership import settle
    from commonweight.sim.results import results_of, show
    from commonweight.sim.swarm import Swarm

    options = SimOptions(
        providers=providers,
        stages=stages,
        hours=hours,
        seed=seed,
        churn_per_hour=churn_per_hour,
        round_s=round_s,
        gradient_bytes=gradient_bytes,
        shadow=shadow,
        redivide=redivide,
        rebalance=rebalance,
    )
    swarm = Swarm(options)
    history = swarm.run()
    if not history.rounds:
        raise ConfigError(
            f"No round was sealed in {hours:g} simulated hours: {history.abandoned} were given up because a stage had "
            "nobody left. Simulate longer, or shorter rounds, more providers or fewer stages."
        )
    results = results_of(swarm, history)
    # Nothing of the machine: the same options give the same file.
    save("sim", {"simulated": True}, asdict(options), results, json)
    console = Console(width=110)
    console.print(show(results))
    if plots:
        from commonweight.sim.plots import plot

        ownership = settle(swarm.spec.economics, history.rounds, history.providers)
        for path in plot(history, sum(swarm.costs.units), ownership, plots):
            console.print(f"{path}")


def _require(*modules: str) -> None:
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ConfigError(
            f"The simulator needs {' and '.join(missing)}, not installed here: pip install 'commonweight[sim]'."
        )
