"""A real network on a real chain in which somebody cheats."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from commonweight.buyer import ask, sign
from commonweight.chain.arbiter import Arbiter
from commonweight.chain.events import Slashed
from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.sender import Sender
from commonweight.chain.token import Token
from commonweight.devnet.accounts import auditor_name, node_name, node_stages
from commonweight.devnet.byzantine import KINDS, Who
from commonweight.devnet.deployment import SEAT_STAKE, take_seats
from commonweight.errors import NotServed, StageLost
from commonweight.events import Event
from commonweight.rules.canonical import parse_json
from commonweight.rules.checking import check_statement
from commonweight.rules.epoch import report_units
from commonweight.rules.statement import AuditLine, Carried, Opinion, parse_statement
from tests.integration.network import WAIT_S, Network, Process

IMPATIENT = (
    "from commonweight.wire import referee; referee.AUDIT_S = {audit_s}; from commonweight.cli.main import main; main()"
)
"""`commonweight` whose audits have less time."""


class StakedNetwork(Network):
    """By default all rounds are audited whole, and all texts and answers; a seat needs a stake, stage N is node-N's."""

    def __init__(
        self, folder: Path, audit_rate: str = "1", audit_s: float | None = None, sells: bool = False, **options: Any
    ) -> None:
        """`audit_s`: the coordinator's limit for an opinion, instead of minutes. `sells`: answers, through a gateway.
        `options` are those of `Network`.
        """
        super().__init__(folder, audit_rate=audit_rate, seat_stake=SEAT_STAKE, **options)
        self._audit_s = audit_s
        self.sells = sells

    def __enter__(self) -> "StakedNetwork":
        super().__enter__()
        take_seats(self.deployment, self.accounts, node_stages(self.stages) | self.auditor_stages)
        return self

    def coordinator_command(self, until_epoch: int) -> list[str]:
        python, _, _, *arguments = super().coordinator_command(until_epoch)
        how = ("-m", "commonweight") if self._audit_s is None else ("-c", IMPATIENT.format(audit_s=self._audit_s))
        sells = ("--gateway", self.accounts["gateway"].address) if self.sells else ()
        return [python, *how, *arguments, "--data", str(self.folder / "data"), *sells]

    def start_cheater(self, index: int, how: str) -> Process:
        name = node_name(index)
        options = ["--coordinator", self.peer, *self._key(name), "--dir", str(self.folder / name)]
        if how.startswith("flood"):
            options += ["--rpc", self.deployment.rpc_url, "--registry", self.deployment.registry]
        process = Process([sys.executable, "-m", "adversary", how, *options, "--data", str(self.folder / "data")])
        self.processes.append(process)
        return process

    def start_gateway(self) -> Process:
        """Start it; it sells once there is a version of the model."""
        deployed = self.deployment
        command = [
            *(sys.executable, "-m", "commonweight", "gateway", "run", "--coordinator", self.peer),
            *self._key("gateway"),
            *("--rpc", deployed.rpc_url, "--chain-id", str(deployed.chain_id), "--registry", deployed.registry),
            *("--model-id", deployed.model_id, "--ledger", f"sqlite:///{self.folder}/gateway.sqlite"),
            *("--price-prompt", "2000000", "--price-completion", "3000000"),
        ]
        process = Process(command)
        self.processes.append(process)
        return process

    def start_cheating_auditor(self, stage: int, how: str) -> Process:
        options = ["--coordinator", self.peer, *self._key(auditor_name(stage))]
        process = Process([sys.executable, "-m", "adversary.auditor", how, *options])
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
    """A network in which the node of one stage cheats, or its auditor."""

    network: StakedNetwork
    coordinator: Process
    cheater: Process
    """The auditor, where only that cheats."""
    stage: int
    friend: Process | None = None
    """The auditor that colludes with who cheats."""
    gateway: Process | None = None

    @property
    def address(self) -> str:
        return self.network.address(self.stage)

    @property
    def auditor(self) -> str:
        """Address of the stage's."""
        return self.network.accounts[auditor_name(self.stage)].address

    def verdicts(self, node: str) -> list[dict[str, Any]]:
        """Of the audits of that node's work so far."""
        events = [event.fields for event in self.coordinator.events if event.name == "audit.decided"]
        return [fields for fields in events if fields["node"] == node]

    def cheated(self) -> list[tuple[int, int | None]]:
        """The units that it says it has cheated on."""
        events = [event.fields for event in self.cheater.events if event.name == "cheated"]
        return [(fields["round"], fields["microbatch"]) for fields in events]

    def buy_until(self, name: str) -> None:
        """Buys answers until the coordinator tells that."""
        assert self.gateway is not None, "the network sells"
        url = self.gateway.wait_for("gateway.listening").fields["url"]
        self.gateway.wait_for("route.opened")
        key, now = self.network.accounts[node_name(self.network.stages)].key, self.network.chain.timestamp
        request = {"model": self.network.spec.name, "prompt": "It is a", "max_tokens": 9, "temperature": 0.7}
        deadline, number = time.monotonic() + WAIT_S, 0
        while not any(event.name == name for event in self.coordinator.events):
            assert time.monotonic() < deadline, f"no {name}; {number} answers bought; {self.coordinator.describe()}"
            with suppress(NotServed, StageLost):  # a version makes way for the next one
                ask(url, request | {"seed": number}, lambda offer: sign(offer, key, now()), lambda _: None)
            number += 1

    def served(self, stage: int, epoch: int) -> int:
        """Tokens of answers that the stage's node is paid for in an epoch."""
        lines = [line for line in self.statement(epoch).served if line.stage == stage]
        assert {line.node for line in lines} <= {self.network.address(stage)}
        return sum(line.tokens for line in lines)

    def delivered(self, epoch: int) -> int:
        """Tokens of the answers that were sealed in an epoch."""
        lines = [line for sealed in self.statement(epoch).rounds for line in sealed.answers]
        return sum(line.prompt_tokens + line.completion_tokens for line in lines)

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
        spec = self.network.spec
        due = str(report_units(spec, stage, spec.training.microbatches_per_round))
        units = {sealed.round: sealed.reports[stage].units for sealed in self.statement(epoch).rounds}
        assert set(units.values()) <= {due, "0"}
        return [round_ for round_, found in units.items() if found == due]

    def evidence(self, name: str) -> Any:
        """What the coordinator keeps under this hash (0x…)."""
        (file,) = [f for f in self.network.folder.rglob("*.json") if f.stem in (name, name[2:])]
        return parse_json(file.read_bytes(), "the evidence", 8 << 20)

    def shares(self, epoch: int = 0) -> dict[str, int]:
        """Of an epoch, by account, where it has any."""
        return {line.account: int(line.shares) for line in self.statement(epoch).accounts if line.shares != "0"}

    def opinions(self, auditor: str, epoch: int = 0) -> list[tuple[AuditLine, Opinion]]:
        """That of one auditor, each with its audit."""
        lines = self.statement(epoch).audits
        return [(line, opinion) for line in lines for opinion in line.opinions if opinion.auditor == auditor]


@contextmanager
def scene(folder: Path, stage: int, how: str, tokens: int | None = None, **options: Any) -> Iterator[Scene]:
    """`tokens`: all that the one who cheats has; `options` are the network's."""
    with StakedNetwork(folder, **options) as network:
        if tokens is not None:
            token = Token(network.chain, network.deployment.revenue_token, network.sender(node_name(stage)))
            token.transfer(network.accounts["designer"].address, token.balance_of(network.address(stage)) - tokens)
        coordinator = network.start_coordinator(until_epoch=100)
        who = KINDS[how.partition(":")[0]].who
        auditors: dict[int, Process] = {}
        for name, other in network.auditor_stages.items():
            cheats = other == stage and who is not Who.PROVIDER
            auditors[other] = network.start_cheating_auditor(other, how) if cheats else network.start_auditor(name)
        for other in auditors:
            address = network.accounts[auditor_name(other)].address
            coordinator.wait_for("auditor.joined", partial(is_of, address))
        nodes: dict[int, Process] = {}
        for other in range(network.stages):
            cheats = other == stage and who is not Who.AUDITOR
            nodes[other] = network.start_cheater(other, how) if cheats else network.start_node(other)
        cheater = (auditors if who is Who.AUDITOR else nodes)[stage]
        friend = auditors[stage] if who is Who.BOTH else None
        gateway = network.start_gateway() if network.sells else None
        yield Scene(network, coordinator, cheater, stage, friend, gateway)


def is_of(node: str, event: Event) -> bool:
    """Whether it is about this node."""
    return bool(event.fields["node"] == node)
