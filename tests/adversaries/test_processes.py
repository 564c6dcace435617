"""Nodes that cheat, as processes in a real network on a real chain: each is found out and pays; nobody else does."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.events import Slashed
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.devnet.accounts import node_name
from commonweight.devnet.deployment import REPORTER_BOND, SEAT_STAKE, take_seats
from commonweight.rules.epoch import check_statement, report_units
from commonweight.rules.statement import Carried, parse_statement
from tests.integration.network import Network, Process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HONEST_VERDICTS = {"passed"}


class StakedNetwork(Network):
    """By default every round is audited whole, and every text; a seat needs a stake, and stage N is node-N's."""

    def __init__(self, folder: Path, audit_rate: str = "1", **terms: Any) -> None:
        super().__init__(folder, audit_rate=audit_rate, seat_stake=SEAT_STAKE, **terms)

    def __enter__(self) -> "StakedNetwork":
        super().__enter__()
        take_seats(self.deployment, self.accounts, self.stages)
        return self

    def coordinator_command(self, until_epoch: int) -> list[str]:
        return [*super().coordinator_command(until_epoch), "--data", str(self.folder / "data")]

    def start_cheater(self, index: int, how: str) -> Process:
        name = node_name(index)
        options = ["--coordinator", self.peer, *self._key(name), "--dir", str(self.folder / name)]
        if how.startswith("flood"):
            options += ["--rpc", self.deployment.rpc_url, "--registry", self.deployment.registry]
        process = Process([sys.executable, "-m", "adversary", how, *options, "--data", str(self.folder / "data")])
        self.processes.append(process)
        return process

    def address(self, stage: int) -> str:
        return self.accounts[node_name(stage)].address

    def sender(self, role: str) -> Sender:
        return Sender(self.chain, self.accounts[role].key)

    def decide(self, slash_id: int, *, uphold: bool) -> None:
        """By two of the three arbiters."""
        providers = self.deployment.providers
        data = ProviderRegistry(self.chain, providers).action("resolveSlash", slash_id, uphold).data
        arbiters = [Arbiter(self.chain, self.deployment.arbiter, self.sender(f"arbiter-{n}")) for n in range(2)]
        arbiters[0].propose(providers, data)
        call = arbiters[0].call_id_of(providers, data)
        arbiters[1].confirm(call)
        arbiters[1].execute(call)

    def slashed(self) -> list[tuple[str, int, int]]:
        """Owner, stage and amount of each seat that lost its stake."""
        events = ProviderRegistry(self.chain, self.deployment.providers).events(Slashed)
        return [(event.owner, event.stage, event.amount) for event in events]


@dataclass
class Scene:
    """A network in which the node of one stage cheats."""

    network: StakedNetwork
    coordinator: Process
    cheater: Process
    stage: int

    @property
    def address(self) -> str:
        return self.network.address(self.stage)

    def verdicts(self, node: str) -> list[dict[str, Any]]:
        """Of the audits of that node's work so far."""
        events = [event.fields for event in self.coordinator.events if event.name == "audit.decided"]
        return [fields for fields in events if fields["node"] == node]

    def cheated(self) -> list[tuple[int, int | None]]:
        """The units that it says it has cheated on."""
        events = [event.fields for event in self.cheater.events if event.name == "cheated"]
        return [(fields["round"], fields["microbatch"]) for fields in events]

    def statement(self, epoch: int = 0) -> Any:
        """Which anyone finds right, and those before it."""
        self.coordinator.wait_for("epoch.finalised", lambda event: event.fields["epoch"] == epoch)
        before = Carried()
        for number in range(epoch + 1):
            record = self.network.settlement.epoch(number)
            assert record is not None
            name = f"0x{record.statement_hash.hex()}.json"
            (file,) = [f for f in (self.network.folder / "statements").iterdir() if f.name in (name, name[2:])]
            statement = parse_statement(file.read_bytes(), record.statement_hash)
            check_statement(self.network.spec, statement, before)
            before = statement.carried()
        return statement

    def paid_rounds(self, stage: int, epoch: int = 0) -> list[int]:
        """Of an epoch, and for what they are worth."""
        due = str(report_units(self.network.spec, stage))
        units = {sealed.round: sealed.reports[stage].units for sealed in self.statement(epoch).rounds}
        assert set(units.values()) <= {due, "0"}
        return [round_ for round_, found in units.items() if found == due]

    def shares(self) -> dict[str, int]:
        """Of epoch 0, by account, where it has any."""
        return {line.account: int(line.shares) for line in self.statement().accounts if line.shares != "0"}


@contextmanager
def scene(folder: Path, stage: int, how: str, tokens: int | None = None, **options: Any) -> Iterator[Scene]:
    """`tokens`: all that the one who cheats has; `options` are the network's."""
    with StakedNetwork(folder, **options) as network:
        if tokens is not None:
            token = Token(network.chain, network.deployment.revenue_token, network.sender(node_name(stage)))
            token.transfer(network.accounts["designer"].address, token.balance_of(network.address(stage)) - tokens)
        coordinator = network.start_coordinator(until_epoch=100)
        cheater = network.start_cheater(stage, how)
        for other in range(network.stages):
            if other != stage:
                network.start_node(other)
        yield Scene(network, coordinator, cheater, stage)


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
def test_who_signs_twice_is_slashed_for_its_two_signatures(tmp_path: Path) -> None:
    """Its work was true and is paid; nobody is convicted of having computed something else."""
    with scene(tmp_path, 1, "equivocate") as case:
        told = case.coordinator.wait_for("provider.equivocated")
        assert (told.fields["node"], told.fields["stage"]) == (case.address, 1)
        case.coordinator.wait_for("slash.executed")
        assert (told.fields["round"], None) in case.cheated()
        assert case.network.slashed() == [(case.address, 1, SEAT_STAKE)]
        assert not case.statement().convicted
        assert case.paid_rounds(0) == [0, 1, 2]


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
    with scene(tmp_path, 1, "adaptive:0.01", audit_rate="0.08") as case:
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
