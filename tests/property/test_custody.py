"""What it costs to hold a whole model: the smallest coalition that the cap on an owner's stages leaves."""

from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.custody import least_owners, least_stake


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_so_many_owners_can_hold_every_stage_and_one_fewer_cant(stages: int, cap: int) -> None:
    owners = least_owners(stages, cap)
    assert (owners - 1) * cap < stages <= owners * cap


def test_the_numbers_of_a_model_of_64_stages() -> None:
    assert [least_owners(64, cap) for cap in (1, 2, 3, 63, 64, 65)] == [64, 32, 22, 2, 1, 1]
    assert least_stake(64, 1000) == 64_000
    assert least_stake(64, 0) == 0
