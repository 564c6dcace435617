"""What commands print on standard output: aligned text for people, or one JSON object for programs.

Plain columns instead of boxes: an address is never cut, and every line can be piped and copied.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import typer

SHARE_DECIMALS = 18


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object. Amounts of base units are decimal strings, since 2^53 would round them elsewhere."""
    typer.echo(json.dumps(value, indent=2))


def print_fields(fields: Mapping[str, object]) -> None:
    """Print `field_lines`."""
    for line in field_lines(fields):
        typer.echo(line)


def field_lines(fields: Mapping[str, object]) -> Iterator[str]:
    """One line for each field, the values below each other; for a list, one line for each of its items."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            yield f"{name if number == 0 else '':<{width}}  {item}"


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> None:
    """Print `table_lines`."""
    for line in table_lines(header, rows, right):
        typer.echo(line)


def table_lines(header: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> Iterator[str]:
    """Columns with a header; those whose position has an "r" in `right` are aligned to the right."""
    lines = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (
            f"{cell:>{width}}" if right[column : column + 1] == "r" else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()


def format_amount(base_units: int, decimals: int = SHARE_DECIMALS) -> str:
    """Base units as a number of whole tokens, exact, with thousands separators: "1,250.5"."""
    whole, part = divmod(base_units, 10**decimals)
    fraction = f"{part:0{decimals}d}".rstrip("0") if decimals else ""
    return f"{whole:,}.{fraction}" if fraction else f"{whole:,}"


def format_rounded(base_units: int, decimals: int = SHARE_DECIMALS, places: int = 4) -> str:
    """The same for a column of a table: rounded down to `places`, or "<0.0001" for what would show as nothing."""
    if 0 < base_units < 10 ** (decimals - places):
        return f"<0.{'1':>0{places}}"
    unit = 10 ** max(decimals - places, 0)
    return format_amount(base_units // unit * unit, decimals)


def format_percent(part: int, whole: int) -> str:
    """`part` of `whole` in percent with two decimals; "–" where there is no whole."""
    return f"{Decimal(100) * part / whole:.2f} %" if whole else "–"


def format_engineering(number: int) -> str:
    """Three digits and a prefix: 1,234,000 is "1.23 M"."""
    for exponent, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**exponent:
            return f"{number / 10**exponent:.3g} {prefix}".replace("e+03", "000")
    return f"{number}"


def format_audits(counts: Mapping[tuple[str, str], int]) -> str:
    """How many audits came to what, by kind and verdict: "data: 3 passed; round: 2 passed, 1 withheld"."""
    kinds: dict[str, list[str]] = {}
    for (kind, verdict), count in sorted(counts.items()):
        kinds.setdefault(kind, []).append(f"{count} {verdict}")
    return "; ".join(f"{kind}: {', '.join(verdicts)}" for kind, verdicts in kinds.items())


def format_time(unix: int, now: int | None = None) -> str:
    """A moment as "2026-11-21 22:01:05 UTC"; with `now`, also how far away it is: ", in 3 d 4 h"."""
    text = datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if now is None:
        return text
    return f"{text}, in {format_duration(unix - now)}" if unix > now else f"{text}, {format_duration(now - unix)} ago"


def format_duration(seconds: int) -> str:
    """The two largest units of a time: "3 d 4 h", "59 s"."""
    parts = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def format_ether(wei: int) -> str:
    """An amount of the chain's own currency."""
    return f"{wei / 10**18:.9f} ETH"
