"""Which stages a node may hold and who is paid for its work, as its owner's seats on chain say."""

import asyncio
from dataclasses import dataclass

from commonweight.chain.events import Slashed
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import RegisteredModel
from commonweight.chain.rpc import Chain
from commonweight.errors import ChainError, PeerUnreachable, Refused, WireError
from coordinator.auditors import Auditors
from coordinator.members import AuditorMember, Member
from coordinator.training import Training


@dataclass(frozen=True)
class Standing:
    """A node's standing in a model."""

    stages: frozenset[int] | None
    """That its owner's seats let it hold; None: any, the model asks for no stake."""
    account: str
    """Who is paid."""
    owner: str
    """Who answers for it; it itself, where the model asks for no stake."""


async def recheck_seats(training: Training, auditors: Auditors, seats: "Seats", rounds_per_epoch: int) -> None:
    """After each epoch, hang up on nodes and auditors whose standing on chain has changed; those that still may come
    back. Runs until cancelled.
    """
    while True:
        await training.wait_until_sealed((training.round // rounds_per_epoch + 1) * rounds_per_epoch)
        for member in training.members:
            if (change := await _change(seats, member, training.stage_of(member.node))) is not None:
                training.hang_up(member, change)
        for auditor in auditors.members:
            if (change := await _change(seats, auditor)) is not None:
                auditors.hang_up(auditor, change)


async def _change(seats: "Seats", member: Member | AuditorMember, holds: int | None = None) -> WireError | None:
    """Why it can't stay connected as it is; None where nothing has changed, or the chain doesn't answer."""
    try:
        found = await asyncio.to_thread(seats.standing, member.node, member.account, holds)
    except PeerUnreachable:
        return None
    except Refused as error:
        return error
    if found == Standing(member.stages, member.account, member.owner):
        return None
    return PeerUnreachable("Its owner, or that one's seats or payout, changed on chain: connect again.")


@dataclass(frozen=True)
class Seats:
    """Looks standings up. Blocks: call it off the event loop."""

    chain: Chain
    model: RegisteredModel
    first_block: int = 0
    """In which the model was registered."""

    def standing(self, node: str, wished_account: str, holds: int | None = None) -> Standing:
        """A node's standing. `wished_account` is who is to be paid where the model asks for no stake.

        `holds`: the stage that is the node's already. Whose stake in it was slashed keeps it: maybe nobody else
        has its state, so hanging up on a convicted provider could stop the model; it is trained with, unpaid.

        Raises Refused where the node's owner holds no seat with its stake intact, PeerUnreachable where the chain can't
        be asked: the node comes back.
        """
        if self.model.terms.seat_stake == 0:
            return Standing(None, wished_account, node)
        providers = ProviderRegistry(self.chain, self.model.terms.providers, first_block=self.first_block)
        try:
            owner = providers.owner_of(node)
            seats = providers.seats_of(self.model.model_id, owner)
            account = providers.payout_of(owner)
            held = frozenset(seat.stage for seat in seats if seat.releasable_at == 0)
            if holds is not None and holds not in held:
                slashed = providers.events(Slashed, model_id=self.model.model_id, owner=owner, stage=holds)
                held |= {holds} if slashed else set()
        except ChainError as error:
            raise PeerUnreachable(f"The coordinator can't ask the chain for this node's seat now: {error}") from error
        if not held:
            raise Refused(
                f"{owner}, who answers for node {node}, holds no seat in model 0x{self.model.model_id.hex()}. Bond "
                f"{self.model.terms.seat_stake} base units of stake (`commonweight bond`) and take one "
                "(`commonweight seat take`)."
            )
        return Standing(held, account, owner)
