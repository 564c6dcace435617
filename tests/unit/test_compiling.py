"""A compiled stage: the same but for rounding, of a numerics class of its own, and made once for all like it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from commonweight.errors import ConfigError
from commonweight.model.compare import compare_gradient, compare_round
from commonweight.model.compiling import compile_stage
from commonweight.model.numerics import numerics_class
from commonweight.model.stage import Stage, train_round
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)
SPEC = tiny_spec(stages=1, n_layers=1, grad_clip="1")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What was compiled before is no help."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no C++ compiler")
def test_a_compiled_stage_computes_the_same_but_for_rounding(tmp_path: Path) -> None:
    plain, compiled, another = (Stage(SPEC, 0) for _ in range(3))
    root = compiled.state_root()
    compile_stage(compiled, tmp_path)
    assert compiled.state_root() == root, "to compile is no step"
    programs = counters["stats"]["unique_graphs"]
    assert programs > 0
    compile_stage(another, tmp_path)
    assert counters["stats"]["unique_graphs"] == programs, "it is the same program"

    before = {name: tensor.clone() for name, tensor in plain.state().items()}
    gradients = []
    for stage in (plain, compiled):
        for tokens in random_batches(SPEC):
            stage.backward(stage.forward(tokens, None), None)
        gradients.append({name: gradient.clone() for name, gradient in stage.gradients().items()})
        stage.step()
    size = torch.nn.utils.get_total_norm(list(gradients[0].values())).item()
    assert compare_gradient("gradient", gradients[1], gradients[0], size, SPEC).passed
    assert all(each.passed for each in compare_round(SPEC, 0, before, compiled.state(), plain.state()))
    losses = train_round([plain], random_batches(SPEC, 1)), train_round([compiled], random_batches(SPEC, 1))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_its_numerics_class_says_so() -> None:
    names = {numerics_class("cpu", SPEC), numerics_class("cpu", SPEC, compiles=True)}
    assert len(names) == 2
    assert sum("float32 compiled" in name for name in names) == 1


def test_without_a_compiler_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"torch\.compile fails: .*C\+\+ compiler, such as g\+\+"):
        compile_stage(Stage(SPEC, 0), tmp_path)
