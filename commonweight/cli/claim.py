"""`commonweight claim`: move an account's earned shares to it. Anyone may send it; only the account is paid."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from commonweight.cli.money import Plan, Purse, Step
from commonweight.cli.options import (
    DirOption,
    DryRunOption,
    JsonOption,
    KeyOption,
    ModelOption,
    PasswordFileOption,
    PayeeArgument,
    RegistryOption,
    RpcOption,
    StatementsOption,
    YesOption,
)
from commonweight.cli.output import format_amount
from commonweight.errors import StatementUnavailable

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.holdings import Due
    from commonweight.cli.place import Place
    from commonweight.cli.statements import Published

app = typer.Typer()


@app.command("claim")
def claim(
    account: PayeeArgument = None,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Claim the shares that an account has earned.

    One claim pays all that the account earned up to the last final epoch and hasn't claimed, with the revenue that
    those shares brought meanwhile; claiming late loses nothing. The proof is made from that epoch's public statement:
    only the last final root pays, and where a later epoch becomes final meanwhile, the claim is made once more. For the
    model's designer and data recipient, their parts of all epochs are claimed, too. Anyone may send the claim and pay
    for its gas, only the account is paid. Prints what will be paid and what it costs, asks, sends, and prints the
    transaction and the new balance. Where there is nothing to claim, it says why and exits 0. A dry run needs no key.

    \b
    Examples:
      commonweight claim --key owner.json --dir runs/first
      commonweight claim 0x7099… --dry-run --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.cli.statements import against_last_root

    purse = Purse(key, password_file, dry_run, yes, as_json)
    payee = purse.account_or(account)
    place = find_place(rpc, registry, model, dir, statements)
    against_last_root(lambda: _claim(purse, place, payee))


def _claim(purse: Purse, place: "Place", payee: str) -> None:
    from commonweight.cli.holdings import NOTHING_DUE, split_due

    split = split_due(place, payee, _split_limit())
    published, why = None, "no epoch is final yet"
    try:
        published = _published(place)
    except StatementUnavailable as error:
        if not split.shares:
            raise
        typer.echo(f"Note: what it earned by computing can't be claimed now. {error}", err=True)
    earned = NOTHING_DUE
    if published is not None:
        earned, why = _earned(place, payee, published)
    if not earned.shares and not split.shares:
        purse.nothing({"account": payee, "shares": "0"}, f"Nothing to claim for {payee}: {why}.")
        return
    before = place.shares.balance_of(payee)
    revenue = (earned.revenue_scaled + split.revenue_scaled) >> 96
    facts = {
        "account": payee,
        "epoch": None if published is None else published.epoch.epoch,
        "shares": str(earned.shares + split.shares),
        "split_shares": str(split.shares),
        "revenue": str(revenue),
    }
    shown: dict[str, object] = {
        "account": payee,
        "up to epoch": "–" if published is None else published.epoch.epoch,
        "to claim": _amounts(earned, split),
        "with revenue": place.revenue_token.show(revenue),
        "holds now": f"{format_amount(before)} shares",
    }

    def done(_: Sequence[object]) -> tuple[str, dict[str, str]]:
        balance = place.shares.balance_of(payee)
        return f"{payee} now holds {format_amount(balance)} shares.", {"balance": str(balance)}

    purse.carry_out(place.chain, Plan(facts, shown, _steps(place, payee, published, earned, split), done), payer=payee)


def _steps(place: "Place", payee: str, published: "Published | None", earned: "Due", split: "Due") -> list[Step]:
    steps = []
    if published is not None and earned.shares:
        arguments = published.claim_of(payee)
        assert arguments is not None, "who has earned shares has a line"
        what = f"claim what was earned by computing in epochs 0 to {published.epoch.epoch}"
        steps.append(Step(what, place.settlement.claim_action(arguments)))
    action = place.settlement.split_action() if split.shares else None
    if action is not None:
        steps.append(Step("claim the designer's and the data recipient's parts of final epochs", action))
    return steps


def _amounts(earned: "Due", split: "Due") -> list[str]:
    parts = [(earned, "earned by computing"), (split, "of designer and data recipient")]
    return [f"{format_amount(due.shares)} shares, {whose}" for due, whose in parts if due.shares]


def _published(place: "Place") -> "Published | None":
    """The statement to claim with; None before the first final epoch. Raises StatementUnavailable."""
    from commonweight.cli.statements import find_statement, last_final_epoch

    record = last_final_epoch(place)
    return None if record is None else find_statement(place, record)


def _earned(place: "Place", payee: str, published: "Published") -> "tuple[Due, str]":
    """What `payee` can claim for computing, and why if it is nothing."""
    from commonweight.cli.holdings import claim_due

    line, last = published.line_of(payee), published.epoch.epoch
    if line is None or line.cumulative_shares == "0":
        return claim_due(place, payee, published), f"it earned nothing in epochs 0 to {last}"
    return claim_due(place, payee, published), f"all that it earned in epochs 0 to {last} is claimed"


def _split_limit() -> int:
    from commonweight.chain.settlement import MAX_SPLIT_EPOCHS

    return MAX_SPLIT_EPOCHS
