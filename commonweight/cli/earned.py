"""What an account earned in each epoch, from the public statements and the chain, and why where it is nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from commonweight.chain.events import EpochProposed, PayoutSet, SeatTaken, SignerBound
from commonweight.cli.audited import Audited, Earlier, audited_work
from commonweight.cli.history import Proposal, read_history, status_text
from commonweight.cli.holdings import SCALE
from commonweight.cli.opinions import Opinions, opinions_in
from commonweight.cli.place import Place
from commonweight.cli.statements import Published, find_statement
from commonweight.errors import StatementUnavailable
from commonweight.rules.statement import Conviction, Opinion, SealedRound, Statement


@dataclass(frozen=True)
class Identity:
    """Whose work an account is paid for, as the chain says."""

    account: str
    owners: tuple[str, ...]
    """The account itself, and owners who ever named it as the one to be paid."""
    nodes: tuple[str, ...]
    """Keys that answer to these owners; an owner's own key is one."""


@dataclass(frozen=True)
class Work:
    """Rounds of an epoch that one node did at one stage."""

    stage: int
    node: str
    account: str
    """Who is paid for them."""
    rounds: int
    unpaid: int
    """Of these rounds: their work didn't survive its audits."""
    units: int


@dataclass(frozen=True)
class Earned:
    """One epoch, from work to revenue. Shares in base units, revenue in the token's smallest unit."""

    account: str
    epoch: int
    proposal: Proposal | None
    """The last one; None while the epoch's work goes on."""
    published: Published | None
    """None before it is proposed, and where the statement can't be had."""
    work: tuple[Work, ...]
    """By the identity's nodes, or paid to its account."""
    audited: tuple[Audited, ...]
    """What became of it, by stage and node."""
    opinions: tuple[Opinions, ...]
    """By the identity's auditors, or paid to its account."""
    rounds: int
    """Of the epoch, in all."""
    shares: int
    claimed: bool
    revenue: int
    """What these shares have earned so far, or would have if none of them was passed on."""
    serving_revenue: int
    """For serving, in this epoch."""
    why_nothing: str | None
    """Why there are no shares; None where there are."""

    @property
    def status(self) -> str:
        return "open" if self.proposal is None else self.proposal.status

    @property
    def is_known(self) -> bool:
        """Whether the numbers say anything: not where the statement of a proposed epoch can't be had."""
        return self.published is not None or self.proposal is None or self.proposal.rejected is not None

    @property
    def nothing(self) -> str:
        """How it is called that there are no shares."""
        return "nothing" if self.is_known else "unknown"

    @property
    def credited(self) -> tuple[Work, ...]:
        """The work that the account itself is paid for."""
        return tuple(each for each in self.work if each.account == self.account)

    @property
    def trained_units(self) -> int:
        """That the account is paid for by its work."""
        return sum(each.units for each in self.credited)

    @property
    def audited_units(self) -> int:
        """That it is paid for by audits."""
        return sum(each.units for each in self.opinions if each.account == self.account)

    @property
    def units(self) -> int:
        return self.trained_units + self.audited_units

    @property
    def all_units(self) -> int:
        """Of everybody."""
        if self.published is None:
            return 0
        return sum(int(line.units) for line in self.published.statement.accounts)

    @property
    def compute_shares(self) -> int:
        """What everybody's computing is paid with."""
        return 0 if self.published is None else int(self.published.statement.compute_shares)

    @property
    def tokens(self) -> int:
        """Served, counted at each stage."""
        if self.published is None:
            return 0
        return sum(line.tokens for line in self.published.statement.served if line.account == self.account)


def identity_of(place: Place, account: str) -> Identity:
    """Whose work `account` is or was paid for."""
    providers = place.providers
    owners = dict.fromkeys([account, *(event.owner for event in providers.events(PayoutSet, payout=account))])
    signers = (event.signer for event in providers.events(SignerBound, owner=list(owners)))
    return Identity(account, tuple(owners), tuple(dict.fromkeys([*owners, *signers])))


def earned_by(place: Place, identity: Identity, only: int | None = None) -> list[Earned]:
    """Every epoch up to the one that is worked on, or `only` that one.

    Raises StatementUnavailable where the statement of `only` can't be had; where it is one of many, it is left out.
    """
    history = read_history(place.settlement, only)
    last = {each.proposed.epoch: each for each in history}
    next_epoch = place.settlement.next_epoch()
    epochs: Iterable[int] = range(next_epoch + 1 + (next_epoch in last and last[next_epoch].rejected is None))
    found, serving_before = [], 0
    if only is not None:
        epochs = [only]
        before = place.settlement.epoch(only - 1) if only else None
        line = find_statement(place, before).line_of(identity.account) if before is not None else None
        serving_before = int(line.operator_revenue) if line else 0
    claimed, accumulator = place.settlement.claimed(identity.account).shares, place.shares.accumulator()
    earlier = Earlier(place)
    for epoch in epochs:
        proposal = last.get(epoch)
        published = None
        if proposal is not None and proposal.rejected is None:
            try:
                published = find_statement(place, proposal.record)
            except StatementUnavailable:
                if only is not None:
                    raise
        each = _earned(place, identity, epoch, proposal, published, earlier, serving_before, claimed, accumulator)
        line = published.line_of(identity.account) if published is not None else None
        serving_before = int(line.operator_revenue) if line else serving_before
        found.append(each)
    return found


def _earned(
    place: Place,
    identity: Identity,
    epoch: int,
    proposal: Proposal | None,
    published: Published | None,
    earlier: Earlier,
    serving_before: int,
    claimed: int,
    accumulator: int,
) -> Earned:
    line = published.line_of(identity.account) if published is not None else None
    rounds = published.statement.rounds if published is not None else ()
    work = tuple(_work(rounds, identity))
    audited: tuple[Audited, ...] = ()
    opinions: tuple[Opinions, ...] = ()
    if published is not None:
        opinions = opinions_in(published, partial(_is_of, identity), earlier)
        providers = dict.fromkeys(Conviction(stage=each.stage, node=each.node) for each in work)
        audited = tuple(audited_work(published, provider, earlier) for provider in providers)
    shares = int(line.shares) if line else 0
    final = proposal.final if proposal is not None else None
    return Earned(
        account=identity.account,
        epoch=epoch,
        proposal=proposal,
        published=published,
        work=work,
        audited=audited,
        opinions=opinions,
        rounds=len(rounds),
        shares=shares,
        claimed=line is not None and final is not None and int(line.cumulative_shares) <= claimed,
        revenue=shares * (accumulator - final.accumulator) // SCALE if final is not None else 0,
        serving_revenue=int(line.operator_revenue) - serving_before if line else 0,
        why_nothing=None if shares else why_nothing(place, identity, proposal, published, work, audited, opinions),
    )


def _is_of(identity: Identity, opinion: Opinion) -> bool:
    return opinion.auditor in identity.nodes or opinion.account == identity.account


def _work(rounds: Sequence[SealedRound], identity: Identity) -> Iterable[Work]:
    """The rounds of the identity's nodes, and those paid to its account, by stage, node and account."""
    found: dict[tuple[int, str, str], tuple[int, int, int]] = {}
    for sealed in rounds:
        for report in sealed.reports:
            if report.node in identity.nodes or report.account == identity.account:
                key = (report.stage, report.node, report.account)
                count, unpaid, units = found.get(key, (0, 0, 0))
                found[key] = (count + 1, unpaid + (report.units == "0"), units + int(report.units))
    return (Work(*key, *numbers) for key, numbers in sorted(found.items()))


def why_nothing(
    place: Place,
    identity: Identity,
    proposal: Proposal | None,
    published: Published | None,
    work: Sequence[Work],
    audited: Sequence[Audited],
    opinions: Sequence[Opinions],
) -> str:
    """The chain of reasons why an epoch brings the account no shares, as one sentence."""
    if proposal is None:
        seat = _seat_reason(place, identity, None, None)
        return f"the epoch isn't proposed: not all of its rounds are sealed yet{'; ' + seat if seat else ''}"
    if proposal.rejected is not None:
        return f"its proposal was {status_text(proposal, place.chain.timestamp())}"
    if published is None:
        return "nobody serves its statement: give --statements DIR or URL of somebody who has it"
    credited = [each for each in work if each.account == identity.account]
    judged = [each for each in opinions if each.account == identity.account]
    if credited or judged:
        return _worthless(credited, audited, judged, published.statement)
    others = [each for each in work if each.account != identity.account]
    if others:
        each = others[0]
        more = f", and {len(others) - 1} more like it" if len(others) > 1 else ""
        return f"{each.rounds} rounds of stage {each.stage} by node {each.node} are credited to {each.account}{more}"
    reason = _seat_reason(place, identity, proposal.proposed, published.statement)
    who = f"{len(identity.nodes)} nodes" if len(identity.nodes) > 1 else f"node {identity.nodes[0]}"
    return f"no round of it is credited to the account, nor done by its {who}{'; ' + reason if reason else ''}"


def _worthless(
    credited: Sequence[Work], audited: Sequence[Audited], opinions: Sequence[Opinions], statement: Statement
) -> str:
    """Why rounds that are credited to the account, and opinions, bring it nothing."""
    if units := sum(each.units for each in credited) + sum(each.units for each in opinions):
        return f"its {units} units are paid from {statement.compute_shares} base units of shares, and rounded down"
    providers = {(each.stage, each.node) for each in credited}
    reasons = [
        f"stage {each.provider.stage}, node {each.provider.node}: {unpaid.span}, {unpaid.why}"
        for each in audited
        if (each.provider.stage, each.provider.node) in providers
        for unpaid in each.unpaid
    ]
    reasons += [
        f"stage {each.auditor.stage}, auditor {each.auditor.node}: {unpaid.span}, {unpaid.why}"
        for each in opinions
        for unpaid in each.unpaid
    ]
    return f"none of its work is paid: {'; '.join(reasons)}"


def _seat_reason(place: Place, identity: Identity, proposed: EpochProposed | None, statement: Statement | None) -> str:
    """Why nobody of the identity had work, as far as seats tell; without `proposed`, in the epoch that goes on."""
    if not place.model.terms.seat_stake:
        return (
            "" if proposed is None else "the model asks for no stake: who joined its coordinator first has the stages"
        )
    taken = place.providers.events(SeatTaken, model_id=place.model.model_id, owner=list(identity.owners))
    if not taken:
        owners = ", ".join(identity.owners)
        return f"{owners} never took a seat of this model: `commonweight bond`, `commonweight seat take`"
    if proposed is None or statement is None:
        return ""
    stages = sorted({event.stage for event in taken if event.block_number <= proposed.block_number})
    if not stages:
        return (
            f"stage {taken[0].stage} was taken in block {taken[0].block_number}, after the epoch had been proposed in "
            f"block {proposed.block_number}"
        )
    workers: dict[int, dict[str, None]] = {}
    for report in (report for sealed in statement.rounds for report in sealed.reports):
        workers.setdefault(report.stage, {})[report.node] = None
    others = ", ".join(f"stage {stage} by {' and '.join(workers.get(stage, ['nobody']))}" for stage in stages)
    return f"there was a seat, but other nodes were assigned its work: {others}"
