"""A devnet's contracts and its model on them. Blocking: call from a thread. Imports web3, which takes a second."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from commonweight.chain.child import Ready
from commonweight.chain.keys import Key
from commonweight.devnet.accounts import Account
from commonweight.rules.spec import ModelSpec

WINDOW_S = 1
"""Between an epoch's proposal and its finalisation: the least that the contract takes, nobody here disputes."""


@dataclass(frozen=True)
class Contracts:
    """Addresses of what all models of a chain share."""

    registry: str
    revenue_token: str


@dataclass(frozen=True)
class Deployment:
    """Where the model is: chain, contracts, id."""

    rpc_url: str
    chain_id: int
    registry: str
    model_id: str
    """0x and 64 digits."""
    shares: str
    settlement: str
    revenue_token: str

    def fields(self) -> dict[str, Any]:
        """As in deployments.json."""
        return asdict(self)


def deploy_contracts(rpc_url: str, chain_id: int, deployer: Key) -> Contracts:
    """Puts the registry, with its implementations, and the play money on a fresh chain. Raises ChainError."""
    from commonweight.chain.contracts import ModelRegistry, TestUSD
    from commonweight.chain.rpc import Chain
    from commonweight.chain.sender import Sender

    sender = Sender(Chain.connect(rpc_url, chain_id), deployer)
    return Contracts(ModelRegistry.deploy(sender).address, TestUSD.deploy(sender).address)


def register_model(
    ready: Ready, contracts: Contracts, spec: ModelSpec, spec_file: Path, accounts: Mapping[str, Account]
) -> Deployment:
    """Registers the model under its designer's name, with the spec's terms. Raises ChainError."""
    from commonweight.chain.contracts import ModelRegistry
    from commonweight.chain.records import ModelTerms
    from commonweight.chain.rpc import Chain
    from commonweight.chain.sender import Sender

    chain = Chain.connect(ready.rpc_url, ready.chain_id)
    registry = ModelRegistry(chain, contracts.registry, Sender(chain, accounts["designer"].key))
    economics = spec.economics
    model = registry.register_model(
        ModelTerms(
            spec_hash=spec.spec_hash,
            spec_uri=spec_file.as_uri(),
            name="Commonweight devnet",
            symbol="CWDEV",
            designer=accounts["designer"].address,
            data_recipient=accounts["data provider"].address,
            coordinator=accounts["coordinator"].address,
            revenue_token=contracts.revenue_token,
            max_supply=int(economics.max_supply),
            designer_bps=economics.designer_bps,
            data_bps=economics.data_bps,
            initial_emission=int(economics.initial_emission),
            halving_epochs=economics.halving_epochs,
            window_s=WINDOW_S,
            stages=spec.stages,
        )
    )
    return Deployment(
        rpc_url=ready.rpc_url,
        chain_id=ready.chain_id,
        registry=contracts.registry,
        model_id="0x" + model.model_id.hex(),
        shares=model.shares,
        settlement=model.settlement,
        revenue_token=contracts.revenue_token,
    )
