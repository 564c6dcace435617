"""`commonweight seat`: which stages of a model an owner may hold, and who is paid for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.money import Done, Plan, Purse, Step
from commonweight.cli.options import (
    DirOption,
    DryRunOption,
    JsonOption,
    KeyOption,
    ModelOption,
    OwnKeyOption,
    PasswordFileOption,
    RegistryOption,
    RpcOption,
    YesOption,
)
from commonweight.cli.output import format_duration, format_time, print_fields, print_json, print_table
from commonweight.errors import ConfigError, InsufficientFunds, NotAllowed

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.stakes import HeldSeat

TAKE_GAS = 120_000

app = typer.Typer(no_args_is_help=True)

StageArgument = Annotated[int, typer.Argument(metavar="STAGE", min=0, help="Counted from 0.")]


@app.callback()
def seat() -> None:
    """Take and leave seats, and say which nodes fill them.

    A seat is the right of an owner to hold one stage of a model with a node of its own. It locks the model's seat
    stake, which is lost if the node is proven to cheat."""


@app.command("list")
def list_(
    owner: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="Mark this owner's seats.", show_default=False)
    ] = None,
    key: OwnKeyOption = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a model's seats: who holds or has left each stage, with which stake, until when.

    Needs no key. Prints the model's terms for seats, a line for each seat of each stage, and what the owner has free.

    \b
    Examples:
      commonweight seat list --dir runs/first
      commonweight seat list 0x7099… --dir runs/first
    """
    from commonweight.cli.place import find_place, own_address
    from commonweight.cli.stakes import seats_of_model, state_of

    own = own_address(owner, key)
    place = find_place(rpc, registry, model, dir)
    terms, token, now = place.model.terms, place.stake_token, place.chain.timestamp()
    seats = seats_of_model(place)
    facts: dict[str, Any] = {
        "model_id": place.model_id,
        "token": token.address,
        "seat_stake": str(terms.seat_stake),
        "seat_cooldown_s": terms.seat_cooldown_s,
        "max_stages_per_owner": terms.max_stages_per_owner,
        "retired": place.model.retired,
        "seats": [_facts(each) for each in seats],
    }
    shown: dict[str, object] = {
        "model": place.model_id + (", retired: no more seats can be taken" if place.model.retired else ""),
        "seat stake": token.show(terms.seat_stake),
        "cool-down": format_duration(terms.seat_cooldown_s),
        "custody cap": f"{terms.max_stages_per_owner} of {terms.stages} stages for one owner",
    }
    if own is not None:
        free, locked = place.providers.free_stake_of(own), place.providers.locked_stake_of(own)
        payout = place.providers.payout_of(own)
        facts["owner"] = {"address": own, "free": str(free), "locked": str(locked), "payout": payout}
        shown |= {"free stake": token.show(free), "locked stake": token.show(locked), "is paid at": payout}
    if as_json:
        print_json(facts)
        return
    print_fields(shown)
    typer.echo()
    by_stage = [[each for each in seats if each.seat.stage == stage] for stage in range(terms.stages)]
    rows = [
        (stage, each.owner, token.show(each.seat.stake), state_of(each, now), "yours" if each.owner == own else "")
        for stage, here in enumerate(by_stage)
        for each in here
    ]
    rows += [(stage, "–", "", "free", "") for stage, here in enumerate(by_stage) if not here]
    print_table(("stage", "owner", "stake", "state", ""), sorted(rows), right="r r")


@app.command("take")
def take(
    stage: StageArgument,
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
    """Take a stage's seat.

    Needs the owner's key, and the model's seat stake in its free stake (see `commonweight bond`): the seat locks it.
    One owner has no more stages of a model than its custody cap, and what it left counts until the cool-down is over.
    A seat that was left and isn't released is taken again without more stake; seats whose cool-down is over are
    released first where their stake or place is needed. Prints what is locked and what it costs, asks, sends, and
    prints the seat.

    \b
    Example:
      commonweight seat take 0 --key owner.json --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.cli.stakes import check_cap, check_takeable, own_seats, release_step, to_release

    purse = Purse(key, password_file, dry_run, yes, as_json)
    owner = purse.account
    place = find_place(rpc, registry, model, dir)
    terms, providers, now = place.model.terms, place.providers, place.chain.timestamp()
    facts = {"owner": owner, "stage": stage, "model_id": place.model_id}
    check_takeable(place, stage)
    if (bound := providers.owner_of(owner)) != owner:
        raise NotAllowed(
            f"{owner} is bound to {bound} as a node's key, for good: evidence against it counts against {bound}, so it "
            f"can't have seats of its own. Take the seat with the key of {bound}, or with one that was never bound"
        )
    seats = {each.seat.stage: each for each in own_seats(place, owner)}
    here = seats.get(stage)
    if here is not None and here.is_held:
        purse.nothing(facts, f"{owner} holds stage {stage} already.")
        return
    steps, stake = [], 0
    if here is None or here.is_releasable(now) or here.seat.slashed:
        released = to_release(place, owner, list(seats.values()), now, needed=here)
        check_cap(place, [each for each in seats.values() if each not in released], now)
        stake = terms.seat_stake
        free = providers.free_stake_of(owner) + sum(each.seat.stake for each in released)
        if free < stake:
            token = place.stake_token
            raise InsufficientFunds(
                f"{owner} has {token.show(free)} of free stake; a seat locks {token.show(stake)}. Bond the rest with "
                "`commonweight bond`"
            )
        steps = [release_step(place, each, "whose cool-down is over") for each in released]
    gas = TAKE_GAS if steps else None
    steps.append(Step(f"take stage {stage}", providers.action("takeSeat", place.model.model_id, stage), gas))
    shown: dict[str, object] = {
        "owner": owner,
        "takes": f"stage {stage} of {terms.stages} of model {place.model_id}",
        "locks": place.stake_token.show(stake) + ("" if stake else ", its stake is still locked"),
        "custody cap": f"{terms.max_stages_per_owner} stages for one owner",
        "to get it back": f"leave the seat and wait {format_duration(terms.seat_cooldown_s)}",
    }
    plan = Plan({**facts, "locks": str(stake)}, shown, steps, _seat_done(f"{owner} holds stage {stage}."))
    purse.carry_out(place.chain, plan)


@app.command("leave")
def leave(
    stage: StageArgument,
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
    """Leave a stage's seat.

    Needs the owner's key. The stage is given up at once; its stake stays locked, can still be slashed, and counts
    against the custody cap until the model's cool-down is over. Then `commonweight unbond` frees it. Prints until
    when that is and what it costs, asks, and sends.

    \b
    Example:
      commonweight seat leave 0 --key owner.json --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.cli.stakes import own_seats, state_of

    purse = Purse(key, password_file, dry_run, yes, as_json)
    owner = purse.account
    place = find_place(rpc, registry, model, dir)
    terms, now = place.model.terms, place.chain.timestamp()
    here = next((each for each in own_seats(place, owner) if each.seat.stage == stage), None)
    facts = {"owner": owner, "stage": stage, "model_id": place.model_id}
    if here is None:
        raise NotAllowed(f"{owner} holds no seat of stage {stage} in model {place.model_id}: `commonweight seat list`")
    if not here.is_held:
        purse.nothing({**facts, "free_at": here.seat.releasable_at}, f"{owner} is not in it: {state_of(here, now)}.")
        return
    free_at = now + terms.seat_cooldown_s
    shown: dict[str, object] = {
        "owner": owner,
        "leaves": f"stage {stage} of model {place.model_id}",
        "stays locked": place.stake_token.show(here.seat.stake),
        "until about": format_time(free_at, now),
    }

    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        (left,) = (each for each in own_seats(place, owner) if each.seat.stage == stage)
        text = f"Stage {stage} is left. Its stake is free from {format_time(left.seat.releasable_at)}."
        return text, {"free_at": left.seat.releasable_at}

    action = place.providers.action("leaveSeat", place.model.model_id, stage)
    purse.carry_out(place.chain, Plan(facts, shown, [Step(f"leave stage {stage}", action)], done))


@app.command("bind")
def bind(
    node_key: Annotated[
        Path, typer.Option("--node-key", metavar="FILE", help="The node's key file, which signs that it agrees.")
    ],
    node_password_file: Annotated[
        Path | None,
        typer.Option(
            "--node-password-file",
            metavar="FILE",
            help="Read the node key's password from this file.",
            show_default=False,
        ),
    ] = None,
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
    """Bind a node's key to its owner, for good.

    Needs the owner's key, which sends, and the node's key, which signs that it agrees (also for a dry run). Then the
    node fills the owner's seats, and evidence against the node is evidence against the owner. An owner's own key
    needn't be bound. Prints what is bound to whom and what it costs, asks, and sends.

    \b
    Example:
      commonweight seat bind --node-key node.json --key owner.json --dir runs/first
    """
    from commonweight.chain.keys import load_key, read_address, read_password
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    owner, node = purse.account, read_address(node_key)
    place = find_place(rpc, registry, model, dir)
    providers, facts = place.providers, {"owner": owner, "node": node}
    bound = providers.owner_of(node)
    if bound == owner:
        purse.nothing(facts, f"{node} answers to {owner} already.")
        return
    if bound != node:
        raise NotAllowed(f"The node's key {node} is bound to {bound}, for good: make a new key for the node")
    password = read_password(node_password_file, prompt=f"Password of {node_key}: ")
    signature = load_key(node_key, password).sign_digest(providers.binding_digest(owner))
    step = Step(f"bind the node's key {node} to {owner}", providers.action("bindSigner", node, signature))
    shown: dict[str, object] = {
        "owner": owner,
        "node": node,
        "from then on": "the owner answers for this node, for good",
    }
    purse.carry_out(place.chain, Plan(facts, shown, [step], _seat_done(f"{node} answers to {owner}.")))


@app.command("payout")
def payout(
    account: Annotated[str, typer.Argument(metavar="ADDRESS", help="Who is to be paid for the owner's work.")],
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
    """Say which account is paid for an owner's work.

    Needs the owner's key. Counts for the rounds that are credited from then on: a coordinator looks when a node
    connects. The account may be one whose key is on no machine with a network. Prints who is paid now and what the
    change costs, asks, and sends.

    \b
    Example:
      commonweight seat payout 0x90F7… --key owner.json --dir runs/first
    """
    from commonweight.cli.place import find_place, parse_address

    purse = Purse(key, password_file, dry_run, yes, as_json)
    owner, payee = purse.account, parse_address(account)
    if int(payee, 16) == 0:
        raise ConfigError("The zero address can't be paid. To be paid at the owner's own account, give that.")
    place = find_place(rpc, registry, model, dir)
    before = place.providers.payout_of(owner)
    facts = {"owner": owner, "payout": payee, "payout_before": before}
    if before == payee:
        purse.nothing(facts, f"{payee} is paid for the work of {owner} already.")
        return
    shown: dict[str, object] = {"owner": owner, "is paid at": before, "then at": payee}
    step = Step(f"have {payee} paid for the work of {owner}", place.providers.action("setPayout", payee))
    purse.carry_out(place.chain, Plan(facts, shown, [step], _seat_done(f"{payee} is paid for the work of {owner}.")))


def _seat_done(text: str) -> Done:
    return lambda _: (text, {})


def _facts(each: "HeldSeat") -> dict[str, Any]:
    return {
        "stage": each.seat.stage,
        "owner": each.owner,
        "stake": str(each.seat.stake),
        "held": each.is_held,
        "slashed": each.seat.slashed,
        "free_at": each.seat.releasable_at or None,
        "open_slashes": each.seat.open_slashes,
    }
