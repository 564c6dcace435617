"""Arbiter: a multisig behind a timelock."""

from collections.abc import Sequence
from typing import Self

from commonweight.chain.abi_names import to_record
from commonweight.chain.deployed import DeployedContract
from commonweight.chain.records import NOBODY, ArbiterCall
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Receipt, Sender


class Arbiter(DeployedContract):
    """See contracts/src/interfaces/IArbiter.sol. To let it decide a challenge, propose that Action's `to` and `data`:

    action = settlement.action("resolveEpoch", 3, root, challenged.resolvable_until, False)
    arbiter.propose(action.to, action.data)
    """

    NAME = "Arbiter"

    @classmethod
    def deploy(cls, sender: Sender, members: Sequence[str], threshold: int, delay_s: int) -> Self:
        """A new arbiter: `threshold` of its members confirm a call, which can be made `delay_s` later."""
        return cls._deploy(sender, [to_address(member) for member in members], threshold, delay_s)

    # Reading

    def members(self) -> list[str]:
        return list(self._read("members"))

    def threshold(self) -> int:
        """Confirmations that a call needs."""
        return int(self._read("threshold"))

    def delay_s(self) -> int:
        """Seconds between the last confirmation that a call needs and the first moment it can be made."""
        return int(self._read("delay"))

    def grace_s(self) -> int:
        """Seconds in which a call can be made; then it is closed for good."""
        return int(self._read("GRACE"))

    def call_id_of(self, target: str, data: bytes | str, salt: bytes = bytes(32)) -> bytes:
        """The id of a call, be it proposed or not."""
        return bytes(self._read("callIdOf", to_address(target), data, salt))

    def call_of(self, call_id: bytes) -> ArbiterCall | None:
        """A proposed call; None for an unknown one."""
        call = to_record(ArbiterCall, self._read_struct("callOf", call_id))
        return None if call.target == NOBODY else call

    # Changing

    def propose(self, target: str, data: bytes | str, salt: bytes = bytes(32)) -> Receipt:
        """Proposes a call and confirms it; a member's key only. Another `salt` makes the same call anew, also one that
        has lapsed.
        """
        return self._invoke("propose", to_address(target), data, salt)

    def confirm(self, call_id: bytes) -> Receipt:
        """Confirms a proposed call; a member's key only."""
        return self._invoke("confirm", call_id)

    def revoke(self, call_id: bytes) -> Receipt:
        """Takes the sender's confirmation back."""
        return self._invoke("revoke", call_id)

    def execute(self, call_id: bytes) -> Receipt:
        """Makes the call, in time; any key. Reverts with what the target reverts with."""
        return self._invoke("execute", call_id)
