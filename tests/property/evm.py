"""Contracts in this process, as fast as py-evm runs them: no node, no RPC, no signatures, time as a test wants it."""

from functools import cache
from typing import Any

from eth.abc import ComputationAPI
from eth.chains.base import MiningChain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.constants import BLANK_ROOT_HASH, POST_MERGE_MIX_HASH, POST_MERGE_NONCE
from eth.db import get_db_backend
from eth.exceptions import Revert
from eth.vm.forks.cancun import CancunVM
from eth.vm.message import Message
from eth.vm.transaction_context import BaseTransactionContext
from eth_abi.abi import decode, encode
from eth_hash.auto import keccak
from eth_utils.address import to_canonical_address
from eth_utils.crypto import keccak as keccak_hex

from commonweight.chain.artifacts import CONTRACTS, load_artifact

CHAIN_ID = 31337
START = 1_700_000_000
_GAS = 10**9


class Reverted(Exception):
    """A call that the EVM undid: the error's name and arguments, or ("", ()) where it has no data."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        super().__init__(f"{name}{arguments}")
        self.name = name


def _canonical(abi_input: dict[str, Any]) -> str:
    """An ABI parameter's type with tuples spelled out."""
    kind = abi_input["type"]
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(map(_canonical, abi_input['components']))}){kind.removeprefix('tuple')}"


def _types(parameters: list[dict[str, Any]]) -> list[str]:
    return [_canonical(parameter) for parameter in parameters]


@cache
def _functions(contract: str) -> dict[str, tuple[bytes, list[str], list[str]]]:
    """By name: selector, argument types, result types. Overloads keep the one with the fewest arguments."""
    found: dict[str, tuple[bytes, list[str], list[str]]] = {}
    for entry in load_artifact(contract).abi:
        if entry["type"] != "function":
            continue
        takes, gives = _types(entry["inputs"]), _types(entry["outputs"])
        if entry["name"] not in found or len(takes) < len(found[entry["name"]][1]):
            selector = keccak_hex(text=f"{entry['name']}({','.join(takes)})")[:4]
            found[entry["name"]] = (selector, takes, gives)
    return found


@cache
def _errors() -> dict[bytes, tuple[str, list[str]]]:
    """By selector: name and argument types of every error of ours, and Solidity's own."""
    entries = [entry for name in CONTRACTS for entry in load_artifact(name).abi if entry["type"] == "error"]
    errors = {(entry["name"], *_types(entry["inputs"])) for entry in entries} | {("Panic", "uint256")}
    return {keccak_hex(text=f"{name}({','.join(types)})")[:4]: (name, list(types)) for name, *types in errors}


class Evm:
    """A state without blocks: every call takes effect at once, or not at all."""

    def __init__(self) -> None:
        chain_class = MiningChain.configure(
            "PropertyChain",
            chain_id=CHAIN_ID,
            vm_configuration=ConsensusApplier(NoProofConsensus).amend_vm_configuration(((0, CancunVM),)),
        )
        genesis: dict[str, Any] = {
            "difficulty": 0,
            "nonce": POST_MERGE_NONCE,
            "mix_hash": POST_MERGE_MIX_HASH,
            "gas_limit": 30_000_000,
            "timestamp": START,
            "coinbase": bytes(20),
            "extra_data": b"",
            "receipt_root": BLANK_ROOT_HASH,
            "transaction_root": BLANK_ROOT_HASH,
        }
        self._state: Any = chain_class.from_genesis(get_db_backend(), genesis, {}).get_vm().state
        self._state.execution_context._timestamp = START
        self._deployed = 0

    @property
    def now(self) -> int:
        """Unix seconds."""
        return int(self._state.timestamp)

    def wait(self, seconds: int) -> None:
        self._state.execution_context._timestamp += seconds

    def deploy(self, contract: str, types: list[str], arguments: list[Any]) -> "Contract":
        """Runs the constructor; there is no limit on gas."""
        code = bytes.fromhex(load_artifact(contract).bytecode[2:]) + encode(types, arguments)
        self._deployed += 1
        address = keccak(self._deployed.to_bytes(32, "big"))[12:]
        message = Message(_GAS, b"", bytes(20), 0, b"", code, create_address=address)
        self._apply(message, create=True)
        return Contract(self, contract, "0x" + address.hex())

    def call(self, sender: str, to: bytes, data: bytes) -> bytes:
        """Returns what the contract returns. Raises Reverted."""
        message = Message(_GAS, to, to_canonical_address(sender), 0, data, self._state.get_code(to))
        return bytes(self._apply(message, create=False).output)

    def _apply(self, message: Message, create: bool) -> ComputationAPI:
        state = self._state
        context = BaseTransactionContext(0, message.sender)
        run = state.computation_class.apply_create_message if create else state.computation_class.apply_message
        computation: ComputationAPI = run(state, message, context)
        state.lock_changes()
        if not computation.is_error:
            return computation
        if not isinstance(computation.error, Revert):
            raise Reverted(type(computation.error).__name__, ())
        data = bytes(computation.output)
        if data[:4] not in _errors():
            raise Reverted(data.hex(), ())
        name, types = _errors()[data[:4]]
        raise Reverted(name, decode(types, data[4:]))


class Contract:
    """A deployed contract: `contract.name(...)` reads, `contract.by(account).name(...)` sends from an account."""

    def __init__(self, evm: Evm, kind: str, address: str, sender: str = "0x" + 39 * "0" + "1") -> None:
        self._evm, self._kind, self.address, self._sender = evm, kind, address, sender
        self._to = to_canonical_address(address)

    def by(self, sender: str) -> "Contract":
        """The same contract as `sender` sees it."""
        return Contract(self._evm, self._kind, self.address, sender)

    def encode(self, name: str, *arguments: Any) -> bytes:
        """What a call of `name` sends."""
        selector, takes, _ = _functions(self._kind)[name]
        return selector + encode(takes, arguments)

    def __getattr__(self, name: str) -> Any:
        selector, takes, gives = _functions(self._kind)[name]

        def send(*arguments: Any) -> Any:
            output = self._evm.call(self._sender, self._to, selector + encode(takes, arguments))
            results = decode(gives, output)
            return results[0] if len(results) == 1 else results

        return send
