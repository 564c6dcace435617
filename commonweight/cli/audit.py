"""`commonweight audit`: whether epochs are right, from the chain and the public statements alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.options import DirOption, JsonOption, ModelOption, RegistryOption, RpcOption, StatementsOption
from commonweight.cli.output import format_audits, format_engineering, print_fields, print_json

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.verify import Verified

app = typer.Typer()


@app.command("audit")
def audit(
    epoch: Annotated[
        int | None,
        typer.Argument(metavar="[EPOCH]", min=0, help="Only this one, from what the one before it leaves to it."),
    ] = None,
    spec_file: Annotated[
        Path | None,
        typer.Option(
            "--spec", metavar="FILE", help="The model's spec; else from where the registry says.", show_default=False
        ),
    ] = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute epochs from the chain and their public statements alone.

    Needs no key, asks no coordinator and trusts nobody: from the first epoch to the pending one, each statement must
    have the hash on the chain; every report must be signed by its node, and every answer by its gateway and by the node
    of each stage; the audits listed must be those that the beacon draws whose tip was committed on the chain, each by
    the auditors that it ranks among those with a seat at that time, with opinions that they signed and a verdict that
    follows; and units, served tokens, pay, shares, balances and root must follow from the spec, the verdicts and the
    statement before. Owners, minted shares, accumulator and the operators' revenue must be the chain's. What it can't
    see is whether an opinion is true, nor why an auditor was passed over: for the first somebody must replay the work.
    Nor does it see answers that were left out.

    Prints for each epoch what was checked: audits by kind and verdict, who gave opinions, how often somebody with a
    seat was drawn and not there, how many false reports were shown to test auditors, and caught, and how many answers
    there were and how much of them isn't paid. Ends with exit code 4 at the first thing that is wrong, and names it.

    \b
    Examples:
      commonweight audit --dir runs/first
      commonweight audit 3 --statements https://coordinator.example --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.cli.spec_file import read_spec, registered_spec
    from commonweight.cli.verify import verify_epochs

    place = find_place(rpc, registry, model, dir, statements)
    spec = registered_spec(place, read_spec(spec_file) if spec_file is not None else None)
    done = []
    for each in verify_epochs(place, spec, epoch):
        done.append(each)
        if not as_json:
            _print(each)
    if as_json:
        print_json({"model_id": place.model_id, "verified": [_to_json(each) for each in done]})
    elif not done:
        typer.echo("No epoch has been proposed yet.")


def _print(each: "Verified") -> None:
    typer.echo(
        f"epoch {each.epoch}: {each.rounds} rounds, {each.reports} signed reports, {each.audits.total()} audits, "
        f"{each.accounts} accounts, all as stated{'' if each.final else ' (pending)'}"
    )
    fields: dict[str, object] = {}
    if each.audits:
        fields["  audits"] = format_audits(each.audits)
    fields |= {f"  {name}": value for name, value in (each.panels.fields() | each.answers.fields()).items()}
    if each.unpaid_reports:
        fields["  unpaid"] = f"{each.unpaid_reports} reports, {format_engineering(each.unpaid_units)} FLOPs"
    if each.convicted:
        fields["  convicted"] = [f"stage {provider.stage}, node {provider.node}" for provider in each.convicted]
    if each.outstanding:
        fields["  outstanding"] = [
            f"stage {due.stage}, node {due.node}: a withheld {due.kind} audit" for due in each.outstanding
        ]
    print_fields(fields)


def _to_json(each: "Verified") -> dict[str, Any]:
    return {
        "epoch": each.epoch,
        "final": each.final,
        "rounds": each.rounds,
        "reports": each.reports,
        "audits": [
            {"kind": kind, "verdict": verdict, "count": count} for (kind, verdict), count in sorted(each.audits.items())
        ],
        **each.panels.facts(),
        **each.answers.facts(),
        "unpaid_reports": each.unpaid_reports,
        "unpaid_units": str(each.unpaid_units),
        "convicted": [provider.model_dump() for provider in each.convicted],
        "outstanding": [due.model_dump() for due in each.outstanding],
        "accounts": each.accounts,
        "statement_hash": "0x" + each.statement_hash.hex(),
    }
