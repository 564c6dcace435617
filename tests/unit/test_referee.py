"""A referee passes what was computed honestly, and names the first thing that wasn't."""

import asyncio
import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from commonweight.errors import PeerUnreachable
from commonweight.model import sketch
from commonweight.model.hashing import tensors_hash
from commonweight.model.replay import replay_microbatch
from commonweight.model.stage import Stage
from commonweight.rules.audits import Audit, Kind, Verdict
from commonweight.rules.canonical import canonical_json
from commonweight.rules.merkle import verify_proof
from commonweight.rules.report import HOP_WORDS, Hop, Report
from commonweight.rules.state import MOMENTS_HASH
from commonweight.watch.fraud import MAX_EVIDENCE_BYTES
from commonweight.wire.generated.control_pb2 import EvidenceSource
from referee import auditor as auditor_module
from referee import nodes
from referee.auditor import Auditor, Outcome
from referee.fraud import Difference, fraud_evidence
from referee.nodes import NodeSource
from tests.unit.referee_world import (
    MICROBATCHES,
    SPEC,
    Cancelling,
    FalseGradient,
    FalseSketch,
    HalfPrecision,
    HiddenGradient,
    HugeGradient,
    Node,
    NoSketch,
    NoStep,
    OtherRounding,
    OtherServed,
    OtherStart,
    OtherStep,
    OtherSum,
    StaleWeights,
    Text,
    World,
    WrongGradient,
    WrongHash,
    WrongLoss,
    WrongOutput,
    batches_of,
    single,
    train,
    train_divided,
    whole,
)
from tests.unit.tiny import tiny_spec

ELSEWHERE = "torch 0, another machine"


@pytest.fixture(scope="module", autouse=True)
def _as_in_the_process() -> Iterator[None]:
    """One thread, and what was there before isn't looked at after each audit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def honest() -> World:
    return train()


@pytest.fixture(scope="module")
def referee() -> Auditor:
    return Auditor(SPEC, dataset=Text())  # type: ignore[arg-type]


def units(round_: int) -> Iterator[Audit]:
    """Every unit of a round."""
    for stage in range(SPEC.stages):
        kind = Kind.LOSS if stage == SPEC.stages - 1 else Kind.MICROBATCH
        yield Audit(round_, stage, Kind.ROUND)
        yield from (Audit(round_, stage, kind, number) for number in range(MICROBATCHES))
    yield from (Audit(round_, 0, Kind.DATA, number) for number in range(MICROBATCHES))


def judge(referee: Auditor, world: World, unit: Audit, numerics: str | None = None, **changes: Any) -> Outcome:
    report = replace(world.report(unit), **changes)
    sources = world.sources(unit.stage, unit.replica)
    return asyncio.run(referee.audit(unit, report, numerics or referee.numerics, sources))


def difference(outcome: Outcome) -> tuple[str, int | None]:
    """What the evidence says differed first, after everything else in it has been checked."""
    assert outcome.verdict is Verdict.FAILED, outcome
    evidence = json.loads(outcome.evidence)
    assert canonical_json(evidence) == outcome.evidence
    assert len(outcome.evidence) <= MAX_EVIDENCE_BYTES
    assert evidence["format"] == "commonweight.fraud/3"
    found = evidence["difference"]
    assert found["what"] in outcome.why
    if (hop := evidence["hop"]) is not None:
        hashes = {name: bytes.fromhex(hop[name][2:]) for name in HOP_WORDS}
        leaf = Hop(microbatch=hop["microbatch"], **hashes, loss=float(hop["loss"])).leaf(hop["position"])
        root = bytes.fromhex(evidence["commitments"]["hops_root"][2:])
        assert verify_proof(root, leaf, [bytes.fromhex(sibling[2:]) for sibling in hop["proof"]])
        assert hop["microbatch"] == found["microbatch"]
        assert hop[found["what"]] == found["signed"]
    return found["what"], found["microbatch"]


def test_honest_work_passes_whatever_is_drawn(referee: Auditor, honest: World) -> None:
    for unit in [*units(0), *units(1)]:
        outcome = judge(referee, honest, unit)
        assert outcome.verdict is Verdict.PASSED, (unit, outcome)
        assert not outcome.evidence
        assert "to the bit" in outcome.why


def test_only_what_is_needed_is_fetched(referee: Auditor, honest: World) -> None:
    tensor = SPEC.training.tokens_per_microbatch * SPEC.architecture.boundary_dim * 4
    ids = SPEC.training.microbatch_sequences * (SPEC.training.sequence_length + 1)
    blind = Auditor(SPEC)
    assert judge(referee, honest, Audit(1, 0, Kind.DATA, 0)).fetched_bytes == 0
    gradient = len(honest.nodes[1].gradients[1, honest.reports[1, 1].gradient_hash])
    of_start = judge(referee, honest, single(1, round_=0)).fetched_bytes
    assert of_start == 2 * tensor + gradient, "version 0 follows from the spec"
    assert judge(blind, honest, single(1, round_=0)).fetched_bytes == of_start + ids
    state = sum(len(honest.nodes[1].states[1, part, False]) for part in ("parameters", "moments"))
    assert judge(referee, honest, single(1)).fetched_bytes == 2 * tensor + state + gradient
    assert judge(referee, honest, single(1), ELSEWHERE).fetched_bytes == 2 * tensor + state + gradient
    assert judge(referee, honest, whole(1)).fetched_bytes == 2 * tensor * MICROBATCHES + state
    after = sum(len(honest.nodes[1].states[1, part, True]) for part in ("parameters", "moments"))
    other = judge(referee, train(OtherStep, 1), single(1), ELSEWHERE)
    assert other.fetched_bytes == 2 * tensor + state + gradient + after


@pytest.mark.parametrize(
    ("lie", "stage", "unit", "expected"),
    [
        (WrongOutput, 0, single(0), ("activation_out", 1)),
        (WrongOutput, 1, single(1), ("activation_out", 1)),
        (WrongOutput, 1, whole(1), ("activation_out", 1)),
        (WrongGradient, 1, single(1), ("gradient_out", 1)),
        (WrongGradient, 2, single(2), ("gradient_out", 1)),
        (WrongGradient, 2, whole(2), ("gradient_out", 1)),
        (WrongLoss, 2, single(2), ("loss", 1)),
        (WrongLoss, 2, whole(2), ("loss", 1)),
        (WrongHash, 1, whole(1), ("gradient_hash", None)),
        (NoStep, 1, whole(1, 0), ("state_after", None)),
        (StaleWeights, 1, single(1), ("activation_out", 1)),
        (StaleWeights, 1, whole(1), ("activation_out", 0)),
        (StaleWeights, 2, single(2), ("loss", 1)),
        (HalfPrecision, 1, single(1), ("activation_out", 1)),
        (HalfPrecision, 2, single(2), ("loss", 1)),
        (OtherStart, 1, single(1, round_=0), ("state_before", None)),
        (OtherStart, 1, whole(1, 0), ("state_before", None)),
        (NoStep, 0, single(0), ("state_after", None)),
        (NoStep, 1, single(1, round_=0), ("state_after", None)),
        (NoStep, 2, single(2), ("state_after", None)),
        (OtherStep, 1, single(1), ("state_after", None)),
        (FalseGradient, 0, single(0), ("sketch", 0)),
        (FalseGradient, 1, single(1, 2), ("sketch", 0)),
        (FalseGradient, 1, whole(1), ("sketch", 0)),
        (FalseGradient, 2, single(2), ("sketch", 0)),
        (HiddenGradient, 1, single(1, 2), ("sketch", 2)),
        (HugeGradient, 1, single(1, 0), ("sketch", 2)),
        (OtherSum, 1, single(1), ("gradient_hash", None)),
        (FalseSketch, 1, single(1), ("sketch", 1)),
        (FalseSketch, 1, single(1, 2), ("sketch", 1)),
        (FalseSketch, 1, whole(1), ("sketch", 1)),
        (NoSketch, 2, single(2), ("sketch", 0)),
    ],
)
def test_each_lie_is_named(referee: Auditor, lie: type[Node], stage: int, unit: Audit, expected: Any) -> None:
    assert difference(judge(referee, train(lie, stage), unit)) == expected


def test_another_next_state_than_the_step_s_is_named(referee: Auditor, honest: World) -> None:
    for stage in range(SPEC.stages):
        other = honest.reports[1, stage].state_before
        outcome = judge(referee, honest, single(stage), state_after=other)
        assert difference(outcome) == ("state_after", None)
        assert json.loads(outcome.evidence)["difference"]["signed"] == f"0x{other.hex()}"


@pytest.mark.parametrize("bit", [0, 9, 100, 255])
def test_a_sketch_is_signed_to_the_bit(referee: Auditor, honest: World, bit: int) -> None:
    """Who looks at one microbatch can't tell rounding from a lie; who replays the round can."""
    hops = honest.reports[1, 1].hops
    packed = bytearray(hops[1].sketch)
    packed[bit // 8] ^= 1 << bit % 8
    changed = (hops[0], replace(hops[1], sketch=bytes(packed)), hops[2])
    assert difference(judge(referee, honest, whole(1), hops=changed)) == ("sketch", 1)


def test_what_is_false_in_one_microbatch_and_small_is_found_there(referee: Auditor) -> None:
    world = train(HiddenGradient, 1)
    assert [judge(referee, world, single(1, number)).verdict for number in range(MICROBATCHES)] == [
        Verdict.PASSED,
        Verdict.PASSED,
        Verdict.FAILED,
    ]


class Replays:
    """Counts the microbatches that are replayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(auditor_module, "replay_microbatch", self)

    def __call__(self, *given: Any) -> Any:
        self.count += 1
        return replay_microbatch(*given)


@pytest.mark.parametrize("lie", [Node, OtherRounding, OtherStep])
def test_an_honest_round_is_not_replayed_for_one_microbatch(
    referee: Auditor, monkeypatch: pytest.MonkeyPatch, lie: type[Node]
) -> None:
    world = train(lie, 1)
    replays = Replays(monkeypatch)
    for number in range(MICROBATCHES):
        outcome = judge(referee, world, single(1, number), None if lie is Node else ELSEWHERE)
        assert outcome.verdict is Verdict.PASSED
        assert ("to the bit" in outcome.why) == (lie is Node)
    assert replays.count == MICROBATCHES


def test_lines_that_stand_out_are_replayed_too(
    referee: Auditor, honest: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are honest here: nothing more is replayed."""
    monkeypatch.setattr(sketch, "OUTLIER", 0.0)
    replays = Replays(monkeypatch)
    outcomes = [judge(referee, honest, single(1, number)) for number in range(MICROBATCHES)]
    assert {outcome.verdict for outcome in outcomes} == {Verdict.PASSED}
    assert replays.count == MICROBATCHES * MICROBATCHES


@pytest.mark.parametrize("numerics", [None, ELSEWHERE])
def test_a_doubt_that_is_not_confirmed_passes_and_is_told(
    referee: Auditor, monkeypatch: pytest.MonkeyPatch, numerics: str | None
) -> None:
    world = train(OtherRounding if numerics else Node, 1)
    monkeypatch.setattr(sketch, "ROUNDING", 0.0)
    replays = Replays(monkeypatch)
    outcome = judge(referee, world, single(1), numerics)
    assert (outcome.verdict, outcome.evidence) == (Verdict.PASSED, b"")
    assert outcome.why.startswith("The last sketch is ")
    assert outcome.why.endswith("; but the whole load's replay agrees with what was signed.")
    assert replays.count == 1 + MICROBATCHES


@pytest.mark.parametrize("numerics", [None, ELSEWHERE])
def test_neighbours_that_make_gradients_cancel_convict_nobody(referee: Auditor, numerics: str | None) -> None:
    """What is left of two microbatches is a millionth of either, so nearly all of it is rounding."""
    at = [Node, OtherRounding if numerics else Node, Cancelling]
    world = World([kind(SPEC, index) for index, kind in enumerate(at)])
    drawn = batches_of(SPEC, 0)
    world.train(0, [drawn[0], drawn[0], drawn[2]])
    blind = Auditor(SPEC)
    for unit in (whole(1, 0), *(single(1, number, 0) for number in range(MICROBATCHES))):
        outcome = judge(blind, world, unit, numerics)
        assert outcome.verdict is Verdict.PASSED, (unit, outcome)


@pytest.mark.parametrize(
    ("lie", "found"),
    [(WrongOutput, {single(1)})]
    + [(lie, {single(1, n) for n in range(MICROBATCHES)}) for lie in (NoStep, FalseGradient)],
)
def test_a_lie_convicts_nobody_else(referee: Auditor, lie: type[Node], found: set[Audit]) -> None:
    """The neighbours computed with what they got."""
    world = train(lie, 1)
    verdicts = {unit: judge(referee, world, unit).verdict for unit in units(1)}
    failed = {unit for unit, verdict in verdicts.items() if verdict is Verdict.FAILED}
    assert failed == {whole(1), *found}
    assert set(verdicts.values()) == {Verdict.PASSED, Verdict.FAILED}


REPLICAS = {0: [(0, 1, 2)], 1: [(0, 2), (1,)], 2: [(0, 2), (1,)]}
"""The loads of `train_divided`, by stage."""


def divided_units(round_: int) -> list[Audit]:
    """Every unit of a round of it that replays work."""
    return [
        unit
        for stage, loads in REPLICAS.items()
        for replica, load in enumerate(loads)
        for unit in (whole(stage, round_, replica), *(single(stage, number, round_, replica) for number in load))
    ]


@pytest.fixture(scope="module")
def divided() -> World:
    return train_divided()


def test_honest_replicas_pass_whatever_is_drawn_of_them(referee: Auditor, divided: World) -> None:
    for unit in [*divided_units(0), *divided_units(1)]:
        report = divided.report(unit)
        assert report.load == REPLICAS[unit.stage][unit.replica]
        assert (report.gradient_hash == report.round_gradient_hash) == (unit.stage == 0)
        outcome = judge(referee, divided, unit)
        assert outcome.verdict is Verdict.PASSED, (unit, outcome)
        assert "to the bit" in outcome.why
    assert [hop.microbatch for hop in divided.reports[1, 1].hops] == [2, 0], "as they were added up"


@pytest.mark.parametrize("lie", [OtherRounding, OtherStep])
def test_honest_replicas_of_another_class_pass(referee: Auditor, lie: type[Node]) -> None:
    """The step of the one is with what the other has added up."""
    world = train_divided(lie, 1)
    for replica in (0, 1):
        for unit in (unit for unit in divided_units(1) if (unit.stage, unit.replica) == (1, replica)):
            # What they were stepped to is other bits in the second round, for both.
            outcome = judge(referee, world, unit, ELSEWHERE)
            assert outcome.verdict is Verdict.PASSED, (unit, outcome)


@pytest.mark.parametrize(
    ("lie", "stage", "unit", "expected"),
    [
        (WrongOutput, 1, single(1, 1, replica=1), ("activation_out", 1)),
        (WrongLoss, 2, whole(2, replica=1), ("loss", 1)),
        (WrongHash, 1, whole(1, replica=1), ("gradient_hash", None)),
        (FalseGradient, 1, single(1, 1, replica=1), ("sketch", 1)),
        (FalseGradient, 1, whole(1, replica=1), ("sketch", 1)),
        (OtherSum, 2, single(2, 1, replica=1), ("gradient_hash", None)),
        (NoStep, 1, single(1, 1, 0, replica=1), ("state_after", None)),
        (NoStep, 1, whole(1, 0, replica=1), ("state_after", None)),
    ],
)
def test_a_replica_s_lie_convicts_it_and_not_the_other(
    referee: Auditor, lie: type[Node], stage: int, unit: Audit, expected: Any
) -> None:
    world = train_divided(lie, stage)
    outcome = judge(referee, world, unit)
    assert difference(outcome) == expected
    evidence = json.loads(outcome.evidence)
    assert evidence["unit"]["replica"] == 1
    assert evidence["commitments"]["load"] == "0x02"
    for other in (unit for unit in divided_units(0) if (unit.stage, unit.replica) == (stage, 0)):
        assert judge(referee, world, other).verdict is Verdict.PASSED


def test_the_gradients_of_a_load_are_added_in_the_order_that_was_signed(referee: Auditor, divided: World) -> None:
    turned = divided.reports[1, 1].hops[::-1]
    assert difference(judge(referee, divided, whole(1), hops=turned))[0] == "sketch"


@pytest.mark.parametrize("numerics", [None, ELSEWHERE])
@pytest.mark.parametrize("unit", [whole(1), single(1, 2)])
def test_what_a_stage_was_stepped_with_must_be_served(
    referee: Auditor, divided: World, unit: Audit, numerics: str | None
) -> None:
    """Who has a part of the round can't be told to have stepped right without it."""
    node, signed = divided.nodes[1], divided.reports[1, 1].round_gradient_hash
    served = node.gradients.pop((1, signed))
    other = divided.others[1][0].gradients[1, divided.others_reports[1, 1, 1].gradient_hash]
    try:
        for bytes_ in (None, served[:-1], other):
            if bytes_ is not None:
                node.gradients[1, signed] = bytes_
            outcome = judge(referee, divided, unit, numerics)
            assert outcome.verdict is Verdict.WITHHELD
            assert f"Nobody served the gradient {signed.hex()}." in outcome.why
    finally:
        node.gradients[1, signed] = served
    assert judge(referee, divided, unit, numerics).verdict is Verdict.PASSED


def test_the_first_stage_must_take_the_tokens_that_are_due(referee: Auditor) -> None:
    world = World([Node(SPEC, index) for index in range(SPEC.stages)])
    drawn = batches_of(SPEC, 0)
    world.train(0, [drawn[0], drawn[0], drawn[2]])
    for unit in (Audit(0, 0, Kind.DATA, 1), single(0, 1, 0), whole(0, 0)):
        assert difference(judge(referee, world, unit)) == ("tokens", 1)
    # Who merely passed them on has done nothing wrong, and without the text nobody can tell.
    assert judge(referee, world, single(1, 1, 0)).verdict is Verdict.PASSED
    assert judge(Auditor(SPEC), world, single(0, 1, 0)).verdict is Verdict.PASSED
    assert judge(referee, world, Audit(0, 0, Kind.DATA, 2)).verdict is Verdict.PASSED


def test_without_the_text_tokens_are_undecided(honest: World) -> None:
    outcome = judge(Auditor(SPEC), honest, Audit(1, 0, Kind.DATA, 0))
    assert outcome.verdict is Verdict.UNDECIDED
    assert "--data" in outcome.why


def poisoned(tensor: Tensor, name: str) -> tuple[World, Report]:
    """A report of stage 1 that signs this tensor as taken, and who serves it."""
    world = train()
    report = world.reports[1, 1]
    hop = replace(report.hops[1], **{name: world.nodes[1].keep(tensor)})
    return world, replace(report, hops=(report.hops[0], hop, report.hops[2]))


@pytest.mark.parametrize("name", ["activation_in", "gradient_in"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_who_signs_that_it_took_nan_has_lied(referee: Auditor, name: str, value: float) -> None:
    """An honest provider's pipe refuses it, and the round with it."""
    tensor = torch.full((2, 12, 6), 0.5)
    tensor[1, 3, 2] = value
    world, report = poisoned(tensor, name)
    outcome = asyncio.run(referee.audit(single(1), report, referee.numerics, world.sources(1)))
    assert difference(outcome) == (name, 1)
    assert "honest stage refuses it" in outcome.why


def test_who_signs_results_of_what_overflows_has_lied(referee: Auditor) -> None:
    world, report = poisoned(torch.full((2, 12, 6), torch.finfo(torch.float32).max), "gradient_in")
    outcome = asyncio.run(referee.audit(whole(1), report, referee.numerics, world.sources(1)))
    assert difference(outcome) == ("gradient_out", 1)
    assert "honest stage fails here" in outcome.why


def test_who_signs_tokens_outside_the_vocabulary_has_lied(referee: Auditor) -> None:
    world, report = poisoned(torch.full((2, 13), 61, dtype=torch.uint8), "tokens")
    outcome = asyncio.run(referee.audit(single(1), report, referee.numerics, world.sources(1)))
    assert difference(outcome) == ("tokens", 1)


@pytest.mark.parametrize("unit", [whole(1), single(1)])
@pytest.mark.parametrize("part", ["parameters", "moments"])
def test_a_part_that_nobody_serves_is_withheld(referee: Auditor, unit: Audit, part: str) -> None:
    world = train()
    served = world.nodes[1].states.pop((1, part, False))
    others = world.nodes[0].states[1, part, False], world.nodes[1].states[0, part, False]
    for bytes_ in (None, b"", b"\xff" * 40, served[:-1], bytes(len(served)), *others):
        if bytes_ is not None:
            world.nodes[1].states[1, part, False] = bytes_
        outcome = judge(referee, world, unit)
        assert outcome.verdict is Verdict.WITHHELD
        assert f"the {part} before the round (" in outcome.why
        assert "node 1" in outcome.why
        assert not outcome.evidence


def test_a_state_of_other_types_is_withheld(referee: Auditor) -> None:
    world = train()
    served = safetensors.torch.load(world.nodes[1].states[1, "parameters", False])
    parameters = {name: tensor for name, tensor in served.items() if name != MOMENTS_HASH}
    moments_hash = served[MOMENTS_HASH]
    for changed in (
        served | {name: tensor.to(torch.float8_e4m3fn) for name, tensor in parameters.items()},
        served | {name: tensor.reshape(1, -1) for name, tensor in parameters.items()},
        served | {"more": torch.zeros(1)},
        served | {MOMENTS_HASH: moments_hash.flip(0)},
        served | {MOMENTS_HASH: moments_hash[:31]},
        served | {MOMENTS_HASH: moments_hash.view(torch.float32)},
        parameters,
    ):
        world.nodes[1].states[1, "parameters", False] = safetensors.torch.save(changed)
        assert judge(referee, world, single(1)).verdict is Verdict.WITHHELD
    world.nodes[1].states[1, "parameters", False] = safetensors.torch.save(served)
    assert judge(referee, world, single(1)).verdict is Verdict.PASSED


def test_without_the_gradient_the_whole_round_decides(referee: Auditor) -> None:
    """Within a class that can be told without it; across classes it is withheld."""
    world = train()
    gradients, signed = world.nodes[1].gradients, world.reports[1, 1].gradient_hash
    served = gradients.pop((1, signed))
    others = [
        world.nodes[node].gradients[round_, world.reports[round_, node].gradient_hash]
        for node, round_ in ((0, 1), (1, 0))
    ]
    for bytes_ in (None, b"", b"\xff" * 40, served[:-1], bytes(len(served)), *others):
        if bytes_ is not None:
            gradients[1, signed] = bytes_
        outcome = judge(referee, world, single(1))
        assert outcome.verdict is Verdict.PASSED
        assert outcome.why.startswith(f"Nobody served the gradient {signed.hex()}.")
        outcome = judge(referee, world, single(1), ELSEWHERE)
        assert (outcome.verdict, outcome.evidence) == (Verdict.WITHHELD, b"")
        assert f"Nobody served the gradient {signed.hex()}." in outcome.why
    for unit in (single(1), whole(1)):
        assert difference(judge(referee, train(WrongHash, 1), unit)) == ("gradient_hash", None)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_leads_to_no_state(referee: Auditor, number: float) -> None:
    """However it is signed and served."""
    world = train()
    gradient = safetensors.torch.load(world.nodes[1].gradients[1, world.reports[1, 1].gradient_hash])
    next(iter(gradient.values())).view(-1)[0] = number
    signed = tensors_hash(gradient)
    world.nodes[1].gradients[1, signed] = safetensors.torch.save(gradient)
    outcome = judge(referee, world, single(1), gradient_hash=signed, round_gradient_hash=signed)
    assert difference(outcome) == ("gradient_hash", None)
    for numerics in (None, ELSEWHERE):  # as the sum over replicas, of which one's own is right
        for unit in (single(1), whole(1)):
            outcome = judge(referee, world, unit, numerics, round_gradient_hash=signed)
            assert difference(outcome) == ("state_after", None)
            assert "norm" in outcome.why


def test_a_neighbour_serves_what_the_provider_withholds(referee: Auditor) -> None:
    world = train()
    report = world.reports[1, 1]
    for name in ("activation_in", "gradient_in"):
        wanted = getattr(report.hops[1], name)
        world.nodes[1].tensors[wanted] = b"something else"
        assert judge(referee, world, single(1)).verdict is Verdict.PASSED
        for node in world.nodes:
            node.tensors.pop(wanted, None)
        outcome = judge(referee, world, single(1))
        assert outcome.verdict is Verdict.WITHHELD
        assert f"{name} of microbatch 1 ({wanted.hex()})" in outcome.why
        assert all(f"{node.name}: " in outcome.why for node in world.nodes)
        for node in world.nodes:
            node.tensors[wanted] = train().nodes[1].tensors[wanted]


def test_fraud_that_is_shown_is_not_undone_by_withholding(referee: Auditor) -> None:
    """A whole round fails at the microbatch that lies, though a later one can't be replayed."""
    world = train(WrongOutput, 1)
    later = world.reports[1, 1].hops[2]
    for node in world.nodes:
        node.tensors.pop(later.activation_in, None)
    assert difference(judge(referee, world, whole(1))) == ("activation_out", 1)


@pytest.mark.parametrize("error", [MemoryError(), OSError("disk"), torch.OutOfMemoryError("CUDA"), RuntimeError("bug")])
def test_what_goes_wrong_here_decides_nothing(
    referee: Auditor, honest: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(auditor_module, "replay_microbatch", fail)
        outcome = judge(referee, honest, single(1))
    assert outcome.verdict is Verdict.UNDECIDED
    assert type(error).__name__ in outcome.why
    assert "Traceback" in capfd.readouterr().err
    assert judge(referee, honest, single(1)).verdict is Verdict.PASSED


def test_another_numerics_class_passes_with_other_bits(referee: Auditor) -> None:
    for at in range(SPEC.stages):
        world = train(OtherRounding, at)
        for unit in units(1):
            outcome = judge(referee, world, unit, ELSEWHERE)
            assert outcome.verdict is Verdict.PASSED, (unit, outcome)
        assert "the largest error is" in judge(referee, world, whole(at), ELSEWHERE).why
        assert judge(referee, world, whole(at, 0), ELSEWHERE).verdict is Verdict.PASSED
        # The same bits, signed as this very class's, are no honest result.
        assert judge(referee, world, whole(at)).verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("lie", "stage", "unit", "expected"),
    [
        (HalfPrecision, 1, single(1), ("activation_out", 1)),
        (HalfPrecision, 1, whole(1), ("activation_out", 0)),
        (HalfPrecision, 0, single(0), ("activation_out", 1)),
        (HalfPrecision, 2, single(2), ("loss", 1)),
        (WrongGradient, 1, single(1), ("gradient_out", 1)),
        (NoStep, 1, whole(1, 0), ("gradient layers.2.ffn.norm.scale", None)),
        (NoStep, 1, single(1, 0, 0), ("gradient layers.2.ffn.norm.scale", None)),
        (StaleWeights, 1, single(1), ("activation_out", 1)),
        (FalseGradient, 1, single(1), ("sketch", 0)),
        (HiddenGradient, 1, single(1, 2), ("sketch", 2)),
        (HugeGradient, 1, single(1, 0), ("sketch", 2)),
        (OtherSum, 1, single(1), ("gradient_hash", None)),
        (OtherServed, 1, single(1), ("gradient_hash", None)),
        (OtherServed, 1, whole(1), ("gradient_hash", None)),
        (FalseSketch, 1, single(1), ("sketch", 1)),
        (NoSketch, 1, single(1), ("sketch", 0)),
    ],
)
def test_another_numerics_class_is_no_excuse(
    referee: Auditor, lie: type[Node], stage: int, unit: Audit, expected: Any
) -> None:
    outcome = judge(referee, train(lie, stage), unit, ELSEWHERE)
    assert difference(outcome) == expected
    evidence = json.loads(outcome.evidence)
    assert evidence["numerics"] == {"provider": ELSEWHERE, "auditor": referee.numerics}
    assert float(evidence["difference"]["error"]) > float(evidence["difference"]["tolerance"]) > 0


def test_another_numerics_class_must_serve_its_results(referee: Auditor) -> None:
    world = train(OtherRounding, 1)
    report = world.reports[1, 1]
    for node in world.nodes:
        node.tensors.pop(report.hops[1].activation_out, None)
    outcome = judge(referee, world, single(1), ELSEWHERE)
    assert outcome.verdict is Verdict.WITHHELD
    assert "activation_out of microbatch 1" in outcome.why
    world = train(OtherStep, 1)
    for part in ("moments", "parameters"):
        del world.nodes[1].states[1, part, True]
        for unit in (whole(1), single(1)):
            outcome = judge(referee, world, unit, ELSEWHERE)
            assert outcome.verdict is Verdict.WITHHELD
            assert f"the {part} after the round" in outcome.why


def test_another_version_0_of_another_class_is_undecided(referee: Auditor) -> None:
    outcome = judge(referee, train(OtherStart, 1), single(1, round_=0), ELSEWHERE)
    assert outcome.verdict is Verdict.UNDECIDED
    assert "version 0" in outcome.why


def test_evidence_measures_how_far_off_a_result_is(referee: Auditor) -> None:
    """Where the signed tensor is still served; its absence saves nobody."""
    world = train(WrongGradient, 1)
    evidence = json.loads(judge(referee, world, single(1)).evidence)["difference"]
    assert (float(evidence["error"]), evidence["tolerance"]) == (2.0, "0.0")
    for node in world.nodes:
        node.tensors.pop(world.reports[1, 1].hops[1].gradient_out, None)
    outcome = judge(referee, world, single(1))
    assert difference(outcome) == ("gradient_out", 1)
    assert json.loads(outcome.evidence)["difference"]["error"] is None


def test_the_evidence_of_the_largest_round_is_small() -> None:
    spec = tiny_spec(microbatches_per_round=4096)
    hops = tuple(Hop(number, *(bytes(32),) * len(HOP_WORDS), loss=1 / 3) for number in range(4096))
    report = Report(0, 1, hops, *[bytes(32)] * 4)
    found = Difference("loss", 7, repr(1 / 3), repr(2 / 3), 1.0, 0.0, "x" * 2000)
    evidence = fraud_evidence(spec, whole(1), report, found, provider="é" * 10_000, auditor="b")
    assert len(evidence) <= MAX_EVIDENCE_BYTES
    assert float(json.loads(evidence)["hop"]["loss"]) == 1 / 3


class Slow:
    """A client whose node takes its time, by a clock of its own."""

    def __init__(self) -> None:
        self.now_s, self.takes_s = 0.0, 0.0
        self.limits_s: list[float] = []

    async def fetch_tensor(self, source: Any, round_: int, wanted: bytes, size: int, *, timeout_s: float) -> bytes:
        self.limits_s.append(timeout_s)
        self.now_s += min(self.takes_s, timeout_s)
        if self.takes_s > timeout_s:
            raise PeerUnreachable("no answer.")
        return bytes(size)


def test_a_node_that_is_not_there_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Slow()
    monkeypatch.setattr(nodes.time, "monotonic", lambda: client.now_s)
    source = NodeSource(client, EvidenceSource(peer_id="A", address="127.0.0.1:1"))  # type: ignore[arg-type]

    async def ask(size: int) -> bytes:
        return await source.tensor(0, bytes(32), size)

    # Bytes have their time, whatever else: honest nodes on slow lines are waited for as long as it takes.
    client.takes_s = 2.0
    for _ in range(50):
        assert len(asyncio.run(ask(2 << 20))) == 2 << 20
    client.takes_s = 1000.0
    with pytest.raises(PeerUnreachable, match="no answer"):
        asyncio.run(ask(1 << 20))
    assert client.limits_s[-1] == nodes.PATIENCE_S + 1
    calls = len(client.limits_s)
    with pytest.raises(PeerUnreachable, match="isn't asked any more"):
        asyncio.run(ask(1 << 20))
    assert len(client.limits_s) == calls


def floats_alive() -> set[int]:
    return {id(each) for each in gc.get_objects() if isinstance(each, Tensor) and each.is_floating_point()}


@pytest.mark.parametrize("unit", [single(1), whole(1), single(2), whole(0), whole(1, 0)])
@pytest.mark.parametrize("lie", [Node, WrongOutput, HalfPrecision, FalseGradient, NoStep])
def test_nothing_of_a_state_outlives_its_audit(
    referee: Auditor, monkeypatch: pytest.MonkeyPatch, unit: Audit, lie: type[Node]
) -> None:
    world = train(lie, 1)
    judge(referee, world, unit)  # U and F stay: they are public
    gc.collect()
    before = floats_alive()
    seen: list[int] = []
    load = Stage.load

    def spy(stage: Stage, *given: Any) -> None:
        load(stage, *given)
        seen.append(len(floats_alive() - before))

    monkeypatch.setattr(Stage, "load", spy)
    judge(referee, world, unit)
    assert floats_alive() <= before
    least = len(world.nodes[unit.stage].stage.state())
    assert all(count >= least for count in seen)
    assert seen or unit.round == 0


@pytest.mark.parametrize("unit", [whole(1), single(1)])
def test_an_audit_that_breaks_off_leaves_nothing(
    referee: Auditor, honest: World, monkeypatch: pytest.MonkeyPatch, unit: Audit
) -> None:
    judge(referee, honest, unit)
    before = floats_alive()

    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(auditor_module, "step_from", fail)
    assert judge(referee, honest, unit).verdict is Verdict.UNDECIDED
    assert floats_alive() <= before
