"""What is known of a running devnet, folded from the events of its processes and nothing else.

`fold(state, source, event)` is pure; the live view, `devnet status` and the report all read the same record.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from commonweight.devnet.opinions import WHY_CONVICTED, counted_as
from commonweight.events import Event

DEVNET = "devnet"
"""The source of what the devnet itself says, and the name of its log."""
DRAWN, PASSED, FAILED = "drawn", "passed", "failed"
"""What came of an audit so far; "failed": fraud."""
EQUIVOCATION = "equivocation"
MAX_ERRORS = 5
"""The latest this many are kept for the view; all are in the logs."""


class Frozen(BaseModel):
    """A record that is replaced, never changed, and travels as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def but(self, **changes: Any) -> Self:
        """A copy with other values."""
        return self.model_copy(update=changes)


class MemberState(Frozen):
    """The process of a provider, or of an auditor, and its place in the network."""

    name: str
    """Of the process: "node-0", "auditor-0"."""
    address: str
    log: str = ""
    """Its events, as a path in the run's folder."""
    pid: int | None = None
    """None while it doesn't run."""
    stage: int | None = None
    port: int | None = None
    """Of its data plane; an auditor has none."""
    online: bool = False
    """Whether the coordinator has it."""
    joined: bool = False
    """Whether the coordinator ever had it."""
    restarts: int = 0
    byzantine: str | None = None
    """How it cheats, as KIND or KIND:FRACTION; None: it doesn't."""


class FraudState(Frozen):
    """What a provider or an auditor was found out by, the first time."""

    node: str
    """Its address."""
    stage: int
    round: int
    epoch: int
    kind: str
    """Of the audit, or "equivocation"; of an auditor "known bad" or "overruled"."""
    why: str


class RoundState(Frozen):
    """A sealed round."""

    round: int
    epoch: int
    loss: float
    """Nats per token."""
    seconds: float
    tokens_per_s: float
    bytes_per_token: tuple[float, ...]
    """Over each boundary, both ways."""


class EpochState(Frozen):
    """An epoch on chain; amounts in base units."""

    number: int
    root: str
    statement_hash: str
    minted: int
    uri: str
    finalised: bool = False


class DevnetState(Frozen):
    """All of it. Times are seconds since the Unix epoch."""

    folder: str = ""
    seed: int = 0
    started: float = 0.0
    updated: float = 0.0
    """When the last event came."""
    until_epoch: int | None = None
    rounds_per_epoch: int = 1
    rpc_url: str = ""
    chain_id: int = 0
    coordinator: str | None = None
    """PeerId@host:port that nodes are given."""
    gateway_url: str | None = None
    """Where answers are sold."""
    selling: bool = False
    """Whether there is a version of the model to ask."""
    answers: int = 0
    """That were paid for."""
    paid_in: int = 0
    """By buyers, in the revenue token's smallest unit."""
    claimable: int = 0
    """Of that, what holders of shares could withdraw when it was last looked."""
    withdrawn: int = 0
    """Of that, what they had withdrawn."""
    checks: int = 0
    """Proposed epochs that a node has recomputed and found right."""
    nodes: tuple[MemberState, ...] = ()
    """Providers, in the order in which they were started."""
    auditors: tuple[MemberState, ...] = ()
    """With seats of their own, in the same order."""
    generation: int = 0
    kills: int = 0
    """Nodes that the devnet has killed."""
    joins: int = 0
    """Of nodes, since the first round was sealed."""
    repeated: int = 0
    """Rounds that were begun again."""
    replays: int = 0
    """Rounds in which others computed again what a lost replica had, and which went on."""
    moves: int = 0
    """Of nodes, to weaker stages."""
    unrecovered: tuple[float, ...] = ()
    """When nodes were killed since the last round was sealed."""
    recovery_s: tuple[float, ...] = ()
    """For each kill, from it to the beginning of the first round that was then sealed; 0 where none was broken off."""
    losses: tuple[float, ...] = ()
    last_round: RoundState | None = None
    first_round_s: float | None = None
    """From the start to the first sealed round."""
    tokens: int = 0
    training_s: float = 0.0
    boundary_bytes: tuple[float, ...] = ()
    """Sum over all rounds, per boundary."""
    epochs: tuple[EpochState, ...] = ()
    audits: dict[str, dict[str, int]] = {}
    """How many, by kind and by what came of them; "drawn" are all. And how many opinions: see opinions.py."""
    frauds: tuple[FraudState, ...] = ()
    """One for each provider and stage, or auditor and stage."""
    slashed: tuple[str, ...] = ()
    """Addresses of the nodes and auditors whose stake is gone."""
    errors: tuple[str, ...] = ()
    stopped: str | None = None
    """Why training can't go on."""
    finished: bool = False
    """The coordinator reached the epoch that it was started for."""

    @property
    def members(self) -> tuple[MemberState, ...]:
        """Providers and auditors."""
        return self.nodes + self.auditors

    @property
    def nodes_alive(self) -> int:
        return sum(node.online for node in self.nodes)

    @property
    def epochs_finalised(self) -> int:
        return sum(epoch.finalised for epoch in self.epochs)

    @property
    def minted(self) -> int:
        """Shares of finalised epochs, base units."""
        return sum(epoch.minted for epoch in self.epochs if epoch.finalised)

    @property
    def audit_counts(self) -> Counter[str]:
        """How many audits and opinions of all kinds, by what came of them."""
        return sum((Counter(counts) for counts in self.audits.values()), Counter())

    @property
    def tokens_per_s(self) -> float:
        """Over all sealed rounds."""
        return self.tokens / self.training_s if self.training_s else 0.0

    @property
    def bytes_per_token(self) -> tuple[float, ...]:
        """Over each boundary, both ways, over all sealed rounds."""
        return tuple(total / self.tokens for total in self.boundary_bytes) if self.tokens else ()


def fold(state: DevnetState, source: str, event: Event) -> DevnetState:
    """The state after `event` of the process named `source`; unknown events change nothing.

    Whether a round is sealed is the coordinator's to say: its word counts, a node's of the same name doesn't.
    """
    before, state = state, state.but(updated=max(state.updated, event.time))
    fields = event.fields
    match source, event.name:
        case "devnet", "devnet.started":
            return state.but(started=event.time, **fields)
        case "devnet", "chain.ready":
            return state.but(rpc_url=fields["rpc_url"], chain_id=fields["chain_id"])
        case "devnet", "node.created":
            return state.but(nodes=(*state.nodes, MemberState.model_validate(fields)))
        case "devnet", "auditor.created":
            return state.but(auditors=(*state.auditors, MemberState.model_validate(fields)))
        case "devnet", "child.started":
            return _change(state, "name", fields["name"], pid=fields["child_pid"])
        case "devnet", "child.ended":
            return _change(state, "name", fields["name"], pid=None, port=None, online=False)
        case "devnet", "child.restarted":
            member = next(member for member in state.members if member.name == fields["name"])
            return _change(state, "name", member.name, restarts=member.restarts + 1)
        case "coordinator", "coordinator.listening":
            return state.but(coordinator=fields["peer"])
        case "coordinator", "node.joined":
            port = int(fields["data_address"].rpartition(":")[2])
            found = {"stage": fields["stage"], "port": port, "online": True, "joined": True}
            state = state.but(joins=state.joins + (state.last_round is not None))
            return _change(state, "address", fields["node"], **found)
        case "coordinator", "auditor.joined":
            return _change(state, "address", fields["node"], online=True, joined=True)
        case "coordinator", "node.lost" | "auditor.lost":
            return _change(state, "address", fields["node"], online=False)
        case "coordinator", "member.moves":
            state = state.but(moves=state.moves + 1)
            return _change(state, "address", fields["node"], stage=fields["target"], online=False)
        case "devnet", "fault.begun" if fields["fault"] == "kill":
            return state.but(kills=state.kills + 1, unrecovered=(*state.unrecovered, event.time))
        case "coordinator", "generation.formed":
            repeated = state.repeated + (state.generation > 0)
            return state.but(generation=fields["generation"], repeated=repeated)
        case "coordinator", "round.replayed":
            return _recovered(state.but(replays=state.replays + 1), event.time)
        case "coordinator", "round.sealed":
            return _seal(state, event)
        case "coordinator", "epoch.proposed":
            return state.but(epochs=(*_without(state, fields["epoch"]), _epoch(fields)))
        case "coordinator", "epoch.finalised":
            done = (epoch.but(finalised=True) if epoch.number == fields["epoch"] else epoch for epoch in state.epochs)
            return state.but(epochs=tuple(done))
        case "coordinator", "audit.drawn":
            return _count(state, fields["kind"], DRAWN)
        case "coordinator", "audit.decided":
            state = _count(state, fields["kind"], fields["verdict"])
            for opinion in fields["auditors"]:
                for what in counted_as(opinion, fields["verdict"]):
                    state = _count(state, fields["kind"], what)
            return state if fields["verdict"] != FAILED else _accuse(state, fields, fields["kind"], fields["why"])
        case "coordinator", "provider.equivocated":
            return _accuse(state, fields, EQUIVOCATION, "it signed two reports of it")
        case "coordinator", "auditor.convicted":
            return _accuse(state, fields, fields["why"], WHY_CONVICTED[fields["why"]])
        case "coordinator", "slash.executed":
            return state.but(slashed=(*state.slashed, fields["node"]))
        case "gateway", "gateway.listening":
            return state.but(gateway_url=fields["url"])
        case "gateway", "route.opened":
            return state.but(selling=True)
        case "gateway", "payment.collected":
            return state.but(answers=state.answers + 1, paid_in=state.paid_in + int(fields["charged"]))
        case "devnet", "revenue.seen":
            return state.but(claimable=int(fields["claimable"]), withdrawn=int(fields["withdrawn"]))
        case _, "epoch.checked" if source.startswith("node-") and not fields["final"]:
            return state.but(checks=state.checks + 1)
        case "coordinator", "training.stopped":
            return state.but(stopped=fields["why"])
        case "coordinator", "coordinator.finished":
            return state.but(finished=True)
        case _, "error" | "worker.died":
            line = f"{source}: {fields['message']}"
            return state.but(errors=(*state.errors, line)[-MAX_ERRORS:])
        case _:
            return before


def _count(state: DevnetState, kind: str, what: str) -> DevnetState:
    counts = state.audits.get(kind, {})
    return state.but(audits=state.audits | {kind: counts | {what: counts.get(what, 0) + 1}})


def _accuse(state: DevnetState, fields: Mapping[str, Any], kind: str, why: str) -> DevnetState:
    node, stage, round_ = fields["node"], fields["stage"], fields["round"]
    if any((fraud.node, fraud.stage) == (node, stage) for fraud in state.frauds):
        return state
    epoch = round_ // state.rounds_per_epoch
    fraud = FraudState(node=node, stage=stage, round=round_, epoch=epoch, kind=kind, why=why)
    return state.but(frauds=(*state.frauds, fraud))


def _change(state: DevnetState, key: str, value: str, **changes: Any) -> DevnetState:
    """Of the members whose `key` has that value, in whatever case."""

    def changed(members: tuple[MemberState, ...]) -> tuple[MemberState, ...]:
        return tuple(
            member.but(**changes) if getattr(member, key).lower() == value.lower() else member for member in members
        )

    return state.but(nodes=changed(state.nodes), auditors=changed(state.auditors))


def _seal(state: DevnetState, event: Event) -> DevnetState:
    fields = event.fields
    last = RoundState.model_validate({name: fields[name] for name in RoundState.model_fields})
    sums = state.boundary_bytes or (0.0,) * len(last.bytes_per_token)
    spent = (total + rate * fields["tokens"] for total, rate in zip(sums, last.bytes_per_token, strict=True))
    first = event.time - state.started if state.first_round_s is None else state.first_round_s
    state = _recovered(state, event.time - last.seconds)
    return state.but(
        losses=(*state.losses, last.loss),
        last_round=last,
        first_round_s=first,
        tokens=state.tokens + fields["tokens"],
        training_s=state.training_s + last.seconds,
        boundary_bytes=tuple(spent),
    )


def _recovered(state: DevnetState, time: float) -> DevnetState:
    """By then training had made up for all that was killed."""
    waits = (round(max(0.0, time - killed), 3) for killed in state.unrecovered)
    return state.but(unrecovered=(), recovery_s=(*state.recovery_s, *waits))


def _without(state: DevnetState, number: int) -> tuple[EpochState, ...]:
    """A coordinator that came back proposes an epoch again."""
    return tuple(epoch for epoch in state.epochs if epoch.number != number)


def _epoch(fields: dict[str, Any]) -> EpochState:
    return EpochState(
        number=fields["epoch"],
        root=fields["root"],
        statement_hash=fields["statement_hash"],
        minted=int(fields["minted"]),
        uri=fields["uri"],
    )
