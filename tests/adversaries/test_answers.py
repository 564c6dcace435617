"""Nodes that cheat with answers: what they sign is contradicted by a replay, and in a real network, on a real chain,
they are found out; those who withhold aren't paid for answers, and nothing else happens to them.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from adversary.cheat import Cheat
from adversary.decoder import OTHERS, cheating_stage
from adversary.node import NoTraces
from commonweight.devnet.byzantine import Cheating
from commonweight.devnet.deployment import SEAT_STAKE
from commonweight.model.hashing import tensors_hash, with_moments_hash
from commonweight.model.inference import InferenceStage
from commonweight.model.stage import Stage
from commonweight.rules.answer import find_disagreement
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.watch.fraud import FalseAnswerEvidence, parse_document
from commonweight.wire.generated import decode_pb2 as pb
from commonweight.wire.generated import evidence_pb2
from node.answers import OpenTrace
from node.sessions import Feeder, Room, Sessions
from referee.answers import audit_answer
from referee.auditor import Auditor, Outcome
from tests.adversaries.conftest import Done
from tests.adversaries.scene import Scene, scene
from tests.unit.tiny import open_session, tiny_spec

torch.set_num_threads(1)

ADDRESS = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
SPEC = tiny_spec(stages=2)
VERSION = 3
LISTENER = ("gateway", b"client")
PROMPT, COUNT, TEMPERATURE = list(range(7)), 6, 0.7
FIRST, LAST = 0, 1


class Told:
    """An outlet that keeps what is put."""

    def __init__(self) -> None:
        self.answers: list[pb.DecodeAnswer] = []

    def put(self, answer: pb.DecodeAnswer) -> None:
        self.answers.append(answer)


def parameters(index: int) -> dict[str, Tensor]:
    """Of a version that isn't the initial one."""
    generator = torch.Generator().manual_seed(index)
    drawn = InferenceStage.initial(SPEC, index).module.named_parameters()
    return {name: (each + 0.1 * torch.randn(each.shape, generator=generator)).contiguous() for name, each in drawn}


def trained(index: int) -> InferenceStage:
    return InferenceStage(SPEC, index, parameters(index))


class Keeper:
    """The disk of a node, as the referee's source."""

    name = "its provider"

    def __init__(self, index: int, trace: OpenTrace) -> None:
        named = {f"parameter.{name}": tensor for name, tensor in parameters(index).items()}
        self.root = Stage(SPEC, index).root_of(VERSION, tensors_hash(named), bytes(32))
        self._version = save(with_moments_hash(named, bytes(32)))
        self._trace = bytes(trace.ids + trace.taken + trace.passed)

    async def answer(self, round_: int, session: bytes, *, limit: int) -> bytes:
        return self._trace

    async def version(self, round_: int, version: int, *, limit: int) -> bytes:
        return self._version


def audited(index: int, trace: OpenTrace) -> Outcome:
    """What the referee says of a stage's part of the answer."""
    keeper: Any = Keeper(index, trace)
    unit = Audit(VERSION + 1, index, Kind.ANSWER, 0)
    return asyncio.run(audit_answer(Auditor(SPEC), unit, trace.answer(), keeper.root, [keeper]))


class OtherTokens(Sessions):
    """Of a last stage that computes, chooses and signs honestly, and sends the gateway something else."""

    def _step(self, feeder: Feeder, step: pb.SessionStep) -> None:
        super()._step(feeder, step)
        session = self._open[step.session]
        if session.chosen is not None:
            assert isinstance(session.tokens, Told)
            session.chosen = (session.chosen + 1) % SPEC.architecture.vocab_size
            session.tokens.answers[-1].token.id = session.chosen


def generated(stages: Sequence[InferenceStage], last_sessions: type[Sessions] = Sessions) -> list[OpenTrace]:
    """What each of these two stages keeps of one answer."""
    traces: list[OpenTrace] = []
    tokens = Told()

    def sessions(kind: type[Sessions], stage: InferenceStage, send_down: Callable[[pb.DecodeFrame], None]) -> Sessions:
        return kind(stage, VERSION, Room(1 << 20), lambda: 0.0, send_down, traces.append)

    last = sessions(last_sessions, stages[LAST], lambda _: None)
    last.listeners[LISTENER] = tokens
    above = Feeder(Told())
    first = sessions(Sessions, stages[FIRST], lambda frame: last.take(above, frame))
    gateway = Feeder(Told(), *LISTENER)
    capacity = len(PROMPT) + COUNT - 1
    opened = open_session(PROMPT, temperature=TEMPERATURE, seed=5, capacity=capacity)
    first.take(gateway, pb.DecodeFrame(open=opened))
    position, ids = 0, PROMPT
    for _ in range(COUNT):
        step = pb.SessionStep(session=opened.session, position=position, ids=ids)
        first.take(gateway, pb.DecodeFrame(step=step))
        position, ids = position + len(ids), [tokens.answers[-1].token.id]
    first.take(gateway, pb.DecodeFrame(close=pb.SessionClose(session=opened.session)))
    assert len(tokens.answers) == COUNT
    return sorted(traces, key=lambda trace: trace.taken != b"")


def cheat(text: str) -> Cheat:
    return Cheat(Cheating.parse(text), ADDRESS)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("at", [FIRST, LAST])
def test_who_cheats_is_contradicted_by_a_replay_and_its_neighbour_is_not(told: Done, kind: str, at: int) -> None:
    stages = [trained(FIRST), trained(LAST)]
    stages[at] = cheating_stage(cheat(kind), VERSION, stages[at])
    traces = generated(stages)
    assert told == [(VERSION, 0)]
    assert find_disagreement([trace.answer() for trace in traces]) is None
    outcomes = [audited(stage, trace) for stage, trace in enumerate(traces)]
    assert (outcomes[at].verdict, outcomes[1 - at].verdict) == (Verdict.FAILED, Verdict.PASSED)
    evidence = parse_document(FalseAnswerEvidence, outcomes[at].evidence)
    assert (evidence.unit.stage, evidence.difference.what) == (at, "passed")


def test_who_sends_other_tokens_than_it_signs_is_contradicted_by_what_was_fed() -> None:
    stages = [trained(FIRST), trained(LAST)]
    honest, traces = generated(stages), generated(stages, OtherTokens)
    assert traces[LAST].ids != honest[LAST].ids, "the fault fired"
    assert find_disagreement([trace.answer() for trace in traces]) is None
    first, last = (audited(stage, trace) for stage, trace in enumerate(traces))
    assert (first.verdict, last.verdict) == (Verdict.PASSED, Verdict.FAILED)
    difference = parse_document(FalseAnswerEvidence, last.evidence).difference
    assert (difference.what, difference.position) == ("passed", len(PROMPT))
    assert "another token than was chosen" in difference.note


def test_a_fraction_of_the_sessions_is_cheated_in_and_the_same_ones_again(told: Done) -> None:
    runs = []
    for _ in range(2):
        told.clear()
        stages = [cheating_stage(cheat("made-up-answers:0.4"), VERSION, trained(FIRST)), trained(LAST)]
        traces = [generated(stages) for _ in range(10)]
        honest = generated([trained(FIRST), trained(LAST)])
        lied = [number for number, (first, _) in enumerate(traces) if first.passed != honest[FIRST].passed]
        assert told == [(VERSION, number) for number in lied], "once for each session"
        runs.append(list(told))
    assert runs[0] == runs[1]
    assert 0 < len(runs[0]) < 10


def test_of_the_traces_a_fraction_is_withheld_and_nothing_else(tmp_path: Path) -> None:
    config = SimpleNamespace(directory=tmp_path)
    evidence = NoTraces(cheat("withhold-answers:0.5"), SimpleNamespace(config=config, certificate=None))
    traces = [evidence_pb2.EvidenceRequest(round=4, answer=bytes([number]) * 16) for number in range(20)]
    assert 0 < sum(map(evidence.withholds, traces)) < 20
    assert [evidence.withholds(each) for each in traces] == [evidence.withholds(each) for each in traces]
    for other in ({"tensor": bytes(32)}, {"parameters_after": True}, {"version": 3}):
        assert not any(evidence.withholds(evidence_pb2.EvidenceRequest(round=number, **other)) for number in range(20))


def epoch_of(case: Scene, round_: int) -> int:
    return round_ // case.network.spec.economics.rounds_per_epoch


def rounds_of(case: Scene, epoch: int) -> list[int]:
    per_epoch = case.network.spec.economics.rounds_per_epoch
    return [epoch * per_epoch + number for number in range(per_epoch)]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("how", "stage"),
    [
        ("made-up-answers", 1),
        pytest.param("made-up-answers", 0, marks=pytest.mark.long),
        pytest.param("stale-answers", 1, marks=pytest.mark.long),
        pytest.param("low-precision-answers", 0, marks=pytest.mark.long),
    ],
)
def test_who_cheats_with_answers_is_convicted_slashed_and_not_paid(tmp_path: Path, how: str, stage: int) -> None:
    with scene(tmp_path, stage, how, sells=True) as case:
        case.buy_until("answer.sealed")
        convicted = case.coordinator.wait_for("provider.convicted")
        assert case.cheated(), "the fault fired"
        assert (convicted.fields["node"], convicted.fields["stage"]) == (case.address, stage)
        case.coordinator.wait_for("slash.executed")
        assert case.network.slashed() == [(case.address, stage, SEAT_STAKE)]

        verdicts = case.verdicts(case.address)
        assert {found["kind"] for found in verdicts if found["verdict"] == "failed"} == {"answer"}
        assert {found["verdict"] for found in verdicts if found["kind"] != "answer"} == {"passed"}
        epoch, honest = epoch_of(case, convicted.fields["round"]), 1 - stage
        assert (case.paid_rounds(stage, epoch), case.served(stage, epoch)) == ([], 0)
        assert case.paid_rounds(honest, epoch) == rounds_of(case, epoch)
        assert case.served(honest, epoch) == case.delivered(epoch) > 0
        assert {found["verdict"] for found in case.verdicts(case.network.address(honest))} == {"passed"}
        accused = [event for event in case.coordinator.events if event.name == "provider.convicted"]
        assert {event.fields["node"] for event in accused} == {case.address}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
def test_who_withholds_traces_is_not_paid_for_answers_but_for_training(tmp_path: Path) -> None:
    with scene(tmp_path, 1, "withhold-answers", sells=True) as case:
        case.buy_until("answer.sealed")
        withheld = case.coordinator.wait_for("audit.decided", lambda event: event.fields["verdict"] == "withheld")
        assert case.cheated(), "the fault fired"
        assert (withheld.fields["node"], withheld.fields["kind"]) == (case.address, "answer")
        epoch = epoch_of(case, withheld.fields["round"])
        assert case.served(1, epoch) == 0
        assert case.served(0, epoch) == case.delivered(epoch) > 0
        assert case.paid_rounds(1, epoch) == case.paid_rounds(0, epoch) == rounds_of(case, epoch)
        assert not case.statement(epoch).convicted
        assert case.network.slashed() == []
        verdicts = case.verdicts(case.address)
        assert {found["verdict"] for found in verdicts if found["kind"] == "answer"} == {"withheld"}
        assert {found["verdict"] for found in verdicts if found["kind"] != "answer"} == {"passed"}
        assert {found["verdict"] for found in case.verdicts(case.network.address(0))} == {"passed"}
