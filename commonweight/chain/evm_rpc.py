"""The Ethereum JSON-RPC methods over a LocalEvm, in the formats and with the error codes that web3 expects.

Specification: ethereum.github.io/execution-apis; errors of the transport itself: JSON-RPC 2.0, section 5.1.
Accounts hold their own keys, so there is no eth_sendTransaction: only signed transactions are taken.
"""

import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

from commonweight.chain.evm import Call, ExecutionError, LocalEvm, RejectedError
from commonweight.chain.evm_format import (
    format_block,
    format_log,
    format_receipt,
    format_transaction,
    read_address,
    read_bytes,
    read_quantity,
    to_data,
    to_quantity,
)

CLIENT_VERSION = "commonweight-embedded/py-evm"
MAX_BATCH = 1_000
MAX_DEPTH = 32

_PARSE_ERROR, _INVALID_REQUEST, _UNKNOWN_METHOD, _INVALID_PARAMS = -32700, -32600, -32601, -32602
_INTERNAL, _REJECTED, _REVERTED = -32603, -32000, 3
_TIP_WEI = 10**9

# A string that never ends is matched to the end of the body, so that the search stays linear.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*\\?(?:"|\Z)|[\[\]{}]', re.DOTALL)
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}

Method = Callable[..., Any]


class RpcError(Exception):
    """An answer that is an error. `data` is hexadecimal, or None for no data field."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data

    def payload(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": str(self)}
        return error if self.data is None else {**error, "data": self.data}


class EvmRpc:
    """Answers JSON-RPC requests, one at a time, whichever thread they come from."""

    def __init__(self, evm: LocalEvm, accounts: Sequence[str]) -> None:
        self._evm = evm
        self._accounts = list(accounts)
        self._lock = threading.Lock()
        self._methods: dict[str, Method] = {
            "web3_clientVersion": lambda: CLIENT_VERSION,
            "net_version": lambda: str(evm.chain_id),
            "net_listening": lambda: True,
            "eth_syncing": lambda: False,
            "eth_chainId": lambda: to_quantity(evm.chain_id),
            "eth_accounts": lambda: self._accounts,
            "eth_blockNumber": lambda: to_quantity(evm.height),
            "eth_gasPrice": lambda: to_quantity(evm.pending_header().base_fee_per_gas + _TIP_WEI),
            "eth_maxPriorityFeePerGas": lambda: to_quantity(_TIP_WEI),
            "eth_feeHistory": self._fee_history,
            "eth_getBalance": self._balance,
            "eth_getTransactionCount": self._nonce,
            "eth_getCode": self._code,
            "eth_getStorageAt": self._storage,
            "eth_call": self._call,
            "eth_estimateGas": self._estimate_gas,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": self._receipt,
            "eth_getLogs": self._logs,
            "eth_sendRawTransaction": lambda raw: to_data(evm.send(read_bytes(raw))),
            "evm_increaseTime": lambda seconds: evm.increase_time(read_quantity(seconds)),
            "evm_mine": self._mine,
            "evm_snapshot": lambda: to_quantity(evm.snapshot()),
            "evm_revert": lambda snapshot: evm.revert(read_quantity(snapshot)),
        }

    def answer(self, body: bytes) -> bytes:
        """The response to the body of one HTTP request, be it a single request, a batch or nonsense. Never
        raises.

        Empty where the body holds nothing but notifications.
        """
        if _is_too_deep(body):
            return _encode(_failure(None, RpcError(_PARSE_ERROR, f"parse error: nested over {MAX_DEPTH} levels")))
        try:
            request = json.loads(body)
        except ValueError as error:
            return _encode(_failure(None, RpcError(_PARSE_ERROR, f"parse error: {type(error).__name__}")))
        if not isinstance(request, list):
            response = self._answer_one(request)
            return b"" if response is None else _encode(response)
        if not 0 < len(request) <= MAX_BATCH:
            limit = f"a batch has 1 to {MAX_BATCH} requests, this one {len(request)}"
            return _encode(_failure(None, RpcError(_INVALID_REQUEST, limit)))
        responses = [response for response in map(self._answer_one, request) if response is not None]
        return _encode(responses) if responses else b""

    def _answer_one(self, request: Any) -> dict[str, Any] | None:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failure(None, RpcError(_INVALID_REQUEST, "a request is an object with a method"))
        identifier = request.get("id")
        if isinstance(identifier, dict | list | bool):
            return _failure(None, RpcError(_INVALID_REQUEST, "an id is a number, a string or null"))
        try:
            result = self._execute(request["method"], request.get("params", []))
        except RpcError as error:
            return _failure(identifier, error)
        return {"jsonrpc": "2.0", "id": identifier, "result": result} if "id" in request else None

    def _execute(self, name: str, params: Any) -> Any:
        method = self._methods.get(name)
        if method is None:
            raise RpcError(_UNKNOWN_METHOD, f"the method {name[:80]} does not exist/is not available")
        if not isinstance(params, list):
            raise RpcError(_INVALID_PARAMS, "params must be an array")
        with self._lock:
            try:
                return method(*params)
            except ExecutionError as error:
                raise RpcError(_REVERTED, str(error), to_data(error.data)) from error
            except RejectedError as error:
                raise RpcError(_REJECTED, str(error)) from error
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise RpcError(_INVALID_PARAMS, f"invalid params: {error}"[:300]) from error
            except RpcError:
                raise
            except Exception as error:  # the outermost edge: one bad request must not end the chain
                raise RpcError(_INTERNAL, f"internal error: {type(error).__name__}: {error}"[:300]) from error

    # Accounts

    def _balance(self, account: Any, tag: Any = "latest") -> str:
        return to_quantity(self._evm.state_at(self._header(tag)).get_balance(read_address(account)))

    def _nonce(self, account: Any, tag: Any = "latest") -> str:
        return to_quantity(self._evm.state_at(self._header(tag)).get_nonce(read_address(account)))

    def _code(self, account: Any, tag: Any = "latest") -> str:
        return to_data(self._evm.state_at(self._header(tag)).get_code(read_address(account)))

    def _storage(self, account: Any, slot: Any, tag: Any = "latest") -> str:
        value = self._evm.state_at(self._header(tag)).get_storage(read_address(account), read_quantity(slot))
        return to_data(value.to_bytes(32, "big"))

    # Execution

    def _call(self, call: Any, tag: Any = "latest") -> str:
        return to_data(self._evm.call(_read_call(call), self._header(tag)))

    def _estimate_gas(self, call: Any, tag: Any = "pending") -> str:
        return to_quantity(self._evm.estimate_gas(_read_call(call), self._header(tag)))

    def _mine(self, *_ignored: Any) -> str:
        self._evm.mine()
        return "0x0"

    # Blocks, transactions, logs

    def _block_by_number(self, tag: Any, full: Any = False) -> dict[str, Any] | None:
        if tag == "pending":
            return format_block(self._evm, None, bool(full))
        number = self._number(tag)
        return format_block(self._evm, number, bool(full)) if self._evm.block(number) else None

    def _block_by_hash(self, block_hash: Any, full: Any = False) -> dict[str, Any] | None:
        number = self._evm.block_number_of(read_bytes(block_hash))
        return None if number is None else format_block(self._evm, number, bool(full))

    def _transaction(self, transaction_hash: Any) -> dict[str, Any] | None:
        mined = self._evm.transaction(read_bytes(transaction_hash))
        return None if mined is None else format_transaction(self._evm, mined)

    def _receipt(self, transaction_hash: Any) -> dict[str, Any] | None:
        mined = self._evm.transaction(read_bytes(transaction_hash))
        return None if mined is None else format_receipt(self._evm, mined)

    def _logs(self, query: Any) -> list[dict[str, Any]]:
        if not isinstance(query, dict):
            raise ValueError("the filter must be an object")
        if "blockHash" in query:
            number = self._evm.block_number_of(read_bytes(query["blockHash"]))
            if number is None:
                raise RejectedError("unknown block")
            first = last = number
        else:
            first = self._number(query.get("fromBlock", "latest"))
            last = min(self._number(query.get("toBlock", "latest")), self._evm.height)
        given = query.get("address")
        addresses = None if given is None else [read_address(a) for a in _as_list(given)]
        topics = [
            None if wanted is None else [int.from_bytes(read_bytes(t)) for t in _as_list(wanted)]
            for wanted in _as_list(query.get("topics") or [])
        ]
        found = []
        for number in range(first, last + 1):
            mined = self._evm.transaction_in(number)
            if mined is None:
                continue
            for index, log in enumerate(mined.receipt.logs):
                if addresses is not None and log.address not in addresses:
                    continue
                if _topics_match(topics, log.topics):
                    found.append(format_log(self._evm, mined, log, index))
        return found

    def _fee_history(self, count: Any, newest: Any, percentiles: Any = None) -> dict[str, Any]:
        last = self._number(newest)
        first = max(0, last - max(1, min(read_quantity(count), 1_024)) + 1)
        headers = [self._evm.block(number).header for number in range(first, last + 1)]  # type: ignore[union-attr]
        after = self._evm.block(last + 1)
        following = after.header if after else self._evm.pending_header()
        history: dict[str, Any] = {
            "oldestBlock": to_quantity(first),
            "baseFeePerGas": [to_quantity(header.base_fee_per_gas) for header in [*headers, following]],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        if percentiles:
            tips = [to_quantity(_TIP_WEI if header.gas_used else 0) for header in headers]
            history["reward"] = [[tip] * len(_as_list(percentiles)) for tip in tips]
        return history

    def _number(self, tag: Any) -> int:
        """A block number from its tag. A number above the head is returned as it is."""
        if tag in (None, "latest", "safe", "finalized", "pending"):
            return self._evm.height
        return 0 if tag == "earliest" else read_quantity(tag)

    def _header(self, tag: Any) -> Any:
        if tag == "pending":
            return self._evm.pending_header()
        if isinstance(tag, dict):  # EIP-1898
            tag = tag.get("blockNumber", "latest")
        block = self._evm.block(self._number(tag))
        if block is None:
            raise RejectedError(f"header not found: the latest block is {self._evm.height}")
        return block.header


def _read_call(call: Any) -> Call:
    if not isinstance(call, dict):
        raise ValueError("the call must be an object")
    sender, to, gas = call.get("from"), call.get("to"), call.get("gas")
    return Call(
        sender=bytes(20) if sender is None else read_address(sender),
        to=b"" if to in (None, "", "0x") else read_address(to),
        data=read_bytes(call.get("input") or call.get("data") or "0x"),
        value=read_quantity(call.get("value") or 0),
        gas=None if gas is None else read_quantity(gas),
    )


def _is_too_deep(body: bytes) -> bool:
    """Whether brackets outside of strings are nested over MAX_DEPTH levels.

    py-evm lifts the interpreter's recursion limit, and without it json.loads overruns the C stack and takes the
    process along.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(body):
        depth += _STEP.get(token[0], 0)
        if depth > MAX_DEPTH:
            return True
    return False


def _topics_match(wanted: Sequence[list[int] | None], topics: Sequence[int]) -> bool:
    if len(wanted) > len(topics):
        return False
    return all(options is None or topics[i] in options for i, options in enumerate(wanted))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _failure(identifier: Any, error: RpcError) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "error": error.payload()}


def refusal(message: str) -> bytes:
    """The response to a body that was not even read."""
    return _encode(_failure(None, RpcError(_INVALID_REQUEST, message)))


def _encode(response: Any) -> bytes:
    return json.dumps(response, separators=(",", ":")).encode()
