"""JSON-RPC's representations: quantities, data, blocks, transactions, receipts and logs of a LocalEvm."""

from typing import Any

from eth_utils.address import to_checksum_address

from commonweight.chain.evm import LocalEvm, MinedTransaction

_MAX_QUANTITY = 2**256


def to_quantity(value: int) -> str:
    return hex(value)


def to_data(value: bytes) -> str:
    return "0x" + value.hex()


def read_quantity(value: Any) -> int:
    """A non-negative integer below 2^256, from "0x…", decimal digits or an integer. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r:.60} is not a quantity")
    if isinstance(value, str):
        if len(value) > 80:
            raise ValueError("a quantity has at most 32 bytes")
        value = int(value, 16 if value[:2].lower() == "0x" else 10)
    quantity = int(value)
    if not 0 <= quantity < _MAX_QUANTITY:
        raise ValueError(f"{value} is not a quantity below 2^256")
    return quantity


def read_bytes(value: Any) -> bytes:
    """Bytes from "0x…". Raises ValueError."""
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ValueError(f"{value!r:.60} is not 0x-prefixed data")
    return bytes.fromhex(value[2:])


def read_address(value: Any) -> bytes:
    """20 bytes from "0x…". Raises ValueError."""
    address = read_bytes(value)
    if len(address) != 20:
        raise ValueError(f"an address has 20 bytes, {value!r:.60} has {len(address)}")
    return address


def format_block(evm: LocalEvm, number: int | None, full: bool) -> dict[str, Any]:
    """Block `number`, which must exist; None stands for the pending block, which is empty."""
    block = None if number is None else evm.block(number)
    header = evm.pending_header() if block is None else block.header
    mined = None if number is None else evm.transaction_in(number)
    transactions: list[Any] = []
    if mined is not None:
        transactions.append(format_transaction(evm, mined) if full else to_data(mined.transaction.hash))
    return {
        "number": to_quantity(header.block_number),
        "hash": None if block is None else to_data(header.hash),
        "parentHash": to_data(header.parent_hash),
        "nonce": None if block is None else to_data(header.nonce),
        "sha3Uncles": to_data(header.uncles_hash),
        "logsBloom": to_data(header.bloom.to_bytes(256, "big")),
        "transactionsRoot": to_data(header.transaction_root),
        "stateRoot": to_data(header.state_root),
        "receiptsRoot": to_data(header.receipt_root),
        "miner": to_checksum_address(header.coinbase),
        "difficulty": to_quantity(header.difficulty),
        "totalDifficulty": "0x0",
        "mixHash": to_data(header.mix_hash),
        "extraData": to_data(header.extra_data),
        "size": to_quantity(600 + sum(len(m.transaction.data) for m in [mined] if m)),
        "gasLimit": to_quantity(header.gas_limit),
        "gasUsed": to_quantity(header.gas_used),
        "timestamp": to_quantity(header.timestamp),
        "baseFeePerGas": to_quantity(header.base_fee_per_gas),
        "withdrawalsRoot": to_data(header.withdrawals_root),
        "withdrawals": [],
        "blobGasUsed": "0x0",
        "excessBlobGas": "0x0",
        "parentBeaconBlockRoot": to_data(header.parent_beacon_block_root),
        "requestsHash": to_data(header.requests_hash),
        "transactions": transactions,
        "uncles": [],
    }


def format_transaction(evm: LocalEvm, mined: MinedTransaction) -> dict[str, Any]:
    transaction = mined.transaction
    kind = _type_of(mined)
    formatted = {
        **_place(evm, mined),
        "hash": to_data(transaction.hash),
        "type": to_quantity(kind),
        "nonce": to_quantity(transaction.nonce),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "value": to_quantity(transaction.value),
        "gas": to_quantity(transaction.gas),
        "gasPrice": to_quantity(_effective_price(evm, mined)),
        "input": to_data(transaction.data),
        "r": to_quantity(transaction.r),
        "s": to_quantity(transaction.s),
        "v": to_quantity(transaction.y_parity if kind else transaction.v),
    }
    if kind:
        formatted["chainId"] = to_quantity(transaction.chain_id)
        formatted["accessList"] = [
            {"address": to_checksum_address(account), "storageKeys": [f"0x{key:064x}" for key in keys]}
            for account, keys in transaction.access_list
        ]
    if kind >= 2:
        formatted["maxFeePerGas"] = to_quantity(transaction.max_fee_per_gas)
        formatted["maxPriorityFeePerGas"] = to_quantity(transaction.max_priority_fee_per_gas)
    return formatted


def format_receipt(evm: LocalEvm, mined: MinedTransaction) -> dict[str, Any]:
    transaction, receipt = mined.transaction, mined.receipt
    created = mined.contract_address
    return {
        **_place(evm, mined),
        "transactionHash": to_data(transaction.hash),
        "type": to_quantity(_type_of(mined)),
        "from": to_checksum_address(transaction.sender),
        "to": to_checksum_address(transaction.to) if transaction.to else None,
        "contractAddress": None if created is None else to_checksum_address(created),
        "cumulativeGasUsed": to_quantity(receipt.gas_used),
        "gasUsed": to_quantity(mined.gas_used),
        "effectiveGasPrice": to_quantity(_effective_price(evm, mined)),
        "logs": [format_log(evm, mined, log, index) for index, log in enumerate(receipt.logs)],
        "logsBloom": to_data(receipt.bloom.to_bytes(256, "big")),
        "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
    }


def format_log(evm: LocalEvm, mined: MinedTransaction, log: Any, index: int) -> dict[str, Any]:
    """`log` is py-evm's, the `index`-th of its transaction (and so of its block)."""
    return {
        **_place(evm, mined),
        "transactionHash": to_data(mined.transaction.hash),
        "logIndex": to_quantity(index),
        "address": to_checksum_address(log.address),
        "topics": [f"0x{topic:064x}" for topic in log.topics],
        "data": to_data(log.data),
        "removed": False,
    }


def _place(evm: LocalEvm, mined: MinedTransaction) -> dict[str, Any]:
    block = evm.block(mined.block_number)
    assert block is not None, "a mined transaction is in a block that exists"
    return {
        "blockHash": to_data(block.hash),
        "blockNumber": to_quantity(mined.block_number),
        "transactionIndex": "0x0",
    }


def _type_of(mined: MinedTransaction) -> int:
    return getattr(mined.transaction, "type_id", None) or 0


def _effective_price(evm: LocalEvm, mined: MinedTransaction) -> int:
    block = evm.block(mined.block_number)
    assert block is not None, "a mined transaction is in a block that exists"
    transaction, base_fee = mined.transaction, block.header.base_fee_per_gas
    return int(min(transaction.max_fee_per_gas, transaction.max_priority_fee_per_gas + base_fee))
