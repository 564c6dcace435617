"""`commonweight slash`: proposals to slash a seat, and what an owner or anybody can do about one."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.money import Done, Plan, Purse, Step, paying_steps
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
from commonweight.errors import ConfigError, NotAllowed

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.chain.records import SlashStatus
    from commonweight.cli.place import Place
    from commonweight.cli.slashes import Case

CONTEST_GAS = 100_000

app = typer.Typer(no_args_is_help=True)

SlashArgument = Annotated[int, typer.Argument(metavar="ID", min=1, help="As `slash list` prints it.")]


@app.callback()
def slash() -> None:
    """Show proposals to slash a seat, and contest one.

    Anybody may propose that a seat loses its stake, with evidence and a bond; a coordinator does so when an audit has
    failed, or an auditor's opinion is disproven. Whoever disagrees contests it within the model's window, with a bond
    as high, and the arbiter decides (see `commonweight arbiter`). What nobody contests is executed.
    """


@app.command("list")
def list_(
    owner: Annotated[str | None, typer.Option("--owner", metavar="ADDRESS", help="Only this owner's seats.")] = None,
    mine: Annotated[
        bool, typer.Option("--mine", help="Only the seats of --key's owner, also for a node's key.")
    ] = False,
    key: OwnKeyOption = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all proposals to slash a seat of a model, and how they stand.

    Needs no key. Prints a line for each: its id, the seat, whether it can be contested and how long, who reported, and
    the hash of the evidence. A seat that is slashed for two receipts for one unit is slashed at once, without proposal.

    \b
    Examples:
      commonweight slash list --dir runs/first
      commonweight slash list --mine --key node.json --dir runs/first
    """
    from commonweight.cli.place import find_place, own_address
    from commonweight.cli.slashes import slashes_of

    if mine and (key is None or owner is not None):
        raise ConfigError("--mine wants --key FILE, and no --owner beside it.")
    wanted = own_address(owner, key if mine else None)
    place = find_place(rpc, registry, model, dir)
    if wanted is not None and mine:
        wanted = place.providers.owner_of(wanted)
    cases, now = slashes_of(place, wanted), place.chain.timestamp()
    if as_json:
        print_json({"model_id": place.model_id, "owner": wanted, "slashes": [each.facts() for each in cases]})
        return
    if not cases:
        against = "in this model" if wanted is None else f"of {wanted} in this model"
        typer.echo(f"Nobody has proposed to slash a seat {against}.")
        return
    rows = [
        (each.number, each.record.stage, each.record.owner, each.state(now), each.record.reporter, _evidence(each))
        for each in cases
    ]
    print_table(("id", "stage", "owner", "state", "reporter", "evidence"), rows, right="rr")


@app.command("show")
def show(
    slash_id: SlashArgument,
    evidence: Annotated[
        str | None,
        typer.Option("--evidence", metavar="FILE|URL", help="Where the evidence is, if the proposal's address fails."),
    ] = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a proposal to slash a seat, and what its evidence says.

    Needs no key. Fetches the evidence from where the reporter says that it is (by HTTP, at most 16 MiB) and compares
    its hash with the chain's. Prints how the proposal stands and what the evidence says. Against a provider that is
    which audit failed, what was signed, what the replay found instead, and how far apart they are; against an auditor,
    which false report it has passed, or which operator of its replay isn't the referee's: where this machine computes
    in the same numerics class it runs that operator again, and says who is right. Or it prints why the evidence is
    none, and what follows.

    \b
    Example:
      commonweight slash show 1 --dir runs/first
    """
    from commonweight.cli.evidence import evidence_fields
    from commonweight.cli.place import find_place
    from commonweight.cli.slashes import answer_of, find_case, read_evidence, stake_of

    place = find_place(rpc, registry, model, dir)
    case = find_case(place, slash_id)
    found, answer, stake = read_evidence(place, case, evidence), answer_of(place, slash_id), stake_of(place, case)
    if as_json:
        facts = {"model_id": place.model_id, **case.facts(), "stake": str(stake), "contest_uri": answer}
        print_json({**facts, "evidence": found.facts()})
        return
    fields: dict[str, object] = {
        "slash": slash_id,
        "state": case.state(place.chain.timestamp()),
        "seat": _seat(case),
        "its stake": _at_stake(place, stake),
        "reporter": case.record.reporter,
        "evidence": f"{_evidence(case)} at {case.proposed.uri!r:.400}",
    }
    if answer is not None:
        fields["contested"] = f"by {case.record.contester}, who answers at {answer!r:.400}"
    print_fields(fields)
    typer.echo("\nEvidence")
    problem: dict[str, object] = {} if found.problem is None else {"problem": found.problem}
    document = {} if found.evidence is None else evidence_fields(place, found.evidence)
    print_fields({**problem, **document, "this means": found.meaning})


@app.command("contest")
def contest(
    slash_id: SlashArgument,
    uri: Annotated[
        str, typer.Option("--uri", help="Where your answer is, for the arbiter and everybody to read; may be empty.")
    ] = "",
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
    """Contest a proposal to slash a seat, so that the arbiter decides.

    Needs a key, not only the owner's, and the reporter's bond in its account, in the stake token. If the arbiter
    upholds the slash, bond and stake are lost; if it rejects it, the bond comes back with half of the reporter's; if it
    is silent, both bonds come back and the seat keeps its stake. Prints that with the amounts and what it costs, asks,
    sends, and prints until when the arbiter can decide. What comes back is free stake: `commonweight unbond`.

    \b
    Example:
      commonweight slash contest 1 --uri https://node.example/answer.txt --key owner.json --dir runs/first
    """
    from commonweight.chain.records import SlashStatus
    from commonweight.cli.place import find_place
    from commonweight.cli.slashes import find_case, stake_of

    purse = Purse(key, password_file, dry_run, yes, as_json)
    contester = purse.account
    place = find_place(rpc, registry, model, dir)
    case, now = find_case(place, slash_id), place.chain.timestamp()
    _check_status(case, SlashStatus.PROPOSED, "contested")
    if now >= case.record.deadline:
        raise NotAllowed(
            f"Slash {slash_id} could be contested until {format_time(case.record.deadline, now)}: now anybody can have "
            "it executed"
        )
    token, providers = place.stake_token, place.providers
    bond, stake = providers.reporter_bond(), stake_of(place, case)
    step = Step(f"contest slash {slash_id}", providers.action("contestSlash", slash_id, uri), CONTEST_GAS)
    steps = paying_steps(place.chain, token, contester, bond, "the provider registry", step)
    shown: dict[str, object] = {
        "contests": f"slash {slash_id}, of {_seat(case)}, {case.state(now)}",
        "at stake": _at_stake(place, stake),
        "answer": f"{uri!r:.400}" if uri else "none is given: the arbiter won't know why",
        "posts": f"{token.show(bond)}, until it is decided",
        "then": f"the arbiter has {format_duration(place.model.terms.arbitration_s)} to decide",
        "if it upholds": f"the bond of {token.show(bond)} is lost, and the stake",
        "if it rejects": f"the bond comes back as free stake, with {token.show(bond // 2)} of the reporter's",
        "if it is silent": "the slash is dropped, and both bonds come back",
    }
    facts = {**case.facts(), "account": contester, "bond": str(bond), "stake": str(stake), "answer": uri}

    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        record = providers.slash(slash_id)
        until = format_time(record.deadline, place.chain.timestamp())
        text = f"Slash {slash_id} is contested. The arbiter can decide until {until}."
        return text, {"status": record.status.name.lower(), "contester": record.contester, "deadline": record.deadline}

    purse.carry_out(place.chain, Plan(facts, shown, steps, done))


@app.command("execute")
def execute(
    slash_id: SlashArgument,
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
    """Execute a slash that nobody has contested in time.

    Anybody may. The seat loses its stake, half of it to the reporter, the rest to the registry's treasury; if it was
    slashed meanwhile, the proposal is dropped. The reporter's bond goes back either way. Prints what it does and costs,
    asks, and sends.

    \b
    Example:
      commonweight slash execute 1 --key anybody.json --dir runs/first
    """
    from commonweight.chain.records import SlashStatus
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    _end(purse, place, slash_id, "execute", SlashStatus.PROPOSED, SlashStatus.EXECUTED)


@app.command("drop")
def drop(
    slash_id: SlashArgument,
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
    """Drop a contested slash about which the arbiter was silent.

    Anybody may, once the arbiter's time is over. The seat keeps its stake, and both bonds go back as free stake. Prints
    what it does and costs, asks, and sends.

    \b
    Example:
      commonweight slash drop 1 --key owner.json --dir runs/first
    """
    from commonweight.chain.records import SlashStatus
    from commonweight.cli.place import find_place

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    _end(purse, place, slash_id, "drop", SlashStatus.CONTESTED, SlashStatus.DROPPED)


def _end(purse: Purse, place: "Place", slash_id: int, verb: str, begins: "SlashStatus", ends: "SlashStatus") -> None:
    """What anybody can do with a proposal of status `begins` after its deadline; nothing to do where it is `ends`."""
    from commonweight.cli.slashes import find_case, stake_of

    case, now = find_case(place, slash_id), place.chain.timestamp()
    if case.record.status is ends:
        purse.nothing(case.facts(), f"Nothing to {verb}: slash {slash_id} is {ends.name.lower()}.")
        return
    _check_status(case, begins, ends.name.lower())
    if now < case.record.deadline:
        raise NotAllowed(f"It is too early to {verb} slash {slash_id}: {case.state(now)}")
    stake = stake_of(place, case)
    shown: dict[str, object] = {
        "slash": f"{slash_id}, of {_seat(case)}, {case.state(now)}",
        "at stake": _at_stake(place, stake),
    }
    step = Step(f"{verb} slash {slash_id}", place.providers.action(f"{verb}Slash", slash_id))
    plan = Plan({**case.facts(), "stake": str(stake)}, shown, [step], _ended(place, slash_id))
    purse.carry_out(place.chain, plan, payer=case.record.reporter)


def _ended(place: "Place", slash_id: int) -> Done:
    def done(_: Sequence[object]) -> tuple[str, dict[str, str]]:
        status = place.providers.slash(slash_id).status.name.lower()
        return f"Slash {slash_id} is {status}.", {"status": status}

    return done


def _check_status(case: "Case", wanted: "SlashStatus", done: str) -> None:
    if (status := case.record.status) is not wanted:
        wants = wanted.name.lower()
        raise NotAllowed(f"Slash {case.number} is {status.name.lower()}: only what is {wants} can be {done}")


def _seat(case: "Case") -> str:
    return f"the seat of stage {case.record.stage} of {case.record.owner}"


def _at_stake(place: "Place", stake: int) -> str:
    return place.stake_token.show(stake) if stake else "nothing any more: the seat is slashed or released"


def _evidence(case: "Case") -> str:
    return "0x" + case.record.evidence_hash.hex()
