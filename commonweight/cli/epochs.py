"""`commonweight epochs`: what was proposed, and what became of it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.epoch_bond import app as bond
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
    format_audits,
    format_engineering,
    format_time,
    print_fields,
    print_json,
    print_table,
)
from commonweight.errors import ConfigError

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.chain.rpc import Chain
    from commonweight.cli.history import Proposal
    from commonweight.cli.place import Place
    from commonweight.rules.statement import Statement

app = typer.Typer(no_args_is_help=True)


@app.callback()
def epochs() -> None:
    """List a model's epochs, and show what they pay. `commonweight audit` recomputes them."""


app.add_typer(bond, name="bond")


@app.command("list")
def list_(
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every proposal of an epoch and what became of it.

    Needs no key. Prints a line for each: pending (it can still be challenged), challenged (the arbiter decides),
    upheld, final (its shares are minted) or rejected (the coordinator has to propose the epoch again); and the root
    that pays, the hash of the public statement, who proposed it and when.

    \b
    Example:
      commonweight epochs list --dir runs/first
    """
    from commonweight.cli.history import block_time, read_history
    from commonweight.cli.place import find_place

    place = find_place(rpc, registry, model, dir)
    proposals = read_history(place.settlement)
    if as_json:
        print_json({"model_id": place.model_id, "proposals": [_facts(place.chain, each) for each in proposals]})
        return
    if not proposals:
        typer.echo("No epoch has been proposed yet.")
        return
    rows = [
        (
            each.proposed.epoch,
            each.status,
            format_amount(each.proposed.minted),
            format_time(block_time(place.chain, each.proposed.block_number)),
            each.proposed.proposer,
            "0x" + each.proposed.root.hex(),
            "0x" + each.proposed.statement_hash.hex(),
        )
        for each in proposals
    ]
    header = ("epoch", "status", "mints", "proposed at", "by", "root", "statement")
    print_table(header, rows, right="r r")


@app.command("show")
def show(
    epoch: Annotated[int, typer.Argument(metavar="N", min=0, help="The epoch, counted from 0.")],
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what an epoch's statement says: its rounds, who did the work, and what each account gets.

    Needs no key. Looks at the last proposal of the epoch; its statement must have the hash and give the root that are
    on the chain. Prints what happened on the chain with each transaction, a line for each account, and what was
    served.

    \b
    Example:
      commonweight epochs show 0 --dir runs/first
    """
    from commonweight.cli.history import read_history
    from commonweight.cli.place import find_place
    from commonweight.cli.statements import find_statement

    place = find_place(rpc, registry, model, dir, statements)
    proposals = read_history(place.settlement, epoch)
    if not proposals:
        raise ConfigError(f"Epoch {epoch} has not been proposed: {place.settlement.next_epoch()} epochs are final.")
    last = proposals[-1]
    statement = find_statement(place, last.record).statement
    if as_json:
        facts = [_facts(place.chain, each) for each in proposals]
        print_json({"model_id": place.model_id, "proposals": facts, "statement": statement.model_dump()})
        return
    _print_proposal(place, last)
    if len(proposals) > 1:
        typer.echo(f"rejected before: {len(proposals) - 1} proposals, see `commonweight epochs list`")
    _print_statement(place, statement)


def _facts(chain: "Chain", each: "Proposal") -> dict[str, Any]:
    from commonweight.cli.history import block_time

    proposed = each.proposed
    facts: dict[str, Any] = {
        "epoch": proposed.epoch,
        "status": each.status,
        "root": "0x" + proposed.root.hex(),
        "minted": str(proposed.minted),
        "statement_hash": "0x" + proposed.statement_hash.hex(),
        "uri": proposed.uri,
        "proposer": proposed.proposer,
        "proposed_at": block_time(chain, proposed.block_number),
        "finalizable_at": proposed.finalizable_at,
        "transaction": proposed.transaction,
    }
    if each.challenged is not None:
        facts["challenge"] = {
            "challenger": each.challenged.challenger,
            "evidence_hash": "0x" + each.challenged.evidence_hash.hex(),
            "uri": each.challenged.uri,
            "resolvable_until": each.challenged.resolvable_until,
            "transaction": each.challenged.transaction,
        }
    if each.rejected is not None:
        facts["rejection"] = {"by_arbiter": each.rejected.by_arbiter, "transaction": each.rejected.transaction}
    if each.upheld is not None:
        facts["upheld_in"] = each.upheld.transaction
    if each.final is not None:
        facts["accumulator"], facts["finalized_in"] = str(each.final.accumulator), each.final.transaction
    return facts


def _print_proposal(place: "Place", each: "Proposal") -> None:
    from commonweight.cli.history import block_time, status_text

    proposed = each.proposed
    fields: dict[str, object] = {
        "epoch": proposed.epoch,
        "status": status_text(each, place.chain.timestamp()),
        "root": "0x" + proposed.root.hex(),
        "statement": "0x" + proposed.statement_hash.hex(),
        "proposed": f"{format_time(block_time(place.chain, proposed.block_number))} by {proposed.proposer}",
        "": f"transaction {proposed.transaction}",
    }
    if each.challenged is not None:
        fields["challenged"] = f"by {each.challenged.challenger}, transaction {each.challenged.transaction}"
        fields["evidence"] = f"0x{each.challenged.evidence_hash.hex()} at {each.challenged.uri!r:.400}"
    if each.upheld is not None:
        fields["upheld"] = f"transaction {each.upheld.transaction}"
    if each.rejected is not None:
        fields["rejected"] = f"transaction {each.rejected.transaction}"
    if each.final is not None:
        fields["finalised"] = f"transaction {each.final.transaction}"
    print_fields(fields)


def _print_statement(place: "Place", statement: "Statement") -> None:
    from commonweight.cli.audited import count_audits

    token = place.revenue_token
    reports = [report for sealed in statement.rounds for report in sealed.reports]
    typer.echo("\nStatement")
    print_fields(
        {
            "rounds": f"{statement.rounds[0].round} to {statement.rounds[-1].round}, {len(reports)} reports",
            "paid work": f"{format_engineering(sum(int(report.units) for report in reports))} FLOPs",
            "audits": format_audits(count_audits(statement.audits)) or "none was drawn",
            "unpaid": f"{sum(report.units == '0' for report in reports)} reports",
            "convicted": [f"stage {each.stage}, node {each.node}" for each in statement.convicted] or "nobody",
            "mints": f"{format_amount(int(statement.minted))} shares, {format_amount(int(statement.compute_shares))} "
            "of them for computing",
            "served": f"{sum(line.tokens for line in statement.served):,} tokens, counted at each stage",
            "for serving": f"{token.show(int(statement.operator_pool))} divided so far",
        }
    )
    typer.echo()
    header = ("account", "work (FLOPs)", "shares", "shares so far", f"{token.symbol} by serving so far")
    rows = [
        (
            line.account,
            format_engineering(int(line.units)),
            format_amount(int(line.shares)),
            format_amount(int(line.cumulative_shares)),
            format_amount(int(line.operator_revenue), token.decimals),
        )
        for line in statement.accounts
    ]
    print_table(header, rows, right=" rrrr")
    work: dict[tuple[int, str, str], int] = {}
    for report in reports:
        key = (report.stage, report.node, report.account)
        work[key] = work.get(key, 0) + 1
    tokens = {(line.stage, line.node, line.account): line.tokens for line in statement.served}
    typer.echo()
    print_table(
        ("stage", "node", "paid to", "rounds", "tokens served"),
        [(*key, work.get(key, 0), f"{tokens.get(key, 0):,}") for key in sorted({*work, *tokens})],
        right="r  rr",
    )
