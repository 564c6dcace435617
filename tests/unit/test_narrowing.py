"""Narrowing: the layer and the operator in which two replays begin to differ, and that operator's tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from commonweight.errors import MessageTooLarge
from commonweight.model import narrowing
from commonweight.model.narrowing import Recording, record
from commonweight.model.operators import tensor_hash
from commonweight.model.replay import replay
from commonweight.model.stage import Stage
from commonweight.rules.recording import OperatorRecord, first_difference, join_hashes
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
    stage.load(options.pop("state", trace.state), ROUND)
    return record(stage, batches[:count], trace.inputs[:count], trace.gradients[:count], **options)


def difference(ours: Recording, theirs: Recording) -> tuple[int, OperatorRecord, OperatorRecord]:
    """The first operator that differs, told by the hashes alone."""
    index = first_difference(join_hashes("one", ours.records), join_hashes("one", theirs.records))
    assert index is not None
    assert ours.records[:index] == theirs.records[:index]
    return index, ours.records[index], theirs.records[index]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 3], ids=["microbatch", "round"])
def test_equal_replays_have_no_difference_and_recording_changes_no_bit(count, compute):
    spec = tiny_spec(compute_dtype=compute, grad_clip="0.01")
    batches, traces = trained(spec)
    stage, trace = Stage(spec, STAGE, blank=True), traces[STAGE]
    one, other = (recorded(spec, (batches, trace), count, stage) for _ in range(2))
    assert one.records == other.records
    assert join_hashes("one", one.records) == join_hashes("one", other.records)
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
    assert {r.microbatch for r in records} == {0, 1, 2, None}
    step = [r for r in records if r.phase == "step"]
    assert {r.microbatch for r in step} == {None}
    assert sum("_fused_adamw_" in r.operator for r in step) == 2
    assert all(r.outputs for r in records)


def test_another_weight_is_an_input_that_differs(spec, work):
    name = "parameter.layers.3.ffn.zd"
    state = work[1].state | {name: work[1].state[name] + 1e-3}
    ours, theirs = recorded(spec, work), recorded(spec, work, state=state)
    _, mine, other = difference(ours, theirs)
    assert mine.inputs != other.inputs
    assert (mine.phase, mine.layer, str(mine)) == ("forward", "layers.3.ffn", "aten.mm.default(·, ·)")


def test_other_numbers_in_an_operator(spec, work):
    stage = Stage(spec, STAGE, blank=True)
    stage.module.layers["3"].attention.norm.eps = 1e-3
    _, ours, theirs = difference(recorded(spec, work), recorded(spec, work, stage=stage))
    assert ours.layer == theirs.layer == "layers.3.attention.norm"
    assert (str(ours), str(theirs)) == ("aten.add.Tensor(·, 1e-05)", "aten.add.Tensor(·, 0.001)")
    assert ours.inputs == theirs.inputs


def test_a_perturbed_sublayer_differs_first_in_itself(spec, work):
    stage = Stage(spec, STAGE, blank=True)
    stage.module.layers["2"].attention.register_forward_hook(lambda _module, _given, result: result + 1e-3)
    _, ours, theirs = difference(recorded(spec, work), recorded(spec, work, stage=stage))
    assert (theirs.layer, str(theirs)) == ("layers.2.attention", "aten.add.Tensor(·, 0.001)")
    assert ours.layer == "stream"


def test_lower_precision_in_one_layer(spec, work):
    stage = Stage(spec, STAGE, blank=True)
    ffn = stage.module.layers["2"].ffn
    forward = ffn.forward
    ffn.forward = lambda x: forward(x.bfloat16()).float()
    _, _, theirs = difference(recorded(spec, work), recorded(spec, work, stage=stage))
    assert theirs.layer == "layers.2.ffn"
    assert str(theirs) == "aten._to_copy.default(·, dtype=bfloat16)"


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
    _, mine, other = difference(ours, theirs)
    assert mine.inputs == other.inputs
    assert mine.outputs != other.outputs
    assert (mine.phase, mine.layer, mine.operator) == (phase, layer, operator)


def test_the_tensors_of_one_operator_are_those_that_its_record_names(spec, work):
    records = recorded(spec, work, 3).records
    changes_its_input = next(i for i, r in enumerate(records) if "_fused_adamw_" in r.operator)
    for index in (0, changes_its_input):
        found = recorded(spec, work, 3, extract=index)
        assert found.records == records
        for kind, due in (("input", records[index].inputs), ("output", records[index].outputs)):
            assert tuple(tensor_hash(found.tensors[f"{kind}.{i}"]) for i in range(len(due))) == due
    assert recorded(spec, work, extract=len(records)).tensors == {}


def test_where_tensors_came_from_is_no_difference(spec, work):
    batches, trace = work
    wide = torch.zeros(*trace.inputs[0].shape[:2], 2 * trace.inputs[0].shape[2])
    wide[..., ::2] = trace.inputs[0]
    stage = Stage(spec, STAGE, blank=True)
    stage.load(trace.state, ROUND)
    found = record(stage, [batches[0].T.contiguous().T], [wide[..., ::2]], [None])
    assert not wide[..., ::2].is_contiguous()
    assert found.records == recorded(spec, work).records


def test_limits(spec, work, monkeypatch):
    monkeypatch.setattr(narrowing, "MAX_TENSORS_BYTES", 100)
    assert recorded(spec, work, extract=0).tensors == {}
    monkeypatch.setattr(narrowing, "MAX_OPERATORS", 10)
    with pytest.raises(MessageTooLarge, match="more than 10 operators"):
        recorded(spec, work)
