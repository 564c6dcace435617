"""The contracts' rules once more, in the plainest way and from `commonweight/rules`: what the real ones must agree
with.

Nobody's revenue is put off here. Time pays the stream out to every account at once, and an epoch's shares are their
owners' from the moment it is final; claims only record what is no longer unclaimed. Methods are called as the
contracts' functions are, raise Refused with the name of the error that those revert with, and change nothing then.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from commonweight.rules.accounting import Balance, divide_shares, next_balances
from commonweight.rules.emission import MIN_SUPPLY, split_emission
from commonweight.rules.merkle import MerkleTree, settlement_leaf

PREC = 2**96


class Refused(Exception):
    """What a contract reverts with."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


def require(condition: bool, error: str) -> None:
    if not condition:
        raise Refused(error)


def register(genesis: int, initial: int, halving_epochs: int, max_supply: int) -> None:
    """What a registration's shares must be like."""
    require(max_supply <= 2**96, "ModelRegistryCapTooLarge")
    require(initial > 0 and halving_epochs > 0, "ModelRegistryBadEmission")
    require(genesis + 2 * initial * halving_epochs <= max_supply, "ModelRegistryEmissionExceedsCap")
    require(genesis + initial * halving_epochs >= MIN_SUPPLY, "ModelRegistryCapTooSmall")


class Money:
    """The one token of revenue and bonds: balances by account, also of the contracts, under their names."""

    def __init__(self) -> None:
        self.of: dict[str, int] = defaultdict(int)

    def move(self, source: str, target: str, amount: int) -> None:
        require(self.of[source] >= amount, "ERC20InsufficientBalance")
        self.of[source] -= amount
        self.of[target] += amount


# ---------------------------------------------------------------- shares


@dataclass
class Lot:
    """Shares of one epoch that their owner hasn't claimed."""

    epoch: int
    shares: int
    acc_at: int


@dataclass
class Shares:
    """Shares and the revenue that they earn."""

    money: Money
    period: int
    held: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Claimed or not."""
    earned: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Scaled, by all that the account holds, since the beginning."""
    withdrawn: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lots: dict[str, list[Lot]] = field(default_factory=lambda: defaultdict(list))
    supply: int = 0
    acc: int = 0
    rate: int = 0
    paid_until: int = 0
    end: int = 0
    undistributed: int = 0
    deposited: int = 0

    def pay(self, now: int) -> None:
        """Credits what has streamed up to now."""
        until = min(now, self.end)
        if until <= self.paid_until:
            return
        per_share = self.rate * (until - self.paid_until)
        for account, shares in self.held.items():
            self.earned[account] += shares * per_share
        self.undistributed -= self.supply * per_share
        self.acc += per_share
        self.paid_until = until

    def unclaimed(self, account: str) -> int:
        return sum(lot.shares for lot in self.lots[account])

    def balance(self, account: str) -> int:
        """What the token says."""
        return self.held[account] - self.unclaimed(account)

    def owed_scaled(self, account: str) -> int:
        """What the token owes, leaving out what comes with a claim."""
        elsewhere = sum(lot.shares * (self.acc - lot.acc_at) for lot in self.lots[account])
        return self.earned[account] - self.withdrawn[account] * PREC - elsewhere

    def mint(self, parts: Mapping[str, int], epoch: int) -> None:
        """Shares that earn from now on and have to be claimed."""
        minted = sum(parts.values())
        for account, shares in parts.items():
            self.held[account] += shares
            if shares:
                self.lots[account].append(Lot(epoch, shares, self.acc))
        self.supply += minted
        if minted and self.end > self.paid_until:
            self.rate = self.undistributed // (self.supply * (self.end - self.paid_until))

    def claim(self, account: str, epoch: int) -> None:
        self.lots[account] = [lot for lot in self.lots[account] if lot.epoch > epoch]

    def transfer(self, source: str, target: str, amount: int) -> None:
        require(self.balance(source) >= amount, "ERC20InsufficientBalance")
        self.held[source] -= amount
        self.held[target] += amount

    def deposit(self, payer: str, amount: int, now: int) -> int:
        self.money.move(payer, "shares", amount)
        added, left = amount * PREC, self.end - self.paid_until
        try:
            require(amount > 0, "ModelSharesNothingReceived")
            require(self.supply >= MIN_SUPPLY, "ModelSharesSupplyTooSmall")
        except Refused:
            self.money.move("shares", payer, amount)
            raise
        duration = left + added * (self.period - left) // (self.undistributed + added) if left else self.period
        self.undistributed += added
        self.deposited += amount
        self.rate = self.undistributed // (self.supply * duration)
        self.paid_until, self.end = now, now + duration
        return amount

    def withdraw(self, account: str, to: str) -> int:
        amount = self.owed_scaled(account) // PREC
        require(amount > 0, "ModelSharesNothingOwed")
        self.withdrawn[account] += amount
        self.money.move("shares", to, amount)
        return amount


# ---------------------------------------------------------------- settlement


@dataclass
class Epoch:
    """A proposed epoch: its tree, and what becomes of it."""

    number: int
    minted: int
    parts: dict[str, int]
    """Compute shares."""
    balances: dict[str, Balance]
    tree: MerkleTree
    final_at: int
    operator_pool: int
    challenger: str = ""
    resolvable_until: int = 0
    upheld: bool = False
    acc_at: int = 0

    @property
    def numbers(self) -> tuple[bytes, int, int]:
        """IEpochSettlement.FinalEpoch."""
        return self.tree.root, self.acc_at, self.minted

    def proof(self, account: str) -> list[bytes]:
        return self.tree.proof(list(self.balances).index(account))


@dataclass(frozen=True)
class Terms:
    """What the model was registered with."""

    chain_id: int
    settlement: str
    coordinator: str
    arbiter: str
    designer: str
    data: str
    treasury: str
    initial_emission: int
    halving_epochs: int
    designer_bps: int
    data_bps: int
    operator_bps: int
    treasury_bps: int
    window: int
    arbitration: int
    proposer_bond: int
    challenger_bond: int
    stages: int
    max_stages: int
    seat_stake: int
    cooldown: int
    reporter_bond: int


@dataclass
class Settlement:
    """Epochs and their bonds."""

    terms: Terms
    money: Money
    shares: Shares
    finals: list[Epoch] = field(default_factory=list)
    pending: Epoch | None = None
    bonds: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    burnt: int = 0
    """Halves of bonds that nobody can have."""
    claimed: dict[str, tuple[int, int]] = field(default_factory=lambda: defaultdict(lambda: (0, 0)))
    split_until: int = 0
    operator_revenue_divided: int = 0

    def draw_up(
        self, minted: int, weights: Mapping[str, int], serving: Mapping[str, int], operator_earned: int
    ) -> Epoch:
        """The next epoch as an honest coordinator proposes it: `weights` are work units, `serving` what was served."""
        number, terms = len(self.finals), self.terms
        compute = split_emission(minted, terms.designer_bps, terms.data_bps).compute
        parts = divide_shares(compute, weights)
        pool = operator_earned - self.operator_revenue_divided
        before = self.finals[-1] if self.finals else None
        balances = next_balances(
            before.balances if before else {}, parts, divide_shares(pool, serving), before.acc_at if before else 0
        )
        leaves = [
            settlement_leaf(
                terms.chain_id,
                terms.settlement,
                account,
                balance.cumulative_shares,
                balance.epoch_shares,
                balance.debt_before,
                balance.operator_revenue,
            )
            for account, balance in balances.items()
        ]
        return Epoch(number, minted, parts, balances, MerkleTree(leaves), 0, pool)

    def deposit_bond(self, payer: str, account: str, amount: int) -> int:
        self.money.move(payer, "settlement", amount)
        require(amount > 0, "EpochSettlementNothingReceived")
        self.bonds[account] += amount
        return amount

    def withdraw_bond(self, account: str, to: str, amount: int) -> None:
        locked = self.pending is not None and account == self.terms.coordinator
        require(not locked, "EpochSettlementBondLocked")
        require(amount <= self.bonds[account], "EpochSettlementBondTooSmall")
        self.bonds[account] -= amount
        self.money.move("settlement", to, amount)

    def propose(self, sender: str, epoch: Epoch, now: int) -> None:
        require(sender == self.terms.coordinator, "EpochSettlementNotCoordinator")
        require(self.pending is None, "EpochSettlementEpochPending")
        require(epoch.number == len(self.finals), "EpochSettlementWrongEpoch")
        limit = self.terms.initial_emission >> epoch.number // self.terms.halving_epochs
        require(epoch.minted <= limit, "EpochSettlementEmissionExceeded")
        require(self.bonds[sender] >= self.terms.proposer_bond, "EpochSettlementBondTooSmall")
        epoch.final_at = now + self.terms.window
        self.pending = epoch

    def _pending(self, number: int) -> Epoch:
        if self.pending is None or self.pending.number != number:
            raise Refused("EpochSettlementNotPending")
        return self.pending

    def _challenged(self, number: int) -> Epoch:
        epoch = self._pending(number)
        require(bool(epoch.challenger) and not epoch.upheld, "EpochSettlementNotChallenged")
        return epoch

    def challenge(self, sender: str, number: int, root: bytes, now: int) -> None:
        epoch = self._pending(number)
        require(root == epoch.tree.root, "EpochSettlementWrongRoot")
        require(not epoch.challenger, "EpochSettlementAlreadyChallenged")
        require(now < epoch.final_at, "EpochSettlementWindowClosed")
        self.money.move(sender, "settlement", self.terms.challenger_bond)
        epoch.challenger, epoch.resolvable_until = sender, now + self.terms.arbitration

    def resolve(self, sender: str, number: int, root: bytes, until: int, uphold: bool, now: int) -> None:
        require(sender == self.terms.arbiter, "EpochSettlementNotArbiter")
        epoch = self._challenged(number)
        require(root == epoch.tree.root, "EpochSettlementWrongRoot")
        require(until == epoch.resolvable_until and now < until, "EpochSettlementArbitrationOver")
        if uphold:
            self.bonds[self.terms.coordinator] += self.terms.challenger_bond
            epoch.upheld = True
        else:
            half = self.terms.proposer_bond // 2
            self.bonds[self.terms.coordinator] -= self.terms.proposer_bond
            self.bonds[epoch.challenger] += half + self.terms.challenger_bond
            self.burnt += self.terms.proposer_bond - half
            self.pending = None

    def expire(self, number: int, now: int) -> None:
        epoch = self._challenged(number)
        require(now >= epoch.resolvable_until, "EpochSettlementArbitrationOpen")
        self.bonds[epoch.challenger] += self.terms.challenger_bond
        self.pending = None

    def finalize(self, number: int, now: int) -> None:
        epoch = self._pending(number)
        if not epoch.upheld:
            require(not epoch.challenger, "EpochSettlementAlreadyChallenged")
            require(now >= epoch.final_at, "EpochSettlementWindowOpen")
        epoch.acc_at = self.shares.acc
        split = split_emission(epoch.minted, self.terms.designer_bps, self.terms.data_bps)
        owners = {self.terms.designer: split.designer, self.terms.data: split.data}
        self.shares.mint({**epoch.parts, **owners}, epoch.number)
        self.operator_revenue_divided += epoch.operator_pool
        self.finals.append(epoch)
        self.pending = None

    def paying(self, account: str, number: int) -> Balance:
        """The account's balance in an epoch that pays: the last final one."""
        require(number == len(self.finals) - 1, "EpochSettlementRootReplaced")
        return self.finals[number].balances[account]

    def claim(self, account: str, number: int) -> None:
        balance = self.paying(account, number)
        shares, debt = self.claimed[account]
        require(balance.cumulative_shares > shares, "EpochSettlementNothingToClaim")
        now_debt = balance.debt_before + balance.epoch_shares * self.finals[number].acc_at
        assert now_debt >= debt
        self.claimed[account] = (balance.cumulative_shares, now_debt)
        self.shares.claim(account, number)

    def claim_split(self, count: int) -> None:
        require(count > 0 and self.split_until + count <= len(self.finals), "EpochSettlementUnknownEpoch")
        self.split_until += count
        for account in (self.terms.designer, self.terms.data):
            self.shares.claim(account, self.split_until - 1)

    @property
    def open_bond(self) -> int:
        """Of an undecided challenge."""
        undecided = self.pending is not None and self.pending.challenger and not self.pending.upheld
        return self.terms.challenger_bond if undecided else 0


# ---------------------------------------------------------------- payments


@dataclass
class Router:
    """Payments, and what becomes of them."""

    terms: Terms
    money: Money
    shares: Shares
    settlement: Settlement
    cashiers: set[str] = field(default_factory=set)
    earned: int = 0
    pool: int = 0
    treasury_pool: int = 0
    paid: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    used: set[tuple[str, bytes]] = field(default_factory=set)

    @property
    def unswept(self) -> int:
        return self.money.of["router"] - self.pool - self.treasury_pool

    def collect(self, sender: str, payer: str, value: int, charged: int, nonce: bytes) -> None:
        require(sender in self.cashiers or sender == self.terms.coordinator, "RevenueRouterNotCashier")
        require(charged <= value, "RevenueRouterChargedTooMuch")
        require((payer, nonce) not in self.used, "ERC3009UsedAuthorization")
        require(self.money.of[payer] >= value, "ERC20InsufficientBalance")
        self.used.add((payer, nonce))
        self.money.move(payer, "router", charged)

    def sweep(self, now: int) -> int:
        amount = self.unswept
        require(amount > 0, "RevenueRouterNothingToSweep")
        operators = amount * self.terms.operator_bps // 10_000
        treasury = amount * self.terms.treasury_bps // 10_000
        if amount > operators + treasury:
            self.shares.deposit("router", amount - operators - treasury, now)
        self.earned += operators
        self.pool += operators
        self.treasury_pool += treasury
        return amount

    def pay_operator(self, account: str, number: int) -> None:
        revenue = self.settlement.paying(account, number).operator_revenue
        amount = revenue - self.paid[account]
        require(amount > 0, "RevenueRouterNothingToPay")
        assert amount <= self.pool
        self.pool -= amount
        self.paid[account] = revenue
        self.money.move("router", account, amount)

    def pay_treasury(self, sender: str, to: str) -> int:
        require(sender == self.terms.treasury, "RevenueRouterNotTreasury")
        amount = self.treasury_pool
        require(amount > 0, "RevenueRouterNothingToPay")
        self.treasury_pool = 0
        self.money.move("router", to, amount)
        return amount


# ---------------------------------------------------------------- stakes


@dataclass
class Seat:
    """A stage that an owner holds, or has left."""

    stake: int
    releasable_at: int = 0
    open_slashes: int = 0
    slashed: bool = False


class Status(Enum):
    """IProviderRegistry.SlashStatus."""

    PROPOSED = 1
    CONTESTED = 2
    EXECUTED = 3
    DROPPED = 4


@dataclass
class Slash:
    """A proposal to slash a seat."""

    owner: str
    stage: int
    reporter: str
    evidence: bytes
    deadline: int
    status: Status = Status.PROPOSED
    contester: str = ""


@dataclass
class Providers:
    """Stakes, seats and slashes."""

    terms: Terms
    money: Money
    free: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seats: dict[str, dict[int, Seat]] = field(default_factory=lambda: defaultdict(dict))
    slashes: list[Slash] = field(default_factory=list)
    bound: dict[str, str] = field(default_factory=dict)
    """Owners of keys that aren't their own."""
    used: set[Any] = field(default_factory=set)
    outrun: int = 0
    """Contested proposals that were upheld after another had slashed their seat."""

    @property
    def open_bonds(self) -> int:
        counts = {Status.PROPOSED: 1, Status.CONTESTED: 2}
        return self.terms.reporter_bond * sum(counts.get(slash.status, 0) for slash in self.slashes)

    def locked(self, owner: str) -> int:
        return sum(seat.stake for seat in self.seats[owner].values())

    def bond(self, payer: str, owner: str, amount: int) -> int:
        self.money.move(payer, "providers", amount)
        require(amount > 0, "ProviderRegistryNothingReceived")
        self.free[owner] += amount
        return amount

    def withdraw(self, owner: str, to: str, amount: int) -> None:
        require(amount > 0, "ProviderRegistryZeroAmount")
        require(amount <= self.free[owner], "ProviderRegistryInsufficientStake")
        self.free[owner] -= amount
        self.money.move("providers", to, amount)

    def owner_of(self, signer: str) -> str:
        return self.bound.get(signer, signer)

    def bind(self, owner: str, signer: str) -> None:
        require(signer not in self.bound and not self.seats[signer], "ProviderRegistrySignerTaken")
        self.bound[signer] = owner

    def take(self, owner: str, stage: int) -> None:
        require(stage < self.terms.stages, "ProviderRegistryUnknownStage")
        require(self.owner_of(owner) == owner, "ProviderRegistrySignerTaken")
        seats = self.seats[owner]
        if seat := seats.get(stage):
            require(seat.releasable_at != 0, "ProviderRegistryAlreadySeated")
            require(not seat.slashed, "ProviderRegistrySeatLeft")
            seat.releasable_at = 0
            return
        require(len(seats) < self.terms.max_stages, "ProviderRegistryCustodyCap")
        require(self.free[owner] >= self.terms.seat_stake, "ProviderRegistryInsufficientStake")
        self.free[owner] -= self.terms.seat_stake
        seats[stage] = Seat(self.terms.seat_stake)

    def _seat(self, owner: str, stage: int) -> Seat:
        require(stage in self.seats[owner], "ProviderRegistryNoSeat")
        return self.seats[owner][stage]

    def leave(self, owner: str, stage: int, now: int) -> None:
        seat = self._seat(owner, stage)
        require(seat.releasable_at == 0, "ProviderRegistrySeatLeft")
        seat.releasable_at = now + self.terms.cooldown

    def release(self, owner: str, stage: int, now: int) -> None:
        seat = self._seat(owner, stage)
        require(seat.releasable_at != 0, "ProviderRegistryAlreadySeated")
        require(now >= seat.releasable_at, "ProviderRegistryTooEarly")
        require(seat.open_slashes == 0, "ProviderRegistrySlashesOpen")
        self.free[owner] += seat.stake
        del self.seats[owner][stage]

    def _slashable(self, owner: str, stage: int, now: int) -> Seat:
        seat = self._seat(owner, stage)
        over = seat.releasable_at != 0 and now >= seat.releasable_at
        require(not seat.slashed and not over, "ProviderRegistryNoSeat")
        return seat

    def _divide(self, winner: str, amount: int) -> None:
        self.free[winner] += amount // 2
        self.free[self.terms.treasury] += amount - amount // 2

    def _slash(self, seat: Seat, reporter: str, now: int) -> None:
        amount, seat.stake, seat.slashed = seat.stake, 0, True
        if seat.releasable_at == 0:
            seat.releasable_at = now + self.terms.cooldown
        self._divide(reporter, amount)

    def equivocation(self, sender: str, signer: str, stage: int, unit: bytes, now: int) -> None:
        owner = self.owner_of(signer)
        key = (owner, stage, unit, "receipts")
        require(key not in self.used, "ProviderRegistryEvidenceUsed")
        seat = self._slashable(owner, stage, now)
        self.used.add(key)
        self._slash(seat, sender, now)

    def report(self, sender: str, owner: str, stage: int, evidence: bytes, now: int) -> int:
        require(self.money.of[sender] >= self.terms.reporter_bond, "ERC20InsufficientBalance")
        require((owner, stage, evidence) not in self.used, "ProviderRegistryEvidenceUsed")
        self._slashable(owner, stage, now).open_slashes += 1
        self.money.move(sender, "providers", self.terms.reporter_bond)
        self.slashes.append(Slash(owner, stage, sender, evidence, now + self.terms.window))
        return len(self.slashes)

    def _in(self, slash_id: int, status: Status) -> Slash:
        known = 1 <= slash_id <= len(self.slashes)
        require(known and self.slashes[slash_id - 1].status is status, "ProviderRegistryWrongStatus")
        return self.slashes[slash_id - 1]

    def contest(self, sender: str, slash_id: int, now: int) -> None:
        require(self.money.of[sender] >= self.terms.reporter_bond, "ERC20InsufficientBalance")
        slash = self._in(slash_id, Status.PROPOSED)
        require(now < slash.deadline, "ProviderRegistryTooLate")
        self.money.move(sender, "providers", self.terms.reporter_bond)
        slash.status, slash.contester = Status.CONTESTED, sender
        slash.deadline = now + self.terms.arbitration

    def resolve(self, sender: str, slash_id: int, uphold: bool, now: int) -> None:
        slash = self._in(slash_id, Status.CONTESTED)
        require(sender == self.terms.arbiter, "ProviderRegistryNotArbiter")
        require(now < slash.deadline, "ProviderRegistryTooLate")
        if uphold:
            self._execute(slash, now)
            return
        self._drop(slash)
        self.free[slash.contester] += self.terms.reporter_bond
        self._divide(slash.contester, self.terms.reporter_bond)

    def execute(self, slash_id: int, now: int) -> None:
        slash = self._in(slash_id, Status.PROPOSED)
        require(now >= slash.deadline, "ProviderRegistryTooEarly")
        self._execute(slash, now)

    def drop(self, slash_id: int, now: int) -> None:
        slash = self._in(slash_id, Status.CONTESTED)
        require(now >= slash.deadline, "ProviderRegistryTooEarly")
        self._drop(slash)
        self._return_bonds(slash)

    def _execute(self, slash: Slash, now: int) -> None:
        seat = self.seats[slash.owner][slash.stage]
        if seat.slashed:
            self._drop(slash)
            self.outrun += bool(slash.contester)
        else:
            slash.status = Status.EXECUTED
            seat.open_slashes -= 1
            self.used.add((slash.owner, slash.stage, slash.evidence))
            self._slash(seat, slash.reporter, now)
        self.free[slash.reporter] += self.terms.reporter_bond
        if slash.contester:
            self._divide(slash.reporter, self.terms.reporter_bond)

    def _drop(self, slash: Slash) -> None:
        slash.status = Status.DROPPED
        self.seats[slash.owner][slash.stage].open_slashes -= 1

    def _return_bonds(self, slash: Slash) -> None:
        for party in filter(None, (slash.reporter, slash.contester)):
            self.free[party] += self.terms.reporter_bond
