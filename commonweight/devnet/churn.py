"""Nodes that are killed while a devnet runs, by a plan that follows from its seed."""

import re

from commonweight.errors import ConfigError
from commonweight.links.churn import Fault, PlannedFault, plan_churn

DOWN_S = 5.0
"""Until a node that was killed is started again."""
HORIZON_S = 7 * 24 * 3600.0
"""No devnet is left running for longer."""


def parse_interval(text: str | None, option: str) -> float | None:
    """Seconds, as "30" or "30s". Raises ConfigError that names the option."""
    if text is None:
        return None
    if not (found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s?", text, re.ASCII)) or not float(found[1]) > 0:
        raise ConfigError(f"{option} {text!r} must be a number of seconds above 0, as in 30s.")
    return float(found[1])


def plan_kills(seed: int, nodes: list[str], every_s: float) -> list[PlannedFault]:
    """Who is killed when, in seconds from when all nodes had come."""
    return plan_churn(seed, nodes, {Fault.KILL: every_s}, DOWN_S, HORIZON_S)
