"""Answers for `bench calibrate`: how far what honest stages generate step by step is from the referee's replay in
chunks, and how far the nearest cheats are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from commonweight.bench.measure import Result, Summary
from commonweight.model.answers import (
    Choice,
    choice_errors,
    choice_tolerance,
    code_tolerance,
    overall,
    replay_answer,
)
from commonweight.model.compare import relative_error
from commonweight.model.inference import InferenceStage, choose_token
from commonweight.rules.spec import ModelSpec
from commonweight.wire.decode import chunk_tokens

CHUNK_TOKENS = 128
"""That the referee replays at once."""
ASKED = ((0, 0.0), (1, 0.7), (3, 1.0), (5, 1.5))
"""For each answer: how many eighths of the context the prompt fills (at least a token), and the temperature. The seed
is the answer's number, and the rest of the context is generated.
"""
LOWER = {"float32": torch.bfloat16, "bfloat16": torch.float8_e4m3fn}
"""What a cheat rounds weights to, by the spec's dtype."""
HONEST = "honest"
TOLERANCES: dict[str, Callable[[ModelSpec, int], float]] = {"codes": code_tolerance, "choices": choice_tolerance}
"""By what a stage's part of an answer is made of."""


@dataclass(frozen=True)
class Answered:
    """What one answer's stages took and passed."""

    number: int
    ids: Tensor
    """int64 [t], with the prompt."""
    codes: list[Tensor]
    """[t, k] of each stage but the last."""
    choices: list[Choice]

    @property
    def temperature(self) -> float:
        """That it was asked with."""
        return ASKED[self.number][1]

    @property
    def prompt_tokens(self) -> int:
        """The first choice follows the prompt."""
        return self.choices[0].position


class Part(NamedTuple):
    """The errors of one stage's part of one answer."""

    what: str
    largest: float
    overall: float
    positions: int

    def passes(self, spec: ModelSpec) -> bool:
        """As an audit decides at first."""
        allowed = TOLERANCES[self.what]
        return self.largest <= allowed(spec, 1) and self.overall <= allowed(spec, self.positions)


@dataclass(frozen=True)
class Spread:
    """The largest errors of honest parts, or the smallest of a lie's parts, and what is allowed."""

    of: str
    what: str
    position: float
    position_allowed: float
    part: float
    """Over the positions of the part that is nearest to failing; for a lie, to passing."""
    part_allowed: float


def prompt_of(spec: ModelSpec, number: int, tokens: Tensor) -> Tensor:
    """The prompt [p] of this answer, of the first of `tokens`, which fill the context."""
    return tokens[: max(1, spec.training.sequence_length * ASKED[number][0] // 8)].to(torch.int64)


def generate_answer(stages: Sequence[InferenceStage], prompt_p: Tensor, number: int) -> Answered:
    """Fill the context as nodes do: the prompt in steps, then single tokens, with keys and values kept."""
    spec = stages[0].spec
    room = spec.training.sequence_length
    caches = [stage.new_cache(room) for stage in stages]
    codes: list[list[Tensor]] = [[] for _ in stages[1:]]
    choices: list[Choice] = []
    ids: list[int] = []
    steps = list(torch.split(prompt_p, chunk_tokens(spec)))
    while len(ids) < room:
        for step in steps:
            flow: Tensor | None = None
            for index, (stage, cache) in enumerate(zip(stages, caches, strict=True)):
                flow = stage.forward(step[None], flow, cache)
                if not stage.is_last:
                    codes[index].append(flow[0].cpu())
            ids += step.tolist()
        assert flow is not None, "the last stage says logits"
        choices.append(_choose(flow, number, len(ids)))
        steps = [torch.tensor([choices[-1].id])]
    return Answered(number, torch.tensor(ids), [torch.cat(rows) for rows in codes], choices)


def write_answers(path: Path, answers: Iterable[Answered]) -> None:
    """All into one file."""
    tensors: dict[str, Tensor] = {}
    for answered in answers:
        tensors |= {f"{answered.number}/code/{index}": codes for index, codes in enumerate(answered.codes)}
        tensors[f"{answered.number}/ids"] = answered.ids
        tensors[f"{answered.number}/choices"] = torch.tensor(answered.choices, dtype=torch.float64)
    save_file(tensors, path)


def read_answers(path: Path) -> list[Answered]:
    """What `write_answers` wrote."""
    tensors, answers = load_file(path), []
    for number in range(len(ASKED)):
        boundaries = sum(name.startswith(f"{number}/code/") for name in tensors)
        codes = [tensors[f"{number}/code/{index}"] for index in range(boundaries)]
        choices = [Choice(int(at), int(id_), logit) for at, id_, logit in tensors[f"{number}/choices"].tolist()]
        answers.append(Answered(number, tensors[f"{number}/ids"], codes, choices))
    return answers


def lying_stages(spec: ModelSpec, versions: Sequence[dict[str, Tensor]]) -> dict[str, list[InferenceStage]]:
    """By lie: stages that save work or memory, from the parameters of each stage."""
    dtype = spec.training.compute_dtype
    lower = LOWER[dtype]
    name, _, _ = str(lower).removeprefix("torch.").partition("_")
    lies = {f"weights in {name}": (spec, [_rounded(each, lower) for each in versions])}
    if dtype == "float32":
        training = spec.training.model_copy(update={"compute_dtype": "bfloat16"})
        lies["computed in bfloat16"] = (spec.model_copy(update={"training": training}), list(versions))
    return {
        name: [InferenceStage(model, index, parameters) for index, parameters in enumerate(changed)]
        for name, (model, changed) in lies.items()
    }


def hold(
    stages: Sequence[InferenceStage], answers: Iterable[Answered], liars: Sequence[InferenceStage] = ()
) -> list[Part]:
    """Each stage's part of each answer against its replay; with `liars`, what these say where they are given the same
    tokens and codes.
    """
    parts = []
    for answered in answers:
        for index, stage in enumerate(stages):
            taken = answered.codes[index - 1] if index > 0 else None
            passed: Tensor | list[Choice] = answered.choices if stage.is_last else answered.codes[index]
            if liars:
                passed = _lie(liars[index], answered, taken)
            size = len(answered.ids)
            rows = replay_answer(stage, answered.ids, taken, _cut(size, CHUNK_TOKENS))
            errors = _errors(answered, passed, rows)
            parts.append(Part("choices" if stage.is_last else "codes", max(errors), overall(errors), len(errors)))
    return parts


def judge_answers(
    spec: ModelSpec, settings: Mapping[str, str], held: Mapping[str, Iterable[Sequence[Any]]]
) -> tuple[list[Spread], list[str]]:
    """What held parts, as `Part` in JSON, come to: of honest answers by the file, of which `settings` has the names,
    and of lies by theirs. Also which honest parts aren't passed.
    """
    parts = {name: [Part(*part) for part in found] for name, found in held.items()}
    refused = [
        f"{setting}: {part.what} are {part.largest:.1e} off at one position, {part.overall:.1e} over {part.positions}"
        for file, setting in settings.items()
        for part in parts[file]
        if not part.passes(spec)
    ]
    found = _spreads(spec, HONEST, [part for file in settings for part in parts[file]])
    for name, told in parts.items():
        if name not in settings:
            found += _spreads(spec, name, told)
    return found, refused


def show_answers(dtype: str, found: Sequence[Spread]) -> Table:
    """For people."""
    table = Table(title=f"{dtype}: answers against replays in chunks; of lies the nearest part")
    for column in ("", "what", "one position", "allowed", "a part, RMS", "allowed"):
        table.add_column(column, justify="left" if column in ("", "what") else "right")
    for each in found:
        numbers = each.position, each.position_allowed, each.part, each.part_allowed
        table.add_row(each.of, each.what, *(f"{number:.1e}" for number in numbers))
    return table


def answer_results(dtype: str, found: Sequence[Spread]) -> list[Result]:
    """Two lines for each; only what is honest has a limit."""
    results = []
    for each in found:
        name, is_honest = f"{dtype}: answers: {each.of}: {each.what}", each.of == HONEST
        for what, error, allowed in (
            ("one position", each.position, each.position_allowed),
            ("a part", each.part, each.part_allowed),
        ):
            limit = allowed if is_honest else None
            results.append(Result(f"{name}: {what}", "relative error", Summary.of([error]), limit=limit))
    return results


def _spreads(spec: ModelSpec, of: str, parts: Sequence[Part]) -> list[Spread]:
    """Of codes and of choices: the extremes of these parts, which are all honest or all of one lie."""
    extreme = max if of == HONEST else min
    found = []
    for what, allowed in TOLERANCES.items():
        mine = [part for part in parts if part.what == what]
        _, part = extreme((part.overall / allowed(spec, part.positions), part) for part in mine)
        position = extreme(part.largest for part in mine)
        found.append(Spread(of, what, position, allowed(spec, 1), part.overall, allowed(spec, part.positions)))
    return found


def _lie(liar: InferenceStage, answered: Answered, taken: Tensor | None) -> Tensor | list[Choice]:
    prompt = answered.prompt_tokens
    steps = _cut(prompt, chunk_tokens(liar.spec)) + [1] * (len(answered.ids) - prompt)
    rows = list(replay_answer(liar, answered.ids, taken, steps))
    if not liar.is_last:
        return torch.stack(rows)
    return [_choose(row, answered.number, position) for position, row in enumerate(rows[prompt - 1 :], prompt)]


def _errors(answered: Answered, passed: Tensor | list[Choice], rows: Iterator[Tensor]) -> list[float]:
    if isinstance(passed, Tensor):
        return [relative_error(code, row) for code, row in zip(passed, rows, strict=True)]
    after_prompt = islice(rows, answered.prompt_tokens - 1, None)
    return [
        max(choice_errors(choice, row, answered.temperature, answered.number))
        for choice, row in zip(passed, after_prompt, strict=True)
    ]


def _choose(logits_v: Tensor, number: int, position: int) -> Choice:
    token = choose_token(logits_v, ASKED[number][1], number, position)
    return Choice(position, token, float(logits_v[token]))


def _rounded(parameters: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """With a scale for each tensor, a power of two, that fits it into eight bits' range."""
    scales = {name: 2.0 ** (math.frexp(float(tensor.abs().max()))[1] - 8) for name, tensor in parameters.items()}
    return {name: (tensor / scales[name]).to(dtype).to(tensor) * scales[name] for name, tensor in parameters.items()}


def _cut(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]
