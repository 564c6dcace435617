"""What `devnet up` prints: a banner, then a live view or a line per event, then a summary."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from commonweight.cli.output import field_lines, format_rounded, table_lines
from commonweight.devnet.network import Network
from commonweight.devnet.ownership import Ownership
from commonweight.devnet.penalties import Penalties
from commonweight.devnet.state import DevnetState
from commonweight.devnet.view import (
    NODE_HEADER,
    OWNERSHIP_HEADER,
    event_line,
    facts,
    fraud_lines,
    live_view,
    next_commands,
    node_rows,
    ownership_rows,
    revenue_facts,
)
from commonweight.events import Event

REFRESH_PER_S = 2


class Screen:
    """Enter it while training goes on. With `live` the view is redrawn in place."""

    def __init__(self, console: Console, network: Network, versions: Mapping[str, str], *, live: bool) -> None:
        self._console = console
        self._network = network
        self._versions = versions
        self._state = DevnetState()
        self._live = (
            Live(
                console=console,
                get_renderable=lambda: live_view(self._state, time.time()),
                refresh_per_second=REFRESH_PER_S,
            )
            if live
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, state: DevnetState, source: str, event: Event) -> None:
        """Shows the state after an event."""
        self._state = state
        if event.name == "devnet.ready":
            self._introduce(state)
        elif event.name == "generation.formed" and event.fields["generation"] == 1 and source == "coordinator":
            self._introduce_nodes(state)
        elif (self._live is None or event.name != "round.sealed") and (line := event_line(state, source, event)):
            self.say(line)

    def say(self, *lines: str) -> None:
        """Prints lines, however long; above the live view while there is one."""
        if self._live is not None and self._live.is_started:
            self._console.print(Text("\n".join(lines)), soft_wrap=True)
        else:
            typer.echo("\n".join(lines))

    def sum_up(self, state: DevnetState, ownership: Ownership, penalties: Penalties, reason: str) -> None:
        """The last words: what came of it, and who owns it."""
        self.say(f"\nThe devnet ended: {reason}")
        if state.losses:
            self.say(
                f"{len(state.losses)} rounds, loss {state.losses[0]:.4f} → {state.losses[-1]:.4f}, "
                f"{state.tokens_per_s:,.0f} tokens/s, {state.epochs_finalised} epochs final, "
                f"{format_rounded(ownership.supply)} shares minted"
            )
        if state.frauds:
            self.say("", *fraud_lines(state, penalties, ownership))
        if (revenue := ownership.revenue).paid_in:
            self.say("", *field_lines(revenue_facts(revenue)))
        if ownership.holdings:
            roles = {account.address: role for role, account in self._network.accounts.items()}
            self.say("", *table_lines(OWNERSHIP_HEADER, ownership_rows(ownership, roles), right="  rrr"))
        self.say(f"\nLogs, data and state are kept in {state.folder}")

    def _introduce(self, state: DevnetState) -> None:
        self.say("", *field_lines(facts(state, self._versions, self._network.deployments())))
        self.say("\nAccounts. Their keys are public: never send anything of value to them, on any network.\n")
        self.say(*field_lines({account.role: account.address for account in self._network.accounts.values()}))
        self.say("\nWaiting for the nodes.")

    def _introduce_nodes(self, state: DevnetState) -> None:
        logs = [member.log for member in state.members]
        rows = ((*row, log) for row, log in zip(node_rows(state.members), logs, strict=True))
        self.say("", *table_lines((*NODE_HEADER, "events"), rows))
        self.say("\nTry\n", *field_lines(next_commands(state)), "")
