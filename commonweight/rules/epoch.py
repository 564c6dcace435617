"""An epoch's statement: from reports, answers and audits to what everyone is owed."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from math import ceil

from commonweight.rules.accounting import divide_shares, next_balances
from commonweight.rules.audits import (
    NO_EVIDENCE,
    TRAINING,
    Audit,
    Kind,
    Verdict,
    draw_audits,
    left_outstanding,
    paid_rounds,
)
from commonweight.rules.beacon import blinded, hash_chain, round_beacon, round_root, seal_salt
from commonweight.rules.emission import emission, split_emission
from commonweight.rules.panel import Owner, Standing, audit_units, opinion_receipt, rank_auditors
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import Report, round_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.rules.stages import stage_units
from commonweight.rules.statement import (
    AccountLine,
    AuditLine,
    AuditorSeat,
    Carried,
    Conviction,
    CreditedReport,
    EquivocationLine,
    Opinion,
    Outstanding,
    SealedRound,
    ServedLine,
    Statement,
    to_hex,
)

ANSWERS_BYTES = 24 * 1024 * 1024
"""Of a statement's 64 MiB, for answers and their audits."""
ANSWER_BYTES, PART_BYTES, AUDIT_BYTES = 512, 256, 1024
"""Of an answer's line, of each of its parts, and of the line of an audit of such a part: at most."""


def answers_per_round(spec: ModelSpec) -> int:
    """So many are sealed with a round at most; the next ones wait for the next round."""
    part = PART_BYTES + ceil(AUDIT_BYTES * Fraction(spec.verification.answer_rate))
    return max(1, ANSWERS_BYTES // (ANSWER_BYTES + spec.stages * part) // spec.economics.rounds_per_epoch)


def credit_report(
    spec: ModelSpec, report: Report, *, node: str, owner: str, account: str, generation: int, signature: bytes
) -> CreditedReport:
    """The line of a report, with the units that the spec says it is worth if it survives its audits."""
    return CreditedReport(
        stage=report.stage,
        node=node,
        owner=owner,
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


def sealed_commitments(sealed: SealedRound, beacon_tip: bytes, seed: bytes) -> list[bytes]:
    """What the providers have signed in the round, blinded, in stage order; `seed` is the epoch's."""
    return [
        blinded(
            credited_receipt(bytes(32), sealed.round, line, beacon_tip).output,
            seal_salt(seed, sealed.round, line.stage),
        )
        for line in sealed.reports
    ]


def sealed_beacon(sealed: SealedRound, beacon_tip: bytes, seed: bytes) -> bytes:
    """What chooses the round's audits, and who does them."""
    root = round_root(sealed_commitments(sealed, beacon_tip, seed))
    return round_beacon(bytes.fromhex(sealed.beacon[2:]), root)


def drawn_audits(spec: ModelSpec, sealed: SealedRound, beacon_tip: bytes, seed: bytes) -> tuple[Audit, ...]:
    """The audits that a sealed round's beacon draws, in order."""
    beacon = sealed_beacon(sealed, beacon_tip, seed)
    return draw_audits(spec, sealed.round, beacon, len(sealed.answers), sealed.answers_root)


def drawn_auditors(
    sealed: SealedRound, audit: Audit, beacon: bytes, auditors: Iterable[AuditorSeat]
) -> tuple[Owner, ...]:
    """Who is to audit a unit of the round with this beacon, the first choice first, of an epoch with these seats."""
    provider = sealed.reports[audit.stage].owner
    return rank_auditors(beacon, audit, {seat.owner for seat in auditors if seat.stage == audit.stage} - {provider})


def make_opinion(
    claim: bytes,
    verdict: Verdict,
    *,
    auditor: str,
    signature: bytes,
    owner: str | None = None,
    account: str | None = None,
    evidence_hash: bytes = NO_EVIDENCE,
) -> Opinion:
    """An opinion. `signature`: over its `opinion_receipt`. Without `owner` and `account` it is the referee's."""
    return Opinion(
        auditor=auditor,
        owner=owner,
        account=account,
        claim=to_hex(claim),
        verdict=verdict.value,
        evidence=to_hex(evidence_hash),
        disproof=to_hex(NO_EVIDENCE),
        units="0",
        signature=to_hex(signature),
    )


def audit_line(audit: Audit, verdict: Verdict, opinions: Iterable[Opinion]) -> AuditLine:
    """The line of an audit that was decided by these opinions."""
    return AuditLine(
        round=audit.round,
        stage=audit.stage,
        kind=audit.kind.value,
        microbatch=audit.microbatch,
        verdict=verdict.value,
        opinions=tuple(opinions),
    )


def signed_receipt(model_id: bytes, audit: Audit, opinion: Opinion) -> Receipt:
    """What the auditor has signed."""
    claim, evidence = bytes.fromhex(opinion.claim[2:]), bytes.fromhex(opinion.evidence[2:])
    return opinion_receipt(model_id, audit, claim, Verdict(opinion.verdict), evidence)


def convictions(
    rounds: Iterable[SealedRound], audits: Iterable[AuditLine], equivocations: Iterable[EquivocationLine]
) -> frozenset[Conviction]:
    """Whose fraud is proven: work that failed its audit, opinions that were disproven, two results of one unit."""
    nodes = {(sealed.round, line.stage): line.node for sealed in rounds for line in sealed.reports}
    found = {Conviction(stage=line.stage, node=line.node) for line in equivocations}
    for line in audits:
        if Verdict(line.verdict) is Verdict.FAILED and (line.round, line.stage) in nodes:
            found.add(Conviction(stage=line.stage, node=nodes[line.round, line.stage]))
        found |= {Conviction(stage=line.stage, node=opinion.auditor) for opinion in line.disproven}
    return frozenset(found)


def paid_reports(
    rounds: Iterable[SealedRound],
    audits: Sequence[AuditLine],
    before: Carried,
    convicted: frozenset[Conviction],
) -> frozenset[tuple[int, int]]:
    """Round and stage of the reports that are paid; who is `convicted` in the epoch isn't paid for any of it."""
    paid: set[tuple[int, int]] = set()
    for provider, numbers in _reported(rounds).items():
        if provider not in before.convicted | convicted:
            verdicts = _own(provider, numbers, audits, TRAINING)
            kinds = _outstanding_of(provider, before) & TRAINING
            paid |= {(each, provider.stage) for each in paid_rounds(numbers, verdicts, kinds)}
    return frozenset(paid)


def paid_answers(
    rounds: Sequence[SealedRound],
    audits: Sequence[AuditLine],
    before: Carried,
    convicted: frozenset[Conviction],
) -> tuple[ServedLine, ...]:
    """What every provider is paid for of the answers that were sealed with these rounds, by the same rule as its
    rounds: prompts and completions, as delivered.
    """
    tokens: Counter[tuple[int, str, str]] = Counter()
    answered = [sealed for sealed in rounds if sealed.answers]
    for provider, numbers in _reported(answered).items():
        if provider in before.convicted | convicted:
            continue
        verdicts = _own(provider, numbers, audits, {Kind.ANSWER})
        paid = paid_rounds(numbers, verdicts, _outstanding_of(provider, before) & {Kind.ANSWER})
        for sealed in (sealed for sealed in answered if sealed.round in paid):
            tokens[provider.stage, provider.node, sealed.reports[provider.stage].account] += sealed.delivered
    return tuple(
        ServedLine(stage=stage, node=node, account=account, tokens=count)
        for (stage, node, account), count in sorted(tokens.items())
    )


def paid_opinions(spec: ModelSpec, line: AuditLine, convicted: frozenset[Conviction]) -> AuditLine:
    """The line with the units that its opinions are worth."""

    def units(opinion: Opinion) -> int:
        is_due = opinion.owner is not None and line.standing_of(opinion) is Standing.PAID
        is_trusted = Conviction(stage=line.stage, node=opinion.auditor) not in convicted
        return audit_units(spec, line.audit) if is_due and is_trusted else 0

    opinions = (opinion.model_copy(update={"units": str(units(opinion))}) for opinion in line.opinions)
    return line.model_copy(update={"opinions": tuple(opinions)})


def outstanding_audits(
    rounds: Iterable[SealedRound], audits: Sequence[AuditLine], before: Carried
) -> frozenset[Outstanding]:
    """What every provider still has to pass after the epoch; those who reported nothing in it, what they had before."""
    reported = _reported(rounds)
    due = {each for each in before.outstanding if Conviction(stage=each.stage, node=each.node) not in reported}
    for provider, numbers in reported.items():
        verdicts = _own(provider, numbers, audits, frozenset(Kind))
        kinds = left_outstanding(verdicts, _outstanding_of(provider, before))
        due |= {Outstanding(stage=provider.stage, node=provider.node, kind=kind.value) for kind in kinds}
    return frozenset(due)


def _reported(rounds: Iterable[SealedRound]) -> dict[Conviction, list[int]]:
    """The rounds that each provider of a stage has reported, ascending."""
    reported: dict[Conviction, list[int]] = {}
    for sealed in rounds:
        for line in sealed.reports:
            reported.setdefault(Conviction(stage=line.stage, node=line.node), []).append(sealed.round)
    return reported


def _own(
    provider: Conviction, rounds: Sequence[int], audits: Iterable[AuditLine], kinds: Collection[Kind]
) -> dict[Audit, Verdict]:
    lines = (line for line in audits if line.stage == provider.stage and line.round in rounds)
    return {line.audit: Verdict(line.verdict) for line in lines if Kind(line.kind) in kinds}


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
    beacon_seed: bytes,
    auditors: Iterable[AuditorSeat] = (),
    rounds: Sequence[SealedRound],
    audits: Sequence[AuditLine],
    equivocations: Iterable[EquivocationLine] = (),
    operator_earned: int,
    before: Carried,
    accumulator_before: int,
) -> Statement:
    """The statement of an epoch with these sealed rounds, and all the audits that were drawn in them.

    Of what the epoch may mint it mints the part of the work that is paid: so nobody gains by what another isn't paid.
    What is minted for computing is divided among that work and the audits of seat holders, which are worth as much as
    what they repeat. `equivocations` of who is convicted already are left out.
    `operator_earned` is all that the revenue router had ever set aside for operators when the epoch closed. What is not
    divided yet is divided by served tokens · the stage's work per token; where nobody is paid for any, it waits.
    `accumulator_before` is what the chain recorded when the epoch before was finalised. Raises ValueError where less
    was earned than is divided already.
    """
    equivocations = _new_equivocations(equivocations, before)
    convicted = before.convicted | convictions(rounds, audits, equivocations)
    paid = paid_reports(rounds, audits, before, convicted)
    audits = [paid_opinions(spec, line, convicted) for line in audits]
    rounds = [_with_units(spec, sealed, paid) for sealed in rounds]
    units: dict[str, int] = {}
    done = 0
    for sealed in rounds:
        for report in sealed.reports:
            units[report.account] = units.get(report.account, 0) + int(report.units)
            done += report_units(spec, report.stage)
    minted = emission(spec.economics, epoch) * sum(units.values()) // done if done else 0
    for opinion in (opinion for line in audits for opinion in line.opinions):
        if opinion.account is not None:
            units[opinion.account] = units.get(opinion.account, 0) + int(opinion.units)
    compute = split_emission(minted, spec.economics.designer_bps, spec.economics.data_bps).compute
    shares = divide_shares(compute, units) if any(units.values()) else dict.fromkeys(units, 0)
    divided = before.operator_revenue
    if operator_earned < divided:
        raise ValueError(f"operators have earned {operator_earned}; {divided} is divided among them already")
    served = paid_answers(rounds, audits, before, convicted)
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
    outstanding = outstanding_audits(rounds, audits, before)
    draft = Statement(
        format="commonweight.statement/5",
        chain_id=chain_id,
        settlement=settlement,
        model_id=to_hex(model_id),
        spec_hash=to_hex(spec.spec_hash),
        epoch=epoch,
        minted=str(minted),
        compute_shares=str(compute),
        accumulator_before=str(accumulator_before),
        beacon_tip=to_hex(hash_chain(beacon_seed, spec.economics.rounds_per_epoch)[0]),
        beacon_seed=to_hex(beacon_seed),
        auditors=tuple(sorted(set(auditors), key=lambda seat: (seat.stage, seat.owner))),
        rounds=tuple(rounds),
        audits=tuple(audits),
        equivocations=equivocations,
        convicted=tuple(sorted(convicted, key=lambda each: (each.stage, each.node))),
        outstanding=tuple(sorted(outstanding, key=lambda each: (each.stage, each.node, each.kind))),
        served=served,
        operator_pool=str(divided + sum(revenue.values())),
        accounts=accounts,
        root=to_hex(bytes(32)),
    )
    return draft.model_copy(update={"root": to_hex(draft.tree().root)})


def _new_equivocations(found: Iterable[EquivocationLine], before: Carried) -> tuple[EquivocationLine, ...]:
    """The first of each node and stage."""
    first: dict[Conviction, EquivocationLine] = {}
    for line in found:
        if (node := Conviction(stage=line.stage, node=line.node)) not in before.convicted:
            first.setdefault(node, line)
    return tuple(sorted(first.values(), key=lambda line: (line.stage, line.node)))


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
