"""EIP-1559 fees from the chain's recent blocks, under a cap."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from commonweight.errors import ChainError

GWEI = 10**9
DEFAULT_MAX_FEE_WEI = 500 * GWEI
"""Per gas. Ethereum's base fee was above it for hours in all; above it, waiting is better than paying."""
_MAX_TIP_WEI = 5 * GWEI
_DEFAULT_TIP_WEI = GWEI
HISTORY_BLOCKS = 10
TIP_PERCENTILE = 50


@dataclass(frozen=True)
class Fees:
    """What a transaction offers and what it will probably pay, in wei per gas."""

    max_fee_wei: int
    """maxFeePerGas: twice the next base fee plus the tip, so that it stays valid for six full blocks, under
    the cap.
    """
    tip_wei: int
    """maxPriorityFeePerGas: the median of recent blocks' median tips."""
    expected_wei: int
    """The next block's base fee plus the tip."""


def choose_fees(history: Any, cap_wei: int = DEFAULT_MAX_FEE_WEI) -> Fees:
    """Fees for the next block. `history` is web3's answer to eth_feeHistory with one percentile.

    Raises ChainError when the base fee alone is over `cap_wei`.
    """
    base_fee = int(history["baseFeePerGas"][-1])
    tips = [
        int(rewards[0])
        for rewards, used in zip(history.get("reward") or [], history["gasUsedRatio"], strict=False)
        if rewards and used > 0  # an empty block says nothing
    ]
    tip = min(int(median(tips)) if tips else _DEFAULT_TIP_WEI, _MAX_TIP_WEI)
    if base_fee > cap_wei:
        raise ChainError(
            f"the chain's base fee is {base_fee / GWEI:.1f} gwei per gas, the cap here {cap_wei / GWEI:.1f}: "
            "nothing was sent; wait, or raise the cap"
        )
    max_fee = min(2 * base_fee + tip, cap_wei)
    tip = min(tip, max_fee)
    return Fees(max_fee, tip, min(base_fee + tip, max_fee))
