"""A chain with one registered model and everybody who has a part in it, for the tests of the chain's client."""

from collections.abc import Mapping
from dataclasses import dataclass

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.authorization import sign_authorization
from commonweight.chain.keys import Key, devnet_key
from commonweight.chain.local import LocalChain
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import Authorization, ClaimArguments, ModelTerms, RegisteredModel
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.router import RevenueRouter
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.settlement import EpochSettlement
from commonweight.chain.shares import ModelShares
from commonweight.chain.token import TestUSD
from commonweight.rules.merkle import MerkleTree, settlement_leaf

COORDINATOR, DESIGNER, DATA, ALICE, BOB, BUYER, JUDGE_0, JUDGE_1, JUDGE_2, TREASURY, CAROL, STRANGER = (
    devnet_key(index) for index in range(12)
)
JUDGES = (JUDGE_0, JUDGE_1, JUDGE_2)
WINDOW_S = 3_600
ARBITRATION_S = 7_200
COOLDOWN_S = WINDOW_S + 2 * ARBITRATION_S
STREAM_S = 600
DELAY_S = 60
EMISSION = 1_000 * 10**18
COMPUTE = EMISSION * 85 // 100
GENESIS_DESIGNER, GENESIS_DATA = 50 * 10**18, 25 * 10**18
DOLLAR = 10**6
PROPOSER_BOND, CHALLENGER_BOND, REPORTER_BOND = 100 * DOLLAR, 60 * DOLLAR, 40 * DOLLAR
SEAT_STAKE = 1_000 * DOLLAR
STATEMENT = b"\x02" * 32
PREC = 2**96


@dataclass(frozen=True)
class Earned:
    """An account's line in an epoch."""

    cumulative: int
    shares: int
    debt_before: int = 0
    operator: int = 0


@dataclass(frozen=True)
class ChainWorld:
    """The model's contracts, as seen by whoever holds a key."""

    chain: Chain
    registry_address: str
    usd_address: str
    arbiter_address: str
    providers_address: str
    terms: ModelTerms
    model: RegisteredModel
    registered_in: int

    def sender(self, key: Key = COORDINATOR) -> Sender:
        return Sender(self.chain, key)

    def registry(self, key: Key = COORDINATOR) -> ModelRegistry:
        return ModelRegistry(self.chain, self.registry_address, self.sender(key))

    def usd(self, key: Key = COORDINATOR) -> TestUSD:
        return TestUSD(self.chain, self.usd_address, self.sender(key))

    def settlement(self, key: Key = COORDINATOR) -> EpochSettlement:
        return EpochSettlement(self.chain, self.model.settlement, self.sender(key), first_block=self.registered_in)

    def shares(self, key: Key = COORDINATOR) -> ModelShares:
        return ModelShares(self.chain, self.model.shares, self.sender(key), first_block=self.registered_in)

    def router(self, key: Key = COORDINATOR) -> RevenueRouter:
        return RevenueRouter(self.chain, self.model.router, self.sender(key), first_block=self.registered_in)

    def providers(self, key: Key = COORDINATOR) -> ProviderRegistry:
        return ProviderRegistry(self.chain, self.providers_address, self.sender(key))

    def arbiter(self, key: Key = JUDGE_0) -> Arbiter:
        return Arbiter(self.chain, self.arbiter_address, self.sender(key))

    def later(self, seconds: int) -> None:
        self.chain.request("evm_increaseTime", seconds)
        self.chain.request("evm_mine")

    def give(self, key: Key, amount: int, spender: str) -> None:
        """Play money that `spender` may take."""
        self.usd(key).mint(key.address, amount)
        self.usd(key).approve(spender, amount)

    def bond_proposer(self) -> None:
        self.give(COORDINATOR, PROPOSER_BOND, self.model.settlement)
        self.settlement().deposit_bond(COORDINATOR.address, PROPOSER_BOND)

    def tree(self, lines: Mapping[Key, Earned], epoch: int = 0) -> tuple[bytes, dict[Key, ClaimArguments]]:
        """Root and claims of an epoch."""
        leaves = [
            settlement_leaf(
                self.chain.chain_id,
                self.model.settlement,
                key.address,
                line.cumulative,
                line.shares,
                line.debt_before,
                line.operator,
            )
            for key, line in lines.items()
        ]
        tree = MerkleTree(leaves)
        claims = {
            key: ClaimArguments(
                epoch, key.address, line.cumulative, line.shares, line.debt_before, line.operator, tree.proof(index)
            )
            for index, (key, line) in enumerate(lines.items())
        }
        return tree.root, claims

    def finalise(self, lines: Mapping[Key, Earned], epoch: int = 0) -> dict[Key, ClaimArguments]:
        """Proposes and finalises an epoch; its claims. The first one posts the proposer's bond."""
        settlement = self.settlement()
        if settlement.bond_of(COORDINATOR.address) < PROPOSER_BOND:
            self.bond_proposer()
        root, claims = self.tree(lines, epoch)
        settlement.propose_epoch(epoch, root, settlement.emission_of(epoch), STATEMENT, f"file:///{epoch}.json")
        self.later(WINDOW_S)
        settlement.finalize_epoch(epoch)
        return claims

    def decide(self, target: str, data: str) -> None:
        """What two judges do, and who executes it after the delay."""
        call_id = self.arbiter().call_id_of(target, data)
        self.arbiter(JUDGE_0).propose(target, data)
        self.arbiter(JUDGE_1).confirm(call_id)
        self.later(DELAY_S)
        self.arbiter(STRANGER).execute(call_id)

    def authorize(self, key: Key, value: int, nonce: bytes = b"\x05" * 32, **other: int) -> Authorization:
        """A payment to the router that `key` signs, valid for an hour."""
        now = self.chain.timestamp()
        times = {"valid_after": 0, "valid_before": now + 3_600} | other
        return sign_authorization(key, self.usd().domain(), self.model.router, value, nonce=nonce, **times)


def build_world(local: LocalChain) -> ChainWorld:
    chain = Chain.connect(local.rpc_url, expected_chain_id=local.chain_id)
    sender = Sender(chain, COORDINATOR)
    usd = TestUSD.deploy(sender)
    registry = ModelRegistry.deploy(sender, [usd.address])
    arbiter = Arbiter.deploy(sender, [judge.address for judge in JUDGES], threshold=2, delay_s=DELAY_S)
    providers = ProviderRegistry.deploy(sender, registry.address, usd.address, TREASURY.address, REPORTER_BOND)
    terms = ModelTerms(
        spec_hash=b"\x01" * 32,
        spec_uri="file:///spec.json",
        name="Tiny model",
        symbol="TINY",
        designer=DESIGNER.address,
        data_recipient=DATA.address,
        coordinator=COORDINATOR.address,
        arbiter=arbiter.address,
        treasury=TREASURY.address,
        providers=providers.address,
        revenue_token=usd.address,
        max_supply=10**24,
        genesis_designer=GENESIS_DESIGNER,
        genesis_data=GENESIS_DATA,
        designer_bps=1_000,
        data_bps=500,
        initial_emission=EMISSION,
        halving_epochs=2,
        operator_bps=2_000,
        treasury_bps=500,
        stream_period_s=STREAM_S,
        window_s=WINDOW_S,
        arbitration_s=ARBITRATION_S,
        proposer_bond=PROPOSER_BOND,
        challenger_bond=CHALLENGER_BOND,
        stages=3,
        max_stages_per_owner=1,
        seat_stake=SEAT_STAKE,
        seat_cooldown_s=COOLDOWN_S,
    )
    model = registry.register_model(terms)
    return ChainWorld(
        chain=chain,
        registry_address=registry.address,
        usd_address=usd.address,
        arbiter_address=arbiter.address,
        providers_address=providers.address,
        terms=terms,
        model=model,
        registered_in=registry.registration_block(model.model_id),
    )
