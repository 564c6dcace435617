"""RevenueRouter: the payTo of every payment for a model's answers."""

from functools import cached_property

from commonweight.chain.abi_names import to_record
from commonweight.chain.deployed import DeployedContract
from commonweight.chain.records import Authorization, ClaimArguments, RouterTerms
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Action, Receipt
from commonweight.chain.settlement import EpochSettlement


class RevenueRouter(DeployedContract):
    """See contracts/src/interfaces/IRevenueRouter.sol. Amounts are in the revenue token's smallest unit."""

    NAME = "RevenueRouter"

    # Payments

    def collect(self, authorization: Authorization, charged: int) -> Receipt:
        """Takes what the payer signed for, keeps `charged` and returns the rest; a cashier's or the coordinator's key
        only. Reverts where the authorisation has been used, so it can be sent again after a crash.
        """
        return self._send(self.collect_action(authorization, charged))

    def collect_action(self, authorization: Authorization, charged: int) -> Action:
        """What `collect` sends. Its dry run tells whether the payer can pay."""
        return self.action("collect", authorization.to_struct(), charged)

    def set_cashier(self, cashier: str, allowed: bool) -> Receipt:
        """Lets an account collect, or no longer; the coordinator's key only."""
        return self._invoke("setCashier", to_address(cashier), allowed)

    def is_cashier(self, account: str) -> bool:
        return bool(self._read("isCashier", to_address(account)))

    # Splitting

    def unswept(self) -> int:
        """What has come since the last sweep."""
        return int(self._read("unswept"))

    def sweep(self) -> Receipt:
        """Splits it to shares, operators and treasury; any key."""
        return self._invoke("sweep")

    def operator_earned(self) -> int:
        """All that was ever set aside for serving operators: what statements divide among them."""
        return int(self._read("operatorEarned"))

    def operator_pool(self) -> int:
        """Of that, what has not been paid."""
        return int(self._read("operatorPool"))

    def operator_paid(self, account: str) -> int:
        """What `account` has been paid for serving so far."""
        return int(self._read("operatorPaid", to_address(account)))

    def pay_operator(self, claim: ClaimArguments) -> Receipt:
        """Pays `claim.account` the rest of its `operator_revenue`, by the last final epoch; any key."""
        return self._send(self.pay_operator_action(claim))

    def pay_operator_action(self, claim: ClaimArguments) -> Action:
        """What `pay_operator` sends."""
        return self.action("payOperator", *self._settlement.leaf_arguments(claim))

    def treasury_pool(self) -> int:
        """What the treasury can take now."""
        return int(self._read("treasuryPool"))

    def pay_treasury(self, to: str) -> Receipt:
        """Pays it to `to`; the treasury's key only."""
        return self._invoke("payTreasury", to_address(to))

    def terms(self) -> RouterTerms:
        return to_record(RouterTerms, self._read_struct("terms"))

    @cached_property
    def _settlement(self) -> EpochSettlement:
        return EpochSettlement(self.chain, self.terms().settlement, first_block=self.first_block)
