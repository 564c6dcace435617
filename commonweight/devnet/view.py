"""A devnet as people see it: pure functions from the state to lines and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from commonweight.cli.output import format_amount, format_engineering, format_percent, format_rounded
from commonweight.devnet.opinions import (
    BY_AUDITORS,
    BY_REFEREE,
    CAUGHT,
    KNOWN_BAD,
    OPINIONS,
    OVERRULED,
    WAVED_THROUGH,
    WHY_CONVICTED,
    counted_as,
)
from commonweight.devnet.ownership import Ownership
from commonweight.devnet.penalties import Penalties
from commonweight.devnet.revenue import Revenue
from commonweight.devnet.spec import NAME
from commonweight.devnet.state import DRAWN, FAILED, PASSED, DevnetState, MemberState
from commonweight.events import Event
from commonweight.rules.audits import Kind

DECIMALS = 6
"""Of play money."""
CAME_TO = {"failed": "found fraud", "withheld": "didn't get what it takes", "undecided": "came to nothing"}
"""What is said of an audit that didn't pass, by its verdict."""
BARS = "▁▂▃▄▅▆▇█"


def round_line(state: DevnetState) -> str:
    """One line about the round that was sealed last."""
    last = state.last_round
    assert last is not None, "a line about a round needs one"
    return (
        f"round {last.round:>4}  epoch {last.epoch:>3}  loss {last.loss:7.4f}  {last.tokens_per_s:>8,.0f} tokens/s  "
        f"{_boundaries(last.bytes_per_token)} B/token  {state.nodes_alive}/{len(state.nodes)} nodes  "
        f"{format_rounded(state.minted)} shares{_audits_passed(state)}"
    )


def event_line(state: DevnetState, source: str, event: Event) -> str | None:
    """One line about what happened; None where nobody needs to know."""
    fields = event.fields
    match source, event.name:
        case "devnet", "devnet.started":
            return f"Starting a devnet in {state.folder}"
        case "devnet", "fault.begun":
            return _fault(fields)
        case "devnet", "fault.ended":
            return f"{fields['name']}: the {fields['fault']} is healed"
        case "devnet", "child.restarted":
            when = f" in {fields['wait_s']:.0f} s" if fields["wait_s"] else ""
            return f"{fields['name']}: ended with status {fields['status']}; it is started again{when} with its key"
        case "coordinator", "round.sealed":
            return round_line(state)
        case "coordinator", "epoch.proposed":
            return f"epoch {fields['epoch']}: proposed, root {fields['root']}, statement {fields['statement_hash']}"
        case "coordinator", "epoch.finalised":
            return f"epoch {fields['epoch']}: final, {format_rounded(int(fields['minted']))} shares minted"
        case "gateway", "payment.collected":
            return f"an answer was sold for {dollars(int(fields['charged']))}; in all {dollars(state.paid_in)}"
        case "coordinator", "audit.decided" if fields["verdict"] != PASSED and _is_news(state, fields):
            audit, who = f"{fields['kind']} audit of {_unit(fields)}", name_of(state, fields["node"])
            return f"stage {fields['stage']}: the {audit}, {who}'s work, {CAME_TO[fields['verdict']]}. {fields['why']}"
        case "coordinator", "audit.decided" if overruled := _overruled(state, fields):
            what = f"the {fields['kind']} audit of {_unit(fields)}"
            return f"stage {fields['stage']}: {', '.join(overruled)} is overruled about {what}: {fields['verdict']}"
        case "coordinator", "auditor.convicted":
            who = name_of(state, fields["node"])
            return f"stage {fields['stage']}: {who} is convicted: {WHY_CONVICTED[fields['why']]}"
        case "coordinator", "auditor.late":
            who, limit = name_of(state, fields["node"]), fields["limit_s"]
            return f"stage {fields['stage']}: {who} said nothing about round {fields['round']} for {limit:g} s"
        case "coordinator", "provider.equivocated":
            who = name_of(state, fields["node"])
            return f"stage {fields['stage']}: {who} signed two different reports of round {fields['round']}"
        case "coordinator", "slash.proposed":
            who = name_of(state, fields["node"])
            return f"stage {fields['stage']}: slashing {who} is proposed, evidence {fields['evidence']}"
        case "coordinator", "slash.executed":
            return f"stage {fields['stage']}: {name_of(state, fields['node'])} is slashed"
        case "coordinator", "node.lost":
            return f"stage {fields['stage']}: its node {fields['node']} is lost, the network waits for it"
        case "coordinator", "member.moves":
            who, to = name_of(state, fields["node"]), f"from stage {fields['source']} to stage {fields['target']}"
            return f"{who} moves {to}: {fields['before']:g} microbatches per second become {fields['after']:g}"
        case "coordinator", "generation.formed" if fields["generation"] > 1:
            return f"all stages are held again: generation {fields['generation']} trains from round {fields['round']}"
        case "coordinator", "training.stopped":
            return f"training stopped: {fields['why']}"
        case _, "error" | "worker.died":
            return f"{source}: {fields['message']}"
        case _:
            return None


def progress(state: DevnetState, now: float) -> dict[str, str]:
    """How training goes, by name. `now` is Unix time."""
    last, elapsed = state.last_round, max(0, int(now - state.started))
    return {
        "epoch": f"{last.epoch if last else 0}{_goal(state)}",
        "round": f"{len(state.losses)} sealed, generation {state.generation}",
        "loss": f"{last.loss:.4f}  {sparkline(state.losses)}" if last else "–",
        "speed": f"{last.tokens_per_s:,.0f} tokens/s" if last else "–",
        "boundaries": f"{_boundaries(last.bytes_per_token)} bytes per token, both ways" if last else "–",
        "nodes": f"{state.nodes_alive} of {len(state.nodes)} online",
        "revenue": _revenue(state),
        "audits": _audits(state),
        "auditors": _auditors(state),
        "minted": f"{format_rounded(state.minted)} shares, final epochs: {state.epochs_finalised}",
        "time": f"{elapsed // 60}:{elapsed % 60:02d}",
    }


def live_view(state: DevnetState, now: float) -> RenderableType:
    """The whole screen: progress, nodes, the latest errors."""
    if not state.nodes:
        return Text(f"Starting the chain and packing the corpus: {max(0.0, now - state.started):.0f} s")
    table = Table.grid(padding=(0, 2))
    for name, value in progress(state, now).items():
        table.add_row(name, value)
    nodes = Table(*NODE_HEADER, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for row in node_rows(state.members):
        nodes.add_row(*row)
    return Group(Text(), table, Text(), nodes, *(Text(line, style="red") for line in state.errors))


NODE_HEADER = ("node", "stage", "address", "port", "pid", "state")


def node_rows(nodes: Sequence[MemberState]) -> list[tuple[str, ...]]:
    """One row for each provider or auditor, under NODE_HEADER."""
    return [
        (
            node.name,
            "–" if node.stage is None else str(node.stage),
            node.address,
            str(node.port or "–"),
            str(node.pid or "–"),
            _condition(node),
        )
        for node in nodes
    ]


OWNERSHIP_HEADER = ("owner", "address", "shares", "of all", "work (FLOPs)")


def ownership_rows(ownership: Ownership, roles: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Who owns the model, under OWNERSHIP_HEADER; `roles` by address."""
    return [
        (
            roles.get(holding.address, ""),
            holding.address,
            format_rounded(holding.shares),
            format_percent(holding.shares, ownership.supply),
            format_engineering(holding.work_units) if holding.work_units else "–",
        )
        for holding in ownership.holdings
    ]


def revenue_facts(revenue: Revenue) -> dict[str, str]:
    """Where what buyers paid is, by name; the parts add up to the first line."""
    return {
        "paid in": dollars(revenue.paid_in),
        "owed to owners": dollars(sum(amount for _, amount in revenue.owed)),
        "withdrawn": dollars(revenue.withdrawn),
        "operators": dollars(revenue.operators),
        "treasury": dollars(revenue.treasury),
        "remainder": dollars(revenue.remainder),
    }


def fraud_lines(state: DevnetState, penalties: Penalties, ownership: Ownership) -> list[str]:
    """Who was found to cheat, by what, and what it lost."""
    shares = {holding.address: holding.shares for holding in ownership.holdings}
    lines = []
    for fraud in state.frauds:
        lost = sum(each.amount for each in penalties.slashed if (each.address, each.stage) == (fraud.node, fraud.stage))
        lines.append(
            f"{name_of(state, fraud.node)} ({fraud.node}) cheated on stage {fraud.stage}: {fraud.kind}, round "
            f"{fraud.round}, epoch {fraud.epoch}. It lost {dollars(lost)} of stake, "
            f"{format_engineering(penalties.unpaid.get(fraud.node, 0))} FLOPs weren't paid, and it owns "
            f"{format_rounded(shares.get(fraud.node, 0))} shares.\n  {fraud.why}"
        )
    return lines


def name_of(state: DevnetState, address: str) -> str:
    """Of the node or auditor with this address; the address where there is none."""
    return next((member.name for member in state.members if member.address.lower() == address.lower()), address)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The course of `values` in at most `width` characters."""
    if not values:
        return ""
    step = -(-len(values) // width)
    points = [min(values[start : start + step]) for start in range(0, len(values), step)]
    low, high = min(points), max(points)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((point - low) * scale)] for point in points)


def facts(state: DevnetState, versions: Mapping[str, str], deployments: Mapping[str, object]) -> dict[str, object]:
    """What a devnet says about itself once its contracts stand, by name."""
    contracts = ("model_id", "registry", "providers", "shares", "settlement", "router", "revenue_token")
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "seed": state.seed,
        "folder": state.folder,
        "logs": f"{state.folder}/logs",
        "chain": f"{state.rpc_url}, chain id {state.chain_id}",
        **{name.replace("_", " "): deployments[name] for name in contracts},
        "coordinator": state.coordinator,
        "gateway": f"{state.gateway_url}/v1" if state.gateway_url else "none",
    }


def next_commands(state: DevnetState) -> dict[str, str]:
    """What to try while it trains: command and purpose."""
    commands = {
        f"commonweight devnet status --dir {state.folder}": "how it stands, from another terminal",
        f"commonweight ownership show --dir {state.folder}": "who owns the model, from the chain alone",
        f"commonweight earnings --explain --dir {state.folder} ADDRESS": "what an account earned, and why",
    }
    if state.gateway_url:
        ask = f"commonweight ask --dir {state.folder} {NAME} 'import '"
        commands[ask] = "buy an answer from the model, once its first epoch is final"
    if running := [node for node in state.nodes if node.pid]:
        commands[f"kill -9 {running[0].pid}"] = f"{running[0].name} dies and comes back; the result is the same"
    return commands | {f"commonweight devnet stop --dir {state.folder}": "end it"}


def _fault(fields: Mapping[str, Any]) -> str:
    name, how = fields["name"], fields["how"]
    match fields["fault"]:
        case "kill":
            return f"{name} is killed"
        case "slow":
            return f"{name} takes {how} longer for each microbatch"
        case "link":
            return f"links between nodes: {how}"
    reach = {"both": "", "in": ", nothing reaches it", "out": ", nothing that it sends arrives"}
    return f"{name} is cut off from the others{reach[how]}"


def _revenue(state: DevnetState) -> str:
    if not state.answers:
        return "no answer was sold yet" if state.gateway_url else "–"
    return (
        f"{dollars(state.paid_in)} paid for {state.answers} answers, {dollars(state.claimable)} claimable, "
        f"{dollars(state.withdrawn)} withdrawn"
    )


def dollars(units: int) -> str:
    """An amount of play money."""
    return f"{format_amount(units, DECIMALS)} tUSD"


def _boundaries(bytes_per_token: Sequence[float]) -> str:
    return "/".join(f"{rate:.0f}" for rate in bytes_per_token) or "0"


def _audits_passed(state: DevnetState) -> str:
    counts = state.audit_counts
    failed = f", {counts[FAILED]} failed" if counts[FAILED] else ""
    return f"  {counts[PASSED]}/{counts[DRAWN]} audits passed{failed}" if counts else ""


def _audits(state: DevnetState) -> str:
    counts = state.audit_counts
    if not counts:
        return "none was drawn yet"
    decided = ", ".join(f"{number} {what}" for what, number in counts.items() if what not in (DRAWN, *OPINIONS))
    cheated = ", ".join(f"{name_of(state, fraud.node)} ({fraud.kind})" for fraud in state.frauds)
    return f"{counts[DRAWN]} drawn{decided and ': '}{decided}" + (f"; cheated: {cheated}" if cheated else "")


def _auditors(state: DevnetState) -> str:
    counts = state.audit_counts
    line = f"{sum(auditor.online for auditor in state.auditors)} of {len(state.auditors)} online"
    if counts[BY_AUDITORS] or counts[BY_REFEREE]:
        line += f"; {counts[BY_AUDITORS]} opinions, {counts[BY_REFEREE]} of the referee, {counts[OVERRULED]} overruled"
    if counts[KNOWN_BAD]:
        line += f"; known bad: {counts[CAUGHT]} of {counts[KNOWN_BAD]} caught, {counts[WAVED_THROUGH]} passed"
    return line


def _overruled(state: DevnetState, fields: Mapping[str, Any]) -> list[str]:
    """Who was, by name."""
    opinions = (each for each in fields["auditors"] if OVERRULED in counted_as(each, fields["verdict"]))
    return [name_of(state, opinion["auditor"]) for opinion in opinions]


def _is_news(state: DevnetState, fields: Mapping[str, Any]) -> bool:
    """Whether this is not just one more failed audit of who is known to cheat."""
    known = {(fraud.node, fraud.stage): (fraud.round, fraud.kind, fraud.why) for fraud in state.frauds}
    found = known.get((fields["node"], fields["stage"]))
    return found is None or found == (fields["round"], fields["kind"], fields["why"])


def _unit(fields: Mapping[str, Any]) -> str:
    counted = "answer" if fields["kind"] == Kind.ANSWER.value else "microbatch"
    number = "" if fields["microbatch"] is None else f", {counted} {fields['microbatch']}"
    return f"round {fields['round']}{number}"


def _goal(state: DevnetState) -> str:
    return f" (ends when {state.until_epoch} are final)" if state.until_epoch is not None else ""


def _condition(node: MemberState) -> str:
    cheats = f", cheats: {node.byzantine}" if node.byzantine else ""
    again = f", restarted {node.restarts}×" if node.restarts else ""
    if node.online:
        return "online" + again + cheats
    return ("lost" if node.joined else "starting" if node.pid else "waiting") + again + cheats
