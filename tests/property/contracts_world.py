"""The real contracts beside the model of them: each action is done by both, and they must agree on what comes of it.

An action that isn't allowed now must be refused by both, with the same error. `audit` compares all that can be read.
"""

from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from commonweight.chain.authorization import TokenDomain, sign_authorization
from commonweight.chain.keys import Key
from commonweight.rules.receipt import Domain, Receipt
from tests.property.contracts_model import (
    PREC,
    Epoch,
    Money,
    Providers,
    Refused,
    Router,
    Settlement,
    Shares,
    Slash,
    Terms,
    register,
)
from tests.property.evm import CHAIN_ID, START, Contract, Evm, Reverted

DOLLAR = 10**6
FUNDS = 100_000 * DOLLAR
STREAM_S, WINDOW_S, ARBITRATION_S = 86_400, 3_600, 7_200
NOBODY = "0x" + 40 * "0"
FOREVER = 2**256 - 1
GENESIS_DESIGNER, GENESIS_DATA = 30 * 10**18, 7 * 10**18
STATEMENT = b"\x01" * 32
#: Of the model's accounts, those that are contracts.
CONTRACTS = ("shares", "settlement", "router", "providers")


def key_of(name: str) -> Key:
    """Always the same."""
    return Key(sha256(name.encode()).digest())


class World:
    """One model with `actors` accounts that each may do anything, and its officials: designer, data recipient,
    coordinator, judge, treasury, cashier.
    """

    def __init__(self, actors: int) -> None:
        self.keys = [key_of(f"actor {i}") for i in range(actors)]
        nodes = [key_of(f"node {i}") for i in range(4)]
        officials = [
            key_of(name).address.lower()
            for name in ("registrant", "designer", "data", "coordinator", "judge", "treasury", "cashier")
        ]
        registrant, self.designer, self.data, self.coordinator, self.judge, self.treasury, self.cashier = officials
        self.actors = [key.address.lower() for key in self.keys]
        self.key_by_address = {key.address.lower(): key for key in (*self.keys, *nodes)}
        #: Whose keys may be bound: nodes, and few of the actors, for a bound one can't take seats.
        self.signers = [*(key.address.lower() for key in nodes), *self.actors[::10]]
        self.everybody = [*self.actors, *officials[1:]]
        self.evm = Evm()
        self.nonces = 0
        #: Errors with which actions were refused.
        self.refusals: Counter[str] = Counter()
        self._deploy(registrant)
        self.money = Money()
        self.shares_model = Shares(self.money, STREAM_S)
        self.settlement_model = Settlement(self.terms, self.money, self.shares_model)
        self.router_model = Router(self.terms, self.money, self.shares_model, self.settlement_model)
        self.stakes = Providers(self.terms, self.money)
        for account, shares in ((self.designer, GENESIS_DESIGNER), (self.data, GENESIS_DATA)):
            self.shares_model.held[account] = shares
            self.shares_model.supply += shares
        for account in self.everybody:
            self.usd.mint(account, FUNDS)
            self.money.of[account] = FUNDS
            for spender in (self.shares, self.settlement, self.providers):
                self.usd.by(account).approve(spender.address, FOREVER)
        self.both(
            lambda: self.router.by(self.coordinator).setCashier(self.cashier, True),
            lambda: self.router_model.cashiers.add(self.cashier),
        )

    def _deploy(self, registrant: str) -> None:
        evm = self.evm
        self.usd = evm.deploy("TestUSD", [], [])
        self.arbiter = evm.deploy("Arbiter", ["address[]", "uint256", "uint256"], [[self.judge], 1, 0])
        self.registry = evm.deploy("ModelRegistry", ["address[]"], [[self.usd.address]])
        reporter_bond = 40 * DOLLAR + 1
        self.providers = evm.deploy(
            "ProviderRegistry",
            ["address", "address", "address", "uint256"],
            [self.registry.address, self.usd.address, self.treasury, reporter_bond],
        )
        window, arbitration, cooldown = WINDOW_S, ARBITRATION_S, WINDOW_S + 2 * ARBITRATION_S
        emission, proposer_bond, challenger_bond = (1_000 * 10**18 + 7, 100), 500 * DOLLAR + 1, 200 * DOLLAR
        seat_stake, stages, max_stages = 1_000 * DOLLAR + 1, 4, 2
        bps = (1_000, 501, 2_000, 303)
        #: IModelRegistry.Params
        self.params = (
            STATEMENT,
            "ipfs://spec",
            "Commonweight Tiny",
            "cwTINY",
            self.designer,
            self.data,
            self.coordinator,
            self.arbiter.address,
            self.treasury,
            self.providers.address,
            NOBODY,
            self.usd.address,
            2**96,
            GENESIS_DESIGNER,
            GENESIS_DATA,
            *bps[:2],
            emission,
            *bps[2:],
            STREAM_S,
            window,
            arbitration,
            proposer_bond,
            challenger_bond,
            stages,
            max_stages,
            seat_stake,
            cooldown,
        )
        self.model_id = self.registry.by(registrant).registerModel(self.params)
        shares, settlement, router = self.registry.contractsOf(self.model_id)
        self.shares = Contract(evm, "ModelShares", shares)
        self.settlement = Contract(evm, "EpochSettlement", settlement)
        self.router = Contract(evm, "RevenueRouter", router)
        self.domain = Domain(CHAIN_ID, settlement)
        self.usd_domain = TokenDomain(self.usd.name(), self.usd.version(), CHAIN_ID, self.usd.address)
        self.terms = Terms(
            CHAIN_ID, settlement, self.coordinator, self.arbiter.address, self.designer, self.data, self.treasury,
            *emission, *bps, window, arbitration, proposer_bond, challenger_bond, stages, max_stages, seat_stake,
            cooldown, reporter_bond,
        )  # fmt: skip

    # ------------------------------------------------------------ one action, twice

    @property
    def now(self) -> int:
        return self.evm.now

    def both(self, real: Callable[[], Any], model: Callable[[], Any]) -> bool:
        """Do both; they must return the same, or fail with the same error. Returns whether they succeeded."""
        self.shares_model.pay(self.now)
        try:
            wanted, refused = model(), None
        except Refused as error:
            wanted, refused = None, error.error
        try:
            got, reverted = real(), None
        except Reverted as error:
            got, reverted = None, error.name
        assert reverted == refused, f"the contract: {reverted}, the model: {refused}"
        if refused is not None:
            self.refusals[refused] += 1
        if wanted is not None and refused is None:
            assert got == wanted, f"the contract returned {got}, the model {wanted}"
        return refused is None

    def judged(self, contract: Contract, name: str, *arguments: Any) -> None:
        """The call as the multisig makes it, once its member has proposed it."""
        self.nonces += 1
        data = contract.encode(name, *arguments)
        call = self.arbiter.by(self.judge).propose(contract.address, data, self.nonces.to_bytes(32, "big"))
        self.arbiter.execute(call)

    def wait(self, seconds: int) -> None:
        self.evm.wait(seconds)

    # ------------------------------------------------------------ registrations

    def register(self, registrant: str, genesis: tuple[int, int], emission: tuple[int, int], max_supply: int) -> bool:
        """Another model like this one, with other shares."""
        self.nonces += 1
        spec_hash = self.nonces.to_bytes(32, "big")
        _, *middle = self.params[: self.params.index(2**96)]
        params = (spec_hash, *middle, max_supply, *genesis, *self.params[15:17], emission, *self.params[18:])
        return self.both(
            lambda: self.registry.by(registrant).registerModel(params) and None,
            lambda: register(sum(genesis), *emission, max_supply),
        )

    # ------------------------------------------------------------ epochs

    def propose(self, sender: str, minted: int, weights: dict[str, int], serving: dict[str, int]) -> bool:
        epoch = self.settlement_model.draw_up(minted, weights, serving, self.router_model.earned)
        return self.both(
            lambda: self.settlement.by(sender).proposeEpoch(epoch.number, epoch.tree.root, minted, STATEMENT, ""),
            lambda: self.settlement_model.propose(sender, epoch, self.now),
        )

    @property
    def _next(self) -> tuple[int, bytes]:
        """Number and root of the pending epoch; a root of nothing if none is pending."""
        pending = self.settlement_model.pending
        return (pending.number, pending.tree.root) if pending else (len(self.settlement_model.finals), bytes(32))

    def challenge(self, sender: str) -> bool:
        number, root = self._next
        return self.both(
            lambda: self.settlement.by(sender).challengeEpoch(number, root, STATEMENT, ""),
            lambda: self.settlement_model.challenge(sender, number, root, self.now),
        )

    def _deadline(self, shift: int) -> int:
        pending = self.settlement_model.pending
        return (pending.resolvable_until if pending else 0) + shift

    def resolve(self, uphold: bool, shift: int = 0) -> bool:
        """`shift`: not the pending challenge, but one whose time ends that much later, or earlier."""
        number, root = self._next
        until = max(0, self._deadline(shift))
        return self.both(
            lambda: self.judged(self.settlement, "resolveEpoch", number, root, until, uphold),
            lambda: self.settlement_model.resolve(self.terms.arbiter, number, root, until, uphold, self.now),
        )

    def resolve_uncalled(self, sender: str) -> bool:
        (number, root), until = self._next, self._deadline(0)
        return self.both(
            lambda: self.settlement.by(sender).resolveEpoch(number, root, until, False),
            lambda: self.settlement_model.resolve(sender, number, root, until, False, self.now),
        )

    def expire(self) -> bool:
        number, _ = self._next
        return self.both(
            lambda: self.settlement.expireChallenge(number), lambda: self.settlement_model.expire(number, self.now)
        )

    def finalize(self) -> bool:
        number, _ = self._next
        return self.both(
            lambda: self.settlement.finalizeEpoch(number), lambda: self.settlement_model.finalize(number, self.now)
        )

    def deposit_bond(self, payer: str, account: str, amount: int) -> bool:
        return self.both(
            lambda: self.settlement.by(payer).depositBond(account, amount),
            lambda: self.settlement_model.deposit_bond(payer, account, amount),
        )

    def withdraw_bond(self, account: str, to: str, amount: int) -> bool:
        return self.both(
            lambda: self.settlement.by(account).withdrawBond(to, amount),
            lambda: self.settlement_model.withdraw_bond(account, to, amount),
        )

    # ------------------------------------------------------------ claims

    def claim_of(self, account: str, epoch: Epoch) -> tuple[Any, ...]:
        """IEpochSettlement.Claim."""
        balance = epoch.balances[account]
        claimed = self.settlement_model.claimed[account]
        return (
            epoch.number,
            account,
            balance.cumulative_shares,
            balance.epoch_shares,
            balance.debt_before,
            balance.operator_revenue,
            *claimed,
            epoch.proof(account),
        )

    def _last_with(self, account: str, back: int) -> Epoch | None:
        """The final epoch that many before the last, if the account is in its tree."""
        finals = self.settlement_model.finals
        return finals[-1 - back] if back < len(finals) and account in finals[-1 - back].balances else None

    def claim(self, account: str, back: int) -> bool:
        epoch = self._last_with(account, back)
        if epoch is None:
            return False
        claim = self.claim_of(account, epoch)
        return self.both(
            lambda: self.settlement.claim(claim, epoch.numbers),
            lambda: self.settlement_model.claim(account, epoch.number),
        )

    def claim_many(self, accounts: list[str]) -> bool:
        """The last epoch's claims of those who have something to claim."""
        epoch = self.settlement_model.finals[-1] if self.settlement_model.finals else None
        ready = [account for account in dict.fromkeys(accounts) if self.shares_model.lots[account]]
        if epoch is None or not ready:
            return False
        claims = [self.claim_of(account, epoch) for account in ready]

        def book() -> None:
            for account in ready:
                self.settlement_model.claim(account, epoch.number)

        return self.both(lambda: self.settlement.claimMany(claims, epoch.numbers), book)

    def claim_split(self, count: int) -> bool:
        first = self.settlement_model.split_until
        numbers = [epoch.numbers for epoch in self.settlement_model.finals[first : first + count]]
        return self.both(
            lambda: self.settlement.claimSplit(numbers), lambda: self.settlement_model.claim_split(len(numbers))
        )

    # ------------------------------------------------------------ shares

    def transfer(self, source: str, target: str, part: int) -> bool:
        """`part` 1/100 of what the source has; 101 is more than that."""
        amount = self.shares_model.balance(source) * part // 100 + (part > 100)
        return self.both(
            lambda: self.shares.by(source).transfer(target, amount) and None,
            lambda: self.shares_model.transfer(source, target, amount),
        )

    def deposit(self, payer: str, amount: int) -> bool:
        return self.both(
            lambda: self.shares.by(payer).depositRevenue(amount),
            lambda: self.shares_model.deposit(payer, amount, self.now),
        )

    def withdraw(self, account: str, to: str) -> bool:
        return self.both(
            lambda: self.shares.by(account).withdrawRevenue(to), lambda: self.shares_model.withdraw(account, to)
        )

    # ------------------------------------------------------------ payments

    def pay(self, payer: str, amount: int) -> bool:
        """A plain transfer to the router."""
        return self.both(
            lambda: self.usd.by(payer).transfer(self.router.address, amount) and None,
            lambda: self.money.move(payer, "router", amount),
        )

    def collect(self, sender: str, payer: str, value: int, charged: int, again: bool) -> bool:
        """`again`: with the payer's last nonce, whoever's that was."""
        self.nonces += not again
        nonce = self.nonces.to_bytes(32, "big")
        authorization = sign_authorization(
            self.key_by_address[payer], self.usd_domain, self.router.address, value, 0, FOREVER, nonce
        )
        r, s, v = authorization.signature[:32], authorization.signature[32:64], authorization.signature[64]
        arguments = (payer, value, 0, FOREVER, nonce, v, r, s)
        return self.both(
            lambda: self.router.by(sender).collect(arguments, charged),
            lambda: self.router_model.collect(sender, payer, value, charged, nonce),
        )

    def sweep(self) -> bool:
        return self.both(lambda: self.router.sweep(), lambda: self.router_model.sweep(self.now))

    def pay_operator(self, account: str, back: int) -> bool:
        epoch = self._last_with(account, back)
        if epoch is None:
            return False
        claim = self.claim_of(account, epoch)
        return self.both(
            lambda: self.router.payOperator(claim, epoch.numbers),
            lambda: self.router_model.pay_operator(account, epoch.number),
        )

    def pay_treasury(self, sender: str, to: str) -> bool:
        return self.both(
            lambda: self.router.by(sender).payTreasury(to), lambda: self.router_model.pay_treasury(sender, to)
        )

    # ------------------------------------------------------------ stakes

    def bond(self, payer: str, owner: str, amount: int) -> bool:
        return self.both(
            lambda: self.providers.by(payer).bond(owner, amount), lambda: self.stakes.bond(payer, owner, amount)
        )

    def unbond(self, owner: str, to: str, amount: int) -> bool:
        return self.both(
            lambda: self.providers.by(owner).withdraw(to, amount), lambda: self.stakes.withdraw(owner, to, amount)
        )

    def take_seat(self, owner: str, stage: int) -> bool:
        return self.both(
            lambda: self.providers.by(owner).takeSeat(self.model_id, stage), lambda: self.stakes.take(owner, stage)
        )

    def leave_seat(self, owner: str, stage: int) -> bool:
        return self.both(
            lambda: self.providers.by(owner).leaveSeat(self.model_id, stage),
            lambda: self.stakes.leave(owner, stage, self.now),
        )

    def release_seat(self, owner: str, stage: int) -> bool:
        return self.both(
            lambda: self.providers.releaseSeat(self.model_id, owner, stage),
            lambda: self.stakes.release(owner, stage, self.now),
        )

    def bind(self, owner: str, signer: str) -> bool:
        signature = self.key_by_address[signer].sign_digest(self.providers.bindingDigest(owner))
        return self.both(
            lambda: self.providers.by(owner).bindSigner(signer, signature), lambda: self.stakes.bind(owner, signer)
        )

    def signers_of(self, owner: str) -> list[str]:
        """Keys that answer to the owner, and its own."""
        return [owner, *(signer for signer, to in self.stakes.bound.items() if to == owner)]

    def equivocate(self, reporter: str, signer: str, stage: int, unit: int) -> bool:
        """The signer has signed two receipts for one unit."""
        key, name = self.key_by_address[signer], unit.to_bytes(32, "big")
        receipts = [Receipt(self.model_id, stage, name, output * 32) for output in (b"x", b"y")]
        a, b = (((r.model_id, r.stage, r.unit, r.output), key.sign_digest(r.digest(self.domain))) for r in receipts)
        return self.both(
            lambda: self.providers.by(reporter).slashEquivocation(*a, *b),
            lambda: self.stakes.equivocation(reporter, signer, stage, name, self.now),
        )

    def report(self, reporter: str, owner: str, stage: int, evidence: int) -> bool:
        name = evidence.to_bytes(32, "big")
        return self.both(
            lambda: self.providers.by(reporter).proposeSlash(self.model_id, owner, stage, name, ""),
            lambda: self.stakes.report(reporter, owner, stage, name, self.now),
        )

    def contest(self, sender: str, slash: int) -> bool:
        return self.both(
            lambda: self.providers.by(sender).contestSlash(slash, ""),
            lambda: self.stakes.contest(sender, slash, self.now),
        )

    def judge_slash(self, slash: int, uphold: bool) -> bool:
        return self.both(
            lambda: self.judged(self.providers, "resolveSlash", slash, uphold),
            lambda: self.stakes.resolve(self.terms.arbiter, slash, uphold, self.now),
        )

    def execute_slash(self, slash: int) -> bool:
        return self.both(lambda: self.providers.executeSlash(slash), lambda: self.stakes.execute(slash, self.now))

    def drop_slash(self, slash: int) -> bool:
        return self.both(lambda: self.providers.dropSlash(slash), lambda: self.stakes.drop(slash, self.now))

    # ------------------------------------------------------------ what must be true

    def audit(self) -> None:
        """Every unit is where the model says, and no unit is anywhere else."""
        self.shares_model.pay(self.now)
        self.audit_money()
        self.audit_shares()
        self.audit_settlement()
        self.audit_stakes()

    def audit_money(self) -> None:
        """Conservation, per contract and over all."""
        books, shares = self.money.of, self.shares_model
        held = {name: self.usd.balanceOf(getattr(self, name).address) for name in CONTRACTS}
        assert held == {name: books[name] for name in CONTRACTS}
        wallets = {account: self.usd.balanceOf(account) for account in self.everybody}
        assert wallets == {account: books[account] for account in self.everybody}
        assert sum(wallets.values()) + sum(held.values()) == FUNDS * len(self.everybody) == self.usd.totalSupply()

        router = self.router
        assert held["router"] == router.unswept() + router.operatorPool() + router.treasuryPool()
        assert (router.operatorPool(), router.treasuryPool()) == (
            self.router_model.pool,
            self.router_model.treasury_pool,
        )
        assert (
            router.operatorEarned()
            == self.router_model.earned
            == (self.router_model.pool + sum(self.router_model.paid.values()))
        )
        settlement = self.settlement_model
        assert held["settlement"] == sum(settlement.bonds.values()) + settlement.open_bond + settlement.burnt
        assert held["shares"] == shares.deposited - sum(shares.withdrawn.values())
        locked = sum(self.stakes.locked(account) for account in self.everybody)
        assert held["providers"] == sum(self.stakes.free.values()) + locked + self.stakes.open_bonds

    def audit_shares(self) -> None:
        """Σ owedScaled + undistributedScaled + withdrawn · PREC == deposited · PREC, and each account's part of it."""
        shares, token = self.shares_model, self.shares
        owners = [*self.everybody, self.settlement.address]
        owed = {account: token.owedScaled(account) for account in owners}
        withdrawn = sum(shares.withdrawn.values())
        assert sum(owed.values()) + token.undistributedScaled() + withdrawn * PREC == shares.deposited * PREC
        assert token.undistributedScaled() == shares.undistributed
        assert (token.accPerShare(), token.totalSupply()) == (shares.acc, shares.supply)
        for account in self.everybody:
            assert owed[account] == shares.owed_scaled(account)
            assert token.balanceOf(account) == shares.balance(account)
        unclaimed = sum(map(shares.unclaimed, self.everybody))
        assert token.balanceOf(self.settlement.address) == unclaimed

    def audit_settlement(self) -> None:
        model, real = self.settlement_model, self.settlement
        assert (real.nextEpoch(), real.splitClaimedUntil()) == (len(model.finals), model.split_until)
        for account in self.everybody:
            assert real.bondOf(account) == model.bonds[account]
            assert self.providers.ownerOf(account) == self.stakes.owner_of(account)
        exists, epoch, root, minted, _, _, challenger, _, upheld = real.pending()
        if model.pending is None:
            assert not exists
        else:
            pending = model.pending
            assert (epoch, root, minted) == (pending.number, pending.tree.root, pending.minted)
            assert (challenger, upheld) == (pending.challenger or NOBODY, pending.upheld)

    def audit_stakes(self) -> None:
        for account in self.everybody:
            assert self.providers.freeStakeOf(account) == self.stakes.free[account]
            assert self.providers.lockedStakeOf(account) == self.stakes.locked(account)
            seats = {seat[0]: seat[1:] for seat in self.providers.seatsOf(self.model_id, account)}
            assert seats == {
                stage: (seat.stake, seat.releasable_at, seat.open_slashes, seat.slashed)
                for stage, seat in self.stakes.seats[account].items()
            }

    def open_slashes(self) -> list[int]:
        """Ids that may still change."""
        return [i for i, slash in enumerate(self.stakes.slashes, 1) if _is_open(slash)]

    def empty(self) -> None:
        """Everybody takes out all that is theirs. What stays is known: in the shares less than a unit for each account,
        in the router what no epoch has divided yet, bonds and stakes that are still needed, and what was burnt.
        """
        if self.router_model.unswept:
            assert self.sweep()
        self.wait(STREAM_S)
        self.shares_model.pay(self.now)
        for account in self.actors:
            if self.shares_model.lots[account]:
                assert self.claim(account, 0)
            self.pay_operator(account, 0)
        while self.settlement_model.split_until < len(self.settlement_model.finals):
            assert self.claim_split(50)
        for account in self.everybody:
            self.withdraw(account, account)
            self.unbond(account, account, self.stakes.free[account])
            self.withdraw_bond(account, account, self.settlement_model.bonds[account])
        self.pay_treasury(self.treasury, self.treasury)
        self.audit()
        assert self.money.of["shares"] < len(self.everybody)
        settlement = self.settlement_model
        needed = settlement.open_bond + (settlement.bonds[self.coordinator] if settlement.pending else 0)
        assert self.money.of["settlement"] == needed + settlement.burnt
        assert self.money.of["router"] == self.router_model.earned - self.settlement_model.operator_revenue_divided
        assert self.money.of["providers"] == sum(map(self.stakes.locked, self.everybody)) + self.stakes.open_bonds


def _is_open(slash: Slash) -> bool:
    return slash.status.name in ("PROPOSED", "CONTESTED")


def started(actors: int) -> World:
    """A world whose coordinator can propose."""
    world = World(actors)
    assert world.now == START
    assert world.deposit_bond(world.coordinator, world.coordinator, 5 * world.terms.proposer_bond)
    world.audit()
    return world
