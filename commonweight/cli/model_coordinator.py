"""`commonweight model coordinator`: who may propose a model's epochs, and how another takes over."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from commonweight.cli.money import Plan, Purse, Step
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
from commonweight.cli.output import format_time, print_fields, print_json
from commonweight.errors import ConfigError, NotAllowed

app = typer.Typer(no_args_is_help=True)


@app.callback()
def coordinator() -> None:
    """Show, name or become a model's coordinator.

    The registrant names another one, which can accept three days later, so that everybody sees it coming.
    """


@app.command("show")
def show(
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who coordinates the model, and who is proposed to take over.

    Needs no key. Prints the registrant, the present coordinator, and the proposed one with the time from which it can
    accept.

    \b
    Example:
      commonweight model coordinator show --dir runs/first
    """
    from commonweight.cli.place import find_place

    place = find_place(rpc, registry, model, dir)
    proposed = place.registry.proposed_coordinator(place.model.model_id)
    fields = {"registrant": place.model.registrant, "coordinator": place.model.coordinator}
    if as_json:
        known = proposed and {"account": proposed[0], "acceptable_at": proposed[1]}
        print_json({"model_id": place.model_id, **fields, "proposed": known})
        return
    text = "nobody"
    if proposed is not None:
        text = f"{proposed[0]}, which can accept from {format_time(proposed[1], place.chain.timestamp())}"
    print_fields({"model": place.model_id, **fields, "proposed": text})


@app.command("propose")
def propose(
    account: Annotated[str, typer.Argument(metavar="ADDRESS", help="Who is to coordinate the model.")],
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
    """Name another coordinator, which can accept after three days.

    Needs the registrant's key. Until the proposed account accepts, nothing changes. Naming a third account replaces it
    and starts the delay anew; naming the present coordinator withdraws the proposal. Prints who is proposed and what it
    costs, asks, sends, and prints when the account can accept. Where nothing changes, it says so and exits 0. A dry run
    needs no key.

    \b
    Example:
      commonweight model coordinator propose 0x90F7… --key registrant.json --dir runs/first
    """
    from commonweight.chain.records import NOBODY
    from commonweight.cli.place import find_place, parse_address

    purse = Purse(key, password_file, dry_run, yes, as_json)
    successor = parse_address(account)
    if successor == NOBODY:
        raise ConfigError("The zero address can't coordinate. To withdraw a proposal, name the present coordinator.")
    place = find_place(rpc, registry, model, dir)
    contract, present, now = place.registry, place.model, place.chain.timestamp()
    before = contract.proposed_coordinator(present.model_id)
    facts: dict[str, Any] = {
        "model_id": place.model_id,
        "coordinator": present.coordinator,
        "proposed_before": before and before[0],
    }
    withdraws = successor == present.coordinator
    if before is None and withdraws:
        purse.nothing(facts, f"Nothing to change: {successor} is the coordinator, and nobody else is proposed.")
        return
    if before is not None and before[0] == successor:
        purse.nothing(
            {**facts, "acceptable_at": before[1]},
            f"Nothing to change: {successor} is proposed already, and can accept from {format_time(before[1], now)}.",
        )
        return
    purse.check_key_of(present.registrant, "registrant")
    if successor == present.terms.arbiter:
        raise NotAllowed(f"{successor} is the model's arbiter, which judges the coordinator: name another account")
    about = format_time(now + contract.coordinator_delay_s(), now)
    shown: dict[str, object] = {
        "model": place.model_id,
        "coordinator": present.coordinator,
        "proposed": before[0] if before is not None else "nobody",
        "then": "nobody" if withdraws else f"{successor}, which can accept from about {about}",
    }

    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        after = contract.proposed_coordinator(present.model_id)
        if after is None:
            return f"{present.coordinator} stays the coordinator.", {"proposed": None, "acceptable_at": None}
        text = f"{after[0]} can accept from {format_time(after[1])}: `commonweight model coordinator accept`."
        return text, {"proposed": after[0], "acceptable_at": after[1]}

    what = "withdraw the proposal of another coordinator" if withdraws else f"propose {successor} as coordinator"
    step = Step(what, contract.action("proposeCoordinator", present.model_id, successor))
    purse.carry_out(place.chain, Plan(facts, shown, [step], done), payer=present.registrant)


@app.command("accept")
def accept(
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
    """Take over as the model's coordinator.

    Needs the proposed account's key, once the delay is over. From then on only this key proposes epochs; `commonweight
    coordinator run` goes on with the ledger of the one before. Prints who takes over and what it costs, asks, and
    sends. Where the key is the coordinator's already, it says so and exits 0. A dry run needs no key.

    \b
    Example:
      commonweight model coordinator accept --key successor.json --dir runs/first
    """
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    contract, present, now = place.registry, place.model, place.chain.timestamp()
    facts: dict[str, Any] = {"model_id": place.model_id, "coordinator_before": present.coordinator}
    if purse.key is not None and purse.account == present.coordinator:
        purse.nothing(facts, f"{present.coordinator} is the coordinator already.")
        return
    proposed = contract.proposed_coordinator(present.model_id)
    if proposed is None:
        raise NotAllowed(
            f"Nobody is proposed as coordinator of model {place.model_id}: its registrant {present.registrant} can, "
            "with `commonweight model coordinator propose`"
        )
    successor, acceptable_at = proposed
    purse.check_key_of(successor, "proposed coordinator")
    if now < acceptable_at:
        raise NotAllowed(f"{successor} can accept from {format_time(acceptable_at, now)}: try again then")
    shown: dict[str, object] = {"model": place.model_id, "coordinator": present.coordinator, "then": successor}

    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        after = contract.coordinator_of(present.model_id)
        return f"{after} is the coordinator of model {place.model_id}.", {"coordinator": after}

    step = Step(f"have {successor} coordinate the model", contract.action("acceptCoordinator", present.model_id))
    purse.carry_out(place.chain, Plan(facts, shown, [step], done), payer=successor)
