"""`commonweight ownership`: who owns a model, without asking anyone but the chain."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.options import (
    DirOption,
    JsonOption,
    ModelOption,
    RegistryOption,
    RpcOption,
    StatementsOption,
)
from commonweight.cli.output import (
    format_amount,
    format_percent,
    format_rounded,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.chain.records import EpochRecord
    from commonweight.cli.holdings import Holding
    from commonweight.cli.place import Place
    from commonweight.cli.statements import Published

app = typer.Typer(no_args_is_help=True)


@app.callback()
def ownership() -> None:
    """Show who owns a model."""


@app.command("show")
def show(
    account: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="Only this account.", show_default=False)
    ] = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who owns a model: shares held, shares to claim, revenue owed.

    Needs a chain and the registry there, or the directory of a devnet, which names both. Asks no coordinator: shares
    and revenue are read from the contracts as of one block, and what can be claimed is proved to them from the public
    statement of the last final epoch, whose hash must be the chain's. Where the statement isn't at hand, it says so and
    shows the rest. Without ADDRESS it lists everyone who ever got or earned a share.

    \b
    Examples:
      commonweight ownership show --dir runs/first
      commonweight ownership show 0x7099… --rpc https://rpc.example --registry 0x5FbD…
    """
    from commonweight.cli.holdings import holdings_of, known_accounts
    from commonweight.cli.place import find_place, parse_address
    from commonweight.cli.statements import last_statement

    only = parse_address(account) if account is not None else None
    live = find_place(rpc, registry, model, dir, statements)
    place = live.at(live.chain.block_number())
    epoch, published, note = last_statement(place)
    if note:
        typer.echo(f"Note: {note}", err=True)
    accounts = [only] if only is not None else known_accounts(place, published)
    report = _Report(place, epoch, published, holdings_of(place, accounts, published))
    if as_json:
        print_json(report.to_json())
    elif only is not None:
        report.print_one()
    else:
        report.print_all()


class _Report:
    """Holdings with what it takes to read them: supply, revenue token, epoch."""

    def __init__(
        self, place: "Place", epoch: "EpochRecord | None", published: "Published | None", holdings: "list[Holding]"
    ) -> None:
        self.place = place
        self.epoch = epoch
        self.published = published
        self.holdings = holdings
        self.supply = place.shares.total_supply()
        self.unclaimed = place.shares.balance_of(place.model.settlement)
        self.deposited = place.shares.deposited()
        self.currency = place.revenue_token

    def to_json(self) -> dict[str, Any]:
        """All of it; base units as decimal strings."""
        terms, epoch = self.place.model.terms, self.epoch
        return {
            "model_id": self.place.model_id,
            "chain_id": self.place.chain.chain_id,
            "shares": self.place.model.shares,
            "settlement": self.place.model.settlement,
            "supply": str(self.supply),
            "max_supply": str(terms.max_supply),
            "unclaimed": str(self.unclaimed),
            "revenue": {
                "token": terms.revenue_token,
                "symbol": self.currency.symbol,
                "decimals": self.currency.decimals,
                "deposited": str(self.deposited),
            },
            "last_final_epoch": None if epoch is None else epoch.epoch,
            "statement": None
            if epoch is None
            else {"hash": "0x" + epoch.statement_hash.hex(), "found": self.published is not None},
            "accounts": [
                {
                    "account": each.account,
                    "roles": list(each.roles),
                    "held": str(each.held),
                    "owed": str(each.owed),
                    "claimable": _text(each.claimable),
                    "claimable_revenue": _text(each.claimable_revenue),
                }
                for each in self.holdings
            ],
        }

    def print_all(self) -> None:
        """A line for the model, and a table of accounts."""
        self._print_model()
        typer.echo()
        rows = [
            (
                each.account,
                ", ".join(each.roles) or "–",
                format_rounded(each.held),
                format_percent(each.held, self.supply),
                self._claimable(each),
                self.currency.rounded(each.owed),
            )
            for each in self.holdings
        ]
        settlement = (
            "not claimed yet",
            "",
            format_rounded(self.unclaimed),
            format_percent(self.unclaimed, self.supply),
        )
        header = ("account", "role", "shares held", "of all", "to claim", f"{self.currency.symbol} owed")
        print_table(header, [*rows, (*settlement, "", "")], right="  rrrr")

    def print_one(self) -> None:
        """One account, exactly."""
        (each,) = self.holdings
        self._print_model()
        typer.echo()
        claim = "unknown without the statement" if self.epoch is not None else "0"
        if each.claimable is not None and each.claimable_revenue is not None:
            claim = f"{format_amount(each.claimable)} shares, with {self.currency.show(each.claimable_revenue)}"
        print_fields(
            {
                "account": each.account,
                "role": ", ".join(each.roles) or "–",
                "held": f"{format_amount(each.held)} shares, {format_percent(each.held, self.supply)} of all",
                "to claim": claim,
                "owed": self.currency.show(each.owed),
            }
        )

    def _print_model(self) -> None:
        final = "none yet" if self.epoch is None else f"0 to {self.epoch.epoch}"
        print_fields(
            {
                "model": self.place.model_id,
                "chain": f"{self.place.chain.chain_id} at {self.place.chain.rpc_url}",
                "shares": f"{format_amount(self.supply)} of at most {format_amount(self.place.model.terms.max_supply)}",
                "revenue": f"{self.currency.show(self.deposited)} so far",
                "final epochs": final,
            }
        )

    def _claimable(self, each: "Holding") -> str:
        if each.claimable is None:
            return "0" if self.epoch is None else "?"
        return format_rounded(each.claimable)


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
