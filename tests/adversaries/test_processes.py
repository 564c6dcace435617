"""Nodes that cheat, as processes in a real network on a real chain: each is found out and pays; nobody else does."""

from pathlib import Path

import pytest

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.token import Token
from commonweight.devnet.accounts import node_name
from commonweight.devnet.deployment import REPORTER_BOND, SEAT_STAKE
from commonweight.rules.statement import Conviction
from tests.adversaries.scene import scene

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HONEST_VERDICTS = {"passed"}


@pytest.mark.parametrize(
    ("how", "stage", "kinds", "why"),
    [
        ("zeros", 0, {"round"}, "activation_out of microbatch 0"),
        pytest.param("no-step", 1, {"round"}, "state_after", marks=pytest.mark.long),
        pytest.param("wrong-data", 0, {"round", "data"}, "tokens of microbatch 0", marks=pytest.mark.long),
        pytest.param("false-loss", 1, {"round"}, "loss of microbatch 0", marks=pytest.mark.long),
    ],
)
def test_who_cheats_is_convicted_slashed_and_not_paid(
    tmp_path: Path, how: str, stage: int, kinds: set[str], why: str
) -> None:
    with scene(tmp_path, stage, how) as case:
        convicted = case.coordinator.wait_for("provider.convicted")
        assert case.cheated(), "the fault fired"
        assert (convicted.fields["node"], convicted.fields["stage"]) == (case.address, stage)
        case.coordinator.wait_for("slash.executed")
        assert case.network.slashed() == [(case.address, stage, SEAT_STAKE)]

        honest = 1 - stage
        assert case.paid_rounds(stage) == []
        assert case.paid_rounds(honest) == [0, 1, 2]
        assert case.shares() == {case.network.address(honest): int(case.statement().compute_shares)}
        (conviction,) = case.statement().convicted
        assert (conviction.stage, conviction.node) == (stage, case.address)

        failed = [found for found in case.verdicts(case.address) if found["verdict"] == "failed"]
        assert {found["kind"] for found in failed} == kinds
        assert failed[0]["why"].startswith(why)
        assert {found["verdict"] for found in case.verdicts(case.network.address(honest))} == HONEST_VERDICTS
        accused = [event for event in case.coordinator.events if event.name == "provider.convicted"]
        assert {event.fields["node"] for event in accused} == {case.address}


@pytest.mark.long
def test_who_withholds_is_not_convicted_and_its_span_is_not_paid(tmp_path: Path) -> None:
    """Round 0 begins with a state that everybody knows, and its neighbour serves the rest."""
    with scene(tmp_path, 1, "withhold") as case:
        assert case.paid_rounds(1) == [0]
        assert case.paid_rounds(0) == [0, 1, 2]
        assert case.cheated(), "the fault fired"
        verdicts = {found["round"]: found["verdict"] for found in case.verdicts(case.address)}
        assert [verdicts[round_] for round_ in range(3)] == ["passed", "withheld", "withheld"]
        assert not case.statement().convicted
        assert case.network.slashed() == []
        assert {found["verdict"] for found in case.verdicts(case.network.address(0))} == HONEST_VERDICTS


@pytest.mark.long
def test_who_signs_twice_is_slashed_and_convicted_by_its_two_signatures(tmp_path: Path) -> None:
    """Though what was sealed was true: every audit of it passes."""
    with scene(tmp_path, 1, "equivocate") as case:
        told = case.coordinator.wait_for("provider.equivocated")
        assert (told.fields["node"], told.fields["stage"]) == (case.address, 1)
        case.coordinator.wait_for("slash.executed")
        assert (told.fields["round"], None) in case.cheated()
        assert case.network.slashed() == [(case.address, 1, SEAT_STAKE)]
        (line,) = case.statement().equivocations
        assert (line.node, line.stage) == (case.address, 1)
        assert case.statement().convicted == (Conviction(stage=1, node=case.address),)
        assert (case.paid_rounds(0), case.paid_rounds(1)) == ([0, 1, 2], [])
        assert {found["verdict"] for found in case.verdicts(case.address)} == {"passed"}


@pytest.mark.long
def test_who_stays_under_the_tolerance_passes_every_audit(tmp_path: Path) -> None:
    """That is what it lets through: docs/verification.md says what it costs."""
    with scene(tmp_path, 0, "under-tolerance") as case:
        assert case.paid_rounds(0) == [0, 1, 2]
        assert case.cheated(), "the fault fired"
        rounds = [found for found in case.verdicts(case.address) if found["kind"] == "round"]
        assert {found["verdict"] for found in rounds} == {"passed"}
        assert all("results of another numerics class" in found["why"] for found in rounds)
        assert not case.statement().convicted


@pytest.mark.long
def test_who_adapts_to_rare_audits_isn_t_paid_once_one_is_drawn(tmp_path: Path) -> None:
    with scene(tmp_path, 1, "adaptive:0.01", audit_rate="0.19") as case:
        adapted = case.cheater.wait_for("adapted")
        assert adapted.fields["share"] == 1
        assert adapted.fields["profit"] > 0
        withheld = case.coordinator.wait_for("audit.decided", lambda event: event.fields["verdict"] == "withheld")
        assert withheld.fields["node"] == case.address
        epoch = withheld.fields["round"] // 3
        assert set(case.paid_rounds(1, epoch)) <= {0}, "but that in which it was honest"
        assert case.paid_rounds(0, epoch) == [3 * epoch + n for n in range(3)]
        assert (withheld.fields["round"], None) in case.cheated(), "the fault fired"
        assert not case.statement(epoch).convicted
        assert case.network.slashed() == []


@pytest.mark.long
def test_who_floods_is_slashed_and_pays_for_every_dispute(tmp_path: Path) -> None:
    """Its neighbour contests what is worthless; see test_flood.py for what becomes of it otherwise."""
    with scene(tmp_path, 0, "flood", tokens=3 * REPORTER_BOND, window_s=60, seat_cooldown_s=10**5) as case:
        network, other = case.network, case.network.address(1)
        contested = case.cheater.wait_for("flooded", lambda event: event.fields["owner"] == case.address)
        providers = ProviderRegistry(network.chain, network.deployment.providers, network.sender(node_name(1)))
        token = Token(network.chain, network.deployment.revenue_token, providers.sender)
        frivolous: list[int] = []
        while len(frivolous) < 2:
            told = case.cheater.wait_for(
                "flooded",
                lambda event: event.fields["owner"] == other and event.fields["slash_id"] not in frivolous,
            )
            frivolous.append(told.fields["slash_id"])
            token.approve(providers.address, REPORTER_BOND)
            providers.contest_slash(frivolous[-1], "")
            network.decide(frivolous[-1], uphold=False)
        network.decide(contested.fields["slash_id"], uphold=True)
        assert network.slashed() == [(case.address, 0, SEAT_STAKE)]
        assert token.balance_of(case.address) == providers.free_stake_of(case.address) == 0
        assert providers.free_stake_of(other) == 3 * REPORTER_BOND
