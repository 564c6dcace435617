"""`commonweight revenue`: what buyers paid, where it is, and the way of it to those whose it is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.money import Done, Plan, Purse, Step
from commonweight.cli.options import (
    DirOption,
    DryRunOption,
    JsonOption,
    KeyOption,
    ModelOption,
    PasswordFileOption,
    PayeeArgument,
    RegistryOption,
    RpcOption,
    StatementsOption,
    YesOption,
)
from commonweight.cli.output import format_amount, format_duration, print_fields, print_json, print_table
from commonweight.errors import NotAllowed

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.cli.place import Place

app = typer.Typer(no_args_is_help=True)


@app.callback()
def revenue() -> None:
    """Show a model's revenue, split it, and withdraw it; say which gateways collect it.

    Buyers pay the model's router, directly or through a gateway that is its cashier. A sweep splits what has come to
    the shares, the operators who serve, and the treasury."""


@app.command("show")
def show(
    account: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="Only this account's revenue.", show_default=False)
    ] = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what came in, where it is, and whose it is.

    Needs no key. Everything is read from the contracts as of one block, and what came in must be found again to the
    last unit: the last line says so, or what is missing. What was earned by serving, and by shares that aren't
    claimed yet, comes from the last final epoch's public statement; where that isn't at hand it is shown as "?".
    Prints the totals and a line for each account, or only ADDRESS.

    \b
    Examples:
      commonweight revenue show --dir runs/first
      commonweight revenue show 0x7099… --dir runs/first
    """
    from commonweight.cli.holdings import known_accounts
    from commonweight.cli.place import find_place, parse_address
    from commonweight.cli.revenue_facts import income_of, read_revenue
    from commonweight.cli.revenue_view import cell, income_fields, sum_line, to_json, totals
    from commonweight.cli.statements import last_statement

    only = parse_address(account) if account is not None else None
    live = find_place(rpc, registry, model, dir, statements)
    block = live.chain.block_number()
    place = live.at(block)
    _, published, note = last_statement(place)
    found = read_revenue(place)
    accounts = [only] if only is not None else known_accounts(place, published)
    incomes = [income_of(place, each, published) for each in accounts]
    if note:
        typer.echo(f"Note: {note}", err=True)
    if as_json:
        print_json(to_json(place, block, found, incomes))
        return
    token = place.revenue_token
    print_fields(totals(place, block, found))
    typer.echo()
    if only is not None:
        print_fields(income_fields(token, incomes[0]))
    else:
        rows = [
            (
                each.account,
                format_amount(each.owed, token.decimals),
                cell(token, each.unclaimed),
                cell(token, each.serving_earned),
                format_amount(each.serving_paid, token.decimals),
            )
            for each in incomes
        ]
        header = ("account", f"{token.symbol} owed", "by unclaimed shares", "by serving", "of that paid")
        print_table(header, rows, right=" rrrr")
    typer.echo()
    typer.echo(sum_line(token, found))


@app.command("withdraw")
def withdraw(
    account: PayeeArgument = None,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    statements: StatementsOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pay an account the revenue that it is owed.

    Two kinds, a transaction each: what the shares that it holds have earned, and what it earned by serving, which is
    proved from the last final epoch's public statement (made once more where a later one becomes final meanwhile).
    Anyone may send them and pay for their gas, only the account is paid. Prints what will be paid and what it costs,
    asks, sends, and prints the account's new balance. Where nothing is owed, it says why and exits 0. A dry run needs
    no key.

    \b
    Examples:
      commonweight revenue withdraw --key owner.json --dir runs/first
      commonweight revenue withdraw 0x7099… --dry-run --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.cli.statements import against_last_root

    purse = Purse(key, password_file, dry_run, yes, as_json)
    payee = purse.account_or(account)
    place = find_place(rpc, registry, model, dir, statements)
    against_last_root(lambda: _withdraw(purse, place, payee))


def _withdraw(purse: Purse, place: "Place", payee: str) -> None:
    from commonweight.cli.revenue_facts import income_of
    from commonweight.cli.revenue_view import why_nothing
    from commonweight.cli.statements import last_statement

    _, published, note = last_statement(place)
    if note:
        typer.echo(f"Note: what it earned by serving can't be proved now. {note}", err=True)
    income, token = income_of(place, payee, published), place.revenue_token
    serving = income.payable - income.owed
    steps = []
    # First what a later epoch can undo: then nothing has been sent that would be left out when it is made once more.
    if serving and published is not None and (claim := published.claim_of(payee)) is not None:
        what = f"pay {token.show(serving)} that it earned by serving"
        steps.append(Step(what, place.router.pay_operator_action(claim)))
    if income.owed:
        action = place.shares.action("withdrawRevenueFor", payee)
        steps.append(Step(f"pay {token.show(income.owed)} that its shares earned", action))
    facts = {"account": payee, "shares_revenue": str(income.owed), "serving_revenue": str(serving)}
    if not steps:
        purse.nothing(facts, f"Nothing to withdraw for {payee}: {why_nothing(place, income)}.")
        return
    shown: dict[str, object] = {
        "account": payee,
        "by its shares": token.show(income.owed),
        "by serving": token.show(serving),
        "has now": token.show(place.revenue_balance_of(payee)),
    }
    purse.carry_out(place.chain, Plan(facts, shown, steps, _balance(place, payee)), payer=payee)


@app.command("sweep")
def sweep(
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
    """Split what buyers have paid since the last sweep.

    Anyone may send it. The operators' and the treasury's parts wait in the router for them; the rest goes to the
    shares, credited evenly over the model's stream period. Prints the parts and what it costs, asks, and sends. Where
    nothing has come, it says so and exits 0. A dry run needs no key.

    \b
    Example:
      commonweight revenue sweep --key owner.json --dir runs/first
    """
    from commonweight.cli.place import find_place
    from commonweight.rules.emission import MIN_SUPPLY

    purse = Purse(key, password_file, dry_run, yes, as_json)
    place = find_place(rpc, registry, model, dir)
    terms, token, amount = place.model.terms, place.revenue_token, place.router.unswept()
    facts: dict[str, Any] = {"router": place.model.router, "amount": str(amount)}
    if not amount:
        purse.nothing(facts, "Nothing has come since the last sweep.")
        return
    supply = place.shares.total_supply()
    if supply < MIN_SUPPLY:
        raise NotAllowed(
            f"{token.show(amount)} wait: there are {format_amount(supply)} shares, and revenue is divided among at "
            f"least {format_amount(MIN_SUPPLY)}. The first final epoch mints them"
        )
    operators, treasury = amount * terms.operator_bps // 10_000, amount * terms.treasury_bps // 10_000
    shares = amount - operators - treasury
    facts |= {"to_shares": str(shares), "to_operators": str(operators), "to_treasury": str(treasury)}
    over = f", over {format_duration(terms.stream_period_s)}" if terms.stream_period_s else ", at once"
    shown: dict[str, object] = {
        "has come": token.show(amount),
        "to the shares": token.show(shares) + over,
        "to operators": token.show(operators),
        "to the treasury": token.show(treasury),
    }
    step = Step(f"split {token.show(amount)}", place.router.action("sweep"))
    plan = Plan(facts, shown, [step], lambda _: (f"{token.show(amount)} are split.", {}))
    purse.carry_out(place.chain, plan, payer=terms.treasury)


@app.command("cashier")
def cashier(
    account: Annotated[str, typer.Argument(metavar="ADDRESS", help="The gateway's account.")],
    remove: Annotated[
        bool, typer.Option("--remove", help="Let it collect no longer.", allow_from_autoenv=False)
    ] = False,
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
    """Let a gateway collect payments for the model, or no longer.

    Needs the key of the model's present coordinator, which collects without being a cashier. A cashier moves what
    buyers signed for to the model's router, nowhere else. One that is removed can't collect what it has delivered and
    not collected yet: end its gateway first. Prints whether the account is a cashier and what the change costs, asks,
    and sends. Where nothing changes, it says so and exits 0. A dry run needs no key.

    \b
    Examples:
      commonweight revenue cashier 0x976E… --key coordinator.json --dir runs/first
      commonweight revenue cashier 0x976E… --remove --key coordinator.json --dir runs/first
    """
    from commonweight.cli.place import find_place, parse_address

    purse = Purse(key, password_file, dry_run, yes, as_json)
    gateway = parse_address(account)
    place = find_place(rpc, registry, model, dir)
    router, coordinator = place.router, place.model.coordinator
    before, after = router.is_cashier(gateway), not remove
    facts: dict[str, Any] = {"router": router.address, "account": gateway, "is_cashier": before}
    if before == after:
        is_one = "is a cashier already" if before else "is no cashier"
        purse.nothing(facts, f"Nothing to change: {gateway} {is_one} of the router {router.address}.")
        return
    purse.check_key_of(coordinator, "coordinator")
    shown: dict[str, object] = {
        "router": router.address,
        "account": gateway,
        "is a cashier": "yes" if before else "no",
        "then": "yes" if after else "no",
    }

    def done(_: Sequence[object]) -> tuple[str, dict[str, bool]]:
        now = router.is_cashier(gateway)
        return f"{gateway} is {'a' if now else 'no'} cashier of the router {router.address}.", {"is_cashier": now}

    what = f"let {gateway} collect payments" if after else f"let {gateway} collect payments no longer"
    step = Step(what, router.action("setCashier", gateway, after))
    purse.carry_out(place.chain, Plan(facts, shown, [step], done), payer=coordinator)


@app.command("treasury")
def treasury(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="ADDRESS",
            help="The account to be paid; the treasury if not given.",
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
    """Take the treasury's part of the revenue that was split.

    Needs the treasury's key. Prints what is paid to whom and what it costs, asks, sends, and prints the paid account's
    new balance. Where the treasury's pool is empty, it says so and exits 0. A dry run needs no key.

    \b
    Examples:
      commonweight revenue treasury --key treasury.json --dir runs/first
      commonweight revenue treasury --to 0x90F7… --key treasury.json --dir runs/first
    """
    from commonweight.cli.place import find_place, parse_address

    purse = Purse(key, password_file, dry_run, yes, as_json)
    given = parse_address(to) if to is not None else None
    place = find_place(rpc, registry, model, dir)
    holder, token, pool = place.model.terms.treasury, place.revenue_token, place.router.treasury_pool()
    payee = given or holder
    facts = {"treasury": holder, "to": payee, "amount": str(pool)}
    if not pool:
        waiting = token.show(place.router.unswept())
        purse.nothing(facts, f"Nothing to take: the treasury's pool is empty; {waiting} wait for a sweep.")
        return
    purse.check_key_of(holder, "treasury")
    place.check_payee(payee)
    shown: dict[str, object] = {
        "treasury": holder,
        "in its pool": token.show(pool),
        "is paid to": payee,
        "which has now": token.show(place.revenue_balance_of(payee)),
    }
    step = Step(f"pay {token.show(pool)} of the treasury to {payee}", place.router.action("payTreasury", payee))
    purse.carry_out(place.chain, Plan(facts, shown, [step], _balance(place, payee)), payer=holder)


def _balance(place: "Place", payee: str) -> Done:
    def done(_: Sequence[object]) -> tuple[str, dict[str, str]]:
        balance = place.revenue_balance_of(payee)
        return f"{payee} now has {place.revenue_token.show(balance)}.", {"balance": str(balance)}

    return done
