"""What a flood of disputes costs whom, on a real chain: node-0 was found out, node-1 is honest."""

from collections.abc import Iterator
from typing import Any

import pytest

from adversary import flood as module
from adversary.cheat import Cheat
from adversary.flood import Flood
from commonweight.chain.arbiter import Arbiter
from commonweight.chain.events import SlashProposed
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import SlashStatus
from commonweight.chain.token import Token
from commonweight.devnet.accounts import node_stages
from commonweight.devnet.byzantine import Cheating
from commonweight.devnet.deployment import REPORTER_BOND, SEAT_STAKE, take_seats
from tests.integration.epochs import WINDOW_S, Epochs
from tools.build_vectors import mark

FLOODER, HONEST, COORDINATOR, TREASURY = "node-0", "node-1", "coordinator", "treasury"
BOND, HALF = REPORTER_BOND, REPORTER_BOND // 2
ARBITRATION_S = 300


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochs]:
    folder = tmp_path_factory.mktemp("flooded")
    with Epochs(folder, seat_stake=SEAT_STAKE, arbitration_s=ARBITRATION_S) as epochs:
        take_seats(epochs.deployment, epochs.accounts, node_stages(2))
        yield epochs


class Court:
    """The chain's disputes, and what everybody has."""

    def __init__(self, epochs: Epochs) -> None:
        self.epochs, self.model_id = epochs, epochs.model.model_id
        cheat = Cheat(Cheating("flood"), epochs.address(FLOODER))
        self.flood = Flood(cheat, self.providers(FLOODER), self.model_id)
        self.before = {role: self.wealth(role) for role in (FLOODER, HONEST, COORDINATOR, TREASURY)}

    def providers(self, role: str) -> ProviderRegistry:
        return ProviderRegistry(self.epochs.chain, self.epochs.deployment.providers, self.epochs.sender(role))

    def token(self, role: str) -> Token:
        return Token(self.epochs.chain, self.epochs.deployment.revenue_token, self.epochs.sender(role))

    def wealth(self, role: str) -> int:
        """Tokens and stake; what is posted as a bond isn't."""
        providers, address = self.providers(role), self.epochs.address(role)
        stake = providers.free_stake_of(address) + providers.locked_stake_of(address)
        return stake + self.token(role).balance_of(address)

    def gained(self, role: str) -> int:
        return self.wealth(role) - self.before[role]

    def keep_only(self, role: str, bonds: int) -> None:
        """It has tokens for so many bonds."""
        token, address = self.token(role), self.epochs.address(role)
        token.transfer(self.epochs.address("designer"), token.balance_of(address) - bonds * BOND)
        self.before[role] = self.wealth(role)

    def accuse(self) -> int:
        """The coordinator has proof against the flooder."""
        providers = self.providers(COORDINATOR)
        self.token(COORDINATOR).approve(providers.address, BOND)
        providers.propose_slash(self.model_id, self.epochs.address(FLOODER), 0, mark("proof"), "")
        return self.against(FLOODER)[-1]

    def against(self, role: str) -> list[int]:
        events = self.providers(role).events(SlashProposed, owner=self.epochs.address(role))
        return [event.slash_id for event in events]

    def contest(self, slash_id: int) -> None:
        """By the honest one."""
        providers = self.providers(HONEST)
        self.token(HONEST).approve(providers.address, BOND)
        providers.contest_slash(slash_id, "")

    def decide(self, slash_id: int, uphold: bool) -> None:
        """By two of the three arbiters."""
        action = self.providers(HONEST).action("resolveSlash", slash_id, uphold)
        salt = mark("salt", slash_id)
        members = [
            Arbiter(self.epochs.chain, self.epochs.deployment.arbiter, self.epochs.sender(f"arbiter-{n}"))
            for n in range(2)
        ]
        assert action.to is not None
        members[0].propose(action.to, action.data, salt)
        call = members[0].call_id_of(action.to, action.data, salt)
        members[1].confirm(call)
        members[1].execute(call)

    def wait(self, seconds: int) -> None:
        self.epochs.chain.request("evm_increaseTime", seconds)
        self.epochs.chain.request("evm_mine")

    def status(self, slash_id: int) -> SlashStatus:
        return self.providers(HONEST).slash(slash_id).status


@pytest.fixture
def court(base: Epochs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Court]:
    snapshot = base.chain.request("evm_snapshot")
    monkeypatch.setattr(module, "emit", lambda name, /, **fields: None)
    yield Court(base)
    base.chain.request("evm_revert", snapshot)


def flooded(court: Court, bonds: int) -> tuple[int, list[int]]:
    """The slash of a flooder with tokens for so many bonds, which it has contested, and what it proposes itself."""
    court.keep_only(FLOODER, bonds)
    court.flood.step()
    assert court.against(HONEST) == [], "it is peaceful until it is found out"
    slash_id = court.accuse()
    for _ in range(bonds + 1):
        court.flood.step()
    assert court.status(slash_id) is SlashStatus.CONTESTED
    frivolous = court.against(HONEST)
    assert len(frivolous) == bonds - 1
    return slash_id, frivolous


def test_where_all_is_contested_and_decided_it_pays_for_everything(court: Court) -> None:
    slash_id, frivolous = flooded(court, bonds=5)
    for proposal in frivolous:
        court.contest(proposal)
        court.decide(proposal, uphold=False)
    court.decide(slash_id, uphold=True)
    assert court.gained(FLOODER) == -SEAT_STAKE - 5 * BOND
    assert court.gained(HONEST) == 4 * HALF
    assert court.gained(COORDINATOR) == SEAT_STAKE // 2 + HALF
    assert court.gained(TREASURY) == SEAT_STAKE // 2 + 5 * HALF
    assert court.providers(HONEST).is_seated(court.model_id, court.epochs.address(HONEST), 1)


def test_what_nobody_contests_is_executed_and_pays_the_flooder(court: Court) -> None:
    """The chain can't tell worthless evidence: who doesn't contest in time loses the stake, half of it to the liar."""
    slash_id, frivolous = flooded(court, bonds=3)
    for proposal in frivolous[1:]:
        court.contest(proposal)
    court.wait(WINDOW_S + 1)
    court.providers(FLOODER).execute_slash(frivolous[0])
    for proposal in frivolous[1:]:
        court.decide(proposal, uphold=False)
    court.decide(slash_id, uphold=True)
    assert court.gained(HONEST) == -SEAT_STAKE + HALF
    assert court.gained(FLOODER) == -SEAT_STAKE - BOND + SEAT_STAKE // 2 - BOND


def test_one_bond_more_than_the_honest_one_has_takes_its_stake(court: Court) -> None:
    """It must contest every one, and each takes a bond until it is decided: so others must contest for it."""
    court.keep_only(HONEST, 2)
    slash_id, frivolous = flooded(court, bonds=4)
    for proposal in frivolous[:2]:
        court.contest(proposal)
    assert court.token(HONEST).balance_of(court.epochs.address(HONEST)) == 0
    court.wait(WINDOW_S + 1)
    court.providers(FLOODER).execute_slash(frivolous[2])
    for proposal in frivolous[:2]:
        court.decide(proposal, uphold=False)
    court.decide(slash_id, uphold=True)
    assert court.gained(HONEST) == -SEAT_STAKE + 2 * HALF
    flood_alone = SEAT_STAKE // 2 - 2 * BOND
    assert court.gained(FLOODER) == -SEAT_STAKE - BOND + flood_alone
    assert flood_alone > 0, "as long as the bond is small beside the stake"


def test_an_arbiter_s_silence_costs_nobody_anything(court: Court) -> None:
    slash_id, frivolous = flooded(court, bonds=3)
    for proposal in frivolous:
        court.contest(proposal)
    court.wait(ARBITRATION_S + 1)
    for proposal in (slash_id, *frivolous):
        court.providers(FLOODER).drop_slash(proposal)
    gains: dict[str, Any] = {role: court.gained(role) for role in court.before}
    assert set(gains.values()) == {0}
