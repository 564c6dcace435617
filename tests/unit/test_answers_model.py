"""Replaying an answer: steps and chunks agree, and what a token's choice says about the logits."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from commonweight.errors import MalformedMessage
from commonweight.model.answers import (
    Choice,
    choice_errors,
    choice_tolerance,
    code_tolerance,
    find_unchosen,
    least_error,
    logits_apart,
    overall,
    replay_answer,
    split_trace,
    trace_bytes,
)
from commonweight.model.compare import relative_error
from commonweight.model.inference import InferenceStage, choose_token
from tests.unit.tiny import tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=2, sequence_length=200)


@pytest.mark.parametrize("chunks", [[200], [1] * 200, [7, 128, 1, 64]])
def test_all_logits_are_those_of_single_steps(chunks: list[int]) -> None:
    first, last = (InferenceStage.initial(SPEC, index) for index in range(2))
    ids = torch.randint(61, (200,), generator=torch.Generator().manual_seed(0))
    caches, codes, logits, fed = (first.new_cache(200), last.new_cache(200)), [], {}, 0
    for chunk in ids.split(chunks):
        codes.append(first.forward(chunk[None], None, caches[0]))
        fed += len(chunk)
        logits[fed] = last.forward(chunk[None], codes[-1], caches[1])
    taken = torch.cat(codes, dim=1)[0]
    for sizes in ([128, 72], [3] * 66 + [2]):
        again = torch.stack(list(replay_answer(first, ids, None, sizes)))
        assert again.shape == taken.shape
        assert max(map(relative_error, taken, again)) < code_tolerance(SPEC, 1) / 10
        replayed = torch.stack(list(replay_answer(last, ids, taken, sizes)))
        assert replayed.shape == (200, 61)
        assert all(logits_apart(replayed[end - 1], row) < choice_tolerance(SPEC, 1) / 10 for end, row in logits.items())


def test_one_position_may_err_more_than_all() -> None:
    assert code_tolerance(SPEC, 1) == pytest.approx(4e-5)
    assert choice_tolerance(SPEC, 10**6) == pytest.approx(1e-5, rel=0.01)
    assert overall([2e-5] * 100) > code_tolerance(SPEC, 100) > overall([4e-5] + [1e-6] * 99)
    assert overall([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))
    assert overall([]) == 0


def test_logits_that_cannot_be_compared_are_infinitely_far() -> None:
    row, none = torch.tensor([1.0, 0.0]), torch.zeros(2)
    assert logits_apart(row, row) == logits_apart(none, none) == 0.0
    assert logits_apart(row, none) == 1.0
    for one, other in ((none, row), (row, row * math.nan), (row * math.inf, row)):
        assert logits_apart(one, other) == math.inf


# What a token's choice says

floats = st.floats(-30, 30, width=32)
temperatures = st.sampled_from([0.0, 5e-324, 1e-300, 1e-9, 0.01, 0.3, 1.0, 1.7, 50.0, 1e300])
seeds = st.integers(0, 2**64 - 1)


@st.composite
def perturbed(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Logits, others, and how far these are from them."""
    logits = torch.tensor(draw(st.lists(floats, min_size=1, max_size=40)))
    error = draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 3.0]))
    signs = torch.tensor(draw(st.lists(st.floats(-1, 1), min_size=len(logits), max_size=len(logits))))
    others = (logits + error * signs).to(torch.float32)
    return logits, others, float((others.double() - logits.double()).abs().max())


@given(perturbed(), temperatures, seeds, st.integers(1, 4096))
def test_what_logits_nearby_choose_is_within_their_distance(
    given_: tuple[torch.Tensor, torch.Tensor, float], temperature: float, seed: int, position: int
) -> None:
    logits, others, distance = given_
    token = choose_token(others, temperature, seed, position)
    assert least_error(logits, temperature, seed, position, token) <= distance * (1 + 1e-9) + 1e-12
    own = choose_token(logits, temperature, seed, position)
    assert least_error(logits, temperature, seed, position, own) <= 1e-12


@given(perturbed(), temperatures, seeds, st.integers(1, 4096), st.integers(0, 39), floats)
def test_of_two_replays_a_choice_is_as_far_off_but_for_what_these_differ_by(
    given_: tuple[torch.Tensor, torch.Tensor, float],
    temperature: float,
    seed: int,
    position: int,
    token: int,
    logit: float,
) -> None:
    one, other, distance = given_
    choice = Choice(position, token % len(one), logit)
    sizes = [float(each.abs().max()) for each in (one, other)]
    assume(min(sizes) > 1e-3)
    errors = [
        [error * size for error in choice_errors(choice, each, temperature, seed)]
        for each, size in zip((one, other), sizes, strict=True)
    ]
    assert all(abs(a - b) <= distance * (1 + 1e-9) + 1e-12 for a, b in zip(*errors, strict=True))


@given(st.lists(floats, min_size=2, max_size=40), temperatures, seeds, st.integers(0, 39))
def test_a_token_that_is_given_less_than_the_least_error_is_not_chosen(
    values: list[float], temperature: float, seed: int, token: int
) -> None:
    """The best that logits within an error can do for a token is to raise it, and to lower all others."""
    logits, token = torch.tensor(values, dtype=torch.float64), token % len(values)
    least = least_error(logits, temperature, seed, 1, token)
    assert least >= 0
    helped = logits - 0.9 * least
    helped[token] += 1.8 * least
    if 1.8 * least > 1e-3:
        assert choose_token(helped, temperature, seed, 1) != token


def test_clearly_other_tokens_take_a_large_error() -> None:
    logits = torch.tensor([0.0, 5.0, 1.0, 4.0])
    assert [least_error(logits, 0.0, 0, 1, token) for token in range(4)] == [2.5, 0.0, 2.0, 0.5]
    assert least_error(torch.tensor([1.0, 1.0]), 0.0, 0, 1, 1) == 0.0
    for seed in range(50):
        chosen = choose_token(logits, 1.0, seed, 9)
        errors = [least_error(logits, 1.0, seed, 9, token) for token in range(4)]
        assert [error == 0 for error in errors] == [token == chosen for token in range(4)]


@pytest.mark.parametrize("temperature", [1e300, 1.7e308, 1.797e308])
def test_a_temperature_at_which_float64_ends_makes_no_choice_a_false_one(temperature: float) -> None:
    logits = torch.linspace(-9, 9, 5000)
    for seed in range(20):
        chosen = choose_token(logits, temperature, seed, 9)
        assert least_error(logits, temperature, seed, 9, chosen) == 0


# The pieces of a trace


@pytest.mark.parametrize(
    ("stage", "prompt", "size"),
    [
        (0, 2, 3 * (4 + 24)),
        (1, 2, 3 * (4 + 24 + 24)),
        (2, 1, 3 * (4 + 24) + 3 * 8),
        (2, 3, 3 * (4 + 24) + 8),
        (2, 4, 3 * (4 + 24)),
        (2, 9, 3 * (4 + 24)),
    ],
)
def test_a_trace_is_split(stage: int, prompt: int, size: int) -> None:
    spec, data = tiny_spec(stages=3), bytes(range(200))
    assert trace_bytes(spec, stage, prompt, 3) == size
    trace = split_trace(spec, stage, prompt, 3, data[:size])
    assert trace.ids + trace.taken + trace.passed == data[:size]
    assert (len(trace.ids), len(trace.taken)) == (12, 72 if stage else 0)
    for wrong in (b"", data[: size - 1], data[: size + 1], data[: size - 8], data[: size + 8]):
        with pytest.raises(MalformedMessage, match=f"due are {size}"):
            split_trace(spec, stage, prompt, 3, wrong)


def test_choices_begin_with_the_token_after_the_prompt() -> None:
    spec = tiny_spec(stages=1)
    data = bytes(12) + b"\x09\0\0\0\0\0\x80\x3f" + b"\x08\0\0\0\0\0\0\xbf"
    trace = split_trace(spec, 0, 2, 3, data)
    assert trace.choices(2) == (Choice(2, 9, 1.0), Choice(3, 8, -0.5))
    assert trace.token_ids().tolist() == [0, 0, 0]
    assert split_trace(spec, 0, 4, 3, bytes(12)).choices(4) == ()


@pytest.mark.parametrize(
    ("chosen", "at"),
    [
        ([7, 8, 9], None),
        ([7, 8, 1], None),
        ([6, 8, 9], 2),
        ([7, 9, 9], 3),
        ([1, 1, 1], 2),
        ([2**32 - 1, 8, 9], 2),
        ([], None),
    ],
)
def test_the_first_token_that_was_fed_and_not_chosen_is_found(chosen: list[int], at: int | None) -> None:
    """The last choice isn't fed."""
    choices = [Choice(position, id_, 0.0) for position, id_ in enumerate(chosen, start=2)]
    assert find_unchosen(choices, torch.tensor([7, 7, 7, 8])) == at
