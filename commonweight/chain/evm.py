"""An EVM chain in this process: py-evm, one block per transaction, time that follows the wall clock.

Made for development and tests. It holds the canonical blocks in lists, so that looking up a block, a
transaction or a log costs the same at block ten thousand as at block ten, and knows nothing of JSON-RPC
(`evm_rpc.py` does).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eth.chains.base import MiningChain
from eth.consensus.applier import ConsensusApplier
from eth.consensus.noproof import NoProofConsensus
from eth.constants import BLANK_ROOT_HASH, POST_MERGE_MIX_HASH, POST_MERGE_NONCE
from eth.db import get_db_backend
from eth.exceptions import Revert
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_utils.exceptions import ValidationError

BLOCK_GAS_LIMIT = 30_000_000
# Gas that a call may keep back per nesting level (EIP-150: one part in 64), with the call stipend on top.
_STIPEND = 2_300

# py-evm's BlockAPI, BlockHeaderAPI, ComputationAPI, ReceiptAPI and SignedTransactionAPI. Their declared types
# leave out what each fork added, so they say less than these names.
Block = Any
Header = Any
Computation = Any
PyEvmReceipt = Any
PyEvmTransaction = Any


class ExecutionError(Exception):
    """A call that the EVM undid. `data` is what the contract returned with the revert, empty if nothing."""

    def __init__(self, message: str, data: bytes) -> None:
        super().__init__(message)
        self.data = data


class RejectedError(Exception):
    """A transaction or call that can't be executed at all: wrong nonce, no funds, too much gas."""


@dataclass(frozen=True)
class Call:
    """What eth_call and eth_estimateGas execute. `to` is empty for a deployment; `gas` None means the block's
    limit.
    """

    sender: bytes
    to: bytes
    data: bytes
    value: int
    gas: int | None


@dataclass(frozen=True)
class MinedTransaction:
    """One transaction with its place and its receipt. `gas_used` is its own, not the block's sum."""

    transaction: PyEvmTransaction
    receipt: PyEvmReceipt
    contract_address: bytes | None
    gas_used: int
    block_number: int


class _VM(PragueVM):
    """Prague, without checks of blocks that we have just built: they forbid two blocks in one second."""

    @classmethod
    def validate_header(cls, header: Header, parent_header: Header) -> None:
        pass

    def validate_block(self, block: Block) -> None:
        pass


class LocalEvm:
    """A chain of `chain_id` on which each account of `balances` (20-byte address to wei) is funded in block
    0.

    Not thread-safe: callers serialise. `clock` gives Unix seconds; a block's timestamp is the clock plus
    whatever `increase_time` added, and never before its parent's (equal is allowed, as on anvil).
    """

    def __init__(self, chain_id: int, balances: Mapping[bytes, int], clock: Callable[[], float] = time.time) -> None:
        self.chain_id = chain_id
        self._clock = clock
        self._offset_s = 0
        genesis = {
            "difficulty": 0,
            "nonce": POST_MERGE_NONCE,
            "mix_hash": POST_MERGE_MIX_HASH,
            "gas_limit": BLOCK_GAS_LIMIT,
            "timestamp": int(clock()),
            "coinbase": bytes(20),
            "extra_data": b"",
            "receipt_root": BLANK_ROOT_HASH,
            "transaction_root": BLANK_ROOT_HASH,
        }
        state = {account: {"balance": wei, "nonce": 0, "code": b"", "storage": {}} for account, wei in balances.items()}
        self._chain: Any = _chain_class(chain_id).from_genesis(get_db_backend(), genesis, state)
        self._blocks: list[Block] = [self._chain.get_canonical_block_by_number(0)]
        self._mined: list[MinedTransaction | None] = [None]
        self._by_transaction: dict[bytes, MinedTransaction] = {}
        self._number_by_hash: dict[bytes, int] = {self._blocks[0].hash: 0}
        self._snapshots: list[tuple[int, int]] = []

    # Reading

    @property
    def height(self) -> int:
        """Number of the latest block."""
        return len(self._blocks) - 1

    def block(self, number: int) -> Block | None:
        return self._blocks[number] if 0 <= number <= self.height else None

    def block_number_of(self, block_hash: bytes) -> int | None:
        return self._number_by_hash.get(block_hash)

    def transaction_in(self, number: int) -> MinedTransaction | None:
        """The transaction of block `number`; None for an empty block. No block holds two."""
        return self._mined[number]

    def transaction(self, transaction_hash: bytes) -> MinedTransaction | None:
        return self._by_transaction.get(transaction_hash)

    def pending_header(self) -> Header:
        """The header under which a transaction sent now would run."""
        now = int(self._clock()) + self._offset_s
        return self._chain.header.copy(timestamp=max(now, self._blocks[-1].header.timestamp))

    def state_at(self, header: Header) -> Any:
        """Accounts and storage after the block of `header` (py-evm's StateAPI)."""
        return self._chain.get_vm(header).state

    # Executing

    def call(self, call: Call, header: Header) -> bytes:
        """Executes without keeping anything. Raises ExecutionError or RejectedError."""
        computation = self._simulate(call, header, call.gas or header.gas_limit)
        _raise_if_failed(computation)
        return bytes(computation.output)

    def estimate_gas(self, call: Call, header: Header) -> int:
        """A gas limit with which `call` succeeds: exact unless nested calls need gas that they don't use.

        Raises what `call` raises when it fails with the whole block's gas.
        """
        limit = call.gas or header.gas_limit
        full = self._simulate(call, header, limit)
        _raise_if_failed(full)
        candidate = limit - full.get_gas_remaining()
        while candidate < limit:
            try:
                if not self._simulate(call, header, candidate).is_error:
                    return int(candidate)
            except RejectedError:  # below the price of the bytes alone
                pass
            candidate = candidate * 64 // 63 + _STIPEND
        return limit

    def send(self, raw_transaction: bytes) -> bytes:
        """Executes a signed transaction in a block of its own and returns its hash. Raises RejectedError.

        A transaction that reverts is mined too, with status 0 in its receipt.
        """
        chain = self._chain
        try:
            transaction = chain.get_vm().get_transaction_builder().decode(raw_transaction)
            transaction.validate()
            transaction.check_signature_validity()
            sender = transaction.sender
        except Exception as error:  # rlp and the signature code raise many kinds for bytes that are no transaction
            raise RejectedError(f"failed to decode transaction: {type(error).__name__}") from error
        if transaction.chain_id not in (None, self.chain_id):
            raise RejectedError(f"invalid chain id for signer: have {transaction.chain_id} want {self.chain_id}")
        if transaction.hash in self._by_transaction:
            raise RejectedError("already known")
        header = self.pending_header()
        self._check_account(transaction, sender, header)
        chain.header = header
        try:
            _, receipt, computation = chain.apply_transaction(transaction)
        except ValidationError as error:
            raise RejectedError(str(error)) from error
        created = computation.msg.storage_address if computation.msg.is_create else None
        mined = MinedTransaction(transaction, receipt, created, receipt.gas_used, self.height + 1)
        self._append(chain.mine_block(), mined)
        return bytes(transaction.hash)

    def mine(self) -> None:
        """Appends an empty block."""
        self._chain.header = self.pending_header()
        self._append(self._chain.mine_block(), None)

    def increase_time(self, seconds: int) -> int:
        """Moves the clock of later blocks forward and returns the whole offset so far, in seconds."""
        if not 0 <= seconds <= 10**10:
            raise RejectedError(f"can't move time by {seconds} seconds")
        self._offset_s += seconds
        return self._offset_s

    def snapshot(self) -> int:
        """An id with which `revert` comes back to this block, offset of time included."""
        self._snapshots.append((self.height, self._offset_s))
        return len(self._snapshots) - 1

    def revert(self, snapshot: int) -> bool:
        """Forgets all since `snapshot`, and that snapshot with the later ones. False if there is no such
        snapshot.
        """
        if not 0 <= snapshot < len(self._snapshots):
            return False
        height, self._offset_s = self._snapshots[snapshot]
        del self._snapshots[snapshot:]
        for block in self._blocks[height + 1 :]:
            del self._number_by_hash[block.hash]
        for mined in self._mined[height + 1 :]:
            if mined is not None:
                del self._by_transaction[mined.transaction.hash]
        del self._blocks[height + 1 :]
        del self._mined[height + 1 :]
        self._chain.header = self._chain.create_header_from_parent(self._blocks[-1].header)
        return True

    # Inside

    def _append(self, block: Block, mined: MinedTransaction | None) -> None:
        self._blocks.append(block)
        self._mined.append(mined)
        self._number_by_hash[block.hash] = block.number
        if mined is not None:
            self._by_transaction[mined.transaction.hash] = mined

    def _check_account(self, transaction: PyEvmTransaction, sender: bytes, header: Header) -> None:
        """The refusals that clients act upon, in the words that every node uses for them."""
        state = self.state_at(header)
        nonce = state.get_nonce(sender)
        if transaction.nonce < nonce:
            raise RejectedError(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        if transaction.nonce > nonce:
            raise RejectedError(f"nonce too high: next nonce {nonce}, tx nonce {transaction.nonce}")
        needed = transaction.gas * transaction.max_fee_per_gas + transaction.value
        balance = state.get_balance(sender)
        if balance < needed:
            raise RejectedError(f"insufficient funds for gas * price + value: have {balance} want {needed}")

    def _simulate(self, call: Call, header: Header, gas: int) -> Computation:
        vm = self._chain.get_vm(header.copy(base_fee_per_gas=0, gas_used=0))
        if vm.state.get_balance(call.sender) < call.value:
            raise RejectedError("insufficient funds for transfer")
        unsigned = vm.get_transaction_builder().new_unsigned_dynamic_fee_transaction(
            chain_id=self.chain_id,
            nonce=vm.state.get_nonce(call.sender),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=min(gas, header.gas_limit),
            to=call.to,
            value=call.value,
            data=call.data,
            access_list=(),
        )
        try:
            return vm.state.apply_transaction(SpoofTransaction(unsigned, from_=call.sender))
        except ValidationError as error:
            raise RejectedError(str(error)) from error


def _chain_class(chain_id: int) -> Any:
    forks: Any = ((0, _VM),)
    return MiningChain.configure(
        "EmbeddedChain",
        chain_id=chain_id,
        vm_configuration=ConsensusApplier(NoProofConsensus).amend_vm_configuration(forks),
        create_header_from_parent=_header_with_same_gas_limit,
    )


def _header_with_same_gas_limit(self: Any, parent_header: Header, **params: Any) -> Header:
    return MiningChain.create_header_from_parent(self, parent_header, gas_limit=parent_header.gas_limit, **params)


def _raise_if_failed(computation: Computation) -> None:
    if not computation.is_error:
        return
    if isinstance(computation.error, Revert):
        raise ExecutionError("execution reverted", computation.output)
    raise ExecutionError(f"execution failed: {type(computation.error).__name__}", b"")
