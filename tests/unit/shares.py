"""Plans of rounds, as a worker gets them."""

from collections.abc import Collection, Sequence

from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb
from node.share import Share, read_share

Row = Sequence[str]
"""Of one stage: for each microbatch, who computes it."""


def address(number: int) -> str:
    """Of a node; none has a letter, so that its spelling is its checksummed one."""
    return f"0x{number:040d}"


def plan_of(
    generation: int,
    round_: int,
    rows: Sequence[Row],
    shadows: Sequence[Collection[str]] | None = None,
    revised: Sequence[int] = (),
    since: int = 0,
) -> pb.RoundPlan:
    """The plan of a round. `shadows`: of each stage, the members without a load. `revised`: of each stage, by which
    revision it was changed last. `since`: the revision that it begins with.
    """
    plan = pb.RoundPlan(generation=generation, round=round_, revision=max(revised, default=since), since=since)
    changes = revised or [since] * len(rows)
    for row, here, revision in zip(rows, shadows or [()] * len(rows), changes, strict=True):
        members = sorted({*row, *here})
        plan.stages.add(
            members=[bytes.fromhex(member[2:]) for member in members],
            assignment=[members.index(node) for node in row],
            revision=revision,
        )
    return plan


def undivided_share(spec: ModelSpec, stage: int, generation: int, round_: int) -> Share:
    """Of the one node of a stage, in a model whose stages have one each: that of stage s is `address(s)`."""
    rows = [[address(each)] * spec.training.microbatches_per_round for each in range(spec.stages)]
    return read_share(plan_of(generation, round_, rows), spec, stage, address(stage))
