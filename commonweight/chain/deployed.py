"""What all typed contracts share: an address, an ABI, and perhaps a Sender."""

from typing import Any, ClassVar, Self

from commonweight.chain.artifacts import load_artifact
from commonweight.chain.rpc import Chain, to_address
from commonweight.chain.sender import Action, Receipt, Sender
from commonweight.errors import ChainError


class DeployedContract:
    """One of our contracts at an address. Without `sender` it can only be read."""

    NAME: ClassVar[str]

    def __init__(self, chain: Chain, address: str, sender: Sender | None = None) -> None:
        self.chain = chain
        self.address: str = to_address(address)
        self._sender = sender
        self._contract = chain.contract(self.NAME, address)

    def action(self, function: str, *arguments: Any) -> Action:
        """A call of the Solidity `function`, encoded but not sent."""
        data = self._contract.encode_abi(function, args=list(arguments))
        return Action(f"{self.NAME}.{function}", self.address, data)

    @classmethod
    def _deploy(cls, sender: Sender) -> Self:
        receipt = sender.send(deployment(cls.NAME))
        if receipt.contract_address is None:
            raise ChainError(f"the receipt of deploying {cls.NAME} ({receipt.transaction}) names no address")
        return cls(sender.chain, receipt.contract_address, sender)

    def _read(self, function: str, *arguments: Any) -> Any:
        return self.chain.read(self._contract, self.NAME, function, *arguments)

    def _read_struct(self, function: str, *arguments: Any) -> dict[str, Any]:
        """What a view that returns one struct returns, by its members' names.

        web3's own decode_tuples loses return values that have no name.
        """
        (output,) = self._contract.get_function_by_name(function).abi["outputs"]
        return _name_members(self._read(function, *arguments), output["components"])

    def _send(self, action: Action) -> Receipt:
        if self._sender is None:
            raise ChainError(f"{action.what} needs a key to send with: this {self.NAME} was opened for reading")
        return self._sender.send(action)

    def _invoke(self, function: str, *arguments: Any) -> Receipt:
        return self._send(self.action(function, *arguments))


def deployment(name: str) -> Action:
    """The transaction that deploys one of our contracts; none of those that we deploy takes arguments."""
    return Action(f"{name} (deployment)", None, load_artifact(name).bytecode)


def _name_members(values: Any, components: Any) -> dict[str, Any]:
    return {
        member["name"]: _name_members(value, member["components"]) if member["type"] == "tuple" else value
        for member, value in zip(components, values, strict=True)
    }
