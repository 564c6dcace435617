"""What a model is registered with, as people and programs read it."""

from dataclasses import asdict
from typing import Any

from commonweight.chain.records import NOBODY, ModelTerms
from commonweight.cli.currency import Currency
from commonweight.cli.output import format_amount, format_duration, format_percent
from commonweight.rules.custody import least_owners, least_stake
from commonweight.rules.emission import BPS


def term_fields(terms: ModelTerms, revenue: Currency, stake: Currency) -> dict[str, object]:
    """The terms as fields, all but those that follow from the spec. `stake` is the provider registry's bond token."""
    shares_bps = BPS - terms.operator_bps - terms.treasury_bps
    fields: dict[str, object] = {
        "share token": f"{terms.name} ({terms.symbol})",
        "designer": terms.designer,
        "data recipient": terms.data_recipient,
        "arbiter": terms.arbiter,
        "treasury": terms.treasury,
        "providers": terms.providers,
        "transfers": "free" if terms.transfer_policy == NOBODY else f"if {terms.transfer_policy} allows them",
        "genesis shares": f"{format_amount(terms.genesis_designer)} designer, {format_amount(terms.genesis_data)} data",
        "revenue in": f"{revenue.symbol}, token {revenue.address}",
        "revenue goes to": f"{format_percent(shares_bps, BPS)} shares, {format_percent(terms.operator_bps, BPS)} "
        f"operators, {format_percent(terms.treasury_bps, BPS)} treasury",
        "streams over": format_duration(terms.stream_period_s) if terms.stream_period_s else "no time: at once",
        "challenge window": format_duration(terms.window_s),
        "arbitration": format_duration(terms.arbitration_s),
        "proposer's bond": revenue.show(terms.proposer_bond),
        "challenger's bond": revenue.show(terms.challenger_bond),
        "custody cap": f"{terms.max_stages_per_owner} of {terms.stages} stages for one owner",
        "seat stake": stake.show(terms.seat_stake),
        "seat cool-down": format_duration(terms.seat_cooldown_s),
        "whole model costs": whole_model(terms, stake),
    }
    return fields


def whole_model(terms: ModelTerms, stake: Currency) -> str:
    """The least that buys one replica of every stage, in a sentence."""
    owners = least_owners(terms.stages, terms.max_stages_per_owner)
    total = stake.show(least_stake(terms.stages, terms.seat_stake))
    return f"at least {total} of stake, by {owners} {'owner' if owners == 1 else 'owners'}, for one seat of every stage"


def term_facts(terms: ModelTerms, revenue: Currency, stake: Currency) -> dict[str, Any]:
    """The same for programs; base units as decimal strings."""
    return {
        "token_name": terms.name,
        "token_symbol": terms.symbol,
        "designer": terms.designer,
        "data_recipient": terms.data_recipient,
        "arbiter": terms.arbiter,
        "treasury": terms.treasury,
        "providers": terms.providers,
        "transfer_policy": None if terms.transfer_policy == NOBODY else terms.transfer_policy,
        "genesis_designer": str(terms.genesis_designer),
        "genesis_data": str(terms.genesis_data),
        "revenue_token": asdict(revenue),
        "operator_bps": terms.operator_bps,
        "treasury_bps": terms.treasury_bps,
        "stream_period_s": terms.stream_period_s,
        "window_s": terms.window_s,
        "arbitration_s": terms.arbitration_s,
        "proposer_bond": str(terms.proposer_bond),
        "challenger_bond": str(terms.challenger_bond),
        "stages": terms.stages,
        "max_stages_per_owner": terms.max_stages_per_owner,
        "stake_token": asdict(stake),
        "seat_stake": str(terms.seat_stake),
        "seat_cooldown_s": terms.seat_cooldown_s,
        "whole_model": {
            "stake": str(least_stake(terms.stages, terms.seat_stake)),
            "owners": least_owners(terms.stages, terms.max_stages_per_owner),
        },
    }
