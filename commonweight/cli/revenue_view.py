"""Revenue as people and programs read it."""

from typing import Any

from commonweight.cli.currency import Currency
from commonweight.cli.output import format_amount, format_time
from commonweight.cli.place import Place
from commonweight.cli.revenue_facts import Income, Revenue


def why_nothing(place: Place, income: Income) -> str:
    """The reasons why an account is owed nothing, as one sentence."""
    token, held = place.revenue_token, place.shares.balance_of(income.account)
    reasons = []
    if not held:
        reasons.append("it holds no shares")
    elif place.shares.deposited():
        reasons.append(f"its {format_amount(held)} shares have earned nothing that isn't withdrawn")
    else:
        reasons.append(f"no revenue has come to the shares; {token.show(place.router.unswept())} wait for a sweep")
    if income.unclaimed:
        reasons.append(
            f"shares that it hasn't claimed bring {token.show(income.unclaimed)}: `commonweight claim` first"
        )
    if place.shares.undistributed_scaled() >> 96 and held:
        end = format_time(place.shares.stream_end(), place.chain.timestamp())
        reasons.append(f"revenue is credited to the shares as time passes, until {end}")
    if income.serving_earned:
        reasons.append(f"the {token.show(income.serving_earned)} that it earned by serving are paid")
    elif income.serving_earned is not None:
        reasons.append("it earned nothing by serving in a final epoch")
    return "; ".join(reasons)


def totals(place: Place, block: int, found: Revenue) -> dict[str, object]:
    """What came in and where it is, as fields."""
    token, now = place.revenue_token, place.chain.timestamp()
    streams = f", streaming until {format_time(found.stream_end, now)}" if found.stream_end > now else ""
    direct = {"deposited besides": token.show(found.direct)} if found.direct else {}
    return {
        "model": place.model_id,
        "as of block": block,
        "paid in": f"{token.show(found.paid_in)}, of that {token.show(found.collected)} by authorisation",
        **direct,
        "not swept yet": token.show(found.unswept),
        "swept": [
            f"{token.show(found.to_shares)} to the shares",
            f"{token.show(found.to_operators)} to operators",
            f"{token.show(found.to_treasury)} to the treasury",
        ],
        "shares": [
            f"{token.show(found.owed)} owed",
            f"{token.show(found.withdrawn)} withdrawn",
            f"{token.show(found.undistributed)} not credited yet{streams}",
        ],
        "operators": [f"{token.show(found.operators_paid)} paid", f"{token.show(found.operators_pool)} to be paid"],
        "treasury": [f"{token.show(found.treasury_paid)} paid", f"{token.show(found.treasury_pool)} to be paid"],
    }


def sum_line(token: Currency, found: Revenue) -> str:
    """Whether it adds up, in a sentence."""
    came = token.show(found.paid_in + found.direct)
    if found.missing_scaled == 0:
        return f"It adds up: {came} came in, and all of it is in the lines above, to the last 2^-96 of a unit."
    return (
        f"IT DOES NOT ADD UP: {came} came in; {found.missing_scaled} · 2^-96 units of it are in none of the lines "
        "above. Don't rely on these contracts, and tell their authors."
    )


def income_fields(token: Currency, income: Income) -> dict[str, object]:
    """One account's revenue, as fields."""
    unclaimed = "unknown without the statement" if income.unclaimed is None else token.show(income.unclaimed)
    serving = "unknown without the statement" if income.serving_earned is None else token.show(income.serving_earned)
    return {
        "account": income.account,
        "owed": token.show(income.owed),
        "by unclaimed shares": unclaimed,
        "by serving": f"{serving}, of that paid {token.show(income.serving_paid)}",
        "can withdraw": token.show(income.payable),
    }


def to_json(place: Place, block: int, found: Revenue, incomes: list[Income]) -> dict[str, Any]:
    """All of it for programs; base units as decimal strings."""
    token = place.revenue_token
    return {
        "model_id": place.model_id,
        "block": block,
        "token": token.address,
        "symbol": token.symbol,
        "decimals": token.decimals,
        "paid_in": str(found.paid_in),
        "collected": str(found.collected),
        "deposited_directly": str(found.direct),
        "unswept": str(found.unswept),
        "swept": {
            "shares": str(found.to_shares),
            "operators": str(found.to_operators),
            "treasury": str(found.to_treasury),
        },
        "shares": {
            "owed": str(found.owed),
            "withdrawn": str(found.withdrawn),
            "undistributed": str(found.undistributed),
            "stream_end": found.stream_end,
        },
        "operators": {"paid": str(found.operators_paid), "pool": str(found.operators_pool)},
        "treasury": {"paid": str(found.treasury_paid), "pool": str(found.treasury_pool)},
        "missing_scaled": str(found.missing_scaled),
        "accounts": [
            {
                "account": each.account,
                "owed": str(each.owed),
                "unclaimed": None if each.unclaimed is None else str(each.unclaimed),
                "serving_earned": None if each.serving_earned is None else str(each.serving_earned),
                "serving_paid": str(each.serving_paid),
                "payable": str(each.payable),
            }
            for each in incomes
        ],
    }


def cell(token: Currency, units: int | None) -> str:
    """A cell of a table; None is what can't be known without a statement."""
    return "?" if units is None else format_amount(units, token.decimals)
