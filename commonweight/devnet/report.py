"""What a devnet run came to, as one JSON file for programs."""

from collections.abc import Mapping
from importlib.metadata import version
from platform import python_version
from typing import Any

from commonweight.devnet.answers import SoldAnswers
from commonweight.devnet.opinions import OPINIONS
from commonweight.devnet.ownership import Ownership
from commonweight.devnet.penalties import Penalties, Penalty
from commonweight.devnet.state import DRAWN, DevnetState
from commonweight.rules.audits import Verdict

OUTCOMES = (DRAWN, *(verdict.value for verdict in Verdict), *OPINIONS)
"""That audits and opinions are counted by."""
PACKAGES = ("commonweight", "torch", "grpcio", "web3")


def installed_versions() -> dict[str, str]:
    """Of this Python and of the packages whose version can change a result."""
    return {"python": python_version(), **{name: version(name) for name in PACKAGES}}


def build_report(
    state: DevnetState,
    *,
    ownership: Ownership,
    penalties: Penalties,
    answers: SoldAnswers,
    deployments: Mapping[str, Any],
    exit_reason: str,
    peak_rss_bytes: int,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """The report's fields; integers that JSON readers would round are decimal strings.

    `audits`: by kind, how many were drawn, what came of them, and the opinions: by auditors and by the referee on what
    providers claim, how many of these were overruled, and what became of what is known to be bad. `slashed`: who lost
    stake, as what, for fraud in which epoch. `answers`: how many buyers paid for; and of final epochs, how many were
    sealed, with how many tokens, and how many of these tokens each provider is paid for.
    `kills`: nodes that the devnet killed; `recovery_s`: for each, from then until others had its work, or to the
    beginning of the first round that was sealed after it, 0 where no round was broken off; `joins`: of nodes, since the
    first round was sealed;
    `rounds_repeated`: begun again because something broke; `replays`: of rounds that went on, because others computed
    again what was lost; `moves`: of nodes to weaker stages. `units_lost`: credited in a sealed round, and not paid
    though nobody was convicted for them.
    `losses` has one number per sealed round, in nats per token; `revenue` is in the revenue token's smallest unit.
    """
    return {
        "exit_reason": exit_reason,
        "seed": state.seed,
        "versions": dict(versions),
        "losses": list(state.losses),
        "tokens_per_s": state.tokens_per_s,
        "bytes_per_token": list(state.bytes_per_token),
        "first_round_s": state.first_round_s,
        "peak_rss_bytes": peak_rss_bytes,
        "epochs": [
            {
                "number": epoch.number,
                "root": epoch.root,
                "statement_hash": epoch.statement_hash,
                "minted": str(epoch.minted),
                "finalised": epoch.finalised,
            }
            for epoch in state.epochs
        ],
        "ownership": {
            holding.address: {
                "shares": str(holding.shares),
                "fraction": holding.shares / ownership.supply if ownership.supply else 0.0,
                "work_units": str(holding.work_units),
            }
            for holding in ownership.holdings
        },
        "revenue": ownership.revenue.fields(),
        "audits": {kind: {what: counts.get(what, 0) for what in OUTCOMES} for kind, counts in state.audits.items()},
        "slashed": [
            {
                "address": each.address,
                "stage": each.stage,
                "role": _role_of(state, each),
                "epoch": _epoch_of(state, each),
                "amount": str(each.amount),
                "evidence_hash": each.evidence_hash,
            }
            for each in penalties.slashed
        ],
        "unpaid_units": {
            "total": str(sum(penalties.unpaid.values())),
            "by_address": {address: str(units) for address, units in penalties.unpaid.items()},
        },
        "kills": state.kills,
        "joins": state.joins,
        "rounds_repeated": state.repeated,
        "replays": state.replays,
        "moves": state.moves,
        "recovery_s": list(state.recovery_s),
        "units_lost": str(_units_lost(state, penalties)),
        "answers": {"sold": state.answers, **answers.fields()},
        "deployments": dict(deployments),
    }


def _units_lost(state: DevnetState, penalties: Penalties) -> int:
    frauds = {fraud.node for fraud in state.frauds}
    return sum(units for node, units in penalties.unpaid.items() if node not in frauds)


def _role_of(state: DevnetState, penalty: Penalty) -> str:
    """As what it had the seat."""
    return "auditor" if penalty.address in {auditor.address for auditor in state.auditors} else "provider"


def _epoch_of(state: DevnetState, penalty: Penalty) -> int | None:
    """In which it was fraud; None where somebody else than the coordinator has proven it."""
    frauds = (fraud for fraud in state.frauds if (fraud.node, fraud.stage) == (penalty.address, penalty.stage))
    return next((fraud.epoch for fraud in frauds), None)
