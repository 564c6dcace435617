"""What all commands that send transactions share: what they show, that they ask, how they send, and what they print.

A command works out its steps from what the chain says now, so a step that is done already isn't among them: whoever
runs it again after an interruption goes on where it stopped."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from commonweight.cli.output import field_lines, format_ether, print_json
from commonweight.errors import ConfigError, InsufficientFunds, NotAllowed

if TYPE_CHECKING:  # web3 takes a second to import
    from commonweight.chain.keys import Key
    from commonweight.chain.rpc import Chain
    from commonweight.chain.sender import Action, Quote, Receipt
    from commonweight.cli.currency import Currency

EXIT_DECLINED = 1

Done = Callable[[Sequence["Receipt"]], tuple[str, Mapping[str, Any]]]
"""The last words of a command once its steps are mined: for people, and for programs."""


@dataclass(frozen=True)
class Step:
    """One transaction that a command would send."""

    what: str
    """What it does, for people."""
    action: "Action"
    gas: int | None = None
    """What it takes, roughly, where it can't be estimated before the step ahead of it is mined."""

    def quote(self, chain: "Chain", account: str) -> "Quote":
        """What it would cost `account`. Raises ContractReverted where it would fail."""
        from commonweight.chain.sender import quote

        return quote(chain, account, self.action, gas=self.gas)


@dataclass(frozen=True)
class Plan:
    """All that a command is about to do."""

    facts: Mapping[str, Any]
    """For programs; base units as decimal strings."""
    shown: Mapping[str, object]
    """The same for people, as fields."""
    steps: Sequence[Step]
    done: "Done"


@dataclass(frozen=True)
class Purse:
    """The options of a command that sends: with which key, and with whose consent."""

    key: Path | None
    password_file: Path | None
    dry_run: bool
    yes: bool
    as_json: bool

    def __post_init__(self) -> None:
        if self.key is None and not self.dry_run:
            raise ConfigError("This sends a transaction, which somebody's key signs and pays for: give --key FILE.")

    @property
    def account(self) -> str:
        """Address of the key, as its file states it. Raises ConfigError without --key."""
        return self.account_or(None)

    def account_or(self, given: str | None) -> str:
        """The account named by an argument, else that of the key. Raises ConfigError without either."""
        from commonweight.cli.place import own_address

        account = own_address(given, self.key)
        if account is None:
            raise ConfigError("Say whose account this is about: give --key FILE. Its password isn't needed here.")
        return account

    def check_key_of(self, account: str, role: str) -> None:
        """Raises NotAllowed where a key is given that isn't `account`'s, the model's `role`."""
        if self.key is not None and self.account != account:
            raise NotAllowed(f"{self.account} is not the model's {role}, {account} is: send this with its key")

    def unlock(self) -> "Key":
        """The key. Asks for its password where no file or variable holds it. Raises KeyStoreError."""
        assert self.key is not None, "checked at the beginning"
        from commonweight.chain.keys import load_key, read_password

        return load_key(self.key, read_password(self.password_file, prompt=f"Password of {self.key}: "))

    def carry_out(self, chain: "Chain", plan: Plan, payer: str | None = None) -> None:
        """Shows the plan with what it costs, asks, sends its steps one after another and prints what came of them.

        `payer` stands for the account where no key is given and anybody may send. Exits with 1 where the answer is no.
        """
        account = self.account if self.key is not None or payer is None else payer
        quotes = [step.quote(chain, account) for step in plan.steps]
        steps = [
            {"what": step.what, "gas": quote.gas, "fee_wei": str(quote.fee_wei), "max_fee_wei": str(quote.max_fee_wei)}
            for step, quote in zip(plan.steps, quotes, strict=True)
        ]
        if not self.as_json or not (self.dry_run or self.yes):  # nobody is asked about what isn't shown
            for line in field_lines({**plan.shown, **_costs(plan.steps, quotes)}):
                typer.echo(line, err=self.as_json)
        if self.dry_run:
            steps = [{**step, "transaction": None} for step in steps]
            self._finish("Nothing was sent: this was a dry run.", {**plan.facts, "steps": steps})
            return
        if not self.yes and not confirm("Send it?" if len(quotes) == 1 else f"Send these {len(quotes)} transactions?"):
            typer.echo("Nothing was sent.", err=True)
            raise typer.Exit(EXIT_DECLINED)
        receipts = self._send(chain, plan.steps)
        text, facts = plan.done(receipts)
        sent = [
            {"what": step.what, "gas": each.gas_used, "fee_wei": str(each.fee_wei), "transaction": each.transaction}
            for step, each in zip(plan.steps, receipts, strict=True)
        ]
        self._finish(text, {**plan.facts, **facts, "steps": sent})

    def nothing(self, facts: Mapping[str, Any], why: str) -> None:
        """Says why there is nothing to be done: no error."""
        self._finish(why, {**facts, "why": why, "steps": []})

    def _send(self, chain: "Chain", steps: Sequence[Step]) -> list["Receipt"]:
        from commonweight.chain.sender import Sender

        sender, receipts = Sender(chain, self.unlock()), []
        for step in steps:
            receipt = sender.send(step.action)
            receipts.append(receipt)
            # At once, and also beside JSON: if a later step fails, this one has been sent.
            typer.echo(
                f"Sent: {step.what}. Transaction {receipt.transaction}, for {format_ether(receipt.fee_wei)}.",
                err=self.as_json,
            )
        return receipts

    def _finish(self, text: str, facts: Mapping[str, Any]) -> None:
        if self.as_json:
            print_json(facts)
        else:
            typer.echo(text)


def paying_steps(chain: "Chain", currency: "Currency", owner: str, units: int, name: str, step: Step) -> list[Step]:
    """`step`, whose contract takes `units` from `owner`, and before it the one that allows that, unless it is allowed.

    `name` is the contract's, for people; `step.gas` counts only where it can't be estimated yet. Raises
    InsufficientFunds where `owner` hasn't that much.
    """
    from commonweight.chain.token import Token

    spender = step.action.to
    assert spender is not None, "a payment is a call"
    token = Token(chain, currency.address)
    balance = token.balance_of(owner)
    if balance < units:
        raise InsufficientFunds(
            f"{owner} has {currency.show(balance)}, {currency.show(units)} are needed: send it "
            f"{currency.show(units - balance)} of the token {currency.address}, and try again"
        )
    if token.allowance(owner, spender) >= units:
        return [replace(step, gas=None)]
    what = f"allow {name} {spender} to take {currency.show(units)}"
    return [Step(what, token.approve_action(spender, units)), step]


def confirm(question: str) -> bool:
    """The answer on standard input. Raises ConfigError where there is none, KeyboardInterrupt for Ctrl-C."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise ConfigError("Nobody answered, and nothing was sent. To send without being asked, give --yes.") from error


def _costs(steps: Sequence[Step], quotes: Sequence["Quote"]) -> dict[str, object]:
    lines = [
        f"{step.what}: {'about ' if step.gas else ''}{quote.gas:,} gas"
        for step, quote in zip(steps, quotes, strict=True)
    ]
    fee, most = sum(quote.fee_wei for quote in quotes), sum(quote.max_fee_wei for quote in quotes)
    return {"sends": lines, "fee": f"{format_ether(fee)}, at most {format_ether(most)}"}
