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
from commonweight.rules.load import Load, Loads, unpack_load
from commonweight.rules.panel import Owner, Standing, audit_units, opinion_receipt, rank_auditors
from commonweight.rules.receipt import Receipt
from commonweight.rules.report import Report, report_receipt
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
    commitments = report.commitments(spec.training.microbatches_per_round)
    return CreditedReport(
        stage=report.stage,
        node=node,
        owner=owner,
        account=account,
        generation=generation,
        **{name: to_hex(value) for name, value in vars(commitments).items()},
        signature=to_hex(signature),
        units=str(report_units(spec, report.stage, len(report.hops))),
    )


def credited_receipt(model_id: bytes, round_: int, line: CreditedReport, beacon_tip: bytes) -> Receipt:
    """What the provider of a credited line has signed."""
    return report_receipt(model_id, line.generation, round_, line.stage, line.commitments, beacon_tip)


def credited_load(spec: ModelSpec, line: CreditedReport) -> Load:
    """The microbatches of a credited line. Raises ValueError where it names none of a round's."""
    return unpack_load(line.commitments.load, spec.training.microbatches_per_round)


def sealed_loads(spec: ModelSpec, sealed: SealedRound) -> Loads:
    """Those of a sealed round; raises as `credited_load`."""
    return [[credited_load(spec, line) for line in sealed.replicas(stage)] for stage in range(spec.stages)]


def report_units(spec: ModelSpec, stage: int, microbatches: int) -> int:
    """Units of so many microbatches of one stage."""
    return stage_units(spec, stage) * microbatches


def sealed_commitments(spec: ModelSpec, sealed: SealedRound, beacon_tip: bytes, seed: bytes) -> list[list[bytes]]:
    """What the providers have signed in the round, blinded, by stage, then by replica; `seed` is the epoch's."""
    return [
        [
            blinded(line.commitments.output(beacon_tip), seal_salt(seed, sealed.round, stage, replica))
            for replica, line in enumerate(sealed.replicas(stage))
        ]
        for stage in range(spec.stages)
    ]


def sealed_beacon(spec: ModelSpec, sealed: SealedRound, beacon_tip: bytes, seed: bytes) -> bytes:
    """What chooses the round's audits, and who does them."""
    root = round_root(sealed_commitments(spec, sealed, beacon_tip, seed))
    return round_beacon(bytes.fromhex(sealed.beacon[2:]), root)


def drawn_audits(spec: ModelSpec, sealed: SealedRound, beacon_tip: bytes, seed: bytes) -> tuple[Audit, ...]:
    """The audits that a sealed round's beacon draws, in order."""
    return audits_drawn_by(spec, sealed, sealed_beacon(spec, sealed, beacon_tip, seed))


def audits_drawn_by(spec: ModelSpec, sealed: SealedRound, beacon: bytes) -> tuple[Audit, ...]:
    """The same, where the `sealed_beacon` is known."""
    answers = [[part.replica for part in line.parts] for line in sealed.answers]
    return draw_audits(spec, sealed.round, beacon, sealed_loads(spec, sealed), answers, sealed.answers_root)


def drawn_auditors(
    sealed: SealedRound, audit: Audit, beacon: bytes, auditors: Iterable[AuditorSeat]
) -> tuple[Owner, ...]:
    """Who is to audit a unit of the round with this beacon, the first choice first, of an epoch with these seats."""
    provider = sealed.provider(audit).owner
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
        replica=audit.replica,
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
    by_round = {sealed.round: sealed for sealed in rounds}
    found = {Conviction(stage=line.stage, node=line.node) for line in equivocations}
    for line in audits:
        if Verdict(line.verdict) is Verdict.FAILED and line.round in by_round:
            found.add(Conviction(stage=line.stage, node=by_round[line.round].provider(line.audit).node))
        found |= {Conviction(stage=line.stage, node=opinion.auditor) for opinion in line.disproven}
    return frozenset(found)


def paid_reports(
    rounds: Iterable[SealedRound],
    audits: Sequence[AuditLine],
    before: Carried,
    convicted: frozenset[Conviction],
) -> frozenset[tuple[int, Conviction]]:
    """The rounds that each provider of a stage is paid for; who is `convicted` in the epoch isn't paid for any."""
    paid: set[tuple[int, Conviction]] = set()
    for provider, numbers in _reported(rounds).items():
        if provider not in before.convicted | convicted:
            verdicts = _own(provider, rounds, audits, TRAINING)
            kinds = _outstanding_of(provider, before) & TRAINING
            paid |= {(each, provider) for each in paid_rounds(numbers, verdicts, kinds)}
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
    delivered: dict[tuple[Conviction, str], Counter[int]] = {}
    for sealed in rounds:
        for line in sealed.answers:
            for stage, part in enumerate(line.parts):
                report = sealed.replicas(stage)[part.replica]
                tokens = delivered.setdefault((_provider(report), report.account), Counter())
                tokens[sealed.round] += line.delivered
    served: Counter[tuple[int, str, str]] = Counter()
    for (provider, account), tokens in delivered.items():
        if provider in before.convicted | convicted:
            continue
        numbers = {each for (other, _), found in delivered.items() if other == provider for each in found}
        verdicts = _own(provider, rounds, audits, {Kind.ANSWER})
        paid = paid_rounds(numbers, verdicts, _outstanding_of(provider, before) & {Kind.ANSWER})
        served[provider.stage, provider.node, account] += sum(tokens[each] for each in paid)
    return tuple(
        ServedLine(stage=stage, node=node, account=account, tokens=count)
        for (stage, node, account), count in sorted(served.items())
        if count
    )


def paid_opinions(spec: ModelSpec, sealed: SealedRound, line: AuditLine, convicted: frozenset[Conviction]) -> AuditLine:
    """The line, of a unit of this round, with the units that its opinions are worth."""
    worth = audit_units(spec, line.audit, credited_load(spec, sealed.provider(line.audit)))

    def units(opinion: Opinion) -> int:
        is_due = opinion.owner is not None and line.standing_of(opinion) is Standing.PAID
        is_trusted = Conviction(stage=line.stage, node=opinion.auditor) not in convicted
        return worth if is_due and is_trusted else 0

    opinions = (opinion.model_copy(update={"units": str(units(opinion))}) for opinion in line.opinions)
    return line.model_copy(update={"opinions": tuple(opinions)})


def outstanding_audits(
    rounds: Sequence[SealedRound], audits: Sequence[AuditLine], before: Carried
) -> frozenset[Outstanding]:
    """What every provider still has to pass after the epoch; those who reported nothing in it, what they had before."""
    reported = _reported(rounds)
    due = {each for each in before.outstanding if Conviction(stage=each.stage, node=each.node) not in reported}
    for provider in reported:
        verdicts = _own(provider, rounds, audits, frozenset(Kind))
        kinds = left_outstanding(verdicts, _outstanding_of(provider, before))
        due |= {Outstanding(stage=provider.stage, node=provider.node, kind=kind.value) for kind in kinds}
    return frozenset(due)


def _provider(report: CreditedReport) -> Conviction:
    return Conviction(stage=report.stage, node=report.node)


def _reported(rounds: Iterable[SealedRound]) -> dict[Conviction, list[int]]:
    """The rounds that each provider of a stage has reported, ascending."""
    reported: dict[Conviction, list[int]] = {}
    for sealed in rounds:
        for report in sealed.reports:
            reported.setdefault(_provider(report), []).append(sealed.round)
    return reported


def _own(
    provider: Conviction, rounds: Iterable[SealedRound], audits: Iterable[AuditLine], kinds: Collection[Kind]
) -> dict[Audit, Verdict]:
    """What the audits of a provider's units in these rounds came to."""
    by_round = {sealed.round: sealed for sealed in rounds}
    lines = (line for line in audits if line.stage == provider.stage and Kind(line.kind) in kinds)
    return {
        line.audit: Verdict(line.verdict)
        for line in lines
        if line.round in by_round and by_round[line.round].provider(line.audit).node == provider.node
    }


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
    by_round = {sealed.round: sealed for sealed in rounds}
    audits = [paid_opinions(spec, by_round[line.round], line, convicted) for line in audits]
    rounds = [_with_units(spec, sealed, paid) for sealed in rounds]
    units: dict[str, int] = {}
    done = 0
    for sealed in rounds:
        for report in sealed.reports:
            units[report.account] = units.get(report.account, 0) + int(report.units)
            done += report_units(spec, report.stage, len(credited_load(spec, report)))
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
        format="commonweight.statement/6",
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


def _with_units(spec: ModelSpec, sealed: SealedRound, paid: frozenset[tuple[int, Conviction]]) -> SealedRound:
    def units(report: CreditedReport) -> int:
        is_paid = (sealed.round, _provider(report)) in paid
        return report_units(spec, report.stage, len(credited_load(spec, report))) if is_paid else 0

    reports = (report.model_copy(update={"units": str(units(report))}) for report in sealed.reports)
    return sealed.model_copy(update={"reports": tuple(reports)})


def serving_units(spec: ModelSpec, served: Iterable[ServedLine]) -> dict[str, int]:
    """What each account's serving weighs: its tokens times its stage's work units."""
    weights: dict[str, int] = {}
    for line in served:
        weights[line.account] = weights.get(line.account, 0) + line.tokens * stage_units(spec, line.stage)
    return weights
