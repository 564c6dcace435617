"""`commonweight epochs bond`: what proposers and challengers of epochs have standing with the settlement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

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
from commonweight.cli.output import print_fields, print_json, print_table
from commonweight.errors import InsufficientFunds, NotAllowed

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.history import Proposal
    from commonweight.cli.place import Place

DEPOSIT_GAS = 70_000

app = typer.Typer(no_args_is_help=True)


@app.callback()
def bond() -> None:
    """Show, add to and take back the bonds of epochs.

    They stand with the model's settlement. The coordinator must have one standing to propose; a challenge takes its
    bond from the challenger's own tokens. What is won or given back stands there, too, until it is withdrawn. Of a
    rejected proposer's bond half is won by the challenger, and half is burnt.
    """


@app.command("show")
def show(
    account: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="Only this account's bond.", show_default=False)
    ] = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show whose bonds stand with the settlement, and what is at stake.

    Needs no key. Prints what it takes to propose and to challenge, the epoch that is neither final nor rejected, and a
    line for each account: what stands, what it has posted for a challenge that isn't decided, and whether it can
    withdraw. Without ADDRESS it lists the coordinator and everybody who has a bond there.

    \b
    Examples:
      commonweight epochs bond show --dir runs/first
      commonweight epochs bond show 0x7099… --dir runs/first
    """
    from commonweight.cli.history import status_text
    from commonweight.cli.place import find_place, parse_address

    only = parse_address(account) if account is not None else None
    place = find_place(rpc, registry, model, dir)
    terms, token, coordinator = place.model.terms, place.revenue_token, place.model.coordinator
    undecided = _undecided(place)
    accounts = [only] if only is not None else _bonded(place)
    found = [_bond_of(place, each, undecided) for each in accounts]
    bonds = [each for each in found if each.stands or each.posted or each.account in (only, coordinator)]
    if as_json:
        print_json(
            {
                "model_id": place.model_id,
                "settlement": place.model.settlement,
                "coordinator": coordinator,
                "token": token.address,
                "proposer_bond": str(terms.proposer_bond),
                "challenger_bond": str(terms.challenger_bond),
                "undecided": undecided and {"epoch": undecided.proposed.epoch, "status": undecided.status},
                "accounts": [
                    {
                        "account": each.account,
                        "bond": str(each.stands),
                        "posted": str(each.posted),
                        "locked": each.is_locked,
                    }
                    for each in bonds
                ],
            }
        )
        return
    epoch = "no epoch"
    if undecided is not None:
        epoch = f"epoch {undecided.proposed.epoch}, {status_text(undecided, place.chain.timestamp())}"
    print_fields(
        {
            "model": place.model_id,
            "coordinator": coordinator,
            "to propose": f"{token.show(terms.proposer_bond)} must stand",
            "to challenge": f"{token.show(terms.challenger_bond)}, from the challenger's own tokens",
            "undecided": epoch,
        }
    )
    typer.echo()
    rows = [
        (
            each.account,
            token.show(each.stands),
            token.show(each.posted),
            "not before that epoch is final or rejected" if each.is_locked else "at once" if each.stands else "",
        )
        for each in bonds
    ]
    print_table(("account", "stands", "posted", "can be withdrawn"), rows, right=" rr")


@app.command("deposit")
def deposit(
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
    """Add to the key's own bond.

    Needs that much of the revenue token in the key's account. Only the coordinator needs a standing bond, and tops it
    up by itself before it proposes. Takes two transactions, one that allows the settlement to take the tokens and one
    that deposits them; the first is left out where that much is allowed already. Prints both with what they cost, asks,
    sends, and prints what stands.

    \b
    Example:
      commonweight epochs bond deposit 100 --key coordinator.json --dir runs/first
    """
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    account = purse.account
    place = find_place(rpc, registry, model, dir)
    token, settlement = place.revenue_token, place.settlement
    units, stands = token.parse(amount), settlement.bond_of(account)
    action = settlement.action("depositBond", account, units)
    step = Step(f"add {token.show(units)} to the bond", action, DEPOSIT_GAS)
    steps = paying_steps(place.chain, token, account, units, "the settlement", step)
    facts = {"account": account, "amount": str(units), "token": token.address, "bond_before": str(stands)}
    shown: dict[str, object] = {
        "account": account,
        "adds": token.show(units),
        "stands": f"{token.show(stands)}, then {token.show(stands + units)}",
        "to propose": f"{place.model.coordinator} must have {token.show(place.model.terms.proposer_bond)} standing",
    }
    purse.carry_out(place.chain, Plan(facts, shown, steps, _standing(place, account)))


@app.command("withdraw")
def withdraw(
    amount: Annotated[str, typer.Argument(metavar="AMOUNT|all", help="In whole tokens; all: whatever stands.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="ADDRESS",
            help="The account to be paid; the key's own if not given.",
            show_default=False,
            allow_from_autoenv=False,
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
    """Take the key's own bond back.

    Whoever has proposed an epoch can withdraw nothing until that is final or rejected. Prints what is paid and what it
    costs, asks, sends, and prints what still stands. Where nothing stands, `all` says so and exits 0. A coordinator
    that goes on proposing tops its bond up again.

    \b
    Examples:
      commonweight epochs bond withdraw all --key challenger.json --dir runs/first
      commonweight epochs bond withdraw 50 --to 0x90F7… --key node.json --dir runs/first
    """
    from commonweight.cli.history import status_text
    from commonweight.cli.place import find_place, parse_address

    purse = Purse(key, password_file, dry_run, yes, as_json)
    account = purse.account
    payee = parse_address(to) if to is not None else account
    place = find_place(rpc, registry, model, dir)
    place.check_payee(payee)
    token, settlement, undecided = place.revenue_token, place.settlement, _undecided(place)
    wanted = None if amount == ALL else token.parse(amount)
    bond = _bond_of(place, account, undecided)
    stands = bond.stands
    besides = f"; {token.show(bond.posted)} are posted for a challenge that isn't decided" if bond.posted else ""
    facts = {"account": account, "to": payee, "token": token.address, "bond_before": str(stands)}
    if wanted is None and not stands:
        purse.nothing({**facts, "amount": "0"}, f"No bond of {account} stands with the settlement{besides}.")
        return
    units = stands if wanted is None else wanted
    if units > stands:
        raise InsufficientFunds(
            f"{account} has {token.show(stands)} standing with the settlement, {token.show(units)} were asked for"
            f"{besides}: take less, or `all`"
        )
    if undecided is not None and bond.is_locked:
        raise NotAllowed(
            f"{account} can withdraw nothing until epoch {undecided.proposed.epoch}, which it proposed, is final or "
            f"rejected. It is {status_text(undecided, place.chain.timestamp())}"
        )
    shown: dict[str, object] = {
        "account": account,
        "takes": token.show(units),
        "is paid to": payee,
        "stays": token.show(stands - units),
    }
    step = Step(f"pay {token.show(units)} of the bond to {payee}", settlement.action("withdrawBond", payee, units))
    plan = Plan({**facts, "amount": str(units)}, shown, [step], _standing(place, account))
    purse.carry_out(place.chain, plan)


@dataclass(frozen=True)
class _Bond:
    """What an account has with the settlement, in the revenue token's smallest unit."""

    account: str
    stands: int
    posted: int
    """For a challenge that isn't decided; not among what stands."""
    is_locked: bool
    """Whether the account has proposed the undecided epoch: it can withdraw nothing until that is final or rejected."""


def _bond_of(place: "Place", account: str, undecided: "Proposal | None") -> _Bond:
    challenged = undecided.challenged if undecided is not None and undecided.upheld is None else None
    return _Bond(
        account,
        stands=place.settlement.bond_of(account),
        posted=place.model.terms.challenger_bond if challenged and challenged.challenger == account else 0,
        is_locked=undecided is not None and undecided.proposed.proposer == account,
    )


def _undecided(place: "Place") -> "Proposal | None":
    """The proposal that is neither final nor rejected."""
    from commonweight.cli.history import read_history

    proposals = read_history(place.settlement, place.settlement.next_epoch())
    last = proposals[-1] if proposals else None
    return last if last is not None and last.final is None and last.rejected is None else None


def _bonded(place: "Place") -> list[str]:
    """The coordinator, and all to whose bond anything was ever added: a deposit, the other side's, or its own again."""
    from commonweight.chain.events import BondDeposited, EpochChallenged, EpochProposed

    settlement = place.settlement
    depositors = (event.account for event in settlement.events(BondDeposited))
    proposers = (event.proposer for event in settlement.events(EpochProposed))
    challengers = (event.challenger for event in settlement.events(EpochChallenged))
    return list(dict.fromkeys([place.model.coordinator, *depositors, *proposers, *challengers]))


def _standing(place: "Place", account: str) -> Done:
    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        stands = place.settlement.bond_of(account)
        return f"{account} now has a bond of {place.revenue_token.show(stands)} standing.", {"bond": str(stands)}

    return done
