"""What a node is told of a sealed round, and what it keeps of that."""

from operator import ge
from typing import Annotated

from pydantic import Field

from commonweight.errors import MalformedMessage
from commonweight.rules.answer import SESSION_BYTES, answer_leaf
from commonweight.rules.beacon import answers_root, round_root
from commonweight.rules.epoch import answers_per_round
from commonweight.rules.load import Load, is_divided, unpack_load
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.spec import Hash, ModelSpec, Record
from commonweight.rules.statement import Number, to_hex
from commonweight.wire.generated import control_pb2 as pb


class OwnAnswer(Record):
    """A sealed answer of which this node has a trace."""

    index: Number
    """Among those that were sealed with the round."""
    version: Number
    session: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * SESSION_BYTES}}}$")]

    @property
    def name(self) -> tuple[int, bytes]:
        """Of its trace: version and session."""
        return self.version, bytes.fromhex(self.session)


class Sealed(Record):
    """One round."""

    round: Number
    value: Hash
    root: Hash
    """Of all commitments."""
    loads: tuple[tuple[Load, ...], ...]
    """By stage, then by replica."""
    stage: Number
    """That this node held in it."""
    replica: Number
    """Which of that stage's is this node."""
    answers: tuple[tuple[Number, ...], ...]
    """Of each, by stage, which replica's part it is."""
    answers_root: Hash
    drawn_answers: tuple[OwnAnswer, ...] = ()
    """Those of which this node's part was drawn, and of which it had a trace then; in order."""

    @classmethod
    def of(cls, message: pb.RoundSealed, spec: ModelSpec, stage: int) -> "Sealed":
        """What the beacon follows from; nothing is drawn yet. The message's form has been checked."""
        microbatches = spec.training.microbatches_per_round
        leaves = [
            answer_leaf(index, each.round, each.session, each.prompt_tokens, each.fed, each.traces)
            for index, each in enumerate(message.answers)
        ]
        return cls(
            round=message.round,
            value=to_hex(message.beacon),
            root=to_hex(round_root([stage.commitments for stage in message.stages])),
            loads=tuple(tuple(unpack_load(load, microbatches) for load in stage.loads) for stage in message.stages),
            stage=stage,
            replica=message.replica,
            answers=tuple(tuple(each.replicas) for each in message.answers),
            answers_root=to_hex(answers_root(leaves)),
        )


class Known(Record):
    """All that is kept. `tip` is of `epoch`, the last that was planned."""

    epoch: Number
    tip: Hash
    rounds: tuple[Sealed, ...] = ()


def check_form(message: pb.RoundSealed, spec: ModelSpec) -> None:
    """Raises MalformedMessage for what no round of this model is sealed with."""
    round_, answers = message.round, message.answers
    traces = [trace for answer in answers for trace in answer.traces]
    commitments = [each for stage in message.stages for each in stage.commitments]
    salts = [message.salt] if message.salt else []
    for each in (message.beacon, *salts, *commitments, *traces):
        if len(each) != HASH_BYTES:
            raise MalformedMessage(f"Round {round_} was sealed with a hash of {len(each)}, not {HASH_BYTES} bytes.")
    if (count := len(message.stages)) != spec.stages:
        raise MalformedMessage(f"Round {round_} was sealed with {count} stages; due are {spec.stages}.")
    microbatches = spec.training.microbatches_per_round
    for number, stage in enumerate(message.stages):
        try:
            loads = [unpack_load(load, microbatches) for load in stage.loads]
        except ValueError as error:
            raise MalformedMessage(f"Round {round_} was sealed with a load that is none: {error}.") from error
        if len(loads) != len(stage.commitments) or not all(loads) or not is_divided(loads, microbatches):
            raise MalformedMessage(
                f"Round {round_} was sealed with {len(stage.commitments)} receipts of stage {number} and loads that "
                f"don't divide {microbatches} microbatches among them."
            )
    if len(answers) > (limit := answers_per_round(spec)):
        raise MalformedMessage(f"Round {round_} was sealed with {len(answers)} answers; at most are {limit}.")
    if len({answer.session for answer in answers}) < len(answers):
        raise MalformedMessage(f"Round {round_} was sealed with one answer twice; due is each session once.")
    for answer in answers:
        if len(answer.session) != SESSION_BYTES or len(answer.traces) != spec.stages:
            raise MalformedMessage(
                f"Round {round_} was sealed with an answer whose session has {len(answer.session)} bytes, with "
                f"{len(answer.traces)} traces; due are {SESSION_BYTES} and {spec.stages}."
            )
        replicas = [len(stage.commitments) for stage in message.stages]
        if len(answer.replicas) != spec.stages or any(map(ge, answer.replicas, replicas)):
            raise MalformedMessage(
                f"Round {round_} was sealed with an answer of the replicas {list(answer.replicas)!r:.100}; each stage "
                f"has {replicas!r:.100} of them."
            )
        if answer.round > round_:
            raise MalformedMessage(
                f"Round {round_} was sealed with an answer by the later version {answer.round}; due is none above it."
            )
