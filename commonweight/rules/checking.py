"""Whether an epoch's statement is right: everything in it that follows from the rest is computed again."""

from commonweight.errors import StatementMismatch
from commonweight.rules.accounting import MAX_ACCUMULATOR
from commonweight.rules.audits import NO_EVIDENCE, TRAINING, Audit, Verdict
from commonweight.rules.beacon import hash_chain
from commonweight.rules.epoch import (
    answers_per_round,
    audits_drawn_by,
    credited_load,
    drawn_auditors,
    make_statement,
    sealed_beacon,
    sealed_loads,
)
from commonweight.rules.load import is_divided
from commonweight.rules.panel import MAX_SEATED, Standing, is_in_order, is_known_bad, settled_verdict
from commonweight.rules.spec import ModelSpec
from commonweight.rules.statement import AuditLine, Carried, Conviction, SealedRound, Statement, to_hex

MAX_OPERATOR_POOL = 2**256 - 1
"""The contracts count revenue in a uint256; a statement can write more."""


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
    _check_answers(spec, statement)
    _check_draws(spec, statement, before)
    _check_equivocations(statement, before)
    _check_pool(statement, before)
    try:
        again = make_statement(
            spec,
            chain_id=statement.chain_id,
            settlement=statement.settlement,
            model_id=bytes.fromhex(statement.model_id[2:]),
            epoch=statement.epoch,
            beacon_seed=bytes.fromhex(statement.beacon_seed[2:]),
            auditors=statement.auditors,
            rounds=statement.rounds,
            audits=statement.audits,
            equivocations=statement.equivocations,
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
                    f"Round {stated.round} credits {line.node} on stage {line.stage} with {line.units} units; by the "
                    f"spec and the audits it is worth {right.units}."
                )
    for listed, worth in zip(statement.audits, again.audits, strict=True):
        if listed != worth:
            raise StatementMismatch(
                f"Epoch {statement.epoch} pays the opinions on {listed.audit} with "
                f"{[opinion.units for opinion in listed.opinions]} units; they are worth "
                f"{[opinion.units for opinion in worth.opinions]}."
            )
    for found, recomputed in zip(statement.accounts, again.accounts, strict=False):
        if found != recomputed:
            raise StatementMismatch(
                f"Epoch {statement.epoch}: a line reads {found!r}; recomputed it is {recomputed!r}."
            )
    for name in (
        "auditors",
        "equivocations",
        "convicted",
        "outstanding",
        "served",
        "minted",
        "compute_shares",
        "accounts",
        "root",
    ):
        if getattr(again, name) != getattr(statement, name):
            raise StatementMismatch(
                f"Epoch {statement.epoch}: {name} is {getattr(statement, name)!r:.200}; recomputed it is "
                f"{getattr(again, name)!r:.200}."
            )


def _check_rounds(spec: ModelSpec, statement: Statement, before: Carried) -> None:
    """Every round of the epoch, in order, each divided among the replicas of each stage, each stage going on from where
    it was.
    """
    first = statement.epoch * spec.economics.rounds_per_epoch
    expected = range(first, first + spec.economics.rounds_per_epoch)
    sealed_rounds = [sealed.round for sealed in statement.rounds]
    if len(sealed_rounds) != len(expected) or sealed_rounds != list(expected):
        raise StatementMismatch(f"Epoch {statement.epoch} has rounds {expected[0]} to {expected[-1]}.")
    for sealed in statement.rounds:
        _check_division(spec, sealed)
    generations = [report.generation for sealed in statement.rounds for report in sealed.reports]
    if generations != sorted(generations) or any(
        len({report.generation for report in sealed.reports}) != 1 for sealed in statement.rounds
    ):
        raise StatementMismatch(
            f"Epoch {statement.epoch} has reports of generations {generations!r:.200}: a round is sealed in one, and "
            "they never go back."
        )
    states = {stage: {state} for stage, state in before.states.items()}
    for sealed in statement.rounds:
        for report in sealed.reports:
            if report.state_before not in (left := states.get(report.stage, {report.state_before})):
                raise StatementMismatch(
                    f"Round {sealed.round} begins stage {report.stage} from state {report.state_before}; the round "
                    f"before it left it at {' or '.join(sorted(left))}."
                )
        states = {}
        for report in sealed.reports:
            states.setdefault(report.stage, set()).add(report.state_after)


def _check_division(spec: ModelSpec, sealed: SealedRound) -> None:
    """Each microbatch was computed once on each stage, and the replicas of a stage stepped it alike."""
    places = [(report.stage, report.node) for report in sealed.reports]
    if places != sorted(set(places)):
        raise StatementMismatch(f"Round {sealed.round} credits {places!r:.300}: each once, in order, is due.")
    if {stage for stage, _ in places} != set(range(spec.stages)):
        raise StatementMismatch(f"Round {sealed.round} doesn't credit each of {spec.stages} stages.")
    try:
        loads = sealed_loads(spec, sealed)
    except ValueError as error:
        raise StatementMismatch(f"Round {sealed.round} has a load that is none: {error}.") from error
    for stage, of_stage in enumerate(loads):
        if not all(of_stage) or not is_divided(of_stage, spec.training.microbatches_per_round):
            raise StatementMismatch(
                f"Round {sealed.round} is divided on stage {stage} into {[list(load) for load in of_stage]!r:.300}; "
                f"due is each of {spec.training.microbatches_per_round} microbatches once."
            )
        training, replicas = spec.training, sealed.replicas(stage)
        averages = training.averages_in(sealed.round)
        is_alone = not averages if training.steps_alone else len(of_stage) == 1
        begins = {report.state_before for report in replicas}
        ends = {(report.round_gradient_hash, report.state_after) for report in replicas}
        if (averages and len(ends) > 1) or (training.averages_in(sealed.round - 1) and len(begins) > 1):
            raise StatementMismatch(
                f"Round {sealed.round} steps the replicas of stage {stage} in "
                f"{max(len(begins), len(ends))} different ways."
            )
        for report in replicas:
            if is_alone and report.gradient_hash != report.round_gradient_hash:
                raise StatementMismatch(
                    f"Round {sealed.round} steps {report.node} of stage {stage} with another gradient than its own, "
                    "though there is no other one to be averaged with it."
                )


def _check_draws(spec: ModelSpec, statement: Statement, before: Carried) -> None:
    """The values come from the seed, and the tip, too; exactly what they draw was audited, by whom it was to be."""
    seed, tip = bytes.fromhex(statement.beacon_seed[2:]), bytes.fromhex(statement.beacon_tip[2:])
    chain = hash_chain(seed, len(statement.rounds))
    if chain[0] != tip:
        raise StatementMismatch(
            f"Epoch {statement.epoch} has the beacon seed {statement.beacon_seed}, from which the tip "
            f"{to_hex(chain[0])} follows, not {statement.beacon_tip}."
        )
    drawn: list[Audit] = []
    rounds: dict[int, tuple[SealedRound, bytes]] = {}
    for sealed, value in zip(statement.rounds, chain[1:], strict=True):
        if sealed.beacon != to_hex(value):
            raise StatementMismatch(
                f"Round {sealed.round} has the beacon value {sealed.beacon}; due is {to_hex(value)}: its audits were "
                "not chosen by the chain that was committed."
            )
        beacon = sealed_beacon(spec, sealed, tip, seed)
        rounds[sealed.round] = sealed, beacon
        drawn += audits_drawn_by(spec, sealed, beacon)
    listed = [line.audit for line in statement.audits]
    for found, due in zip(listed, drawn, strict=False):
        if found != due:
            raise StatementMismatch(f"Epoch {statement.epoch} lists {found}; next to be drawn was {due}.")
    if len(listed) != len(drawn):
        raise StatementMismatch(
            f"Epoch {statement.epoch} lists {len(listed)} audits; its beacon values draw {len(drawn)}."
        )
    for line in statement.audits:
        if fault := _panel_fault(spec, statement, before, *rounds[line.round], line):
            raise StatementMismatch(f"Epoch {statement.epoch}, {line.audit}: {fault}")


def _panel_fault(
    spec: ModelSpec, statement: Statement, before: Carried, sealed: SealedRound, beacon: bytes, line: AuditLine
) -> str | None:
    """What is wrong with who was asked, or with what is made of their opinions."""
    ranking = drawn_auditors(sealed, line.audit, beacon, statement.auditors)
    owners = [opinion.owner for opinion in line.opinions]
    if not is_in_order(owners, ranking):
        return f"opinions of {owners} in this order; the beacon ranks {list(ranking)} (None: the referee)."
    on_claim = [opinion for opinion in line.opinions if not line.is_known_bad(opinion)]
    report = sealed.provider(line.audit)
    if line.audit.kind in TRAINING:
        if line.opinions[-1].claim != to_hex(report.commitments.claim):
            return "the last opinion is not on the claim of the report that was sealed."
    else:
        part = sealed.answers[line.audit.answer].parts[line.stage]
        if line.opinions[-1].claim != part.trace:
            return "the last opinion is not on what was signed about the answer."
    if on_claim not in (list(line.opinions), list(line.opinions[1:])):
        return "more than the first opinion is on another claim than the last."
    if len(on_claim) < len(line.opinions):
        if line.opinions[0].owner is None:
            return "the referee's opinion is on another claim than the provider's."
        if not is_known_bad(spec, bytes.fromhex(statement.beacon_seed[2:]), line.audit, credited_load(spec, report)):
            return f"{line.opinions[0].auditor} was shown a false claim, though the seed doesn't draw one here."
    opinions = [(opinion.owner, Verdict(opinion.verdict)) for opinion in on_claim]
    if (seated := sum(owner is not None for owner, _ in opinions)) > MAX_SEATED:
        return f"{seated} seat holders gave opinions on the provider's claim; after {MAX_SEATED} the referee is next."
    early = any(settled_verdict(opinions[:count]) is not None for count in range(1, len(opinions)))
    if early or settled_verdict(opinions) is not Verdict(line.verdict):
        said = ", ".join(f"{verdict.value} ({owner or 'the referee'})" for owner, verdict in opinions)
        return f"it is {line.verdict}; the opinions are {said}."
    for opinion in line.opinions:
        if (Verdict(opinion.verdict) is Verdict.FAILED) != (opinion.evidence != to_hex(NO_EVIDENCE)):
            return f"{opinion.verdict} with the evidence {opinion.evidence}. Fraud has evidence, and nothing else has."
        if (opinion.owner is None) != (opinion.account is None):
            return f"the opinion of {opinion.auditor} is paid to {opinion.account}: the referee isn't paid, others are."
        standing = line.standing_of(opinion)
        if opinion.is_disproven != (standing is Standing.FALSE) and not (
            opinion.is_disproven and standing is Standing.OVERRULED
        ):
            return (
                f"the opinion of {opinion.auditor} is {standing.value}, with the disproof {opinion.disproof}. What "
                "passes a false claim has one; what was overruled may have one, the referee's excepted."
            )
        if opinion.owner is None and opinion.is_disproven:
            return "the referee's opinion is disproven."
        if Conviction(stage=line.stage, node=opinion.auditor) in before.convicted:
            return f"{opinion.auditor} was convicted in an earlier epoch, and isn't asked any more."
    return None


def _check_equivocations(statement: Statement, before: Carried) -> None:
    """Two different results each, once for each node and stage, of who wasn't convicted before."""
    nodes = [Conviction(stage=line.stage, node=line.node) for line in statement.equivocations]
    for node, line in zip(nodes, statement.equivocations, strict=True):
        if line.outputs[0] == line.outputs[1] or node in before.convicted or nodes.count(node) > 1:
            raise StatementMismatch(
                f"Epoch {statement.epoch} lists {line.node} on stage {line.stage} as having signed two results, "
                f"{line.outputs[0]} and {line.outputs[1]}: they are the same, or it was convicted already."
            )


def _check_answers(spec: ModelSpec, statement: Statement) -> None:
    """Each once, by a version that there was, and no more tokens delivered than went through the stages."""
    sessions: set[str] = set()
    limit, per_epoch = answers_per_round(spec), spec.economics.rounds_per_epoch
    for sealed in statement.rounds:
        if len(sealed.answers) > limit:
            raise StatementMismatch(
                f"Round {sealed.round} is sealed with {len(sealed.answers)} answers; at most are {limit}."
            )
        for line in sealed.answers:
            what = f"Round {sealed.round}, {line.session}"
            if line.session in sessions:
                raise StatementMismatch(f"{what}: this answer is listed twice.")
            sessions.add(line.session)
            if len(line.parts) != spec.stages:
                raise StatementMismatch(f"{what}: {len(line.parts)} stages have signed, of {spec.stages}.")
            for stage, part in enumerate(line.parts):
                if part.replica >= (count := len(sealed.replicas(stage))):
                    raise StatementMismatch(
                        f"{what}: replica {part.replica} of stage {stage} has signed, of {count} that report it."
                    )
            if line.version % per_epoch or not 0 < line.version <= sealed.round:
                raise StatementMismatch(f"{what}: no version {line.version} was published by then.")
            # The last token isn't fed.
            if line.delivered > line.fed + 1 or line.fed > spec.training.sequence_length:
                raise StatementMismatch(
                    f"{what}: {line.delivered} tokens were delivered, with {line.fed} fed to the stages, whose context "
                    f"is {spec.training.sequence_length}."
                )


def _check_pool(statement: Statement, before: Carried) -> None:
    """It can have come from the one before."""
    pool, divided = int(statement.operator_pool), before.operator_revenue
    if pool < divided or pool > MAX_OPERATOR_POOL or (pool > divided and not statement.served):
        raise StatementMismatch(
            f"Epoch {statement.epoch} divides {pool} among operators, after {divided} before it, for "
            f"{len(statement.served)} lines of served tokens."
        )
