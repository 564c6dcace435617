"""An epoch's statement, made and checked: from reports, audits and served tokens to what everyone is owed."""

from collections.abc import Callable, Iterable, Sequence

from commonweight.errors import StatementMismatch
from commonweight.rules.accounting import MAX_ACCUMULATOR, divide_shares, next_balances
from commonweight.rules.audits import (
    NO_EVIDENCE,
    Audit,
    Kind,
    Verdict,
    draw_audits,
    left_outstanding,
    paid_rounds,
    verdict_receipt,
)
from commonweight.rules.beacon import follows, round_beacon, round_root
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import Report, round_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_units
from commonweight.rules.statement import (
    AccountLine,
    AuditLine,
    Carried,
    Conviction,
    CreditedReport,
    Outstanding,
    SealedRound,
    ServedLine,
    Statement,
    to_hex,
)

MAX_OPERATOR_POOL = 2**256 - 1
"""The contracts count revenue in a uint256; a statement can write more."""


def credit_report(
    spec: ModelSpec, report: Report, *, node: str, account: str, generation: int, signature: bytes
) -> CreditedReport:
    """The line of a report, with the units that the spec says it is worth if it survives its audits."""
    return CreditedReport(
        stage=report.stage,
        node=node,
        account=account,
        generation=generation,
        hops_root=to_hex(report.hops_root),
        gradient_hash=to_hex(report.gradient_hash),
        state_before=to_hex(report.state_before),
        state_after=to_hex(report.state_after),
        signature=to_hex(signature),
        units=str(report_units(spec, report.stage)),
    )


def credited_receipt(model_id: bytes, round_: int, line: CreditedReport, beacon_tip: bytes) -> Receipt:
    """What the provider of a credited line has signed."""
    commitments = (line.hops_root, line.gradient_hash, line.state_before, line.state_after)
    hashes = (*(bytes.fromhex(text[2:]) for text in commitments), beacon_tip)
    return round_receipt(model_id, line.generation, round_, line.stage, hashes)


def report_units(spec: ModelSpec, stage: int) -> int:
    """Units of one stage for a whole round."""
    return stage_units(spec, stage) * spec.training.microbatches_per_round


def drawn_audits(spec: ModelSpec, sealed: SealedRound, beacon_tip: bytes) -> tuple[Audit, ...]:
    """The audits that a sealed round's beacon draws, in order."""
    outputs = [credited_receipt(bytes(32), sealed.round, line, beacon_tip).output for line in sealed.reports]
    beacon = round_beacon(bytes.fromhex(sealed.beacon[2:]), round_root(outputs))
    return draw_audits(spec, sealed.round, beacon)


def audit_line(
    model_id: bytes,
    audit: Audit,
    verdict: Verdict,
    *,
    auditor: str,
    sign: Callable[[Receipt], bytes],
    evidence_hash: bytes = NO_EVIDENCE,
) -> AuditLine:
    """The line of an audit, signed by its auditor."""
    return AuditLine(
        round=audit.round,
        stage=audit.stage,
        kind=audit.kind.value,
        microbatch=audit.microbatch,
        verdict=verdict.value,
        evidence=to_hex(evidence_hash),
        auditor=auditor,
        signature=to_hex(sign(verdict_receipt(model_id, audit, verdict, evidence_hash))),
    )


def audit_receipt(model_id: bytes, line: AuditLine) -> Receipt:
    """What the auditor of a line has signed."""
    return verdict_receipt(model_id, line.audit, Verdict(line.verdict), bytes.fromhex(line.evidence[2:]))


def convictions(rounds: Iterable[SealedRound], audits: Iterable[AuditLine]) -> frozenset[Conviction]:
    """Whose fraud these audits have proven."""
    nodes = {(sealed.round, line.stage): line.node for sealed in rounds for line in sealed.reports}
    return frozenset(
        Conviction(stage=line.stage, node=nodes[line.round, line.stage])
        for line in audits
        if Verdict(line.verdict) is Verdict.FAILED and (line.round, line.stage) in nodes
    )


def paid_reports(
    rounds: Iterable[SealedRound], audits: Sequence[AuditLine], before: Carried
) -> frozenset[tuple[int, int]]:
    """Round and stage of the reports that are paid."""
    paid: set[tuple[int, int]] = set()
    for provider, numbers in _reported(rounds).items():
        if provider not in before.convicted:
            kinds = _outstanding_of(provider, before)
            paid |= {(each, provider.stage) for each in paid_rounds(numbers, _own(provider, numbers, audits), kinds)}
    return frozenset(paid)


def outstanding_audits(
    rounds: Iterable[SealedRound], audits: Sequence[AuditLine], before: Carried
) -> frozenset[Outstanding]:
    """What every provider still has to pass after the epoch; those who reported nothing in it, what they had before."""
    reported = _reported(rounds)
    due = {each for each in before.outstanding if Conviction(stage=each.stage, node=each.node) not in reported}
    for provider, numbers in reported.items():
        kinds = left_outstanding(_own(provider, numbers, audits), _outstanding_of(provider, before))
        due |= {Outstanding(stage=provider.stage, node=provider.node, kind=kind.value) for kind in kinds}
    return frozenset(due)


def _reported(rounds: Iterable[SealedRound]) -> dict[Conviction, list[int]]:
    """The rounds that each provider of a stage has reported, ascending."""
    reported: dict[Conviction, list[int]] = {}
    for sealed in rounds:
        for line in sealed.reports:
            reported.setdefault(Conviction(stage=line.stage, node=line.node), []).append(sealed.round)
    return reported


def _own(provider: Conviction, rounds: Sequence[int], audits: Iterable[AuditLine]) -> dict[Audit, Verdict]:
    lines = (line for line in audits if line.stage == provider.stage and line.round in rounds)
    return {line.audit: Verdict(line.verdict) for line in lines}


def _outstanding_of(provider: Conviction, before: Carried) -> frozenset[Kind]:
    due = (each for each in before.outstanding if (each.stage, each.node) == (provider.stage, provider.node))
    return frozenset(Kind(each.kind) for each in due)


def make_statement(
    spec: ModelSpec,
    *,
    chain_id: int,
    settlement: str,
    model_id: bytes,
    epoch: int,
    beacon_tip: bytes,
    rounds: Sequence[SealedRound],
    audits: Sequence[AuditLine],
    served: Sequence[ServedLine],
    operator_earned: int,
    before: Carried,
    accumulator_before: int,
) -> Statement:
    """The statement of an epoch with these sealed rounds, all the audits that were drawn in them, and served tokens.

    Of what the epoch may mint it mints the part of the work that is paid: so nobody gains by what another isn't paid.
    `operator_earned` is all that the revenue router had ever set aside for operators when the epoch closed. What is not
    divided yet is divided by served tokens · the stage's work per token; where nobody served, it waits.
    `accumulator_before` is what the chain recorded when the epoch before was finalised. Raises ValueError where less
    was earned than is divided already.
    """
    paid = paid_reports(rounds, audits, before)
    rounds = [_with_units(spec, sealed, paid) for sealed in rounds]
    units: dict[str, int] = {}
    done = 0
    for sealed in rounds:
        for report in sealed.reports:
            units[report.account] = units.get(report.account, 0) + int(report.units)
            done += report_units(spec, report.stage)
    minted = emission(spec.economics, epoch) * sum(units.values()) // done if done else 0
    compute = split_emission(minted, spec.economics.designer_bps, spec.economics.data_bps).compute
    shares = divide_shares(compute, units) if any(units.values()) else dict.fromkeys(units, 0)
    divided = before.operator_revenue
    if operator_earned < divided:
        raise ValueError(f"operators have earned {operator_earned}; {divided} is divided among them already")
    weights = serving_units(spec, served)
    revenue = divide_shares(operator_earned - divided, weights) if weights else {}
    balances = next_balances(before.balances, shares, revenue, accumulator_before)
    accounts = tuple(
        AccountLine(
            account=account,
            units=str(units.get(account, 0)),
            shares=str(balance.epoch_shares),
            cumulative_shares=str(balance.cumulative_shares),
            debt_before=str(balance.debt_before),
            operator_revenue=str(balance.operator_revenue),
        )
        for account, balance in sorted(balances.items())
    )
    convicted = before.convicted | convictions(rounds, audits)
    outstanding = outstanding_audits(rounds, audits, before)
    draft = Statement(
        format="commonweight.statement/3",
        chain_id=chain_id,
        settlement=settlement,
        model_id=to_hex(model_id),
        spec_hash=to_hex(spec.spec_hash),
        epoch=epoch,
        minted=str(minted),
        compute_shares=str(compute),
        accumulator_before=str(accumulator_before),
        beacon_tip=to_hex(beacon_tip),
        rounds=tuple(rounds),
        audits=tuple(audits),
        convicted=tuple(sorted(convicted, key=lambda each: (each.stage, each.node))),
        outstanding=tuple(sorted(outstanding, key=lambda each: (each.stage, each.node, each.kind))),
        served=tuple(served),
        operator_pool=str(divided + sum(revenue.values())),
        accounts=accounts,
        root=to_hex(bytes(32)),
    )
    return draft.model_copy(update={"root": to_hex(draft.tree().root)})


def _with_units(spec: ModelSpec, sealed: SealedRound, paid: frozenset[tuple[int, int]]) -> SealedRound:
    reports = (
        line.model_copy(
            update={"units": str(report_units(spec, line.stage) if (sealed.round, line.stage) in paid else 0)}
        )
        for line in sealed.reports
    )
    return sealed.model_copy(update={"reports": tuple(reports)})


def serving_units(spec: ModelSpec, served: Iterable[ServedLine]) -> dict[str, int]:
    """What each account's serving weighs: its tokens times its stage's work units."""
    weights: dict[str, int] = {}
    for line in served:
        weights[line.account] = weights.get(line.account, 0) + line.tokens * stage_units(spec, line.stage)
    return weights


def check_statement(spec: ModelSpec, statement: Statement, before: Carried) -> None:
    """Recompute a statement from its reports and verdicts. Raises StatementMismatch that names the first wrong number.

    Signatures are not checked here, nor whether the chain has this root, this beacon tip, and has earned this operator
    pool: the caller holds keys and chain.
    """
    if statement.spec_hash != to_hex(spec.spec_hash):
        raise StatementMismatch(f"The statement is of spec {statement.spec_hash}, not {to_hex(spec.spec_hash)}.")
    accumulator = int(statement.accumulator_before)
    if accumulator > MAX_ACCUMULATOR or (statement.epoch == 0 and accumulator):
        raise StatementMismatch(
            f"Epoch {statement.epoch} can't follow one that was finalised at the accumulator {accumulator}."
        )
    _check_rounds(spec, statement, before)
    _check_draws(spec, statement)
    _check_served(spec, statement, before)
    try:
        again = make_statement(
            spec,
            chain_id=statement.chain_id,
            settlement=statement.settlement,
            model_id=bytes.fromhex(statement.model_id[2:]),
            epoch=statement.epoch,
            beacon_tip=bytes.fromhex(statement.beacon_tip[2:]),
            rounds=statement.rounds,
            audits=statement.audits,
            served=statement.served,
            operator_earned=int(statement.operator_pool),
            before=before,
            accumulator_before=accumulator,
        )
    except ValueError as error:
        raise StatementMismatch(
            f"Epoch {statement.epoch} can't follow the balances before it, which no contract holds: "
            f"{' '.join(str(error).split()):.200}"
        ) from error
    for stated, due in zip(statement.rounds, again.rounds, strict=True):
        for line, right in zip(stated.reports, due.reports, strict=True):
            if line != right:
                raise StatementMismatch(
                    f"Round {stated.round} credits stage {line.stage} with {line.units} units; by the spec and the "
                    f"audits it is worth {right.units}."
                )
    for found, recomputed in zip(statement.accounts, again.accounts, strict=False):
        if found != recomputed:
            raise StatementMismatch(
                f"Epoch {statement.epoch}: a line reads {found!r}; recomputed it is {recomputed!r}."
            )
    for name in ("convicted", "outstanding", "minted", "compute_shares", "accounts", "root"):
        if getattr(again, name) != getattr(statement, name):
            raise StatementMismatch(
                f"Epoch {statement.epoch}: {name} is {getattr(statement, name)!r:.200}; recomputed it is "
                f"{getattr(again, name)!r:.200}."
            )


def _check_rounds(spec: ModelSpec, statement: Statement, before: Carried) -> None:
    """Every round of the epoch, in order, each stage once, each stage going on from where it was."""
    first = statement.epoch * spec.economics.rounds_per_epoch
    expected = range(first, first + spec.economics.rounds_per_epoch)
    sealed_rounds = [sealed.round for sealed in statement.rounds]
    if len(sealed_rounds) != len(expected) or sealed_rounds != list(expected):
        raise StatementMismatch(f"Epoch {statement.epoch} has rounds {expected[0]} to {expected[-1]}.")
    for sealed in statement.rounds:
        if [report.stage for report in sealed.reports] != list(range(spec.stages)):
            raise StatementMismatch(f"Round {sealed.round} doesn't credit each of {spec.stages} stages once.")
    generations = [report.generation for sealed in statement.rounds for report in sealed.reports]
    if generations != sorted(generations) or any(
        len({report.generation for report in sealed.reports}) != 1 for sealed in statement.rounds
    ):
        raise StatementMismatch(
            f"Epoch {statement.epoch} has reports of generations {generations!r:.200}: a round is sealed in one, and "
            "they never go back."
        )
    states = dict(before.states)
    for sealed in statement.rounds:
        for report in sealed.reports:
            if (left := states.get(report.stage, report.state_before)) != report.state_before:
                raise StatementMismatch(
                    f"Round {sealed.round} begins stage {report.stage} from state {report.state_before}; the round "
                    f"before it left it at {left}."
                )
            states[report.stage] = report.state_after


def _check_draws(spec: ModelSpec, statement: Statement) -> None:
    """The values come from the tip, exactly what they draw was audited, and no fraud is without evidence."""
    tip = bytes.fromhex(statement.beacon_tip[2:])
    last = tip
    drawn: list[Audit] = []
    for sealed in statement.rounds:
        value = bytes.fromhex(sealed.beacon[2:])
        if not follows(value, last):
            raise StatementMismatch(
                f"Round {sealed.round} has the beacon value {sealed.beacon}, which doesn't hash to {to_hex(last)}, the "
                "one before it: its audits were not chosen by the chain that was committed."
            )
        drawn += drawn_audits(spec, sealed, tip)
        last = value
    listed = [line.audit for line in statement.audits]
    for found, due in zip(listed, drawn, strict=False):
        if found != due:
            raise StatementMismatch(f"Epoch {statement.epoch} lists {found}; next to be drawn was {due}.")
    if len(listed) != len(drawn):
        raise StatementMismatch(
            f"Epoch {statement.epoch} lists {len(listed)} audits; its beacon values draw {len(drawn)}."
        )
    for line in statement.audits:
        if (Verdict(line.verdict) is Verdict.FAILED) != (line.evidence != to_hex(NO_EVIDENCE)):
            raise StatementMismatch(
                f"Epoch {statement.epoch}: {line.audit} {line.verdict}, with the evidence {line.evidence}. Fraud has "
                "evidence, and nothing else has."
            )


def _check_served(spec: ModelSpec, statement: Statement, before: Carried) -> None:
    """Lines in order, of stages that there are; and a pool that can have come from the one before."""
    keys = [(line.stage, line.node, line.account) for line in statement.served]
    if keys != sorted(set(keys)) or any(line.stage >= spec.stages for line in statement.served):
        raise StatementMismatch(
            f"Epoch {statement.epoch}: the lines of what was served aren't one for each stage, node and account, in "
            f"that order, of stages 0 to {spec.stages - 1}."
        )
    pool, divided = int(statement.operator_pool), before.operator_revenue
    if pool < divided or pool > MAX_OPERATOR_POOL or (pool > divided and not statement.served):
        raise StatementMismatch(
            f"Epoch {statement.epoch} divides {pool} among operators, after {divided} before it, for "
            f"{len(statement.served)} lines of served tokens."
        )
