"""Sending transactions with one key: nonces that stay in order, fees under a cap, and waiting for the receipt.

A transaction that has no receipt is handed over again after a while, for nodes forget; at a higher price where the
chain has become too dear for it. It keeps its nonce, so it happens once, however often it is handed over.
"""

import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from web3.exceptions import Web3RPCError

from commonweight.chain.fees import (
    DEFAULT_MAX_FEE_WEI,
    HISTORY_BLOCKS,
    TIP_PERCENTILE,
    Fees,
    choose_fees,
    choose_replacement,
)
from commonweight.chain.keys import Key
from commonweight.chain.reverts import ContractReverted, explain_revert
from commonweight.chain.rpc import Chain, rpc_message, to_address
from commonweight.errors import ChainError, InsufficientFunds, RpcUnreachable, TransactionFailed, TransactionUnconfirmed

_NONCE_ATTEMPTS = 5
# What nodes say when somebody else used the nonce (another process with the same key), or a chain was rolled
# back.
_NONCE_TAKEN = ("nonce too low", "nonce too high", "already known", "replacement transaction underpriced")
_FIRST_POLL_S, _LAST_POLL_S = 0.005, 1.0
_HAND_OVER_S = 15.0
"""From handing a transaction over to doing so again."""


@dataclass(frozen=True)
class Action:
    """A transaction that nobody has sent yet."""

    what: str
    """For messages: "EpochSettlement.claim"."""
    to: str | None
    """Checksummed address; None deploys `data`."""
    data: str = "0x"
    value_wei: int = 0


@dataclass(frozen=True)
class Quote:
    """What an Action would cost if it were sent now."""

    gas: int
    """As estimated."""
    gas_limit: int
    """As would be sent: the estimate and a margin of a fifth."""
    fee_wei: int
    """Expected: `gas` at the next block's price."""
    max_fee_wei: int
    """Worst case: `gas_limit` at the highest price offered. The account must hold it, with the value."""


@dataclass(frozen=True)
class Receipt:
    """A mined transaction that succeeded."""

    transaction: str
    """Its hash, 0x and 64 digits."""
    block_number: int
    gas_used: int
    fee_wei: int
    contract_address: str | None
    """Of the contract that it deployed, if any."""
    raw: Any = field(repr=False, compare=False)
    """web3's receipt, with the logs."""


def quote(
    chain: Chain, account: str, action: Action, *, gas: int | None = None, max_fee_wei: int = DEFAULT_MAX_FEE_WEI
) -> Quote:
    """Executes `action` as `account` without sending it and says what it would cost. Raises what `Sender.send` would.

    Only the balance isn't looked at, so that it answers for an account that is yet to be funded. `gas` stands for the
    estimate, and nothing is executed, where `action` can't succeed before another one is mined.
    """
    gas = gas or _estimate_gas(chain, account, action)
    fees = _fees(chain, max_fee_wei)
    limit = _with_margin(gas)
    return Quote(gas, limit, gas * fees.expected_wei, limit * fees.max_fee_wei)


@dataclass
class _Unmined:
    """A transaction that was handed over and isn't known to be mined: one nonce, under each price that was offered."""

    action: Action
    nonce: int
    gas_limit: int
    fees: Fees
    """The last that were offered."""
    hashes: list[str] = field(default_factory=list)
    """At most one of them is mined."""
    awaited: bool = True
    """Whether a thread waits for its receipt. Otherwise it can still be mined, and stands before what is sent later."""


class _Account:
    """What is on its way from one account, shared by all senders of this process that use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.unmined: dict[int, _Unmined] = {}
        """By nonce."""

    def choose(self, pending: int) -> int:
        """The next nonce: the node's count, unless it may not have seen transactions that somebody waits for."""
        return max([pending, *(each.nonce + 1 for each in self.unmined.values() if each.awaited)])

    def forget(self, mined: int, pending: int) -> None:
        """Those that nobody waits for, where the node says that their nonce is used, or that there is a gap before."""
        self.unmined = {n: each for n, each in self.unmined.items() if each.awaited or mined <= n <= pending}

    def given_up(self) -> list[_Unmined]:
        """In the order of their nonces."""
        return [each for _, each in sorted(self.unmined.items()) if not each.awaited]


_accounts: defaultdict[tuple[str, str], _Account] = defaultdict(_Account)
_accounts_lock = threading.Lock()


class Sender:
    """Sends with `key` on `chain`. Safe to share between threads, as is having several senders with one key.

    `receipt_timeout_s`: how long to wait until a transaction is mined. `max_fee_wei`: the most ever offered
    per gas.

    Nothing happens twice by itself. Whoever repeats a step after RpcUnreachable, or after a receipt that didn't come,
    first asks the contract whether it happened; if this process has the same Action still on its way, the repetition
    goes on waiting for that one.
    """

    def __init__(
        self,
        chain: Chain,
        key: Key,
        *,
        receipt_timeout_s: float = 120.0,
        max_fee_wei: int = DEFAULT_MAX_FEE_WEI,
    ) -> None:
        self.chain = chain
        self.key = key
        self.receipt_timeout_s = receipt_timeout_s
        self.max_fee_wei = max_fee_wei
        with _accounts_lock:
            self._account = _accounts[(chain.rpc_url, key.address)]

    @property
    def address(self) -> str:
        """Of the key, checksummed."""
        return self.key.address

    def dry_run(self, action: Action) -> Quote:
        """`quote` for this account."""
        return quote(self.chain, self.address, action, max_fee_wei=self.max_fee_wei)

    def send(self, action: Action, *, gas_limit: int | None = None) -> Receipt:
        """Signs, sends and waits until it is mined.

        `gas_limit` replaces the estimate, and with it the check that the call succeeds. Raises
        InsufficientFunds or ContractReverted before anything is sent; ContractReverted (with its
        `transaction`) if it reverts when mined; RpcUnreachable or ChainError, naming the hash, if it was sent
        and no receipt came in time.
        """
        limit = gas_limit or _with_margin(_estimate_gas(self.chain, self.address, action))
        fees = _fees(self.chain, self.max_fee_wei)
        self._check_funds(action, limit, fees)
        sent = self._submit(action, limit, fees)
        try:
            raw = self._wait(sent)
        except BaseException:
            sent.awaited = False
            raise
        with self._account.lock:
            self._account.unmined.pop(sent.nonce, None)
        transaction = "0x" + bytes(raw["transactionHash"]).hex()
        if raw["status"] != 1:
            raise self._mined_revert(action, sent.gas_limit, transaction, raw)
        return Receipt(
            transaction=transaction,
            block_number=int(raw["blockNumber"]),
            gas_used=int(raw["gasUsed"]),
            fee_wei=int(raw["gasUsed"]) * int(raw["effectiveGasPrice"]),
            contract_address=raw["contractAddress"],
            raw=raw,
        )

    def transfer(self, to: str, value_wei: int) -> Receipt:
        """Sends native currency."""
        return self.send(Action("transfer", to_address(to), value_wei=value_wei))

    def _check_funds(self, action: Action, gas_limit: int, fees: Fees) -> None:
        needed = gas_limit * fees.max_fee_wei + action.value_wei
        balance = self.chain.balance_wei(self.address)
        if balance < needed:
            raise InsufficientFunds(
                f"{self.address} has {_ether(balance)} on chain {self.chain.chain_id}, {action.what} needs up to "
                f"{_ether(needed)}: send it {_ether(needed - balance)} or more, and try again"
            )

    def _submit(self, action: Action, gas_limit: int, fees: Fees) -> _Unmined:
        """Signs with the next nonce and hands over, or goes on with the same action where it is still on its way."""
        account = self._account
        with account.lock:
            for attempt in range(_NONCE_ATTEMPTS):
                pending = self._count("pending")
                if attempt == 0 and account.given_up():
                    account.forget(self._count("latest"), pending)
                    for known in account.given_up():
                        if known.action == action:
                            known.awaited = True
                            self._hand_over_again(known)
                            return known
                nonce = account.choose(pending) if attempt == 0 else pending
                sent = _Unmined(action, nonce, gas_limit, fees)
                try:
                    self._hand_over(sent)
                except RpcUnreachable as error:
                    sent.awaited = False
                    account.unmined[nonce] = sent
                    raise RpcUnreachable(
                        f"{action.what} may or may not have been sent as {sent.hashes[-1]}, the answer was lost: look "
                        f"it up before sending it again. {error}"
                    ) from error
                except ChainError as error:
                    if attempt + 1 < _NONCE_ATTEMPTS and _is_nonce_error(error):
                        continue
                    raise
                account.unmined[nonce] = sent
                return sent
        raise AssertionError("the last attempt returns or raises")

    def _count(self, block: Literal["latest", "pending"]) -> int:
        """The account's transactions: those that are mined, or also those that the node knows."""
        with self.chain.errors("eth_getTransactionCount"):
            return int(self.chain.w3.eth.get_transaction_count(to_address(self.address), block))

    def _hand_over(self, sent: _Unmined) -> None:
        """Gives it to the node, signed under its fees."""
        fields = {
            **_call_fields(self.address, sent.action),
            "type": 2,
            "chainId": self.chain.chain_id,
            "nonce": sent.nonce,
            "gas": sent.gas_limit,
            "maxFeePerGas": sent.fees.max_fee_wei,
            "maxPriorityFeePerGas": sent.fees.tip_wei,
        }
        del fields["from"]
        signed = self.key.account.sign_transaction(fields)
        transaction = "0x" + bytes(signed.hash).hex()
        if transaction not in sent.hashes:
            sent.hashes.append(transaction)  # before it is known whether the node takes it
        with self.chain.errors(sent.action.what):
            self.chain.w3.eth.send_raw_transaction(signed.raw_transaction)

    def _hand_over_again(self, sent: _Unmined) -> None:
        """At a higher price where it needs one. That the node has it already, or refuses it, is no news: the receipt
        tells what came of it.
        """
        with suppress(ChainError):
            now = _fees(self.chain, self.max_fee_wei)
            sent.fees = choose_replacement(sent.fees, now, self.max_fee_wei) or sent.fees
            self._hand_over(sent)

    def _wait(self, sent: _Unmined) -> Any:
        """The receipt. Outlasts an endpoint that fails now and then."""
        deadline = time.monotonic() + self.receipt_timeout_s
        again_at = time.monotonic() + _HAND_OVER_S
        pause_s = _FIRST_POLL_S
        failure: ChainError | None = None
        while True:
            try:
                for transaction in sent.hashes:
                    if (raw := self.chain.receipt(transaction)) is not None:
                        return raw
                failure = None
            except ChainError as error:
                failure = error
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                text = (
                    f"{sent.action.what} was sent as {sent.hashes[-1]} and had no receipt within "
                    f"{self.receipt_timeout_s:g} s; it can still be mined: look it up before sending it again"
                )
                raise TransactionUnconfirmed(f"{text}. {failure}" if failure else text)
            if failure is None and time.monotonic() >= again_at:
                again_at += _HAND_OVER_S
                with self._account.lock:
                    before = [each for each in self._account.given_up() if each.nonce < sent.nonce]
                for each in (*before, sent):
                    self._hand_over_again(each)
            time.sleep(min(pause_s, left_s))  # JSON-RPC over HTTP has nothing to wait on
            pause_s = min(2 * pause_s, _LAST_POLL_S)

    def _mined_revert(self, action: Action, gas_limit: int, transaction: str, raw: Any) -> TransactionFailed:
        """Executes the call once more, where it was mined, to learn why it reverted; a receipt doesn't tell."""
        if int(raw["gasUsed"]) >= gas_limit:
            return TransactionFailed(f"{action.what} ran out of gas ({gas_limit}) when mined ({transaction})")
        call: Any = {**_call_fields(self.address, action), "gas": gas_limit}
        for block in (raw["blockNumber"], "latest"):  # the first one's state may be pruned
            try:
                with self.chain.errors(action.what):
                    self.chain.w3.eth.call(call, block)
            except ContractReverted as error:
                return explain_revert(action.what, error.data, transaction=transaction)
            except ChainError:
                continue
        return explain_revert(action.what, None, transaction=transaction)


def _is_nonce_error(error: ChainError) -> bool:
    cause = error.__cause__
    message = rpc_message(cause).lower() if isinstance(cause, Web3RPCError) else ""
    return any(sign in message for sign in _NONCE_TAKEN)


def _call_fields(account: str, action: Action) -> Any:
    fields: dict[str, Any] = {"from": account, "data": action.data, "value": action.value_wei}
    return fields if action.to is None else {**fields, "to": action.to}


def _estimate_gas(chain: Chain, account: str, action: Action) -> int:
    # In the pending block: the latest one's time stands still on a chain that mines on demand, and a
    # window that has passed would look open.
    with chain.errors(action.what, action.to):
        return int(chain.w3.eth.estimate_gas(_call_fields(account, action), "pending"))


def _fees(chain: Chain, max_fee_wei: int) -> Fees:
    with chain.errors("eth_feeHistory"):
        history = chain.w3.eth.fee_history(HISTORY_BLOCKS, "latest", [TIP_PERCENTILE])
    return choose_fees(history, max_fee_wei)


def _with_margin(gas: int) -> int:
    return gas * 6 // 5


def _ether(wei: int) -> str:
    return f"{wei / 10**18:.9g} ETH"
