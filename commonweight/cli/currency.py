"""Amounts of a token as people write them: decimal numbers, exact to the token's smallest unit."""

import re
from dataclasses import dataclass

from commonweight.cli.output import SHARE_DECIMALS, format_amount, format_rounded
from commonweight.errors import ConfigError


@dataclass(frozen=True)
class Currency:
    """A token as it is shown and typed."""

    address: str
    symbol: str
    decimals: int

    def show(self, units: int) -> str:
        """Base units as "1,250.5 USD", exact."""
        return f"{format_amount(units, self.decimals)} {self.symbol}"

    def rounded(self, units: int) -> str:
        """Base units for a column of a table, rounded down to at most six decimals."""
        return format_rounded(units, self.decimals, places=min(6, self.decimals))

    def parse(self, text: str, what: str = "The amount", least: int = 1) -> int:
        """The base units of "1250.5", a plain decimal number.

        Raises ConfigError, naming `what`, for less than `least` base units (0 by default, too), a negative number, more
        decimals than the token has, and anything else.
        """
        return _parse(text, self.decimals, self.symbol, what, least)


SHARES = Currency("", "shares", SHARE_DECIMALS)
"""Shares of any model."""


def _parse(text: str, decimals: int, symbol: str, what: str, least: int) -> int:
    match = re.fullmatch(r"([0-9]+)(?:\.([0-9]+))?", text)
    if match is None:
        raise ConfigError(
            f"{what} {text!r:.80} is not a plain decimal number such as 1000 or 0.5, without sign and separators."
        )
    whole, fraction = match[1], (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise ConfigError(f"{what} {text} has {len(fraction)} decimals; {symbol} has {decimals}.")
    units = int(whole + fraction.ljust(decimals, "0"))
    if not least <= units < 2**256:
        raise ConfigError(f"{what} is {text:.80}; it must be above 0 and fit the token.")
    return units
