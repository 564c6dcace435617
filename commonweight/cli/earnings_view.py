"""What `commonweight earnings` says about an epoch with all its sources, to people and to programs."""

from dataclasses import asdict
from typing import Any

import typer

from commonweight.cli.earned import Earned, Identity
from commonweight.cli.explain import Explanation
from commonweight.cli.history import status_text
from commonweight.cli.output import format_amount, format_audits, format_percent, print_fields
from commonweight.cli.place import Place

RECEIPTS_SHOWN = 3


def print_explanation(place: Place, each: Earned, why: Explanation) -> None:
    typer.echo(f"Epoch {each.epoch}: {format_amount(each.shares) if each.is_known else '?'} shares")
    if each.why_nothing:
        typer.echo(f"  {each.nothing}, because {each.why_nothing}")
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


def _work_fields(each: Earned, why: Explanation) -> dict[str, object]:
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
    return (
        {"  assigned": work or "nothing", "  signed": receipts} | _audit_fields(each, why) | _opinion_fields(each, why)
    )


def _audit_fields(each: Earned, why: Explanation) -> dict[str, object]:
    audited, unpaid, answers = [], [], []
    for work in each.audited:
        who = f"stage {work.provider.stage}, node {work.provider.node}: "
        counts = f"; {format_audits(work.counts)}" if work.audits else ""
        audited.append(f"{who}{work.audited_rounds} of {len(work.rounds)} rounds{counts}")
        unpaid += [f"{who}{reason.span}, {reason.why}" for reason in work.unpaid]
        unpaid += [f"{who}answers of {reason.span}, {reason.why}" for reason in work.unpaid_answers]
        if work.answers:
            answers.append(f"{who}{work.answers:,} sealed, {work.answer_tokens:,} tokens")
    return {"  audited": audited or "nothing", "  unpaid": unpaid or "nothing"} | _answer_fields(answers, why)


def _answer_fields(answers: list[str], why: Explanation) -> dict[str, object]:
    """What went through its stages for buyers; nothing where nothing did."""
    if not answers:
        return {}
    wrong = sum(not answer.holds for answer in why.answers)
    verdict = "each signed by its node" if not wrong else f"{wrong} NOT SIGNED by the node that is credited"
    return {"  answers": [*answers, f"{len(why.answers):,} parts credited to the account, {verdict}"]}


def _opinion_fields(each: Earned, why: Explanation) -> dict[str, object]:
    """What it said of others' work; nothing where it said nothing."""
    if not each.opinions:
        return {}
    said, unpaid = [], []
    for opinions in each.opinions:
        who = f"stage {opinions.auditor.stage}, auditor {opinions.auditor.node}: "
        paid_to = "" if opinions.account == each.account else f", paid to {opinions.account}"
        said.append(f"{who}{opinions.paid} of {len(opinions.lines)} opinions paid, {opinions.units:,} units{paid_to}")
        unpaid += [f"{who}{reason.span}: {reason.why}" for reason in opinions.unpaid]
    wrong = sum(not opinion.holds for opinion in why.opinions)
    verdict = "each signed by its auditor" if not wrong else f"{wrong} NOT SIGNED by their auditor"
    said.append(f"{len(why.opinions)} opinions in all, {verdict}")
    units = f"{each.trained_units:,} by training, {each.audited_units:,} by audits"
    return {"  opinions": said, **({"  unpaid opinions": unpaid} if unpaid else {}), "  units": units}


def _share_fields(each: Earned, why: Explanation) -> dict[str, object]:
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


def _revenue_fields(place: Place, each: Earned, why: Explanation) -> dict[str, object]:
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


def earnings_json(
    place: Place, identity: Identity, found: list[Earned], explanations: list[Explanation | None]
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
                "opinions": [
                    {
                        "stage": opinions.auditor.stage,
                        "auditor": opinions.auditor.node,
                        "account": opinions.account,
                        "opinions": len(opinions.lines),
                        "paid_opinions": opinions.paid,
                        "units": str(opinions.units),
                    }
                    for opinions in each.opinions
                ],
                "trained_units": str(each.trained_units),
                "audited_units": str(each.audited_units),
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


def _sources(each: Earned, why: Explanation) -> dict[str, Any]:
    proposal, proof = each.proposal, why.proof
    return {
        "receipts": [
            {
                "round": receipt.round,
                "stage": receipt.stage,
                "generation": receipt.generation,
                "load": receipt.load,
                "node": receipt.node,
                "unit": "0x" + receipt.unit.hex(),
                "output": "0x" + receipt.output.hex(),
                "signature": receipt.signature,
                "signer": receipt.signer,
                "holds": receipt.holds,
            }
            for receipt in why.receipts
        ],
        "answers": [
            {
                "round": answer.round,
                "stage": answer.stage,
                "node": answer.node,
                "tokens": answer.line.delivered,
                **answer.line.model_dump(include={"session", "version", "gateway"}),
                **answer.part.model_dump(),
                "holds": answer.holds,
            }
            for answer in why.answers
        ],
        "audits": [{**line.model_dump(), "node": work.provider.node} for work in each.audited for line in work.audits],
        "opinions": [
            {
                **signed.line.model_dump(include={"round", "stage", "replica", "kind", "microbatch"}),
                **signed.opinion.model_dump(),
                "standing": signed.line.standing_of(signed.opinion).value,
                "holds": signed.holds,
            }
            for signed in why.opinions
        ],
        "unpaid_opinions": [
            {
                "stage": opinions.auditor.stage,
                "auditor": opinions.auditor.node,
                "audits": [str(audit) for audit in reason.audits],
                "why": reason.why,
            }
            for opinions in each.opinions
            for reason in opinions.unpaid
        ],
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
        "unpaid_answers": [
            {
                "stage": work.provider.stage,
                "node": work.provider.node,
                "rounds": list(reason.rounds),
                "why": reason.why,
            }
            for work in each.audited
            for reason in work.unpaid_answers
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
