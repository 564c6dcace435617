"""`commonweight devnet`: a whole network on this machine."""

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from commonweight.devnet.byzantine import KINDS

app = typer.Typer(no_args_is_help=True)

DirOption = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="The devnet's folder; by default the newest under runs/."),
]


@app.callback()
def devnet() -> None:
    """Run everything on this machine: chain, coordinator, nodes, auditors, gateway, buyers.

    The processes are those that their owners would start, with keys that everybody knows.
    """


@app.command("up")
def up(
    stages: Annotated[int, typer.Option(help="Stages of the model.")] = 4,
    replicas: Annotated[int, typer.Option(metavar="R", help="Nodes of each stage, which divide its work.")] = 1,
    seats: Annotated[
        int,
        typer.Option(
            help="Stages in which each node's owner has a seat; with more than one nodes move to weak stages."
        ),
    ] = 1,
    until_epoch: Annotated[
        int | None,
        typer.Option(metavar="N", help="End when N epochs are final. Without a terminal 3, with one never."),
    ] = None,
    backend: Annotated[str, typer.Option(metavar="auto|anvil|embedded", help="The local chain.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the model's weights and of the order of its data.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="An empty or new folder; by default a new one under runs/."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what came of the run as JSON, even if interrupted.")
    ] = None,
    headless: Annotated[bool, typer.Option("--headless", help="Print lines and end by itself, as in CI.")] = False,
    buyers: Annotated[
        int, typer.Option(help="How many buy an answer every few seconds, from the first final epoch on.")
    ] = 1,
    auditors: Annotated[
        int, typer.Option(help="Auditors with a seat of their own, dealt to the stages in turn; 0: only the referee.")
    ] = 1,
    kill_every: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS", help="Kill a node (SIGKILL) in every such stretch of time, as in 30s; by --seed."
        ),
    ] = None,
    slow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE:TIME",
            help="A node's worker takes so much longer for each microbatch, as in node-1:200ms; repeat.",
        ),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE:DELAY[:jitter=TIME]",
            help="Links between nodes, one way, as in 80mbit:50ms; through a process that shapes them.",
        ),
    ] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE[,NODE…][:in|:out]",
            help="Cut these off from all other nodes once the first round is sealed: both ways, or what goes in, or "
            "what goes out; repeat. `devnet inject heal` ends it.",
        ),
    ] = None,
    byzantine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE:KIND[:FRACTION]",
            help="Have a stage's node or auditor cheat, on a fraction of its work; repeat. KIND may be: "
            + ", ".join(KINDS)
            + ".",
        ),
    ] = None,
    asynchrony: Annotated[
        str, typer.Option(help="none, delayed or look_ahead: whether a round waits for the step of the one before.")
    ] = "none",
    averaging: Annotated[
        str, typer.Option(help="float32 or int8: how replicas send each other their gradients.")
    ] = "float32",
    averaging_rounds: Annotated[
        int,
        typer.Option(help="Replicas average every so many rounds; over 1 each steps by itself meanwhile (DiLoCo)."),
    ] = 1,
    rounds_per_epoch: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start a network that trains a small model, and own what it trains.

    Needs no accelerator, no download and no free port that is known beforehand. Prints accounts, contracts, nodes and
    what to try, then how training goes. Ends every process that it started, and prints who owns the model.

    \b
    Example:
      commonweight devnet up --stages 4 --until-epoch 1 --report report.json
      commonweight devnet up --byzantine 1:zeros:0.1
      commonweight devnet up --replicas 2 --kill-every 30s
      commonweight devnet up --slow node-1:200ms --link 80mbit:50ms
      commonweight devnet up --stages 2 --replicas 2 --seats 2 --slow node-0:1s --slow node-1:1s --slow node-1-1:1s
    """
    from rich.console import Console

    from commonweight.devnet.churn import parse_interval
    from commonweight.devnet.options import UNATTENDED_EPOCHS, DevnetOptions
    from commonweight.devnet.run import run_devnet
    from commonweight.devnet.spec import ROUNDS_PER_EPOCH

    console = Console(highlight=False)
    attended = console.is_terminal and not headless
    options = DevnetOptions(
        stages=stages,
        replicas=replicas,
        seats=seats,
        until_epoch=until_epoch if attended or until_epoch is not None else UNATTENDED_EPOCHS,
        backend=backend,  # type: ignore[arg-type]
        seed=seed,
        asynchrony=asynchrony,
        averaging=averaging,
        averaging_rounds=averaging_rounds,
        kill_every_s=parse_interval(kill_every, "--kill-every"),
        slow=tuple(slow or ()),
        link=link,
        partition=tuple(partition or ()),
        folder=folder,
        report=report,
        live=attended,
        rounds_per_epoch=ROUNDS_PER_EPOCH if rounds_per_epoch is None else rounds_per_epoch,
        buyers=buyers,
        auditors=auditors,
        byzantine=tuple(byzantine or ()),
    )
    raise typer.Exit(run_devnet(options, console))


@app.command("status")
def status(folder: DirOption = None) -> None:
    """Show how a devnet stands; the exit code is 0 while it runs, 1 after."""
    from commonweight.cli.output import print_fields, print_table
    from commonweight.devnet.observer import read_state
    from commonweight.devnet.view import NODE_HEADER, node_rows, progress

    file = read_state(folder)
    running = file.runs
    typer.echo(f"{file.state.folder}: {f'runs as process {file.pid}' if running else 'has ended'}\n")
    print_fields(progress(file.state, time.time() if running else file.state.updated))
    typer.echo()
    print_table(NODE_HEADER, node_rows(file.state.members))
    for line in file.state.errors:
        typer.echo(line)
    raise typer.Exit(0 if running else 1)


@app.command("stop")
def stop(
    folder: DirOption = None,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="How long to wait.")] = 60.0,
) -> None:
    """End a devnet in order, and wait until it has."""
    from commonweight.devnet.observer import read_state
    from commonweight.devnet.processes import wait_for_end
    from commonweight.errors import StateError

    file = read_state(folder)
    if not file.runs:
        typer.echo(f"{file.state.folder} has already ended.")
        return
    os.kill(file.pid, signal.SIGTERM)
    if not wait_for_end(file.pid, timeout_s):
        raise StateError(
            f"Process {file.pid} was asked to end and still runs after {timeout_s:g} s. See the logs in "
            f"{file.state.folder}; `kill -9 {file.pid}` ends it and everything that it started."
        )
    typer.echo(f"{file.state.folder} has ended.")


inject = typer.Typer(no_args_is_help=True)
app.add_typer(inject, name="inject")

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="As `devnet status` names it: node-1.")]


@inject.callback()
def _inject() -> None:
    """Have something befall a devnet that runs, once: its log notes it, and its report counts kills."""


@inject.command("kill")
def inject_kill(node: NodeArgument, folder: DirOption = None) -> None:
    """Kill a node with SIGKILL; it is started again a few seconds later.

    \b
    Example:
      commonweight devnet inject kill node-1
    """
    _inflict("kill", node, folder)


@inject.command("slow")
def inject_slow(
    slow: Annotated[str, typer.Argument(metavar="NODE:TIME", help="As in node-1:200ms; 0ms ends it.")],
    folder: DirOption = None,
) -> None:
    """Have a node's worker take so much longer for each microbatch, from the next one on.

    \b
    Example:
      commonweight devnet inject slow node-1:200ms
    """
    _inflict("slow", slow, folder)


@inject.command("link")
def inject_link(
    link: Annotated[
        str, typer.Argument(metavar="RATE:DELAY[:jitter=TIME]", help="As in 80mbit:50ms; unlimited:0ms ends it.")
    ],
    folder: DirOption = None,
) -> None:
    """Give all links between nodes another rate and delay; for a devnet with --link.

    \b
    Example:
      commonweight devnet inject link 8mbit:50ms:jitter=5ms
    """
    _inflict("link", link, folder)


@inject.command("partition")
def inject_partition(
    partition: Annotated[
        str, typer.Argument(metavar="NODE[,NODE…][:in|:out]", help="As in node-0,node-1 or node-1:out.")
    ],
    folder: DirOption = None,
) -> None:
    """Cut nodes off from all others, until `inject heal`; for a devnet with --link.

    Both ways; with :in nothing reaches them, with :out nothing that they send reaches others. All still reach the
    coordinator.

    \b
    Example:
      commonweight devnet inject partition node-1
    """
    _inflict("partition", partition, folder)


@inject.command("heal")
def inject_heal(folder: DirOption = None) -> None:
    """End all partitions.

    \b
    Example:
      commonweight devnet inject heal
    """
    _inflict("heal", "", folder)


def _inflict(fault: str, what: str, folder: Path | None) -> None:
    from commonweight.devnet.injection import send_injection
    from commonweight.devnet.observer import read_state
    from commonweight.errors import StateError

    file = read_state(folder)
    if not file.runs:
        raise StateError(f"{file.state.folder} has ended: nothing can befall it any more. Start another devnet.")
    typer.echo(send_injection(Path(file.state.folder), fault, what) + ".")
