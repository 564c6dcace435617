"""Emission never rises, never passes the supply, and its split loses nothing."""

from hypothesis import given
from hypothesis import strategies as st

from commonweight.rules.emission import BPS, emission, split_emission
from commonweight.rules.spec import Economics


@st.composite
def economics(draw: st.DrawFn) -> Economics:
    """Economics whose supply bound is as tight as the rules allow."""
    halving = draw(st.integers(1, 10) | st.integers(1, 2**31 - 1))
    initial = draw(st.integers(0, 2**96 // (2 * halving)))
    return Economics(
        rounds_per_epoch=1,
        max_supply=str(2 * initial * halving),
        initial_emission=str(initial),
        halving_epochs=halving,
        designer_bps=0,
        data_bps=0,
    )


@given(economics(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_never_rises(rule: Economics, epoch: int, later: int) -> None:
    assert emission(rule, epoch) >= emission(rule, epoch + later) >= 0
    assert emission(rule, 0) == int(rule.initial_emission)


@given(economics(), st.integers(0, 2**32))
def test_halves_exactly_every_period(rule: Economics, epoch: int) -> None:
    assert emission(rule, epoch + rule.halving_epochs) == emission(rule, epoch) // 2
    assert emission(rule, epoch - epoch % rule.halving_epochs) == emission(rule, epoch)


@given(economics())
def test_all_epochs_together_stay_within_the_supply(rule: Economics) -> None:
    periods = range(int(rule.initial_emission).bit_length() + 1)
    assert emission(rule, periods[-1] * rule.halving_epochs) == 0  # so there is nothing after these
    total = sum(rule.halving_epochs * emission(rule, period * rule.halving_epochs) for period in periods)
    assert total <= int(rule.max_supply)


@given(st.integers(0, 2**96), st.integers(0, BPS), st.data())
def test_split_sums_exactly_and_rounds_for_compute(minted: int, designer_bps: int, data: st.DataObject) -> None:
    data_bps = data.draw(st.integers(0, BPS - designer_bps))
    split = split_emission(minted, designer_bps, data_bps)
    assert split.designer + split.data + split.compute == minted
    assert min(split.designer, split.data, split.compute) >= 0
    for part, bps in ((split.designer, designer_bps), (split.data, data_bps)):
        assert 0 <= minted * bps - part * BPS < BPS
    assert split.compute * BPS >= minted * (BPS - designer_bps - data_bps)
