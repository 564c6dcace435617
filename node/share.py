"""A node's part of a round's plan: what it computes, from whom that comes, to whom it goes, and who steps with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from eth_utils.address import to_checksum_address

from commonweight.errors import MalformedMessage
from commonweight.rules.averaging import contributors
from commonweight.rules.spec import ModelSpec
from commonweight.wire.generated import control_pb2 as pb

ADDRESS_BYTES = 20


@dataclass(frozen=True)
class Share:
    """Of one node in one round."""

    generation: int
    round: int
    revision: int
    """Of the round's plan, which may be changed."""
    since: int
    """The revision that it began with: what was done of the round by earlier ones is void."""
    stage_revision: int
    """By which of these changes that of its own stage was changed last."""
    node: str
    """Its own address."""
    load: tuple[int, ...]
    """The microbatches that it computes, ascending."""
    previous: Mapping[int, str]
    """By microbatch, who sends it; empty on the first stage."""
    next: Mapping[int, str]
    """By microbatch, to whom it goes on; empty on the last stage."""
    members: tuple[str, ...]
    """All that step the stage, itself among them, in order of address."""
    contributors: tuple[str, ...]
    """Those of them that have a load."""

    def revises(self, other: "Share") -> bool:
        """Whether it is of the same round, and a later revision of the same plan."""
        return self._plan == other._plan and self.revision > other.revision

    @property
    def _plan(self) -> tuple[int, int, int]:
        return self.generation, self.round, self.since

    def from_previous(self, node: str) -> frozenset[int]:
        """The microbatches that come from this node."""
        return frozenset(microbatch for microbatch, sender in self.previous.items() if sender == node)


def read_share(plan: pb.RoundPlan, spec: ModelSpec, stage: int, node: str) -> Share:
    """The share of a node that holds `stage`. Raises MalformedMessage for a plan that is none, or without the node."""
    if len(plan.stages) != spec.stages:
        raise MalformedMessage(f"Round {plan.round} is planned with {len(plan.stages)} stages, not {spec.stages}.")
    rows = [_assignment(of_stage, spec.training.microbatches_per_round) for of_stage in plan.stages]
    members = _members(plan.stages[stage])
    if node not in members:
        raise MalformedMessage(f"Round {plan.round} is planned without this node, {node}.")
    load = tuple(microbatch for microbatch, holder in enumerate(rows[stage]) if holder == node)

    def neighbours(row: Sequence[str]) -> Mapping[int, str]:
        return MappingProxyType({microbatch: row[microbatch] for microbatch in load})

    return Share(
        generation=plan.generation,
        round=plan.round,
        revision=plan.revision,
        since=plan.since,
        stage_revision=plan.stages[stage].revision,
        node=node,
        load=load,
        previous=neighbours(rows[stage - 1]) if stage else MappingProxyType({}),
        next=neighbours(rows[stage + 1]) if stage + 1 < spec.stages else MappingProxyType({}),
        members=members,
        contributors=contributors(rows[stage]),
    )


def _members(of_stage: pb.StagePlan) -> tuple[str, ...]:
    if any(len(each) != ADDRESS_BYTES for each in of_stage.members):
        raise MalformedMessage(f"members: an address has {ADDRESS_BYTES} bytes.")
    members = tuple(to_checksum_address(each) for each in of_stage.members)
    if list(members) != sorted(set(members)):
        raise MalformedMessage("members: each once, in order of address, is due.")
    return members


def _assignment(of_stage: pb.StagePlan, microbatches: int) -> tuple[str, ...]:
    members, indices = _members(of_stage), of_stage.assignment
    if len(indices) != microbatches or any(index >= len(members) for index in indices):
        raise MalformedMessage(
            f"assignment: one of {len(members)} members is due for each of {microbatches} microbatches; "
            f"this one has {len(indices)}."
        )
    return tuple(members[index] for index in indices)
