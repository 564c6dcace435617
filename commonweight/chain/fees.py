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
_REPLACEMENT_PERCENT = 113
"""Of both fees, that nodes want of a transaction that takes another one's place: geth 110, Erigon and others 112.5."""
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


def choose_replacement(sent: Fees, now: Fees, cap_wei: int = DEFAULT_MAX_FEE_WEI) -> Fees | None:
    """Fees that take the place of `sent`; None where it still pays for the next block, and where they are over the cap.

    `now` is what `choose_fees` chooses now.
    """
    if now.expected_wei <= sent.max_fee_wei:
        return None
    max_fee = max(now.max_fee_wei, _raised(sent.max_fee_wei))
    tip = min(max(now.tip_wei, _raised(sent.tip_wei)), max_fee)
    return Fees(max_fee, tip, now.expected_wei) if max_fee <= cap_wei else None


def _raised(fee_wei: int) -> int:
    return fee_wei * _REPLACEMENT_PERCENT // 100 + 1
