"""What `commonweight model show` says about a spec: every number computed by the rules, none retyped."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from commonweight.rules.emission import BPS, emission
from commonweight.rules.spec import Economics, ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token, stage_layers, stage_parameters, stage_units
from commonweight.rules.statement import to_hex


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
    }
