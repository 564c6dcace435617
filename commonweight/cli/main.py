"""The root command and the one place where errors become messages and exit codes."""

import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.main import get_command

from commonweight import __version__
from commonweight.cli.lazy import LazyGroup, Mount
from commonweight.errors import CommonweightError

EXIT_BUG = 1
EXIT_INTERRUPTED = 130

MOUNTS = (
    Mount("node", "node.cli", "Provide compute: train one stage of a model, earn shares."),
    Mount("coordinator", "coordinator.cli", "Lead a model: plan rounds, keep the ledger, settle epochs."),
    Mount("auditor", "auditor.cli", "Check others' work: replay what is drawn of it, earn shares."),
    Mount("gateway", "gateway.cli", "Sell a model's answers, in OpenAI's format, for x402."),
    Mount("peers", "commonweight.cli.peers", "Run a bootstrap peer, and show who is announced."),
    Mount("devnet", "commonweight.devnet.cli", "Run everything on this machine: chain, coordinator, nodes."),
    Mount("keys", "commonweight.cli.keys", "Create, import and show the key that is a node's identity."),
    Mount("model", "commonweight.cli.model", "Show what a model is, stage by stage, and register one."),
    Mount("ask", "commonweight.cli.ask", "Ask a model, and pay for the answer.", single=True),
    Mount("data", "commonweight.cli.data", "Turn text into a data set that a model can be trained on."),
    Mount("ownership", "commonweight.cli.ownership", "Show who owns a model, from the chain alone."),
    Mount("claim", "commonweight.cli.claim", "Claim the shares that an account has earned.", single=True),
    Mount(
        "earnings", "commonweight.cli.earnings", "Show what an account earned, epoch by epoch, and why.", single=True
    ),
    Mount("revenue", "commonweight.cli.revenue", "Show, split and withdraw what buyers paid."),
    Mount("bond", "commonweight.cli.bond", "Bond stake, which seats lock.", single=True),
    Mount("unbond", "commonweight.cli.bond", "Take free stake back.", single=True),
    Mount("seat", "commonweight.cli.seat", "Take and leave seats, and say which nodes fill them."),
    Mount("slash", "commonweight.cli.slash", "Show proposals to slash a seat, and contest one."),
    Mount("epochs", "commonweight.cli.epochs", "List a model's epochs, and show what they pay."),
    Mount("audit", "commonweight.cli.audit", "Recompute epochs from public statements alone.", single=True),
    Mount("arbiter", "commonweight.cli.arbiter", "Decide challenged epochs and contested slashes."),
    Mount("watch", "commonweight.cli.watch", "Recompute every proposed epoch, and challenge a wrong one.", single=True),
    Mount("bench", "commonweight.bench.cli", "Measure what this machine and its links can do."),
    Mount("sim", "commonweight.sim.cli", "Simulate a swarm that doesn't fit on this machine."),
)


class Root(LazyGroup):
    """`commonweight`."""

    mounts = MOUNTS


app = typer.Typer(
    name="commonweight",
    cls=Root,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"commonweight {__version__}")
        raise typer.Exit


@app.callback()
def root(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Take options that aren't given from this file.",
            envvar="COMMONWEIGHT_CONFIG",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Train one model over many machines, own it by the work that was verified.

    Start with a whole network on this machine, then see who owns the model that it trains:

    \b
      commonweight devnet up --dir runs/first
      commonweight ownership show --dir runs/first

    Every option can also be set by a variable, COMMONWEIGHT_<COMMAND>_<OPTION>, or in the file given by --config.
    A flag beats the variable, the variable beats the file. See docs/cli.md for exit codes.
    """


def main() -> NoReturn:
    """Run the command line that this process was started with, and exit with its documented code."""
    try:
        get_command(app).main(prog_name="commonweight")
    except CommonweightError as error:
        _print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception:  # noqa: BLE001 - the outermost edge: reported with its traceback, and the process ends
        traceback.print_exc()
        typer.echo(
            f"This is a bug in commonweight {__version__}, not a mistake of yours. Please report it with the lines "
            "above and the command that you ran.",
            err=True,
        )
        sys.exit(EXIT_BUG)
    raise AssertionError("a click command always exits")


def _print_error(error: CommonweightError) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("Error: ", "bold red"), str(error))
    # Never wrapped: a path or an address that is cut by a line break can't be copied.
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)
