"""Contests, with a node's key, what is proposed against its owner's seats: what nobody contests in time is executed."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import SlashRecord, SlashStatus
from commonweight.chain.reverts import ContractReverted
from commonweight.chain.sender import Receipt
from commonweight.chain.token import Token
from commonweight.errors import ChainError, InsufficientFunds, NotAllowed, RpcUnreachable
from commonweight.events import emit
from commonweight.rules.canonical import canonical_json
from commonweight.rules.statement import to_hex

STATEMENT = (
    "The node contests this by itself, as it does whatever is proposed against its owner's seats while it runs with "
    "--contest: it says that it has computed what the model's spec asks for. Evidence that can't be had, or that is "
    "about another seat, is none; otherwise replay the unit."
)


@dataclass
class Contester:
    """Contests every proposal against one owner's seats in a model, right or wrong. Blocking.

    Whether one is contested stands on chain, so a restart, or another node of the owner, contests none again.
    """

    providers: ProviderRegistry
    """Sends with the node's key, which posts the bonds."""
    model_id: bytes
    _open: set[int] = field(default_factory=set)
    """Proposals whose status may still change to, or, where the chain is reorganised, from contested."""
    _told: set[tuple[int, bytes, str]] = field(default_factory=set)
    """Slash, evidence and why it can't be contested."""

    @property
    def has_open(self) -> bool:
        """Whether a proposal is left whose status may still change."""
        return bool(self._open)

    def contest(self, new: Iterable[int]) -> None:
        """Contest what isn't contested of `new` and of what came before, once each. Emits what became of it.

        What the chain refuses is tried again at the next call. Raises ChainError where the chain can't be read.
        """
        self._open.update(new)
        providers, now = self.providers, self.providers.chain.timestamp()
        owner = providers.owner_of(providers.sender.address)
        for slash_id in sorted(self._open):
            record = providers.slash(slash_id)
            is_late = now >= record.deadline
            if record.status is SlashStatus.PROPOSED and self._is_at_stake(record, owner):
                self._attempt(slash_id, record, is_late)
            if is_late or record.status not in (SlashStatus.PROPOSED, SlashStatus.CONTESTED):
                self._open.remove(slash_id)

    def _is_at_stake(self, record: SlashRecord, owner: str) -> bool:
        """Whether the owner can lose something by it: a bond for a seat that was slashed already could only be lost."""
        if (record.model_id, record.owner) != (self.model_id, owner):
            return False  # reorganised: the id is another proposal's now
        seats = self.providers.seats_of(self.model_id, owner)
        return any(seat.stake for seat in seats if seat.stage == record.stage)

    def _attempt(self, slash_id: int, record: SlashRecord, is_late: bool) -> None:
        try:
            if is_late:
                raise NotAllowed(
                    "Its window has ended: anybody can have it executed, and nothing on chain prevents that any more. "
                    "Keep nodes running, with tokens for the bond."
                )
            bond = self.providers.reporter_bond()
            receipt = self._post(slash_id, record, bond)
        except RpcUnreachable:
            raise
        except ChainError as error:
            self._tell(slash_id, record, error)
            return
        emit(
            "slash.defended",
            slash_id=slash_id,
            stage=record.stage,
            owner=record.owner,
            bond=str(bond),
            transaction=receipt.transaction,
        )

    def _post(self, slash_id: int, record: SlashRecord, bond: int) -> Receipt:
        providers, sender = self.providers, self.providers.sender
        token = Token(providers.chain, providers.bond_token(), sender)
        if (balance := token.balance_of(sender.address)) < bond:
            raise InsufficientFunds(
                f"{sender.address} has {balance} base units of the bond token {token.address}, and the bond is {bond}: "
                f"send it {bond - balance} in time, or contest with another key, `commonweight slash contest "
                f"{slash_id}`."
            )
        if token.allowance(sender.address, providers.address) < bond:
            token.approve(providers.address, bond)
        return providers.contest_slash(slash_id, self._answer(slash_id, record))

    def _answer(self, slash_id: int, record: SlashRecord) -> str:
        text = canonical_json(
            {
                "format": "commonweight.contest/1",
                "slash_id": slash_id,
                "evidence_hash": to_hex(record.evidence_hash),
                "node": self.providers.sender.address,
                "stage": record.stage,
                "statement": STATEMENT,
            }
        )
        return "data:application/json;base64," + base64.b64encode(text).decode()

    def _tell(self, slash_id: int, record: SlashRecord, error: ChainError) -> None:
        if isinstance(error, ContractReverted) and error.error == "ProviderRegistryWrongStatus":
            return  # somebody was faster: the next look sees it
        why = slash_id, record.evidence_hash, error.code
        if why in self._told:
            return
        self._told.add(why)
        emit(
            "slash.defenceless",
            slash_id=slash_id,
            stage=record.stage,
            owner=record.owner,
            until=record.deadline,
            code=error.code,
            message=f"Slash {slash_id} isn't contested. {error.args[0]}",
        )
