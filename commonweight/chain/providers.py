"""ProviderRegistry: stakes, seats, and the loss of a seat's stake for proven fraud."""

from typing import Any, Self

from commonweight.chain.abi_names import to_members, to_record
from commonweight.chain.deployed import DeployedContract, name_members
from commonweight.chain.events import SeatLeft, SeatTaken
from commonweight.chain.records import Seat, SlashRecord, SlashStatus
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Receipt, Sender
from commonweight.rules.receipt import Receipt as WorkReceipt


class ProviderRegistry(DeployedContract):
    """See contracts/src/interfaces/IProviderRegistry.sol. Amounts are in the bond token's smallest unit."""

    NAME = "ProviderRegistry"

    @classmethod
    def deploy(cls, sender: Sender, registry: str, bond_token: str, treasury: str, reporter_bond: int) -> Self:
        """A new provider registry for the models of `registry`; `treasury` gets what no reporter gets of a slash."""
        addresses = (to_address(registry), to_address(bond_token), to_address(treasury))
        return cls._deploy(sender, *addresses, reporter_bond)

    def registry(self) -> str:
        """The ModelRegistry whose models have their seats here."""
        return str(self._read("registry"))

    # Stake

    def bond_token(self) -> str:
        """Address of the token that stakes and reporters' bonds are in."""
        return str(self._read("bondToken"))

    def free_stake_of(self, owner: str) -> int:
        return int(self._read("freeStakeOf", to_address(owner)))

    def locked_stake_of(self, owner: str) -> int:
        """Locked in seats, held or left."""
        return int(self._read("lockedStakeOf", to_address(owner)))

    def bond(self, owner: str, amount: int) -> Receipt:
        """Adds `amount`, which the sender has approved, to `owner`'s free stake."""
        return self._invoke("bond", to_address(owner), amount)

    def withdraw(self, to: str, amount: int) -> Receipt:
        """Pays `amount` of the sender's free stake to `to`."""
        return self._invoke("withdraw", to_address(to), amount)

    # Who is who

    def owner_of(self, signer: str) -> str:
        """Who answers for a node's key: who bound it, else the key's own account."""
        return str(self._read("ownerOf", to_address(signer)))

    def payout_of(self, owner: str) -> str:
        """Who is paid for an owner's work."""
        return str(self._read("payoutOf", to_address(owner)))

    def bind_signer(self, signer: str, signature: bytes) -> Receipt:
        """Binds a node's key to the sender for good; `signature` is that key's over `binding_digest(sender)`."""
        return self._invoke("bindSigner", to_address(signer), signature)

    def binding_digest(self, owner: str) -> bytes:
        """The 32 bytes that a node's key signs to be bound to `owner`."""
        return bytes(self._read("bindingDigest", to_address(owner)))

    def set_payout(self, payout: str) -> Receipt:
        """Names the account that is paid for the sender's work; NOBODY: the sender itself."""
        return self._invoke("setPayout", to_address(payout))

    # Seats

    def seats_of(self, model_id: bytes, owner: str) -> list[Seat]:
        """The owner's seats in a model, also those left and not released."""
        seats, components = self._read("seatsOf", model_id, to_address(owner)), self._components("seatsOf")
        return [to_record(Seat, name_members(seat, components)) for seat in seats]

    def is_seated(self, model_id: bytes, owner: str, stage: int) -> bool:
        """Whether the owner holds the stage with its stake intact."""
        return bool(self._read("isSeated", model_id, to_address(owner), stage))

    def seated_at(self, model_id: bytes, block: int) -> frozenset[tuple[int, str]]:
        """Stage and owner of each seat that was held, with its stake intact, after `block`.

        From events, so that no endpoint needs to keep old state. Who is slashed has left its seat, then or before.
        """
        then = self.at(block)
        events: list[SeatTaken | SeatLeft] = [*then.events(SeatTaken, model_id=model_id)]
        events += then.events(SeatLeft, model_id=model_id)
        held: set[tuple[int, str]] = set()
        for event in sorted(events, key=lambda event: (event.block_number, event.log_index)):
            change = held.add if isinstance(event, SeatTaken) else held.discard
            change((event.stage, event.owner))
        return frozenset(held)

    def take_seat(self, model_id: bytes, stage: int) -> Receipt:
        """Locks the model's seat stake and holds the stage."""
        return self._invoke("takeSeat", model_id, stage)

    def leave_seat(self, model_id: bytes, stage: int) -> Receipt:
        """Gives the stage up and starts the cool-down."""
        return self._invoke("leaveSeat", model_id, stage)

    def release_seat(self, model_id: bytes, owner: str, stage: int) -> Receipt:
        """Frees a left seat's stake after its cool-down; any key."""
        return self._invoke("releaseSeat", model_id, to_address(owner), stage)

    # Slashing

    def receipt_digest(self, receipt: WorkReceipt) -> bytes:
        """The 32 bytes that are signed for a receipt, as the contract computes them."""
        return bytes(self._read("receiptDigest", to_members(receipt)))

    def slash_equivocation(self, a: WorkReceipt, signature_a: bytes, b: WorkReceipt, signature_b: bytes) -> Receipt:
        """Slashes the seat of who signed two receipts for one unit with different outputs; any key."""
        return self._invoke("slashEquivocation", to_members(a), signature_a, to_members(b), signature_b)

    def slash(self, slash_id: int) -> SlashRecord:
        """A proposal to slash; its status is NONE where there is none."""
        fields: dict[str, Any] = self._read_struct("slash", slash_id)
        return to_record(SlashRecord, {**fields, "status": SlashStatus(fields["status"])})

    def reporter_bond(self) -> int:
        """What who proposes to slash, and who contests, posts."""
        return int(self._read("reporterBond"))

    def propose_slash(self, model_id: bytes, owner: str, stage: int, evidence_hash: bytes, uri: str) -> Receipt:
        """Proposes to slash a seat for evidence that needs a judge; any key that has approved `reporter_bond`."""
        return self._invoke("proposeSlash", model_id, to_address(owner), stage, evidence_hash, uri)

    def contest_slash(self, slash_id: int, uri: str) -> Receipt:
        """Disputes a proposal within the model's window; any key that has approved `reporter_bond`."""
        return self._invoke("contestSlash", slash_id, uri)

    def resolve_slash(self, slash_id: int, uphold: bool) -> Receipt:
        """Decides a contested proposal; the arbiter's key only."""
        return self._invoke("resolveSlash", slash_id, uphold)

    def execute_slash(self, slash_id: int) -> Receipt:
        """Slashes after a window without a contest; any key."""
        return self._invoke("executeSlash", slash_id)

    def drop_slash(self, slash_id: int) -> Receipt:
        """Drops a contested proposal on which the arbiter was silent; any key."""
        return self._invoke("dropSlash", slash_id)
