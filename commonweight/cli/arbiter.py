"""`commonweight arbiter`: the members of a model's arbiter decide challenged epochs and contested slashes."""

from typing import Annotated

import typer

from commonweight.cli.money import Purse
from commonweight.cli.options import (
    DirOption,
    DryRunOption,
    JsonOption,
    KeyOption,
    ModelOption,
    PasswordFileOption,
    RegistryOption,
    RpcOption,
    YesOption,
)
from commonweight.cli.output import format_duration, format_time, print_fields, print_json, print_table
from commonweight.errors import ConfigError, NotAllowed

app = typer.Typer(no_args_is_help=True)

CallArgument = Annotated[str, typer.Argument(metavar="CALL", help="The call's id, 0x…, as `arbiter list` prints it.")]
VerdictOption = Annotated[bool, typer.Option("--accept/--reject", help="The decision.", allow_from_autoenv=False)]


@app.callback()
def arbiter() -> None:
    """Decide challenged epochs and contested slashes.

    A model's arbiter is a contract with several members. One proposes a decision, others confirm it; once enough have,
    and a delay has passed, anybody can execute it. The same command takes a decision one step further each time.
    """


@app.command("list")
def list_(
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the arbiter's members and the decisions that were proposed to it.

    Needs no key. Prints who the members are, how many must confirm and how long the delay is, and a line for each
    decision: its id, how far it is, and in words what it does.

    \b
    Example:
      commonweight arbiter list --dir runs/first
    """
    from commonweight.chain.events import CallProposed
    from commonweight.cli.decisions import has_lapsed, in_words, progress
    from commonweight.cli.place import find_place

    place = find_place(rpc, registry, model, dir)
    contract, now = place.arbiter, place.chain.timestamp()
    members, delay_s = contract.members(), contract.delay_s()
    ids = [event.call_id for event in contract.events(CallProposed)]
    calls = [(call_id, call) for call_id in ids if (call := contract.call_of(call_id)) is not None]
    if as_json:
        print_json(
            {
                "arbiter": contract.address,
                "members": members,
                "threshold": contract.threshold(),
                "delay_s": delay_s,
                "calls": [
                    {
                        "call_id": "0x" + call_id.hex(),
                        "what": in_words(place, call.target, call.data),
                        "target": call.target,
                        "data": "0x" + call.data.hex(),
                        "confirmations": call.confirmations,
                        "executable_at": call.executable_at or None,
                        "executed": call.executed,
                        "lapsed": has_lapsed(contract, call, now),
                    }
                    for call_id, call in calls
                ],
            }
        )
        return
    print_fields(
        {
            "arbiter": contract.address,
            "members": members,
            "must confirm": f"{contract.threshold()} of {len(members)}",
            "delay": format_duration(delay_s),
        }
    )
    typer.echo()
    rows = [
        ("0x" + call_id.hex(), progress(contract, call, now), in_words(place, call.target, call.data))
        for call_id, call in calls
    ]
    print_table(("call", "state", "what it does"), rows)


@app.command("resolve-epoch")
def resolve_epoch(
    epoch: Annotated[int, typer.Argument(metavar="N", min=0, help="The challenged epoch.")],
    accept: VerdictOption,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide a challenged epoch: propose, confirm or execute the decision, whatever comes next.

    Needs a member's key; to execute, any. Accepted, the epoch can be finalised at once and the challenger's bond goes
    to the proposer; rejected, it has to be proposed again, and half of the proposer's bond goes to the challenger (the
    other half is burnt, so that who challenges its own lie loses by it). The decision is about this challenge alone:
    executed after its end, it fails, also where the same root was proposed and challenged again. Prints in words what
    the step does and what it costs, asks, and sends. Recompute the epoch first: `commonweight audit`.

    \b
    Example:
      commonweight arbiter resolve-epoch 3 --reject --key member.json --dir runs/first
    """
    from commonweight.cli.decisions import Decision, advance
    from commonweight.cli.history import read_history
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    proposals = read_history(place.settlement, epoch)
    last = proposals[-1] if proposals else None
    if last is None or last.challenged is None or last.status != "challenged":
        state = "has not been proposed" if last is None else f"is {last.status}"
        raise NotAllowed(f"Epoch {epoch} {state}: the arbiter decides epochs that are challenged")
    until, now = last.challenged.resolvable_until, place.chain.timestamp()
    if now >= until:
        raise NotAllowed(
            f"The arbiter had until {format_time(until, now)} to decide about epoch {epoch}: now anybody can have it "
            "rejected"
        )
    action = place.settlement.action("resolveEpoch", epoch, last.proposed.root, until, accept)
    advance(purse, place, Decision(action, until))


@app.command("resolve-slash")
def resolve_slash(
    slash_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The contested proposal to slash.")],
    accept: VerdictOption,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide a contested slash: propose, confirm or execute the decision, whatever comes next.

    Needs a member's key; to execute, any. Accepted, the seat loses its stake, half of it to the reporter; rejected, the
    proposal is dropped. The loser's bond is divided between the winner and the treasury. Prints in words what the step
    does and what it costs, asks, and sends.

    \b
    Example:
      commonweight arbiter resolve-slash 1 --accept --key member.json --dir runs/first
    """
    from commonweight.chain.records import SlashStatus
    from commonweight.cli.decisions import Decision, advance
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    slash, now = place.providers.slash(slash_id), place.chain.timestamp()
    if slash.status is not SlashStatus.CONTESTED:
        state = "doesn't exist" if slash.status is SlashStatus.NONE else f"is {slash.status.name.lower()}"
        raise NotAllowed(f"Slash {slash_id} {state}: the arbiter decides those that are contested")
    if slash.model_id != place.model.model_id:
        raise ConfigError(f"Slash {slash_id} is about model 0x{slash.model_id.hex()}: give it with --model.")
    if now >= slash.deadline:
        raise NotAllowed(
            f"The arbiter had until {format_time(slash.deadline, now)} to decide about slash {slash_id}: now anybody "
            "can have it dropped"
        )
    action = place.providers.action("resolveSlash", slash_id, accept)
    advance(purse, place, Decision(action, slash.deadline))


@app.command("confirm")
def confirm(
    call: CallArgument,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Confirm a decision that another member has proposed.

    Needs a member's key. Prints in words what the decision does and what it costs to confirm, asks, and sends.

    \b
    Example:
      commonweight arbiter confirm 0x3f… --key member.json --dir runs/first
    """
    from commonweight.cli.decisions import find_call, take_step
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    call_id, found = find_call(place, call)
    if found.executed or found.executable_at:
        why = "it is executed" if found.executed else "enough have confirmed it: `commonweight arbiter execute`"
        purse.nothing({"call_id": call}, f"Nothing to confirm: {why}.")
        return
    take_step(purse, place, call_id, found.target, found.data, "confirm", place.arbiter.action("confirm", call_id))


@app.command("execute")
def execute(
    call: CallArgument,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Execute a decision that enough members have confirmed, once the delay has passed.

    Anybody may. Prints in words what the decision does and what it costs, asks, and sends.

    \b
    Example:
      commonweight arbiter execute 0x3f… --key anybody.json --dir runs/first
    """
    from commonweight.cli.decisions import find_call, progress, take_step
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    call_id, found = find_call(place, call)
    now = place.chain.timestamp()
    if found.executed:
        purse.nothing({"call_id": call}, "Nothing to execute: it is executed.")
        return
    if not 0 < found.executable_at <= now:
        state = progress(place.arbiter, found, now)
        raise NotAllowed(f"The call {call} can't be executed now: {state}")
    take_step(purse, place, call_id, found.target, found.data, "execute", place.arbiter.action("execute", call_id))
