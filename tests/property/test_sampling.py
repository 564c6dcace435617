"""Every window is drawn once in a pass, in an order that depends on the seed and the pass alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.sampling import permute, sample_indices, window_count
from commonweight.rules.spec import ModelSpec
from tests.property.strategies import specs


def draws(spec: ModelSpec, number: int) -> list[int]:
    """The first `number` windows of the training, in order."""
    found: list[int] = []
    position = 0
    while len(found) < number:
        round_, microbatch = divmod(position, spec.training.microbatches_per_round)
        found += sample_indices(spec, round_, microbatch)
        position += 1
    return found[:number]


@given(st.integers(1, 400), st.binary(max_size=8))
def test_permute_is_a_bijection(count: int, key: bytes) -> None:
    assert sorted(permute(i, count, key) for i in range(count)) == list(range(count))


@given(st.integers(1, 2**60), st.binary(max_size=8), st.data())
def test_permute_stays_in_a_large_range_without_collisions(count: int, key: bytes, data: st.DataObject) -> None:
    indices = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=20))
    images = {permute(i, count, key) for i in indices}
    assert len(images) == len(indices)
    assert all(0 <= image < count for image in images)


@given(specs())
def test_every_window_is_drawn_once_in_each_pass(spec: ModelSpec) -> None:
    count = window_count(spec)
    three_passes = draws(spec, 3 * count)
    for start in (0, count, 2 * count):
        assert sorted(three_passes[start : start + count]) == list(range(count))


@given(specs())
def test_windows_lie_inside_the_data_and_use_all_of_it(spec: ModelSpec) -> None:
    length, count = spec.training.sequence_length, window_count(spec)
    assert count >= 1
    assert (count - 1) * length + length + 1 <= spec.data.tokens  # the last window with its last target
    assert count * length + length + 1 > spec.data.tokens  # one more wouldn't fit


@given(specs(), st.integers(0, 2**40), st.data())
def test_a_microbatch_has_its_sequences_and_depends_on_nothing_else(
    spec: ModelSpec, round_: int, data: st.DataObject
) -> None:
    microbatch = data.draw(st.integers(0, spec.training.microbatches_per_round - 1))
    windows = sample_indices(spec, round_, microbatch)
    assert len(windows) == spec.training.microbatch_sequences
    assert all(0 <= window < window_count(spec) for window in windows)
    recut = spec.model_copy(update={"stages": 1, "name": "other"})
    assert sample_indices(recut, round_, microbatch) == windows


@given(specs(), st.integers(0, 2**53 - 2))
def test_passes_and_seeds_have_orders_of_their_own(spec: ModelSpec, seed: int) -> None:
    data = spec.data.model_copy(update={"tokens": 40 * spec.training.sequence_length + 1})
    one, other = (spec.model_copy(update={"seed": s, "data": data}) for s in (seed, seed + 1))
    first, second = draws(one, 80)[:40], draws(one, 80)[40:]
    assert first != second
    assert first != draws(other, 40)


@given(specs())
def test_what_no_round_has_is_refused(spec: ModelSpec) -> None:
    for round_, microbatch in ((-1, 0), (0, -1), (0, spec.training.microbatches_per_round)):
        with pytest.raises(ValueError, match="doesn't exist"):
            sample_indices(spec, round_, microbatch)
    for index in (-1, 5):
        with pytest.raises(ValueError, match="outside"):
            permute(index, 5, b"")
