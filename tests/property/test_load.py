"""A round is divided among its replicas so that nothing is computed twice, left out, or told in two ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.load import is_divided, pack_load, undivided, unpack_load
from tests.property.strategies import divisions

counts = st.integers(1, 70)


@st.composite
def loads(draw: st.DrawFn) -> tuple[int, tuple[int, ...]]:
    """Microbatches of a round, and some of them."""
    count = draw(counts)
    return count, tuple(sorted(draw(st.sets(st.integers(0, count - 1)))))


@given(loads(), loads())
def test_each_load_is_packed_in_one_way(one: tuple[int, tuple[int, ...]], two: tuple[int, tuple[int, ...]]) -> None:
    count, load = one
    packed = pack_load(load, count)
    assert packed == pack_load(load[::-1], count)
    assert unpack_load(packed, count) == load
    assert len(packed) == (count + 7) // 8
    if count == two[0]:
        assert (packed == pack_load(two[1], count)) == (one == two)


@given(st.binary(max_size=10), counts)
def test_any_bytes_are_one_load_or_none(packed: bytes, count: int) -> None:
    try:
        load = unpack_load(packed, count)
    except ValueError:
        return
    assert load == tuple(sorted(set(load)))
    assert not load or load[-1] < count
    assert pack_load(load, count) == packed


@given(counts, st.integers())
def test_a_microbatch_that_a_round_doesn_t_have_is_in_no_load(count: int, beyond: int) -> None:
    if beyond not in range(count):
        with pytest.raises(ValueError, match=f"isn't one of {count}"):
            pack_load([beyond], count)


@given(counts.flatmap(lambda count: st.tuples(st.just(count), divisions(count, 4))), st.data())
def test_divided_is_what_has_each_microbatch_once(
    case: tuple[int, tuple[tuple[int, ...], ...]], data: st.DataObject
) -> None:
    count, division = case
    assert is_divided(division, count)
    assert is_divided([*division, ()], count)
    one = data.draw(st.integers(0, count - 1))
    without = [tuple(j for j in load if j != one) for load in division]
    assert not is_divided(without, count)
    assert not is_divided([*division, (one,)], count)
    assert not is_divided([*without, (one, count)], count)
    assert all(is_divided(of_stage, count) for of_stage in undivided(3, count))
