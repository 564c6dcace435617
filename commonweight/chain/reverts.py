"""Why a contract refused: revert data decoded to the custom error's name and arguments, for all our
contracts.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import collapse_if_tuple
from eth_utils.crypto import keccak

from commonweight.chain.artifacts import CONTRACTS, load_artifact
from commonweight.errors import TransactionFailed

# What Solidity itself reverts with (docs.soliditylang.org, "Panic via assert and Error via require").
_BUILT_IN: tuple[dict[str, Any], ...] = (
    {"name": "Error", "inputs": [{"name": "message", "type": "string"}]},
    {"name": "Panic", "inputs": [{"name": "code", "type": "uint256"}]},
)


class ContractReverted(TransactionFailed):
    """A revert, decoded.

    `error`: the custom error's name as in Solidity ("EpochSettlementWindowOpen"), "Error" or "Panic" for
    Solidity's own; None where the contract gave no reason or one that none of our ABIs knows. `arguments`:
    its arguments by name, addresses as 0x strings. `data`: the same, undecoded. `transaction`: the hash, if
    it was mined.
    """

    def __init__(
        self,
        message: str,
        data: bytes = b"",
        *,
        error: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        transaction: str | None = None,
    ) -> None:
        super().__init__(message)
        self.data = data
        self.error = error
        self.arguments = dict(arguments or {})
        self.transaction = transaction


def explain_revert(what: str, data: str | bytes | None, *, transaction: str | None = None) -> ContractReverted:
    """The error to raise for `what` ("EpochSettlement.claim") that reverted with `data` (0x string or bytes)."""
    raw = _to_bytes(data)
    when = f" when mined ({transaction})" if transaction else ""
    if not raw:
        return ContractReverted(f"{what} reverted{when} without giving a reason", transaction=transaction)
    decoded = decode_revert(raw)
    if decoded is None:
        return ContractReverted(
            f"{what} reverted{when} with data that no contract of ours gives: 0x{raw.hex()[:200]}",
            raw,
            transaction=transaction,
        )
    name, arguments = decoded
    shown = ", ".join(f"{key}={_show(value)}" for key, value in arguments.items())
    return ContractReverted(
        f"{what} reverted{when}: {name}({shown})",
        raw,
        error=name,
        arguments=arguments,
        transaction=transaction,
    )


def decode_revert(data: bytes) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the error in revert data; None if it is none that we know."""
    known = _errors().get(data[:4])
    if known is None:
        return None
    name, names, types = known
    try:
        values = decode(types, data[4:])
    except DecodingError:
        return None
    return name, dict(zip(names, values, strict=True))


@cache
def _errors() -> dict[bytes, tuple[str, list[str], list[str]]]:
    """By selector: name, argument names, argument types."""
    entries = list(_BUILT_IN)
    for contract in CONTRACTS:
        entries += [entry for entry in load_artifact(contract).abi if entry["type"] == "error"]
    table = {}
    for entry in entries:
        types = [collapse_if_tuple(argument) for argument in entry["inputs"]]
        names = [argument["name"] or f"arg{i}" for i, argument in enumerate(entry["inputs"])]
        selector = keccak(text=f"{entry['name']}({','.join(types)})")[:4]
        table[selector] = (entry["name"], names, types)
    return table


def _to_bytes(data: str | bytes | None) -> bytes:
    if isinstance(data, str):
        try:
            return bytes.fromhex(data.removeprefix("0x"))
        except ValueError:  # "no data" and other prose of nodes
            return b""
    return bytes(data or b"")


def _show(value: Any) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
