"""The gateway at the chain: is a payment good, and collecting it. Everything here blocks: call it in a thread."""

from dataclasses import dataclass

from commonweight.chain.events import PaymentCollected
from commonweight.chain.records import Authorization
from commonweight.chain.reverts import ContractReverted
from commonweight.chain.router import RevenueRouter
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.errors import ChainError, InsufficientFunds, TransactionFailed
from commonweight.failpoints import failpoint
from gateway.ledger import Order
from gateway.payments import OVERDRAWN, SIMULATION_FAILED, USED, PaymentRefused, Terms, check_window


@dataclass(frozen=True)
class Verified:
    """A payment that could be collected now."""

    time: int
    """The chain's."""
    balance: int
    """The payer's."""


@dataclass(frozen=True)
class Collected:
    """The charge is on the router, and the payer has the rest back."""

    transaction: str
    charged: int


@dataclass(frozen=True)
class Lost:
    """The charge can't be collected any more."""

    why: str


class Till:
    """A model's router, with the key of one of its cashiers."""

    def __init__(
        self, terms: Terms, router: RevenueRouter, token: Token, sender: Sender, confirmations: int = 0
    ) -> None:
        """`router` sends with `sender`. `confirmations`: blocks on top of a collection that make it one for good."""
        self.terms, self.confirmations = terms, confirmations
        self._router, self._token, self._sender = router, token, sender
        self._chain = router.chain

    def time(self) -> int:
        """The chain's. Raises ChainError."""
        return self._chain.timestamp()

    def verify(self, payment: Authorization) -> Verified:
        """Raises PaymentRefused for one that can't be collected; ChainError where that can't be told, or where this
        gateway can't collect: InsufficientFunds without gas.
        """
        now = self.time()
        check_window(payment, self.terms, now)
        if self._token.authorization_used(payment.from_, payment.nonce):
            raise PaymentRefused(USED, "The token says that this authorisation was used or cancelled.")
        balance = self._token.balance_of(payment.from_)
        if balance < payment.value:
            raise PaymentRefused(OVERDRAWN, f"{payment.from_} has {balance}; signed for are {payment.value}.")
        try:
            quote = self._sender.dry_run(self._router.collect_action(payment, 0))
        except ContractReverted as error:
            if error.error == "RevenueRouterNotCashier":
                raise
            raise PaymentRefused(SIMULATION_FAILED, f"It can't be collected: {error}") from error
        funds_wei = self._chain.balance_wei(self._sender.address)
        if funds_wei < quote.max_fee_wei:
            raise InsufficientFunds(
                f"The gateway's account {self._sender.address} has {funds_wei} wei; collecting a payment may cost "
                f"{quote.max_fee_wei}. Send it more."
            )
        return Verified(now, balance)

    def collect(self, order: Order) -> Collected | Lost:
        """Take the charge, unless that has happened. May be repeated; raises ChainError where it has to be."""
        payment = order.authorization
        if self._token.authorization_used(payment.from_, payment.nonce):
            return self._collected(payment)
        now = self.time()
        if now >= payment.valid_before:
            return Lost(f"the authorisation expired at {payment.valid_before}, and on the chain it is {now}")
        failpoint("gateway.collecting")
        try:
            receipt = self._router.collect(payment, order.charge)
        except TransactionFailed:
            # Perhaps another transaction of ours, of which we had no receipt, was faster.
            if self._token.authorization_used(payment.from_, payment.nonce):
                return self._collected(payment)
            raise
        failpoint("gateway.collected")
        return Collected(receipt.transaction, order.charge)

    def confirmed_block(self) -> int:
        """The newest block that lies deep enough. Raises ChainError."""
        return self._chain.confirmed_block(self.confirmations)

    def block_of(self, transaction: str) -> int | None:
        """The block in which this transaction collected a charge; None where the chain has none. Raises ChainError."""
        receipt = self._chain.receipt(transaction)
        # After a reorganisation it may have been mined again, and have failed then.
        return int(receipt["blockNumber"]) if receipt is not None and receipt["status"] == 1 else None

    def _collected(self, payment: Authorization) -> Collected | Lost:
        events = self._router.events(PaymentCollected, from_=payment.from_, nonce=payment.nonce)
        if not events:
            return Lost("the payer cancelled the authorisation, or somebody sent it to the token directly")
        transaction = events[0].transaction
        receipt = self._chain.receipt(transaction)
        if receipt is None:
            raise ChainError(f"The payment was collected by {transaction}, which is gone again.")
        if receipt["from"] != self._sender.address:
            return Lost(f"another cashier, {receipt['from']}, has collected it for an answer of its own")
        return Collected(transaction, events[0].charged)
