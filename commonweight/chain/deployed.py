"""What all typed contracts share: an address, an ABI, their events, and perhaps a Sender.

The contracts' rules are in the NatSpec of contracts/src/interfaces. A view returns a value or a record. What
changes the chain needs the contract object to have a `Sender`, waits until the transaction is mined and
returns its Receipt. To see what it would cost, hand the Action to `Sender.dry_run`: `action` makes one from
the Solidity name, `sender.dry_run(settlement.action("finalizeEpoch", 3))`; methods that look something up
before they send have a twin that returns the Action.

All raise as Chain and Sender do; ContractReverted carries the name of the custom error.
"""

from copy import copy
from typing import Any, ClassVar, Self, TypeVar

from commonweight.chain.abi_names import to_member
from commonweight.chain.artifacts import load_artifact
from commonweight.chain.events import ContractEvent
from commonweight.chain.rpc import Chain, to_address
from commonweight.chain.sender import Action, Receipt, Sender
from commonweight.errors import ChainError

EventT = TypeVar("EventT", bound=ContractEvent)


class DeployedContract:
    """One of our contracts at an address. Without `sender` it can only be read.

    `first_block`: no event of it is looked for in earlier blocks. Where it was deployed by registering a model,
    `ModelRegistry.registration_block` tells.
    """

    NAME: ClassVar[str]
    """For messages."""
    ARTIFACT: ClassVar[str | None] = None
    """The artifact with its ABI, if not NAME."""

    def __init__(self, chain: Chain, address: str, sender: Sender | None = None, *, first_block: int = 0) -> None:
        self.chain = chain
        self.address: str = to_address(address)
        self.first_block = first_block
        self._sender = sender
        self._contract = chain.contract(self.ARTIFACT or self.NAME, address)

    @property
    def sender(self) -> Sender:
        """Who changes the contract through this object. Raises ChainError where it was opened for reading."""
        if self._sender is None:
            raise ChainError(f"this needs a key to send with: the {self.NAME} at {self.address} was opened for reading")
        return self._sender

    def at(self, block: int) -> Self:
        """The same contract, to be read as it stood after `block`; see `Chain.at`."""
        pinned = copy(self)
        pinned.chain = self.chain.at(block)
        return pinned

    def action(self, function: str, *arguments: Any) -> Action:
        """A call of the Solidity `function`, encoded but not sent. Raises ChainError for arguments that don't fit."""
        what = f"{self.NAME}.{function}"
        with self.chain.errors(what):
            data = self._contract.encode_abi(function, args=list(arguments))
        return Action(what, self.address, data)

    def events(self, kind: type[EventT], from_block: int | None = None, **indexed: Any) -> list[EventT]:
        """Every event of that kind since `from_block` (or `first_block`), oldest first.

        `indexed` keeps those whose indexed arguments have the given value, or one of a list of them:
        `settlement.events(SharesClaimed, account=alice)`.
        """
        wanted = {to_member(field): value for field, value in indexed.items()}
        start = self.first_block if from_block is None else from_block
        logs = self.chain.events(self._contract, kind.__name__, start, arguments=wanted)
        return [kind.from_log(log) for log in logs]

    @classmethod
    def _deploy(cls, sender: Sender, *arguments: Any) -> Self:
        receipt = sender.send(deployment(sender.chain, cls.ARTIFACT or cls.NAME, *arguments))
        if receipt.contract_address is None:
            raise ChainError(f"the receipt of deploying {cls.NAME} ({receipt.transaction}) names no address")
        return cls(sender.chain, receipt.contract_address, sender, first_block=receipt.block_number)

    def _read(self, function: str, *arguments: Any) -> Any:
        return self.chain.read(self._contract, self.NAME, function, *arguments)

    def _read_struct(self, function: str, *arguments: Any) -> dict[str, Any]:
        """What a view that returns one struct returns, by its members' names.

        web3's own decode_tuples loses return values that have no name.
        """
        return name_members(self._read(function, *arguments), self._components(function))

    def _components(self, function: str) -> Any:
        """The members of the one struct, or array of structs, that a view returns."""
        (output,) = self._contract.get_function_by_name(function).abi["outputs"]
        return output["components"]

    def _send(self, action: Action) -> Receipt:
        return self.sender.send(action)

    def _invoke(self, function: str, *arguments: Any) -> Receipt:
        return self._send(self.action(function, *arguments))


def deployment(chain: Chain, name: str, *arguments: Any) -> Action:
    """The transaction that deploys one of our contracts with the constructor's arguments."""
    artifact, what = load_artifact(name), f"{name} (deployment)"
    with chain.errors(what):
        contract = chain.w3.eth.contract(abi=artifact.abi, bytecode=artifact.bytecode)
        return Action(what, None, str(contract.constructor(*arguments).data_in_transaction))


def name_members(values: Any, components: Any) -> dict[str, Any]:
    """A decoded struct by its members' names."""
    return {
        member["name"]: name_members(value, member["components"]) if member["type"] == "tuple" else value
        for member, value in zip(components, values, strict=True)
    }
