"""`commonweight earnings`: from assigned work through verified work to shares and revenue, and where each number is
from."""

from typing import TYPE_CHECKING, Annotated

import typer

from commonweight.cli.options import (
    DirOption,
    JsonOption,
    ModelOption,
    OwnKeyOption,
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
from commonweight.errors import ConfigError

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.earned import Earned, Identity
    from commonweight.cli.place import Place

app = typer.Typer()


@app.command("earnings")
def earnings(
    account: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="The account that is paid.", show_default=False)
    ] = None,
    epoch: Annotated[
        int | None, typer.Option("--epoch", metavar="N", min=0, help="Only this epoch.", show_default=False)
    ] = None,
    why: Annotated[
        bool, typer.Option("--explain", help="Show each step with its source.", allow_from_autoenv=False)
    ] = False,
    key: OwnKeyOption = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an account earned in each epoch, from the work to the revenue.

    Needs no key. Prints a line for each epoch: the rounds that were credited to the account, and the audits that it did
    of others' work, their part of everybody's work, the shares that it brought and whether they are claimed, the
    revenue that these shares have earned, what it served and what it got for that. Where an epoch brought nothing, it
    says why. With --explain every step is shown with its source, which is checked: the receipts and opinions that the
    node has signed, the public statement and its line, the proof against the root on the chain, and the transactions;
    besides, which answers went through the node's stage, which audits touched the work and these answers, what they
    came to, and which rounds, answers and opinions are unpaid and why. With --json all receipts, answers, audits and
    opinions are listed.

    \b
    Examples:
      commonweight earnings 0x7099… --dir runs/first
      commonweight earnings 0x7099… --epoch 0 --explain --dir runs/first
    """
    from commonweight.cli.earned import earned_by, identity_of
    from commonweight.cli.earnings_view import earnings_json, print_explanation
    from commonweight.cli.explain import explain
    from commonweight.cli.place import find_place, own_address

    payee = own_address(account, key)
    if payee is None:
        raise ConfigError("Say whose earnings to show: give ADDRESS, or --key FILE of the account.")
    place = find_place(rpc, registry, model, dir, statements)
    identity = identity_of(place, payee)
    found = earned_by(place, identity, epoch)
    explanations = [explain(place, each) if why else None for each in found]
    if as_json:
        print_json(earnings_json(place, identity, found, explanations))
        return
    _print_summary(place, identity, found)
    for each, explanation in zip(found, explanations, strict=True):
        if explanation is not None:
            typer.echo()
            print_explanation(place, each, explanation)
    if not why:
        for each in found:
            if each.why_nothing:
                typer.echo(f"epoch {each.epoch}: {each.nothing}, because {each.why_nothing}.")


def _print_summary(place: "Place", identity: "Identity", found: "list[Earned]") -> None:
    token = place.revenue_token
    print_fields(
        {
            "account": identity.account,
            "model": place.model_id,
            "paid for nodes": list(identity.nodes),
            "holds": f"{format_amount(place.shares.balance_of(identity.account))} shares",
        }
    )
    typer.echo()
    header = (
        "epoch",
        "status",
        "rounds",
        "audits",
        "of all work",
        "shares",
        "",
        f"{token.symbol} by them",
        "tokens served",
    )
    rows = [
        (
            each.epoch,
            each.status,
            _rounds(each),
            _audits(each),
            format_percent(each.units, each.all_units),
            format_rounded(each.shares) if each.is_known else "?",
            _state(each),
            token.rounded(each.revenue),
            f"{each.tokens:,}",
            token.rounded(each.serving_revenue),
        )
        for each in found
    ]
    print_table((*header, f"{token.symbol} by serving"), rows, right="r rrrr rrr")


def _rounds(each: "Earned") -> str:
    rounds, unpaid = sum(work.rounds for work in each.credited), sum(work.unpaid for work in each.credited)
    return f"{rounds}, {unpaid} unpaid" if unpaid else f"{rounds}"


def _audits(each: "Earned") -> str:
    done = [opinions for opinions in each.opinions if opinions.account == each.account]
    count = sum(len(opinions.lines) for opinions in done)
    unpaid = count - sum(opinions.paid for opinions in done)
    return f"{count}, {unpaid} unpaid" if unpaid else f"{count}"


def _state(each: "Earned") -> str:
    if not each.shares:
        return ""
    if each.status != "final":
        return "not minted yet"
    return "claimed" if each.claimed else "claimable"
