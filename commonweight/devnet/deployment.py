"""A devnet's contracts, its model on them, and its people's money. Blocking: call from a thread. Imports web3, which
takes a second.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commonweight.chain.child import Ready
from commonweight.chain.keys import Key
from commonweight.devnet.accounts import Account
from commonweight.rules.spec import ModelSpec

if TYPE_CHECKING:
    from commonweight.chain.sender import Sender

USD = 10**6
"""Base units of the play money's dollar."""
WINDOW_S = 4
"""Between an epoch's proposal and its finalisation: every node recomputes the epoch in less than one."""
ARBITRATION_S = 3600
SEAT_COOLDOWN_S = WINDOW_S + 2 * ARBITRATION_S
STREAM_S = 60
"""Over which revenue is credited to the shares; a day where it is worth something."""
EPOCH_BOND = 100 * USD
"""Of who proposes an epoch, and of who challenges one."""
REPORTER_BOND = 50 * USD
SEAT_STAKE = 1_000 * USD
OPERATOR_BPS, TREASURY_BPS = 2_000, 500
POCKET_MONEY = 10_000 * USD
"""What everybody begins with beside the stake."""


@dataclass(frozen=True)
class Contracts:
    """Addresses of what all models of a chain share."""

    registry: str
    providers: str
    arbiter: str
    revenue_token: str


@dataclass(frozen=True)
class Deployment:
    """Where the model is: chain, contracts, id."""

    rpc_url: str
    chain_id: int
    registry: str
    providers: str
    arbiter: str
    model_id: str
    """0x and 64 digits."""
    shares: str
    settlement: str
    router: str
    revenue_token: str

    def fields(self) -> dict[str, Any]:
        """As in deployments.json."""
        return asdict(self)


def deploy_contracts(rpc_url: str, chain_id: int, accounts: Mapping[str, Account]) -> Contracts:
    """Puts all that models share on a fresh chain: play money, registries, an arbiter. Raises ChainError."""
    from commonweight.chain.arbiter import Arbiter
    from commonweight.chain.providers import ProviderRegistry
    from commonweight.chain.registry import ModelRegistry
    from commonweight.chain.token import TestUSD

    sender = _sender(rpc_url, chain_id, accounts["deployer"].key)
    dollar = TestUSD.deploy(sender)
    registry = ModelRegistry.deploy(sender, [dollar.address])
    arbiter = Arbiter.deploy(
        sender, [accounts[f"arbiter-{index}"].address for index in range(3)], threshold=2, delay_s=0
    )
    providers = ProviderRegistry.deploy(
        sender, registry.address, dollar.address, accounts["treasury"].address, REPORTER_BOND
    )
    return Contracts(registry.address, providers.address, arbiter.address, dollar.address)


def register_model(
    ready: Ready,
    contracts: Contracts,
    spec: ModelSpec,
    spec_file: Path,
    accounts: Mapping[str, Account],
    **terms: Any,
) -> Deployment:
    """Registers the model under its designer's name, with the spec's terms. `terms` replaces fields of ModelTerms.

    Raises ChainError.
    """
    from commonweight.chain.records import ModelTerms
    from commonweight.chain.registry import ModelRegistry

    sender = _sender(ready.rpc_url, ready.chain_id, accounts["designer"].key)
    economics = spec.economics
    usual: dict[str, Any] = {
        "spec_hash": spec.spec_hash,
        "spec_uri": spec_file.as_uri(),
        "name": "Commonweight devnet",
        "symbol": "CWDEV",
        "designer": accounts["designer"].address,
        "data_recipient": accounts["data provider"].address,
        "coordinator": accounts["coordinator"].address,
        "arbiter": contracts.arbiter,
        "treasury": accounts["treasury"].address,
        "providers": contracts.providers,
        "revenue_token": contracts.revenue_token,
        "max_supply": int(economics.max_supply),
        "designer_bps": economics.designer_bps,
        "data_bps": economics.data_bps,
        "initial_emission": int(economics.initial_emission),
        "halving_epochs": economics.halving_epochs,
        "operator_bps": OPERATOR_BPS,
        "treasury_bps": TREASURY_BPS,
        "stream_period_s": STREAM_S,
        "window_s": WINDOW_S,
        "arbitration_s": ARBITRATION_S,
        "proposer_bond": EPOCH_BOND,
        "challenger_bond": EPOCH_BOND,
        "stages": spec.stages,
        "max_stages_per_owner": 1,
        "seat_stake": SEAT_STAKE,
        "seat_cooldown_s": SEAT_COOLDOWN_S,
    }
    model = ModelRegistry(sender.chain, contracts.registry, sender).register_model(ModelTerms(**usual | terms))
    return Deployment(
        rpc_url=ready.rpc_url,
        chain_id=ready.chain_id,
        registry=contracts.registry,
        providers=contracts.providers,
        arbiter=contracts.arbiter,
        model_id="0x" + model.model_id.hex(),
        shares=model.shares,
        settlement=model.settlement,
        router=model.router,
        revenue_token=contracts.revenue_token,
    )


def hand_out_money(deployment: Deployment, accounts: Mapping[str, Account]) -> None:
    """Gives everybody play money and makes the gateway a cashier. Raises ChainError."""
    from commonweight.chain.router import RevenueRouter
    from commonweight.chain.token import TestUSD

    deployer = _sender(deployment.rpc_url, deployment.chain_id, accounts["deployer"].key)
    token = TestUSD(deployer.chain, deployment.revenue_token, deployer)
    for role, account in accounts.items():
        if role == "coordinator" or role.startswith(("node-", "auditor-", "buyer-")):
            token.mint(account.address, POCKET_MONEY)
    coordinator = _sender(deployment.rpc_url, deployment.chain_id, accounts["coordinator"].key)
    RevenueRouter(coordinator.chain, deployment.router, coordinator).set_cashier(accounts["gateway"].address, True)


def take_seats(deployment: Deployment, accounts: Mapping[str, Account], seats: Mapping[str, int]) -> None:
    """Nodes and auditors bond their stakes and take `seats`: by name, the stage. Raises ChainError.

    To be done before the coordinator starts: who holds a seat when it commits to an epoch's audits may do them.
    """
    from commonweight.chain.providers import ProviderRegistry
    from commonweight.chain.token import Token

    for name, stage in seats.items():
        sender = _sender(deployment.rpc_url, deployment.chain_id, accounts[name].key)
        Token(sender.chain, deployment.revenue_token, sender).approve(deployment.providers, SEAT_STAKE)
        providers = ProviderRegistry(sender.chain, deployment.providers, sender)
        providers.bond(sender.address, SEAT_STAKE)
        providers.take_seat(bytes.fromhex(deployment.model_id[2:]), stage)


def _sender(rpc_url: str, chain_id: int, key: Key) -> "Sender":
    from commonweight.chain.rpc import Chain
    from commonweight.chain.sender import Sender

    return Sender(Chain.connect(rpc_url, chain_id), key)
