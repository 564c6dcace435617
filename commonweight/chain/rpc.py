"""The way to a chain: a synchronous JSON-RPC client whose every call has a deadline and whose errors are
ours.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, Self

import requests
from eth_abi.exceptions import EncodingError
from eth_utils.address import is_address, to_checksum_address
from web3 import HTTPProvider, Web3
from web3._utils.rpc_abi import RPC
from web3.contract.contract import Contract
from web3.exceptions import (
    BadFunctionCallOutput,
    BadResponseFormat,
    BlockNotFound,
    ContractLogicError,
    InvalidAddress,
    MismatchedABI,
    TransactionNotFound,
    Web3RPCError,
)
from web3.types import RPCResponse

from commonweight.chain.artifacts import load_artifact
from commonweight.chain.reverts import explain_revert
from commonweight.errors import ChainError, InsufficientFunds, RpcUnreachable, TransactionFailed, WrongChain

_NEEDLESS_MIDDLEWARE = ("validation", "gas_price_strategy", "ens_name_to_address")
_EXECUTION_FAILED = ("evm error", "out of gas", "invalid opcode", "stack underflow", "execution failed", "reverted")
_MAX_LOG_BLOCKS = 10_000


class Chain:
    """A connection to one chain. Safe to share between threads.

    Its methods raise RpcUnreachable when the endpoint doesn't answer in time, ContractReverted when a
    contract refuses, ChainError for every other error that the endpoint answers with.
    """

    def __init__(self, w3: Web3, rpc_url: str, chain_id: int, timeout_s: float) -> None:
        """Use `connect`."""
        self.w3 = w3
        self.rpc_url = rpc_url
        self.endpoint = _without_secrets(rpc_url)
        self.chain_id = chain_id
        self.timeout_s = timeout_s
        self._pinned: int | None = None

    @classmethod
    def connect(cls, rpc_url: str, expected_chain_id: int | None = None, timeout_s: float = 10.0) -> Self:
        """Asks the endpoint which chain it serves. `timeout_s` limits this and each later request.

        Raises RpcUnreachable, and WrongChain if the answer isn't `expected_chain_id`.
        """
        if not rpc_url.startswith(("http://", "https://")):
            raise RpcUnreachable(f"{_without_secrets(rpc_url)!r} is no RPC URL: it starts with http:// or https://")
        session = requests.Session()
        session.trust_env = False  # no look at proxy variables and .netrc with each request
        provider = _Provider(
            rpc_url,
            request_kwargs={"timeout": timeout_s},
            session=session,
            exception_retry_configuration=None,  # retries would outlive the deadline; callers decide
            cache_allowed_requests=True,
            cacheable_requests={RPC.eth_chainId},  # web3 asks for it before every call
        )
        provider.global_ccip_read_enabled = False  # or a contract could send us to any URL (EIP-3668)
        w3 = Web3(provider)
        for name in _NEEDLESS_MIDDLEWARE:
            w3.middleware_onion.remove(name)
        chain = cls(w3, rpc_url, 0, timeout_s)
        answer = chain.request("eth_chainId")
        try:
            chain.chain_id = int(answer, 16)
        except (TypeError, ValueError) as error:
            raise RpcUnreachable(f"{chain.endpoint} says that its chain id is {answer!r:.60}: check the URL") from error
        if expected_chain_id is not None and chain.chain_id != expected_chain_id:
            raise WrongChain(
                f"{chain.endpoint} serves chain {chain.chain_id}, expected was {expected_chain_id}: "
                "give the RPC URL of the right network, or its chain id"
            )
        return chain

    def at(self, block: int) -> Self:
        """The same chain as it stood after `block`: `read` and `events` look no further.

        For sums over many reads, which would not add up if the chain went on between them.
        """
        pinned = copy(self)
        pinned._pinned = block
        return pinned

    def balance_wei(self, account: str) -> int:
        with self.errors("eth_getBalance"):
            return int(self.w3.eth.get_balance(to_address(account)))

    def block_number(self) -> int:
        """Of the latest block."""
        with self.errors("eth_blockNumber"):
            return int(self.w3.eth.block_number)

    def block_hash(self) -> bytes:
        """Of the latest block: what tells that the chain went on, or was reorganised."""
        with self.errors("eth_getBlockByNumber"):
            return bytes(self.w3.eth.get_block("latest")["hash"])

    def confirmed_block(self, confirmations: int) -> int:
        """The newest block on which at least `confirmations` others lie; negative while the chain is too short.

        What happened in it or before is settled for whoever trusts that depth:
        `record.block_number <= chain.confirmed_block(12)`.
        """
        return self.block_number() - confirmations

    def timestamp(self) -> int:
        """Unix time that a transaction sent now would see, or less.

        The latest block's would not do: on a chain that mines only when there is something to mine, it stands
        still.
        """
        with self.errors("eth_getBlockByNumber"):
            try:
                return int(self.w3.eth.get_block("pending")["timestamp"])
            except BlockNotFound:  # some nodes keep no pending block; their chains mine without being asked
                return int(self.w3.eth.get_block("latest")["timestamp"])

    def receipt(self, transaction: str) -> Mapping[str, Any] | None:
        """web3's receipt of the transaction with this hash; None if it isn't mined (yet)."""
        with self.errors("eth_getTransactionReceipt"):
            try:
                return self.w3.eth.get_transaction_receipt(transaction)  # type: ignore[arg-type]
            except TransactionNotFound:
                return None

    def contract(self, name: str, address: str) -> Contract:
        """web3's contract object for one of our artifacts."""
        contract: Contract = self.w3.eth.contract(address=to_address(address), abi=load_artifact(name).abi)
        return contract

    def read(self, contract: Contract, name: str, function: str, *arguments: Any) -> Any:
        """Calls a view of `contract` (of artifact `name`) at the latest block and returns what it returns."""
        block: Any = "latest" if self._pinned is None else self._pinned
        with self.errors(f"{name}.{function}", str(contract.address)):
            return contract.functions[function](*arguments).call(block_identifier=block)

    def events(
        self,
        contract: Contract,
        event: str,
        from_block: int = 0,
        to_block: int | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        """All `event`s of `contract` from `from_block` to `to_block` (the latest if None), oldest first.

        `arguments` keeps those whose indexed arguments have the given value, or one of a list of them. Such a
        question is first asked for all blocks at once, others for 10,000 at a time, and each for fewer where the
        endpoint wants fewer.
        """
        if to_block is None:
            to_block = self.block_number() if self._pinned is None else self._pinned
        last = to_block
        span = max(last - from_block + 1, 1) if arguments else _MAX_LOG_BLOCKS
        while from_block <= last:
            until = min(from_block + span - 1, last)
            try:
                with self.errors("eth_getLogs"):
                    found = contract.events[event]().get_logs(
                        dict(arguments or {}), from_block=from_block, to_block=until
                    )
            except ChainError as error:
                # Some say "too many blocks" with an HTTP status, or take too long to look.
                if span <= 16 or (isinstance(error, RpcUnreachable) and span <= _MAX_LOG_BLOCKS):
                    raise
                span = min(span // 4, _MAX_LOG_BLOCKS)
                continue
            yield from found
            from_block = until + 1

    def request(self, method: str, *params: Any) -> Any:
        """The raw result of any JSON-RPC method."""
        with self.errors(method):
            response = self.w3.provider.make_request(method, list(params))  # type: ignore[arg-type]
            if response.get("error") is not None:
                raise ChainError(f"{self.endpoint} answered {method} with {response['error']}")
            return response.get("result")

    @contextmanager
    def errors(self, what: str, address: str | None = None) -> Iterator[None]:
        """Turns what web3 and requests raise inside the block into our errors. `what` names the call in the
        message.
        """
        try:
            yield
        except ContractLogicError as error:
            data = error.data if isinstance(error.data, str | bytes) else None
            raise explain_revert(what, data) from error
        except (MismatchedABI, InvalidAddress, EncodingError) as error:
            raise ChainError(f"{what} doesn't take these arguments: {_misfit(error)}") from error
        except BadFunctionCallOutput as error:
            raise ChainError(
                f"{what}: chain {self.chain_id} has no such contract at {address}: check the address and the network"
            ) from error
        except Web3RPCError as error:
            raise self._rpc_error(what, error) from error
        except requests.Timeout as error:
            raise RpcUnreachable(
                f"{self.endpoint} didn't answer {what} within {self.timeout_s:g} s: check the network, or try later"
            ) from error
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else "error"
            raise RpcUnreachable(
                f"{self.endpoint} answered {what} with HTTP {status}: check the URL and its key"
            ) from error
        except requests.RequestException as error:
            reason = _cause(error).replace(self.rpc_url, self.endpoint)
            raise RpcUnreachable(
                f"can't reach {self.endpoint} ({reason}): is the node running, is the URL right?"
            ) from error
        except BadResponseFormat as error:
            raise RpcUnreachable(f"{self.endpoint} doesn't speak JSON-RPC ({error}): check the URL") from error

    def _rpc_error(self, what: str, error: Web3RPCError) -> ChainError:
        message = rpc_message(error)
        if "insufficient funds" in message.lower():
            return InsufficientFunds(f"{what}: {message}")
        if any(sign in message.lower() for sign in _EXECUTION_FAILED):
            return TransactionFailed(f"{what} failed: {message}")
        return ChainError(f"{self.endpoint} answered {what} with an error: {message}")


class _Provider(HTTPProvider):
    """web3 takes any JSON for an answer, and says JSONDecodeError for the rest."""

    @staticmethod
    def decode_rpc_response(raw_response: bytes) -> RPCResponse:
        try:
            response = HTTPProvider.decode_rpc_response(raw_response)
        except ValueError as error:
            raise BadResponseFormat(f"it answered {raw_response[:60]!r}") from error
        if not isinstance(response, dict) or not {"result", "error"} & set(response):
            raise BadResponseFormat(f"it answered {raw_response[:60]!r}")
        return response


def _without_secrets(url: str) -> str:
    """The URL for messages: providers put the customer's key into its path, its query or before its host."""
    scheme, _, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    host = host.rpartition("@")[2].partition("?")[0]
    return f"{scheme}://{host}/…" if path or "?" in rest else f"{scheme}://{host}{slash}" if scheme else host


def to_address(address: str) -> Any:
    """The checksummed form of a 0x address. Raises ChainError for anything else."""
    if not is_address(address):
        raise ChainError(f"{address!r} is not an address: 0x and 40 hexadecimal digits, with their checksum if mixed")
    return to_checksum_address(address)


def rpc_message(error: Web3RPCError) -> str:
    """The endpoint's own words."""
    response = error.rpc_response
    detail = response.get("error") if response else None
    return str(detail.get("message", detail)) if isinstance(detail, dict) else str(error.message)


def _misfit(error: Exception) -> str:
    """The one line of web3's or eth_abi's explanation that says which value has no place where."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "not compatible" in line), lines[0])[:300]


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of wrapped network errors."""
    reason: Any = error.args[0] if error.args else error
    reason = getattr(reason, "reason", reason)
    return str(getattr(reason, "args", [reason])[-1] if getattr(reason, "args", None) else reason)
