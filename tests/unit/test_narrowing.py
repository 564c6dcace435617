"""Narrowing: the layer and the operator in which two replays begin to differ, and that operator's tensors."""

from contextlib import nullcontext
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from commonweight.model.hashing import tensors_hash
from commonweight.model.narrowing import Recording, first_difference, record
from commonweight.model.replay import replay
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec
from tests.unit.replay_world import ROUND, Trace, trained
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

STAGE = 1


class Faulty(TorchDispatchMode):
    """A machine whose `name` is one bit off the `nth` time it runs."""

    def __init__(self, name: str, nth: int) -> None:
        super().__init__()
        self.name, self.left, self.fired = name, nth, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if str(func) == self.name:
            self.left -= 1
            if self.left == 0:
                self.fired = True
                result = result.clone()
                result.view(-1).view(torch.uint8)[0] ^= 1
        return result


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return tiny_spec(grad_clip="0.01")


@pytest.fixture(scope="module")
def work(spec) -> tuple[list[Tensor], Trace]:
    batches, traces = trained(spec)
    return batches, traces[STAGE]


def recorded(
    spec: ModelSpec, work: tuple[list[Tensor], Trace], count: int = 1, stage: Stage | None = None, **options: Any
) -> Recording:
    batches, trace = work
    stage = stage or Stage(spec, STAGE, blank=True)
    state = options.pop("state", trace.state)
    return record(stage, state, ROUND, batches[:count], trace.inputs[:count], trace.gradients[:count], **options)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 3], ids=["microbatch", "round"])
def test_equal_replays_have_no_difference_and_recording_changes_no_bit(count, compute):
    spec = tiny_spec(compute_dtype=compute, grad_clip="0.01")
    batches, traces = trained(spec)
    stage, trace = Stage(spec, STAGE, blank=True), traces[STAGE]
    one, other = (recorded(spec, (batches, trace), count, stage) for _ in range(2))
    assert first_difference(one.records, other.records) is None
    if count == 3:
        assert stage.state_root() == trace.next_root
        assert stage.round == ROUND + 1
    assert not stage.module._forward_hooks, "the hooks are gone"
    after = replay(stage, trace.state, ROUND, batches, trace.inputs, trace.gradients)
    assert after.round.next_root == trace.next_root


def test_records_say_where_each_operator_ran(spec, work):
    records = recorded(spec, work, 3).records
    places = {(r.phase, r.layer) for r in records}
    for layer in (2, 3):
        for part in ("attention", "attention.norm", "attention.rotary", "ffn", "ffn.norm"):
            for phase in ("forward", "backward"):
                assert (phase, f"layers.{layer}.{part}") in places
    assert {("forward", "head"), ("backward", "head"), ("forward", "stream"), ("backward", "stream")} <= places
    assert {r.microbatch for r in records if r.phase != "step"} == {0, 1, 2}
    step = [r for r in records if r.phase == "step"]
    assert sum("_fused_adamw_" in r.operator for r in step) == 2
    assert all(r.outputs for r in records)


def test_another_weight_is_an_input_that_differs(spec, work):
    name = "parameter.layers.3.ffn.zd"
    state = work[1].state | {name: work[1].state[name] + 1e-3}
    ours, theirs = recorded(spec, work), recorded(spec, work, state=state)
    difference = first_difference(ours.records, theirs.records)
    assert difference.what == "inputs"
    assert (difference.ours.phase, difference.ours.layer) == ("forward", "layers.3.ffn")
    assert difference.ours.operator == "aten.mm.default(·, ·)"


def test_other_numbers_in_an_operator(spec, work):
    stage = Stage(spec, STAGE, blank=True)
    stage.module.layers["3"].attention.norm.eps = 1e-3
    difference = first_difference(recorded(spec, work).records, recorded(spec, work, stage=stage).records)
    assert difference.what == "operator"
    assert difference.ours.layer == difference.theirs.layer == "layers.3.attention.norm"
    assert difference.ours.operator == "aten.add.Tensor(·, 1e-05)"
    assert difference.theirs.operator == "aten.add.Tensor(·, 0.001)"
    assert difference.ours.inputs == difference.theirs.inputs


def test_lower_precision_in_one_layer(spec, work):
    stage = Stage(spec, STAGE, blank=True)
    ffn = stage.module.layers["2"].ffn
    forward = ffn.forward
    ffn.forward = lambda x: forward(x.bfloat16()).float()
    difference = first_difference(recorded(spec, work).records, recorded(spec, work, stage=stage).records)
    assert difference.what == "operator"
    assert difference.theirs.layer == "layers.2.ffn"
    assert "bfloat16" in difference.theirs.operator


@pytest.mark.parametrize(
    ("operator", "nth", "phase", "layer"),
    [
        ("aten.silu.default", 2, "forward", "layers.3.ffn"),
        ("aten.rsqrt.default", 3, "forward", "layers.3.attention.norm"),
        ("aten.silu_backward.default", 2, "backward", "layers.2.ffn"),
    ],
)
def test_one_wrong_bit_is_narrowed_to_its_operator(spec, work, operator, nth, phase, layer):
    ours, fault = recorded(spec, work), Faulty(operator, nth)
    with fault:
        theirs = recorded(spec, work)
    assert fault.fired
    difference = first_difference(ours.records, theirs.records)
    assert difference.what == "outputs"
    assert difference.ours.inputs == difference.theirs.inputs
    assert (difference.ours.phase, difference.ours.layer) == (phase, layer)
    assert difference.ours.operator.startswith(operator)


@pytest.mark.parametrize("faulty", [False, True])
def test_the_operators_tensors_are_evidence_that_anybody_can_check(spec, work, faulty):
    ours = recorded(spec, work)
    with Faulty("aten.silu.default", 1):
        theirs = recorded(spec, work)
    index = first_difference(ours.records, theirs.records).index
    with Faulty("aten.silu.default", 1) if faulty else nullcontext():
        recording = recorded(spec, work, extract=index)
    tensors = safetensors.torch.load(safetensors.torch.save(recording.tensors))
    mine = (theirs if faulty else ours).records[index]
    assert set(tensors) == {"input.0", "output.0"}
    assert tensors_hash({"": tensors["input.0"]}) == mine.inputs[0]
    assert tensors_hash({"": tensors["output.0"]}) == mine.outputs[0]
    given = tensors["input.0"]
    laid_out = torch.empty_strided(given.shape, mine.strides[0]).copy_(given)
    assert torch.equal(torch.nn.functional.silu(laid_out), tensors["output.0"]) != faulty


def test_extracting_an_operator_that_changes_its_input(spec, work):
    records = recorded(spec, work, 3).records
    index = next(i for i, r in enumerate(records) if "_fused_adamw_" in r.operator)
    tensors = recorded(spec, work, 3, extract=index).tensors
    found = [tensors_hash({"": tensors[f"input.{i}"]}) for i in range(len(records[index].inputs))]
    assert tuple(found) == records[index].inputs
    with pytest.raises(IndexError, match="doesn't exist"):
        recorded(spec, work, extract=len(records))


def test_a_replay_that_ends_early_differs_there(spec, work):
    records = recorded(spec, work).records
    for ours, theirs in ((records, records[:5]), (records[:5], records)):
        difference = first_difference(ours, theirs)
        assert (difference.index, difference.what) == (5, "operator")
        assert {difference.ours, difference.theirs} == {records[5], None}
