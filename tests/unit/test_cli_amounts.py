"""What people type and read: amounts of tokens, times, fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.cli.currency import SHARES, Currency
from commonweight.cli.output import field_lines, format_amount, format_duration, format_time
from commonweight.errors import ConfigError

USD = Currency("0x" + 40 * "1", "tUSD", 6)


@given(st.integers(1, 2**256 - 1), st.integers(0, 30))
def test_what_is_shown_can_be_typed(units: int, decimals: int) -> None:
    text = format_amount(units, decimals).replace(",", "")
    assert Currency("", "X", decimals).parse(text) == units


@pytest.mark.parametrize(
    ("text", "units"),
    [("1000", 1_000_000_000), ("0.5", 500_000), ("0.000001", 1), ("007.10", 7_100_000), ("1.0000000000", 1_000_000)],
)
def test_amounts(text: str, units: int) -> None:
    assert USD.parse(text) == units


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "must be above 0"),
        ("0.0", "must be above 0"),
        ("-1", "plain decimal"),
        ("+1", "plain decimal"),
        ("1,000", "plain decimal"),
        ("1_000", "plain decimal"),
        ("1e3", "plain decimal"),
        (".5", "plain decimal"),
        ("5.", "plain decimal"),
        (" 5", "plain decimal"),
        ("٥", "plain decimal"),
        ("", "plain decimal"),
        ("nan", "plain decimal"),
        ("1.0000001", "has 7 decimals; tUSD has 6"),
        ("9" * 90, "fit the token"),
    ],
)
def test_what_is_no_amount(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        USD.parse(text)


def test_zero_where_it_is_allowed() -> None:
    assert USD.parse("0", least=0) == 0
    assert SHARES.parse("0.000000000000000001") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_661, "1 h 1 min"), (90_061, "1 d 1 h"), (7_260, "2 h 1 min")],
)
def test_durations(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


def test_moments() -> None:
    assert format_time(0) == "1970-01-01 00:00:00 UTC"
    assert format_time(86_400, 0) == "1970-01-02 00:00:00 UTC, in 1 d"
    assert format_time(0, 60) == "1970-01-01 00:00:00 UTC, 1 min ago"


def test_a_list_has_a_line_for_each_item() -> None:
    lines = list(field_lines({"a": 1, "things": ["x", "y"], "none": []}))
    assert lines == ["a       1", "things  x", "        y"]
