"""`commonweight claim`: move an account's earned shares to it. Anyone may send it; only the account is paid."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.options import (
    DirOption,
    JsonOption,
    ModelOption,
    PasswordFileOption,
    RegistryOption,
    RpcOption,
    StatementsOption,
)
from commonweight.cli.output import format_amount, print_fields, print_json
from commonweight.errors import ConfigError

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.chain.keys import Key
    from commonweight.chain.records import ClaimArguments
    from commonweight.chain.sender import Quote
    from commonweight.cli.place import Place
    from commonweight.cli.statements import Published

EXIT_DECLINED = 1

app = typer.Typer()


@app.command("claim")
def claim(
    account: Annotated[
        str | None,
        typer.Argument(
            metavar="ADDRESS", help="The account to be paid; that of --key if not given.", show_default=False
        ),
    ] = None,
    epoch: Annotated[
        int | None,
        typer.Option(
            "--epoch", metavar="N", min=0, help="Claim up to this epoch; up to the last final one if not given."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", envvar="COMMONWEIGHT_KEY", help="The key file that pays for the gas."),
    ] = None,
    password_file: PasswordFileOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say what would be paid and what it would cost, and stop. Needs no key.",
            allow_from_autoenv=False,
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before sending.", allow_from_autoenv=False)] = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Claim the shares that an account has earned.

    One claim pays all that the account earned up to an epoch and hasn't claimed, with the revenue that those shares
    brought meanwhile; claiming late loses nothing. The proof is made from the epoch's public statement. Anyone may
    send the claim and pay for its gas, only the account is paid. Prints what will be paid and what it costs, asks,
    sends, and prints the transaction and the new balance. Where there is nothing to claim, it says why and exits 0.

    \b
    Examples:
      commonweight claim --key owner.json --dir runs/first
      commonweight claim 0x7099… --dry-run --dir runs/first
    """
    from commonweight.chain.sender import Sender
    from commonweight.cli.place import find_place

    if key is None and not dry_run:
        raise ConfigError("A claim is a transaction, which somebody's key pays for: give --key FILE, or --dry-run.")
    payee = _payee(account, key)
    place = find_place(rpc, registry, model, dir, statements)
    published, why = _published(place, epoch)
    offer = None
    if published is not None:
        offer, why = _offer(place, payee, published)
    if offer is None:
        text = f"Nothing to claim for {payee}: {why}."
        _finish({"account": payee, "shares": "0", "transaction": None, "why": why}, as_json, text)
        return
    if not as_json:
        _print_offer(place, offer)
    if dry_run:
        _finish(offer.to_json() | {"transaction": None}, as_json, "Nothing was sent: this was a dry run.")
        return
    if not yes and not _confirm("Send it?"):
        typer.echo("Nothing was sent.", err=True)
        raise typer.Exit(EXIT_DECLINED)
    assert key is not None, "checked at the beginning"
    receipt = place.settlement(Sender(place.chain, _unlock(key, password_file))).claim(offer.arguments)
    balance = place.shares.balance_of(payee)
    _finish(
        offer.to_json()
        | {
            "transaction": receipt.transaction,
            "gas": receipt.gas_used,
            "fee_wei": str(receipt.fee_wei),
            "balance": str(balance),
        },
        as_json,
        f"Claimed in transaction {receipt.transaction}, for {_ether(receipt.fee_wei)}.\n"
        f"{payee} now holds {format_amount(balance)} shares.",
    )


@dataclass(frozen=True)
class _Offer:
    """What a claim would pay, and what it would cost to send."""

    arguments: "ClaimArguments"
    shares: int
    revenue: int
    """In the revenue token's smallest unit."""
    balance: int
    """Shares that the account holds now."""
    quote: "Quote"

    def to_json(self) -> dict[str, Any]:
        """For programs; base units and wei as decimal strings."""
        return {
            "account": self.arguments.account,
            "epoch": self.arguments.epoch,
            "shares": str(self.shares),
            "revenue": str(self.revenue),
            "balance": str(self.balance),
            "gas": self.quote.gas,
            "fee_wei": str(self.quote.fee_wei),
            "max_fee_wei": str(self.quote.max_fee_wei),
        }


def _payee(account: str | None, key: Path | None) -> str:
    if account is not None:
        from commonweight.cli.place import parse_address

        return parse_address(account)
    if key is None:
        raise ConfigError("Say whose shares to claim: give ADDRESS, or --key FILE of the account.")
    from commonweight.chain.keys import read_address

    return read_address(key)


def _published(place: "Place", epoch: int | None) -> "tuple[Published | None, str]":
    """The statement to claim with, or None and why there can't be one. Raises ConfigError where it can't be found."""
    from commonweight.cli.statements import Missing, find_statement, last_final_epoch

    record = last_final_epoch(place) if epoch is None else place.settlement().epoch(epoch)
    if record is None and epoch is None:
        return None, "no epoch is final yet"
    if record is None or not record.finalized:
        return None, f"epoch {epoch} isn't final; {place.settlement().next_epoch()} epochs are"
    found = find_statement(place, record)
    if isinstance(found, Missing):
        raise ConfigError(str(found))
    return found, ""


def _offer(place: "Place", payee: str, published: "Published") -> tuple[_Offer | None, str]:
    """What `payee` can claim, or None and why it can't claim anything."""
    from commonweight.chain.keys import Key
    from commonweight.chain.sender import Sender
    from commonweight.cli.holdings import SCALE

    arguments, last = published.claim_of(payee), published.epoch.epoch
    if arguments is None:
        return None, f"it earned nothing in epochs 0 to {last}"
    settlement = place.settlement()
    before = settlement.claimed(payee).shares
    if before >= arguments.cumulative_shares:
        return None, f"all that it earned in epochs 0 to {last} is claimed"
    due = settlement.claimable(arguments)
    # A dry run looks at no balance, so any sender will do: nobody need unlock a key to learn the price.
    anyone = Sender(place.chain, Key(secrets.token_bytes(32)))
    quote = anyone.dry_run(settlement.claim_action(arguments))
    return _Offer(arguments, due.shares, due.revenue_scaled // SCALE, place.shares.balance_of(payee), quote), ""


def _unlock(key: Path, password_file: Path | None) -> "Key":
    from commonweight.chain.keys import load_key, read_password

    return load_key(key, read_password(password_file, prompt=f"Password of {key}: "))


def _print_offer(place: "Place", offer: _Offer) -> None:
    currency, decimals = place.revenue_token()
    print_fields(
        {
            "account": offer.arguments.account,
            "up to epoch": offer.arguments.epoch,
            "to claim": f"{format_amount(offer.shares)} shares",
            "with revenue": f"{format_amount(offer.revenue, decimals)} {currency}",
            "holds now": f"{format_amount(offer.balance)} shares",
            "gas": f"{offer.quote.gas:,}",
            "fee": f"{_ether(offer.quote.fee_wei)}, at most {_ether(offer.quote.max_fee_wei)}",
        }
    )


def _confirm(question: str) -> bool:
    """The answer on standard input. Raises ConfigError where there is none, KeyboardInterrupt for Ctrl-C."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise ConfigError("Nobody answered, and nothing was sent. To send without being asked, give --yes.") from error


def _finish(facts: dict[str, Any], as_json: bool, text: str) -> None:
    """The last words."""
    if as_json:
        print_json(facts)
    else:
        typer.echo(text)


def _ether(wei: int) -> str:
    return f"{wei / 10**18:.9f} ETH"
