"""ModelShares: a model's shares (ERC-20) and the revenue that they earn."""

from commonweight.chain.deployed import DeployedContract
from commonweight.chain.events import RevenueDeposited, RevenueWithdrawn
from commonweight.chain.rpc import to_address
from commonweight.chain.sender import Receipt


class ModelShares(DeployedContract):
    """See contracts/src/interfaces/IModelShares.sol."""

    NAME = "ModelShares"

    # Reading

    def name(self) -> str:
        return str(self._read("name"))

    def symbol(self) -> str:
        return str(self._read("symbol"))

    def decimals(self) -> int:
        return int(self._read("decimals"))

    def balance_of(self, account: str) -> int:
        return int(self._read("balanceOf", to_address(account)))

    def total_supply(self) -> int:
        return int(self._read("totalSupply"))

    def max_supply(self) -> int:
        return int(self._read("maxSupply"))

    def revenue_token(self) -> str:
        return str(self._read("revenueToken"))

    def settlement(self) -> str:
        return str(self._read("settlement"))

    def accumulator(self) -> int:
        """Revenue per share so far, times 2^96 (`accPerShare`)."""
        return int(self._read("accPerShare"))

    def owed(self, holder: str) -> int:
        """Revenue that `holder` can withdraw now, in the revenue token's smallest unit."""
        return int(self._read("owed", to_address(holder)))

    def owed_scaled(self, holder: str) -> int:
        """The same times 2^96, with the fraction that is not payable yet."""
        return int(self._read("owedScaled", to_address(holder)))

    def undistributed_scaled(self) -> int:
        """Deposited revenue that is not credited to any share yet, times 2^96."""
        return int(self._read("undistributedScaled"))

    def stream_end(self) -> int:
        """Unix time at which all that was deposited will have been credited; in the past if it has."""
        return int(self._read("streamEnd"))

    def stream_period_s(self) -> int:
        """Seconds over which a deposit is credited."""
        return int(self._read("streamPeriod"))

    def deposited(self) -> int:
        """Revenue ever received, in the revenue token's smallest unit."""
        return sum(deposit.amount for deposit in self.deposits())

    def deposits(self, from_block: int | None = None) -> list[RevenueDeposited]:
        """Every deposit since `from_block`, oldest first."""
        return self.events(RevenueDeposited, from_block)

    def withdrawals(self, from_block: int | None = None) -> list[RevenueWithdrawn]:
        """Every withdrawal since `from_block`, oldest first."""
        return self.events(RevenueWithdrawn, from_block)

    # Changing

    def transfer(self, to: str, amount: int) -> Receipt:
        return self._invoke("transfer", to_address(to), amount)

    def deposit_revenue(self, amount: int) -> Receipt:
        """Takes `amount` of the revenue token, which the sender has approved, and credits it to all shares."""
        return self._invoke("depositRevenue", amount)

    def withdraw_revenue(self, to: str) -> Receipt:
        """Pays all that the sender is owed to `to`."""
        return self._invoke("withdrawRevenue", to_address(to))

    def withdraw_revenue_for(self, holder: str) -> Receipt:
        """Pays `holder` all that it is owed, whoever sends."""
        return self._invoke("withdrawRevenueFor", to_address(holder))
