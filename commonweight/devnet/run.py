"""One devnet from its start to its summary: the network beside the view, then the claims, then the report."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console

from commonweight.devnet.answers import SoldAnswers, count_sold_answers
from commonweight.devnet.folder import RunFolder, write_json
from commonweight.devnet.memory import Memory
from commonweight.devnet.network import Network
from commonweight.devnet.observer import Observer
from commonweight.devnet.options import DevnetOptions
from commonweight.devnet.ownership import Ownership, settle_ownership
from commonweight.devnet.penalties import Penalties, read_penalties, read_statements
from commonweight.devnet.report import build_report, installed_versions
from commonweight.devnet.screen import Screen
from commonweight.errors import CommonweightError
from commonweight.rules.spec import parse_spec

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Settled:
    """What is known once training has ended."""

    ownership: Ownership = field(default_factory=Ownership)
    penalties: Penalties = field(default_factory=Penalties)
    answers: SoldAnswers = field(default_factory=SoldAnswers)


def run_devnet(options: DevnetOptions, console: Console) -> int:
    """Runs a devnet until its last epoch is final, or until SIGINT or SIGTERM, and returns the exit code.

    Leaves no process, whatever happens. Raises CommonweightError when something failed, after the report was written.
    """
    folder = RunFolder.create(options.folder)
    return asyncio.run(_run(options, folder, console))


async def _run(options: DevnetOptions, folder: RunFolder, console: Console) -> int:
    versions = installed_versions()
    observer, memory = Observer(folder), Memory()
    network = Network(options, folder, observer)
    screen = Screen(console, network, versions, live=options.live)
    observer.watch(screen.show)
    observer.watch(memory.look)
    failure: CommonweightError | None = None
    settled = Settled()
    with _cancelled_by_signals() as interrupted:
        try:
            with screen:
                observer.note(
                    "devnet.started",
                    folder=str(folder.path),
                    seed=options.seed,
                    until_epoch=options.until_epoch,
                    rounds_per_epoch=options.rounds_per_epoch,
                )
                await network.run()
            reason = "finished"
        except asyncio.CancelledError:
            if not interrupted:
                raise
            reason = f"interrupted by {interrupted[0].name}"
            screen.say(f"{interrupted[0].name}: stopping the nodes, the coordinator and the chain.")
        except CommonweightError as error:
            failure, reason = error, str(error)
        finally:
            await network.stop_training()
            try:
                settled = await _settle(network)
            except CommonweightError as error:
                screen.say(f"Ownership is unknown: {error}")
            await network.stop_chain()
    if options.report is not None:
        report = build_report(
            observer.state,
            ownership=settled.ownership,
            penalties=settled.penalties,
            answers=settled.answers,
            deployments=network.deployments(),
            exit_reason=reason,
            peak_rss_bytes=memory.peak_bytes,
            versions=versions,
        )
        write_json(options.report.absolute(), report)
    screen.sum_up(observer.state, settled.ownership, settled.penalties, reason)
    if failure is not None:
        raise failure
    return EXIT_INTERRUPTED if interrupted and options.until_epoch is not None else 0


async def _settle(network: Network) -> Settled:
    """What came of it, once nobody proposes epochs any more; nothing if there is no model yet."""
    folder = network.folder
    if not folder.deployments.is_file():
        return Settled()
    ownership = await asyncio.to_thread(settle_ownership, folder.path, network.accounts["deployer"].key)
    penalties, answers = await asyncio.to_thread(_read_epochs, folder)
    return Settled(ownership, penalties, answers)


def _read_epochs(folder: RunFolder) -> tuple[Penalties, SoldAnswers]:
    """Imports web3: call from a thread."""
    from commonweight.cli.place import find_place

    place = find_place(None, None, None, folder.path)
    statements = read_statements(place)
    return read_penalties(place, parse_spec(folder.spec.read_bytes()), statements), count_sold_answers(statements)


@contextmanager
def _cancelled_by_signals() -> Iterator[list[signal.Signals]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a cancellation of this task; later ones wait for its end.

    Yields the list of what came.
    """
    task = asyncio.current_task()
    assert task is not None, "runs in a task"
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def take(number: signal.Signals) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, take, number)
    try:
        yield received
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
