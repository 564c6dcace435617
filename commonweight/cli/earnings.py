"""`commonweight earnings`: from assigned work through verified work to shares and revenue, and where each number is
from."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

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
    format_audits,
    format_percent,
    format_rounded,
    print_fields,
    print_json,
    print_table,
)
from commonweight.errors import ConfigError

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.earned import Earned, Identity
    from commonweight.cli.explain import Explanation
    from commonweight.cli.place import Place

RECEIPTS_SHOWN = 3

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

    Needs no key. Prints a line for each epoch: the rounds that were credited to the account, their part of
    everybody's work, the shares that it brought and whether they are claimed, the revenue that these shares have
    earned, what it served and what it got for that. Where an epoch brought nothing, it says why. With --explain every
    step is shown with its source, which is checked: the receipts that the node has signed, the public statement and
    its line, the proof against the root on the chain, and the transactions; besides, which audits touched the work,
    what they came to, and which rounds are unpaid and why. With --json all receipts and audits are listed.

    \b
    Examples:
      commonweight earnings 0x7099… --dir runs/first
      commonweight earnings 0x7099… --epoch 0 --explain --dir runs/first
    """
    from commonweight.cli.earned import earned_by, identity_of
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
        print_json(_to_json(place, identity, found, explanations))
        return
    _print_summary(place, identity, found)
    for each, explanation in zip(found, explanations, strict=True):
        if explanation is not None:
            typer.echo()
            _print_explanation(place, each, explanation)
    if not why:
        for each in found:
            if each.why_nothing:
                typer.echo(f"epoch {each.epoch}: {_nothing(each)}, because {each.why_nothing}.")


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
    header = ("epoch", "status", "rounds", "of all work", "shares", "", f"{token.symbol} by them", "tokens served")
    rows = [
        (
            each.epoch,
            each.status,
            _rounds(each),
            format_percent(each.units, each.all_units),
            format_rounded(each.shares) if each.is_known else "?",
            _state(each),
            token.rounded(each.revenue),
            f"{each.tokens:,}",
            token.rounded(each.serving_revenue),
        )
        for each in found
    ]
    print_table((*header, f"{token.symbol} by serving"), rows, right="r rrr rrr")


def _rounds(each: "Earned") -> str:
    rounds, unpaid = sum(work.rounds for work in each.credited), sum(work.unpaid for work in each.credited)
    return f"{rounds}, {unpaid} unpaid" if unpaid else f"{rounds}"


def _nothing(each: "Earned") -> str:
    return "nothing" if each.is_known else "unknown"


def _state(each: "Earned") -> str:
    if not each.shares:
        return ""
    if each.status != "final":
        return "not minted yet"
    return "claimed" if each.claimed else "claimable"


def _print_explanation(place: "Place", each: "Earned", why: "Explanation") -> None:
    from commonweight.cli.history import status_text

    typer.echo(f"Epoch {each.epoch}: {format_amount(each.shares) if each.is_known else '?'} shares")
    if each.why_nothing:
        typer.echo(f"  {_nothing(each)}, because {each.why_nothing}")
    if each.proposal is None:
        return
    fields: dict[str, object] = {"  status": status_text(each.proposal, place.chain.timestamp())}
    if each.published is not None:
        fields |= _work_fields(each, why) | _share_fields(each, why)
    fields["  proposed"] = f"transaction {each.proposal.proposed.transaction}"
    if each.proposal.final is not None:
        fields["  finalised"] = f"transaction {each.proposal.final.transaction}"
        fields |= _revenue_fields(place, each, why)
    print_fields(fields)


def _work_fields(each: "Earned", why: "Explanation") -> dict[str, object]:
    work = [
        f"stage {work.stage}, node {work.node}: {work.rounds} of {each.rounds} rounds"
        + ("" if work.account == each.account else f", paid to {work.account}")
        for work in each.work
    ]
    receipts = [
        f"round {receipt.round}, generation {receipt.generation}: unit 0x{receipt.unit.hex()} output "
        f"0x{receipt.output.hex()}, " + ("signed by its node" if receipt.holds else f"SIGNED BY {receipt.signer}")
        for receipt in why.receipts[:RECEIPTS_SHOWN]
    ]
    wrong = sum(not receipt.holds for receipt in why.receipts)
    verdict = "each signed by its node" if not wrong else f"{wrong} NOT SIGNED by the node that is credited"
    receipts.append(f"{len(why.receipts)} receipts in all, {verdict}" if why.receipts else "no receipt")
    return {"  assigned": work or "nothing", "  signed": receipts} | _audit_fields(each)


def _audit_fields(each: "Earned") -> dict[str, object]:
    audited, unpaid = [], []
    for work in each.audited:
        who = f"stage {work.provider.stage}, node {work.provider.node}: "
        counts = f"; {format_audits(work.counts)}" if work.audits else ""
        audited.append(f"{who}{work.audited_rounds} of {len(work.rounds)} rounds{counts}")
        unpaid += [f"{who}{reason.span}, {reason.why}" for reason in work.unpaid]
    return {"  audited": audited or "nothing", "  unpaid": unpaid or "nothing"}


def _share_fields(each: "Earned", why: "Explanation") -> dict[str, object]:
    assert each.published is not None, "only asked where there is a statement"
    statement = f"0x{each.published.epoch.statement_hash.hex()}"
    if why.proof is None:
        return {"  statement": f"{statement}, which has no line for the account"}
    line = each.published.statement.accounts[why.proof.line]
    proof = "leads to the root" if why.proof.holds else "DOES NOT LEAD to the root"
    return {
        "  statement": f"{statement}, line {why.proof.line} of its accounts",
        "  shares": [
            f"{each.units:,} of {each.all_units:,} units, {format_percent(each.units, each.all_units)} of "
            f"{format_amount(each.compute_shares)} shares: {format_amount(each.shares)}",
            f"{format_amount(int(line.cumulative_shares))} in all epochs so far",
        ],
        "  proof": f"{len(why.proof.siblings)} hashes from leaf 0x{why.proof.leaf.hex()}; it {proof} "
        f"0x{why.proof.root.hex()} on the chain",
    }


def _revenue_fields(place: "Place", each: "Earned", why: "Explanation") -> dict[str, object]:
    final = each.proposal.final if each.proposal is not None else None
    assert final is not None, "only asked of a final epoch"
    token = place.revenue_token
    claimed = "–" if not each.shares else "not yet: `commonweight claim`"
    if why.claim is not None:
        claimed = f"transaction {why.claim.transaction}, with all up to epoch {why.claim.epoch}"
    fields: dict[str, object] = {"  claimed": claimed}
    if each.shares:
        fields["  revenue"] = (
            f"{token.show(each.revenue)}: shares · (accumulator now − {final.accumulator} when the epoch became "
            "final) / 2^96"
        )
    fields["  served"] = f"{each.tokens:,} tokens, for {token.show(each.serving_revenue)}"
    fields["  paid for it"] = (
        [
            f"{token.show(payment.amount)} up to epoch {payment.epoch}, transaction {payment.transaction}"
            for payment in why.payments
        ]
        or "nothing yet: `commonweight revenue withdraw`" * bool(each.serving_revenue)
        or "–"
    )
    return fields


def _to_json(
    place: "Place", identity: "Identity", found: "list[Earned]", explanations: "list[Explanation | None]"
) -> dict[str, Any]:
    return {
        "model_id": place.model_id,
        "account": identity.account,
        "owners": list(identity.owners),
        "nodes": list(identity.nodes),
        "revenue_token": asdict(place.revenue_token),
        "held": str(place.shares.balance_of(identity.account)),
        "epochs": [
            {
                "epoch": each.epoch,
                "status": each.status,
                "rounds": each.rounds,
                "work": [
                    {
                        "stage": work.stage,
                        "node": work.node,
                        "account": work.account,
                        "rounds": work.rounds,
                        "unpaid_rounds": work.unpaid,
                        "units": str(work.units),
                    }
                    for work in each.work
                ],
                "units": str(each.units),
                "all_units": str(each.all_units),
                "compute_shares": str(each.compute_shares),
                "shares": str(each.shares) if each.is_known else None,
                "claimed": each.claimed,
                "revenue": str(each.revenue),
                "served_tokens": each.tokens,
                "serving_revenue": str(each.serving_revenue),
                "why_nothing": each.why_nothing,
                **({} if why is None else {"sources": _sources(each, why)}),
            }
            for each, why in zip(found, explanations, strict=True)
        ],
    }


def _sources(each: "Earned", why: "Explanation") -> dict[str, Any]:
    proposal, proof = each.proposal, why.proof
    return {
        "receipts": [
            {
                "round": receipt.round,
                "stage": receipt.stage,
                "generation": receipt.generation,
                "node": receipt.node,
                "unit": "0x" + receipt.unit.hex(),
                "output": "0x" + receipt.output.hex(),
                "signature": receipt.signature,
                "signer": receipt.signer,
                "holds": receipt.holds,
            }
            for receipt in why.receipts
        ],
        "audits": [{**line.model_dump(), "node": work.provider.node} for work in each.audited for line in work.audits],
        "unpaid": [
            {
                "stage": work.provider.stage,
                "node": work.provider.node,
                "rounds": list(reason.rounds),
                "why": reason.why,
            }
            for work in each.audited
            for reason in work.unpaid
        ],
        "statement": None if each.published is None else f"0x{each.published.epoch.statement_hash.hex()}",
        "proof": None
        if proof is None
        else {
            "line": proof.line,
            "leaf": "0x" + proof.leaf.hex(),
            "root": "0x" + proof.root.hex(),
            "siblings": ["0x" + sibling.hex() for sibling in proof.siblings],
            "holds": proof.holds,
        },
        "proposed_in": None if proposal is None else proposal.proposed.transaction,
        "finalized_in": None if proposal is None or proposal.final is None else proposal.final.transaction,
        "claimed_in": None if why.claim is None else why.claim.transaction,
        "serving_payments": [
            {"epoch": payment.epoch, "amount": str(payment.amount), "transaction": payment.transaction}
            for payment in why.payments
        ],
    }
