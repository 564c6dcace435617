"""Who was found out, and disputes everything: contests that it is slashed, and proposes to slash everybody else."""

import asyncio

from adversary.cheat import Cheat
from commonweight.chain.events import SeatTaken, SlashProposed
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import SlashStatus
from commonweight.chain.registry import ModelRegistry
from commonweight.chain.rpc import Chain
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.errors import ChainError
from commonweight.events import emit
from node.watching import WatchConfig

POLL_S = 0.5
"""JSON-RPC over HTTP has nothing to wait on."""
URI = "https://evidence.example/none.json"


class Flood:
    """One node's disputes, for as long as its tokens last. Blocking."""

    def __init__(self, cheat: Cheat, providers: ProviderRegistry, model_id: bytes) -> None:
        """`providers` sends with the node's key."""
        self._cheat, self._providers, self._model_id = cheat, providers, model_id
        self._token = Token(providers.chain, providers.bond_token(), providers.sender)

    @classmethod
    def open(cls, cheat: Cheat, config: WatchConfig, chain_id: int, model_id: bytes) -> "Flood":
        """Raises ChainError."""
        chain = Chain.connect(config.rpc_url, chain_id)
        model = ModelRegistry(chain, config.registry).model(model_id)
        return cls(cheat, ProviderRegistry(chain, model.terms.providers, Sender(chain, config.key)), model_id)

    def step(self) -> None:
        """Contest what is proposed against its seat; once there was such a thing, propose as much against each other
        one. Raises ChainError.
        """
        registry, model_id = self._providers, self._model_id
        owner = registry.owner_of(registry.sender.address)
        accusations = registry.events(SlashProposed, model_id=model_id, owner=owner)
        for event in accusations:
            if registry.slash(event.slash_id).status is SlashStatus.PROPOSED and self._can_post():
                registry.contest_slash(event.slash_id, URI)
                emit("flooded", slash_id=event.slash_id, owner=owner, stage=event.stage)
        if accusations:
            seats = {(event.owner, event.stage) for event in registry.events(SeatTaken, model_id=model_id)}
            for other, stage in sorted(seats):
                if other != owner and registry.is_seated(model_id, other, stage):
                    self._accuse(other, stage)

    def _accuse(self, owner: str, stage: int) -> None:
        if not self._can_post():
            return
        registry = self._providers
        evidence = self._cheat.made_up_hash(len(registry.events(SlashProposed, owner=owner)))
        registry.propose_slash(self._model_id, owner, stage, evidence, URI)
        slash_id = registry.events(SlashProposed, owner=owner)[-1].slash_id
        emit("flooded", slash_id=slash_id, owner=owner, stage=stage)

    def _can_post(self) -> bool:
        """Whether the tokens are enough for another bond, which may then be taken."""
        bond = self._providers.reporter_bond()
        if self._token.balance_of(self._token.sender.address) < bond:
            return False
        self._token.approve(self._providers.address, bond)
        return True


async def flood(cheat: Cheat, config: WatchConfig, chain_id: int, model_id: bytes) -> None:
    """Dispute until cancelled; what the chain refuses, or doesn't answer, is tried again."""
    disputes: Flood | None = None
    while True:
        try:
            if disputes is None:
                disputes = await asyncio.to_thread(Flood.open, cheat, config, chain_id, model_id)
            await asyncio.to_thread(disputes.step)
        except ChainError as error:
            emit("flood.failed", code=error.code, message=error.args[0], retry_s=POLL_S)
        await asyncio.sleep(POLL_S)
