"""`bench calibrate` tells honest answers from lies by the rules of an audit."""

import torch
from rich.console import Console

from commonweight.bench.calibration_answers import (
    ASKED,
    Part,
    answer_results,
    generate_answer,
    hold,
    judge_answers,
    lying_stages,
    prompt_of,
    read_answers,
    show_answers,
    write_answers,
)
from commonweight.bench.verification_world import small_spec
from commonweight.model.inference import InferenceStage

SPEC = small_spec("0x" + "00" * 32, 10_000)


def test_steps_pass_against_chunks_and_lies_do_not(tmp_path):
    stages = [InferenceStage.initial(SPEC, index) for index in range(SPEC.stages)]
    tokens = torch.arange(SPEC.training.sequence_length + 1, dtype=torch.int32)
    answers = [generate_answer(stages, prompt_of(SPEC, number, tokens), number) for number in range(len(ASKED))]
    assert [answer.prompt_tokens for answer in answers] == [1, 4, 12, 20]
    write_answers(tmp_path / "answers", answers)
    answers = read_answers(tmp_path / "answers")
    for answer in answers:
        fed = answer.ids.tolist()
        assert len(fed) == SPEC.training.sequence_length
        assert [choice.id for choice in answer.choices[:-1]] == fed[answer.prompt_tokens :]
    honest = hold(stages, answers)
    assert [part.what for part in honest] == ["codes", "codes", "choices"] * len(ASKED)
    assert any(part.largest > 0 for part in honest), "steps have other bits than chunks"

    parameters = [dict(stage.module.state_dict()) for stage in stages]
    lies = {name: hold(stages, answers, liars) for name, liars in lying_stages(SPEC, parameters).items()}
    found, refused = judge_answers(SPEC, {"file": "1 thread"}, {"file": honest, **lies})
    assert refused == []
    assert {each.of for each in found} == {"honest", "weights in bfloat16", "computed in bfloat16"}
    for each in found:
        assert (each.part <= each.part_allowed) == (each.of == "honest")
    limits = [result.limit for result in answer_results("float32", found)]
    assert limits[:2] == [found[0].position_allowed, found[0].part_allowed]
    assert limits[4:] == [None] * len(limits[4:])
    table = Console(width=140)
    with table.capture() as printed:
        table.print(show_answers("float32", found))
    assert "computed in bfloat16" in printed.get()


def test_an_honest_part_that_does_not_pass_is_named():
    held = {"one": [Part("codes", 3e-6, 1e-6, 32), Part("choices", 3e-6, 1e-6, 9)], "two": [Part("choices", 1, 1, 9)]}
    found, (refused,) = judge_answers(SPEC, {"one": "1 thread", "two": "math"}, held)
    assert refused == "math: choices are 1.0e+00 off at one position, 1.0e+00 over 9"
    assert [each.position for each in found] == [3e-6, 1]
