"""A devnet as people see it: pure functions from the state to lines and tables."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from commonweight.cli.output import format_amount, format_engineering, format_percent, format_rounded
from commonweight.devnet.ownership import Ownership
from commonweight.devnet.revenue import Revenue
from commonweight.devnet.spec import NAME
from commonweight.devnet.state import DevnetState, NodeState
from commonweight.events import Event

DECIMALS = 6
"""Of play money."""
BARS = "▁▂▃▄▅▆▇█"


def round_line(state: DevnetState) -> str:
    """One line about the round that was sealed last."""
    last = state.last_round
    assert last is not None, "a line about a round needs one"
    return (
        f"round {last.round:>4}  epoch {last.epoch:>3}  loss {last.loss:7.4f}  {last.tokens_per_s:>8,.0f} tokens/s  "
        f"{_boundaries(last.bytes_per_token)} B/token  {state.nodes_alive}/{len(state.nodes)} nodes  "
        f"{format_rounded(state.minted)} shares"
    )


def event_line(state: DevnetState, source: str, event: Event) -> str | None:
    """One line about what happened; None where nobody needs to know."""
    fields = event.fields
    match source, event.name:
        case "devnet", "devnet.started":
            return f"Starting a devnet in {state.folder}"
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
        case "coordinator", "node.lost":
            return f"stage {fields['stage']}: its node {fields['node']} is lost, the network waits for it"
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
    for row in node_rows(state.nodes):
        nodes.add_row(*row)
    return Group(Text(), table, Text(), nodes, *(Text(line, style="red") for line in state.errors))


NODE_HEADER = ("node", "stage", "address", "port", "pid", "state")


def node_rows(nodes: Sequence[NodeState]) -> list[tuple[str, ...]]:
    """One row per provider, under NODE_HEADER."""
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


def _goal(state: DevnetState) -> str:
    return f" (ends when {state.until_epoch} are final)" if state.until_epoch is not None else ""


def _condition(node: NodeState) -> str:
    again = f", restarted {node.restarts}×" if node.restarts else ""
    if node.online:
        return "online" + again
    return ("lost" if node.joined else "starting" if node.pid else "waiting") + again
