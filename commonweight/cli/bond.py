"""`commonweight bond` and `commonweight unbond`: the stake that a provider's seats lock."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from commonweight.cli.money import Done, Plan, Purse, Step, paying_steps
from commonweight.cli.options import (
    ALL,
    AmountArgument,
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
from commonweight.cli.output import format_time
from commonweight.errors import InsufficientFunds

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.place import Place
    from commonweight.cli.stakes import HeldSeat

BOND_GAS, WITHDRAW_GAS = 80_000, 70_000

app = typer.Typer()


@app.command("bond")
def bond(
    amount: AmountArgument,
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
    """Bond stake, which seats lock.

    Needs the owner's key, and that much of the stake token in its account. The stake is free until a seat locks it, and
    only a seat's stake can be slashed. Takes two transactions, one that allows the provider registry to take the tokens
    and one that bonds them; the first is left out where that much is allowed already. Prints both with what they cost,
    asks, sends, and prints the free stake.

    \b
    Examples:
      commonweight bond 1000 --key owner.json --dir runs/first
      commonweight bond 1000 --key owner.json --dry-run --dir runs/first
    """
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    owner = purse.account
    place = find_place(rpc, registry, model, dir)
    token, providers = place.stake_token, place.providers
    units = token.parse(amount)
    step = Step(f"bond {token.show(units)}", providers.action("bond", owner, units), BOND_GAS)
    steps = paying_steps(place.chain, token, owner, units, "the provider registry", step)
    free = providers.free_stake_of(owner)
    facts = {"owner": owner, "amount": str(units), "token": token.address, "free_before": str(free)}
    shown: dict[str, object] = {
        "owner": owner,
        "bonds": token.show(units),
        "free stake": f"{token.show(free)}, then {token.show(free + units)}",
        "in seats": token.show(providers.locked_stake_of(owner)),
    }
    purse.carry_out(place.chain, Plan(facts, shown, steps, _free_stake(place, owner)))


@app.command("unbond")
def unbond(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT|all", help="In whole tokens; all: whatever is free.")],
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
    """Take free stake back.

    Needs the owner's key. Free stake is paid to the owner's account at once. The stake of a seat is free once the seat
    was left and its cool-down is over: such seats are released first, each by a transaction of its own. What is still
    locked is listed with its seat and the time until which it is. Prints what is paid and what it costs, asks, sends,
    and prints the free stake that is left. Where nothing is free, `all` says why and exits 0.

    \b
    Examples:
      commonweight unbond all --key owner.json --dir runs/first
      commonweight unbond 500 --key owner.json --dry-run --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.cli.stakes import release_step, seats_of_owner

    purse = Purse(key, password_file, dry_run, yes, as_json)
    owner = purse.account
    place = find_place(rpc, registry, model, dir)
    token, providers, now = place.stake_token, place.providers, place.chain.timestamp()
    wanted = None if amount == ALL else token.parse(amount)
    seats = seats_of_owner(place, owner)
    released = [each for each in seats if each.is_releasable(now)]
    locked = [each for each in seats if each not in released and each.seat.stake]
    available = providers.free_stake_of(owner) + sum(each.seat.stake for each in released)
    lines = [_locked(place, each, now) for each in locked]
    facts = {
        "owner": owner,
        "token": token.address,
        "free": str(available),
        "locked": [
            {
                "model_id": "0x" + each.model_id.hex(),
                "stage": each.seat.stage,
                "stake": str(each.seat.stake),
                "free_at": each.seat.releasable_at or None,
            }
            for each in locked
        ],
    }
    if wanted is None and not available:
        stays = f" Locked: {'; '.join(lines)}." if lines else " It has bonded nothing."
        purse.nothing({**facts, "amount": "0"}, f"{owner} has no free stake.{stays}")
        return
    units = available if wanted is None else wanted
    if units > available:
        stays = f"; locked: {'; '.join(lines)}" if lines else ""
        raise InsufficientFunds(
            f"{owner} has {token.show(available)} of free stake, {token.show(units)} were asked for{stays}. Take "
            "less, or `all`"
        )
    steps = [release_step(place, each, token.show(each.seat.stake)) for each in released]
    gas = WITHDRAW_GAS if steps else None
    steps.append(Step(f"pay {token.show(units)} to {owner}", providers.action("withdraw", owner, units), gas))
    shown: dict[str, object] = {
        "owner": owner,
        "takes": token.show(units),
        "stays free": token.show(available - units),
        "stays locked": lines or "nothing",
    }
    purse.carry_out(place.chain, Plan({**facts, "amount": str(units)}, shown, steps, _free_stake(place, owner)))


def _free_stake(place: "Place", owner: str) -> Done:
    def done(_: Sequence[object]) -> tuple[str, dict[str, str]]:
        free = place.providers.free_stake_of(owner)
        return f"{owner} now has {place.stake_token.show(free)} of free stake.", {"free": str(free)}

    return done


def _locked(place: "Place", each: "HeldSeat", now: int) -> str:
    """Why a seat's stake isn't free."""
    where = f"stage {each.seat.stage}" + (
        "" if each.model_id == place.model.model_id else f" of model 0x{each.model_id.hex()}"
    )
    stake = place.stake_token.show(each.seat.stake)
    if each.seat.open_slashes:
        return f"{stake} in {where}, until {each.seat.open_slashes} proposals to slash it are decided"
    if not each.seat.releasable_at:
        return f"{stake} in {where}, which is held: `commonweight seat leave {each.seat.stage}` starts its cool-down"
    return f"{stake} in {where}, left, free from {format_time(each.seat.releasable_at, now)}"
