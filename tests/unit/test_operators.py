"""One operator of a replay, run again from its record and its tensors, either of which may be anything."""

from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import MalformedMessage
from commonweight.model import narrowing, operators
from commonweight.model.narrowing import record
from commonweight.model.operators import REPEATABLE, read_arguments, rerun_operator, tensor_hash, write_arguments
from commonweight.model.stage import Stage
from commonweight.rules.recording import OperatorRecord
from tests.unit.replay_world import ROUND, trained
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

CPU = torch.device("cpu")


class KeepsAll(narrowing._Recorder):
    """Keeps each operator's tensors."""

    def __init__(self, _: int | None) -> None:
        self.all: list[dict[str, torch.Tensor]] = []
        super().__init__(None)

    @property
    def wanted(self) -> Any:
        return self.all

    @wanted.setter
    def wanted(self, tensors: dict[str, torch.Tensor]) -> None:
        self.all += [tensors] if tensors else []

    @property
    def _index(self) -> int:
        return len(self.records)

    @_index.setter
    def _index(self, _: int | None) -> None: ...


def test_each_operator_comes_out_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing, "_Recorder", KeepsAll)
    kinds = set()
    for compute, boundary, mode, every in (
        ("float32", "float32", "none", 1),
        ("bfloat16", "float16", "look_ahead", 1),
        ("float32", "float32", "none", ROUND + 1),
    ):
        precisions = {"compute_dtype": compute, "boundary_dtype": boundary}
        steps = {"asynchrony": mode, "averaging_rounds": every, "rounds_per_epoch": 2 * (ROUND + 1)}
        spec = tiny_spec(stages=3, grad_clip="0.01", **precisions, **steps)
        batches, traces = trained(spec)
        for index, trace in enumerate(traces):
            stage = Stage(spec, index, blank=True)
            stage.load(trace.state, ROUND)
            found: Any = record(stage, batches, trace.inputs, trace.gradients)
            assert len(found.records) == len(found.tensors)
            for each, tensors in zip(found.records, found.tensors, strict=True):
                false = each.model_copy(update={"outputs": ()})
                assert rerun_operator(false, safetensors.torch.save(tensors)) == each
                kinds.add(each.operator)
    assert kinds == REPEATABLE


def made(operator: str, *args: Any, strides: Any = None, **kwargs: Any) -> tuple[OperatorRecord, bytes]:
    """A record that a stranger may write."""
    given = [value for value in args if isinstance(value, torch.Tensor)]
    found = OperatorRecord(
        microbatch=0,
        phase="forward",
        layer="head",
        operator=operator,
        arguments=write_arguments(args, kwargs),
        inputs=tuple(map(tensor_hash, given)),
        strides=tuple(tensor.stride() for tensor in given) if strides is None else strides,
        outputs=(),
    )
    return found, safetensors.torch.save({f"input.{i}": tensor.contiguous().clone() for i, tensor in enumerate(given)})


NUMBERS = torch.arange(32.0).view(4, 8)


def test_strides_are_those_of_the_record() -> None:
    seen = []
    for tensor in (NUMBERS, NUMBERS.T, NUMBERS[:, ::2], torch.ones(3, 1).expand(3, 5), torch.ones(())):
        laid = operators._laid_out(tensor.contiguous(), tensor.stride())
        assert laid.stride() == tensor.stride()
        assert torch.equal(laid, tensor)
        seen.append(rerun_operator(*made("aten.neg.default", tensor)).outputs[0])
        assert seen[-1] == tensor_hash(-tensor)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (made("aten.from_file.default", "/etc/passwd"), "no operator of a replay"),
        (made("aten.ones_like.default", NUMBERS, strides=((8,),)), "2 dimensions has 1 strides"),
        (made("aten.neg.default", NUMBERS, strides=()), "1 inputs, and strides of 0"),
        (made("aten.neg.default", NUMBERS, strides=((2**40, 1),)), "bytes"),
        (made("aten.neg.default", NUMBERS, strides=((1, 1),)), "Input 0 isn't the one"),
        (made("aten.new_full.default", NUMBERS, [2**20, 2**10], 1.0), "again would take"),
        (made("aten.mm.default", NUMBERS, NUMBERS), "fails on the record's inputs"),
        (made("aten.mm.default", NUMBERS), "fails on the record's inputs"),
        (made("aten.embedding.default", NUMBERS, torch.tensor([99])), "fails on the record's inputs"),
    ],
)
def test_what_isn_t_run(what: tuple[OperatorRecord, bytes], words: str) -> None:
    with pytest.raises(MalformedMessage, match=words):
        rerun_operator(*what)


def test_other_tensors_than_the_record_s_are_refused() -> None:
    right, tensors = made("aten.neg.default", NUMBERS)
    for other in (safetensors.torch.save({"input.0": NUMBERS + 1}), safetensors.torch.save({"output.0": NUMBERS})):
        with pytest.raises(MalformedMessage, match="Input 0 isn't the one"):
            rerun_operator(right, other)
    with pytest.raises(MalformedMessage, match="no safetensors"):
        rerun_operator(right, tensors[:-1])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.strided, torch.contiguous_format, CPU]),
    lambda values: st.lists(values, max_size=3),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=4), st.dictionaries(st.sampled_from(["dtype", "eps", "dim"]), VALUES))
def test_arguments_are_read_as_they_were_written(args: list[Any], kwargs: dict[str, Any]) -> None:
    args = [NUMBERS, [NUMBERS, *args]]
    found, named = read_arguments(write_arguments(args, kwargs), [NUMBERS + 1, NUMBERS + 2], CPU)
    assert torch.equal(found[0], NUMBERS + 1)
    assert torch.equal(found[1][0], NUMBERS + 2)
    assert (found[1][1:], named) == (args[1][1:], kwargs)
    assert [type(value) for value in named.values()] == [type(value) for value in kwargs.values()]


@pytest.mark.parametrize(
    "written",
    [
        None,
        [],
        {"args": []},
        *(
            {"args": [value], "kwargs": {}}
            for value in ({"eval": "1"}, {"tensor": 5}, {"dtype": "load"}, {"layout": []}, {"float": "one"})
        ),
        {"args": [{"int": "1" * 5000}], "kwargs": {}},
    ],
)
def test_arguments_that_mean_nothing(written: Any) -> None:
    with pytest.raises(MalformedMessage):
        read_arguments(written, [NUMBERS], CPU)


def test_arguments_that_have_no_form() -> None:
    with pytest.raises(MalformedMessage, match="Generator"):
        write_arguments([torch.Generator()], {})
