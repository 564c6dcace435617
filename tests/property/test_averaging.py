"""Each number of a round's gradient is summed by exactly one of its contributors."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.averaging import contributors, slice_bounds

numbers = st.integers(0, 50) | st.integers(0, 2**40)


@given(numbers, st.integers(1, 40))
def test_slices_cover_the_gradient_once_and_are_as_good_as_equal(numbers: int, count: int) -> None:
    bounds = [slice_bounds(numbers, count, index) for index in range(count)]
    assert (bounds[0][0], bounds[-1][1]) == (0, numbers)
    assert all(end == begin for (_, end), (begin, _) in pairwise(bounds))
    sizes = [end - begin for begin, end in bounds]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 0


@given(numbers, st.integers(1, 40), st.integers())
def test_a_slice_that_nobody_sums_has_no_bounds(numbers: int, count: int, index: int) -> None:
    if index not in range(count):
        with pytest.raises(ValueError, match=f"isn't one of {count}"):
            slice_bounds(numbers, count, index)


@given(st.lists(st.sampled_from([f"node {n}" for n in range(5)]), min_size=1), st.randoms(use_true_random=False))
def test_contributors_are_who_has_a_load_whatever_load_that_is(assignment: list[str], random: object) -> None:
    found = contributors(assignment)
    assert list(found) == sorted(set(assignment))
    assert contributors(assignment[::-1]) == found
