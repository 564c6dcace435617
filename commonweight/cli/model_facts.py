"""What `commonweight model show` says about a spec: every number computed by the rules, none retyped."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from fractions import Fraction
from math import inf
from typing import Any

from commonweight.rules.audits import Kind
from commonweight.rules.economics import (
    SAVED,
    Cheat,
    audit_cost,
    audits_pay,
    chance_caught,
    collusion_share,
    expected_audits,
    finding_power,
    known_bad_share,
    leaving_gain,
    needed_stake,
    round_risk,
    scattered_risk,
    shown_rate,
    times_until_caught,
    waving_rate,
    waving_stake,
)
from commonweight.rules.emission import BPS, emission
from commonweight.rules.spec import Economics, ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token, stage_layers, stage_parameters, stage_units
from commonweight.rules.statement import to_hex

CHEATED = 0.1
"""The share of its work on which a provider cheats that the table looks at."""
WITHIN_EPOCHS = 5
CERTAINTY = 0.99
"""With which who falsifies all its parts of answers is found out, by the number of answers that the text names."""
COLLUSION = 1 / 3
"""The share of auditors that are taken to collude where the needed stake is computed."""

PANELS = (1, 2, 4, 8)
"""Seats in a stage, other than its provider's, that the table of auditors looks at."""


@dataclass(frozen=True)
class StageFacts:
    """One stage: what it holds, and what a microbatch costs there."""

    stage: int
    layers: range
    parts: tuple[str, ...]
    """Besides the layers: "embedding" on the first stage, "head" on the last."""
    parameters: int
    """Trained ones."""
    flops: int
    """For one microbatch, forward and backward: the units it is paid by."""


@dataclass(frozen=True)
class Era:
    """Epochs that mint the same number of shares each."""

    first: int
    last: int
    shares: int
    """Base units that each of them may mint."""
    total: int
    """Base units that all epochs up to `last` may mint."""


@dataclass(frozen=True)
class AuditFacts:
    """One kind of audit."""

    kind: Kind
    """MICROBATCH stands for LOSS, too."""
    rate: str
    per_epoch: Fraction
    """Of one stage, on average; of DATA, of the first one."""
    of_work: Fraction
    """Their work over the stage's own."""


class Spread(Enum):
    """Where work is false, if a share of it is."""

    ROUNDS = "rounds"
    """In the whole of that share of the rounds."""
    MICROBATCHES = "microbatches"
    """In that share of the microbatches, at random."""
    ONE = "one"
    """In one microbatch of that share of the rounds."""


@dataclass(frozen=True)
class CheatFacts:
    """What one way of cheating risks."""

    cheat: Cheat
    spread: Spread
    caught: float
    """Probability of proof within WITHIN_EPOCHS, of the share CHEATED."""
    caught_at_once: float
    """Within one epoch of cheating in every round."""
    stake: float
    """Needed so that it doesn't pay, in rewards of an epoch; infinite where nothing is audited. See `cheats_of`."""
    round_risk: float
    """Probability that one false round is proven, with COLLUSION."""
    leaving: float
    """The most that withholding brings who then leaves, in rounds' rewards; infinite where nothing is audited."""


@dataclass(frozen=True)
class PanelFacts:
    """A stage that so many others than its provider may audit, all of them there; see rules/panel.py."""

    seats: int
    passes: float
    """Probability that what one friend of the provider's makes false passes a panel."""
    known_bad: float
    """The part of what an auditor is shown."""
    stake: float
    """Needed so that passing audits unseen doesn't pay, in rewards of an epoch; infinite where none is enough."""
    of_pay: float
    """The part of what is paid for computing that goes to the auditors."""


def stages_of(spec: ModelSpec) -> list[StageFacts]:
    """The stages in order."""
    last = spec.stages - 1
    return [
        StageFacts(
            stage,
            layers,
            ("embedding",) * (stage == 0) + ("head",) * (stage == last),
            stage_parameters(spec, stage),
            stage_units(spec, stage),
        )
        for stage, layers in enumerate(stage_layers(spec))
    ]


def eras_of(economics: Economics) -> Iterator[Era]:
    """The emission in eras of constant minting, until nothing is minted any more."""
    first = total = 0
    while shares := emission(economics, first):
        last = first + economics.halving_epochs - 1
        total += shares * economics.halving_epochs
        yield Era(first, last, shares, total)
        first = last + 1


def splits_of(economics: Economics) -> dict[str, int]:
    """Who gets how much of an epoch's shares, in 1/10,000."""
    designer, data = economics.designer_bps, economics.data_bps
    return {"designer": designer, "data": data, "compute": BPS - designer - data}


def audits_of(spec: ModelSpec) -> list[AuditFacts]:
    """The kinds of audit; on the last stage those of the loss take the place of a microbatch's."""
    rates, expected = spec.verification, expected_audits(spec, 0)
    kinds = ((Kind.ROUND, rates.round_rate), (Kind.MICROBATCH, rates.microbatch_rate), (Kind.DATA, rates.data_rate))
    return [
        AuditFacts(kind, rate, expected.get(kind, expected.get(Kind.LOSS, Fraction(0))), audit_cost(spec, kind))
        for kind, rate in kinds
    ]


def cheats_of(spec: ModelSpec) -> list[CheatFacts]:
    """The ways of cheating, for work that costs all that it earns; their stake with COLLUSION."""
    rounds, microbatches = spec.economics.rounds_per_epoch, spec.training.microbatches_per_round
    facts = []
    for cheat, spread in (
        (Cheat.WORK, Spread.MICROBATCHES),
        (Cheat.WORK, Spread.ROUNDS),
        (Cheat.WORK, Spread.ONE),
        (Cheat.STEP, Spread.ROUNDS),
        (Cheat.TEXT, Spread.ROUNDS),
    ):
        bad = 1 if spread is Spread.ONE else microbatches
        saved = float(SAVED[cheat] * bad / microbatches)
        risk = round_risk(spec, cheat, bad)
        trusted = round_risk(spec, cheat, bad, finding_power(collusion=COLLUSION))
        if spread is Spread.MICROBATCHES:
            caught = chance_caught(scattered_risk(spec, CHEATED), WITHIN_EPOCHS * rounds)
        else:
            caught = chance_caught(risk, CHEATED * WITHIN_EPOCHS * rounds)
        stake = needed_stake(chance_caught(trusted, rounds), reward=1, saved=saved)
        at_once = chance_caught(risk, rounds)
        facts.append(CheatFacts(cheat, spread, caught, at_once, stake, trusted, leaving_gain(risk, saved)))
    return facts


def answers_until_caught(spec: ModelSpec) -> float:
    """So many answers of which a stage falsifies its part, until that is proven with CERTAINTY; infinite where none is
    audited.
    """
    return times_until_caught(float(spec.verification.answer_rate), CERTAINTY)


def panels_of(spec: ModelSpec) -> list[PanelFacts]:
    """How auditors fare, by how many there are; none where nothing is audited."""
    if not audits_pay(spec, 1):
        return []
    rate = shown_rate(spec)
    return [
        PanelFacts(
            seats,
            collusion_share(seats, 1, rate),
            known_bad_share(seats, rate),
            waving_stake(spec, seats),
            audits_pay(spec, seats),
        )
        for seats in PANELS
    ]


def least_known_bad_rate(spec: ModelSpec) -> float:
    """Enough of them, with the most seats of PANELS, for a stake of one epoch's reward."""
    return waving_rate(spec, max(PANELS), 1.0)


def to_json(spec: ModelSpec) -> dict[str, Any]:
    """The facts for programs; base units and FLOPs as decimal strings."""
    boundary = boundary_bytes_per_token(spec)
    stages = stages_of(spec)
    return {
        "name": spec.name,
        "spec_hash": to_hex(spec.spec_hash),
        "architecture": spec.architecture.model_dump(),
        "parameters": sum(stage.parameters for stage in stages),
        "stages": [
            {
                "stage": each.stage,
                "layers": list(each.layers),
                "parts": list(each.parts),
                "parameters": each.parameters,
                "flops_per_microbatch": str(each.flops),
            }
            for each in stages
        ],
        "boundary_bytes_per_token": {"sent": boundary.sent, "uncompressed": boundary.uncompressed},
        "tokens_per_microbatch": spec.training.tokens_per_microbatch,
        "tokens_per_round": spec.training.tokens_per_round,
        "rounds_per_epoch": spec.economics.rounds_per_epoch,
        "data": spec.data.model_dump(),
        "emission": [
            {
                "first_epoch": era.first,
                "last_epoch": era.last,
                "per_epoch": str(era.shares),
                "total": str(era.total),
            }
            for era in eras_of(spec.economics)
        ],
        "max_supply": spec.economics.max_supply,
        "splits_bps": splits_of(spec.economics),
        "verification": {
            "tolerance": spec.verification.tolerance,
            "audits": [
                {
                    "kind": each.kind.value,
                    "rate": each.rate,
                    "per_stage_and_epoch": float(each.per_epoch),
                    "of_stage_work": float(each.of_work),
                }
                for each in audits_of(spec)
            ],
            "cheats": [
                _finite(asdict(each)) | {"cheat": each.cheat.value, "spread": each.spread.value}
                for each in cheats_of(spec)
            ],
            "answer_rate": spec.verification.answer_rate,
            **_finite({"answers_until_caught": answers_until_caught(spec)}),
            "known_bad_rate": spec.verification.known_bad_rate,
            "least_known_bad_rate": _finite({"": least_known_bad_rate(spec)})[""],
            "auditors": [_finite(asdict(each)) for each in panels_of(spec)],
        },
    }


def _finite(facts: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null."""
    return {name: None if value == inf else value for name, value in facts.items()}
