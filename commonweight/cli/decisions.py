"""The way of an arbiter's decision: one member proposes it, others confirm it, anybody executes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import typer
from eth_abi.exceptions import DecodingError

from commonweight.chain.arbiter import Arbiter
from commonweight.chain.records import ArbiterCall
from commonweight.chain.reverts import ContractReverted
from commonweight.chain.sender import Action
from commonweight.cli.money import Plan, Purse, Step
from commonweight.cli.output import format_duration, format_time
from commonweight.cli.place import Place
from commonweight.errors import ConfigError, NotAllowed

_LAST_DATE = 1 << 37
"""Unix time, thousands of years away."""


def in_words(place: Place, target: str, data: bytes) -> str:
    """What a call does to the model, or its selector where it is none of the arbiter's decisions about it."""
    names = {place.model.settlement: "EpochSettlement", place.providers.address: "ProviderRegistry"}
    if target in names:
        function, arguments = decode_call(place, names[target], target, data)
        verdict = "accept" if arguments and arguments[-1] else "reject"
        if function == "resolveEpoch":
            root, seconds = bytes(arguments[1]).hex(), arguments[2]
            # Any number can be proposed; what is no date is no challenge's either.
            until = format_time(seconds) if seconds < _LAST_DATE else f"{seconds} s"
            return f"{verdict} epoch {arguments[0]} with root 0x{root}, challenged and to be decided before {until}"
        if function == "resolveSlash":
            return f"{verdict} slash {arguments[0]}"
    return f"call 0x{data[:4].hex()} of {target}, which is no decision about this model"


def decode_call(place: Place, name: str, target: str, data: bytes) -> tuple[str, list[Any]]:
    """Name and arguments, in order, of a call of one of our contracts; no name for bytes that are none."""
    try:
        function, arguments = place.chain.contract(name, target).decode_function_input(data)
    except (ValueError, DecodingError):
        return "", []
    return str(function.fn_name), list(arguments.values())


@dataclass(frozen=True)
class Decision:
    """What the arbiter is to do about one challenge or one contested slash."""

    action: Action
    """Of the contract that the arbiter decides for."""
    until: int
    """End of the arbiter's time."""


def advance(purse: Purse, place: Place, decision: Decision) -> None:
    """The next step of a decision: propose, confirm or execute it."""
    contract, now = place.arbiter, place.chain.timestamp()
    target, data = decision.action.to, bytes.fromhex(decision.action.data[2:])
    assert target is not None, "a decision is a call"
    salt, call_id, call = _open_call(contract, target, data, now)
    if call is not None and call.executable_at:
        if now < call.executable_at:
            state = progress(contract, call, now)
            purse.nothing(
                {"call_id": "0x" + call_id.hex(), "executable_at": call.executable_at}, f"Nothing to do now: {state}."
            )
            return
        take_step(purse, place, call_id, target, data, "execute", contract.action("execute", call_id))
        return
    if purse.account not in contract.members():
        raise NotAllowed(
            f"{purse.account} is no member of the arbiter {contract.address}: {', '.join(contract.members())} are"
        )
    if now + contract.delay_s() >= decision.until:
        typer.echo(
            f"Note: the delay of {format_duration(contract.delay_s())} ends after the arbiter's time, at "
            f"{format_time(decision.until, now)}: it would be too late.",
            err=True,
        )
    if call is None:
        action, verb = contract.action("propose", target, data, salt), "propose"
    else:
        action, verb = contract.action("confirm", call_id), "confirm"
    take_step(purse, place, call_id, target, data, verb, action)


def _open_call(contract: Arbiter, target: str, data: bytes, now: int) -> tuple[bytes, bytes, ArbiterCall | None]:
    """Salt, id and state of the call to go on with: the first that isn't closed; None where it has to be proposed."""
    for attempt in count():
        salt = attempt.to_bytes(32, "big")
        call_id = contract.call_id_of(target, data, salt)
        call = contract.call_of(call_id)
        if call is None or not (call.executed or has_lapsed(contract, call, now)):
            break
    return salt, call_id, call


def take_step(purse: Purse, place: Place, call_id: bytes, target: str, data: bytes, verb: str, action: Action) -> None:
    """Sends one step of a decision: `verb` is "propose", "confirm" or "execute", `action` the call of the arbiter."""
    what, contract = in_words(place, target, data), place.arbiter
    facts: dict[str, Any] = {"call_id": "0x" + call_id.hex(), "step": verb, "what": what}
    shown: dict[str, object] = {
        "arbiter": contract.address,
        "call": "0x" + call_id.hex(),
        "decision": what,
        "this step": "execute it" if verb == "execute" else f"{verb} it; {contract.threshold()} members must confirm",
    }

    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        call = contract.call_of(call_id)
        assert call is not None, "it has been proposed"
        state = progress(contract, call, place.chain.timestamp())
        return f"The decision is {state}.", {"executed": call.executed, "executable_at": call.executable_at or None}

    try:
        purse.carry_out(place.chain, Plan(facts, shown, [Step(f"{verb}: {what}", action)], done))
    except ContractReverted as error:
        if error.error != "ArbiterAlreadyConfirmed":
            raise
        raise NotAllowed(f"{purse.account} has confirmed it already; another member must") from error


def find_call(place: Place, call: str) -> tuple[bytes, ArbiterCall]:
    """The id that was typed, and the call. Raises ConfigError for another text, NotAllowed for a call that is unknown
    or has lapsed.
    """
    if not re.fullmatch("0x[0-9a-fA-F]{64}", call):
        raise ConfigError(f"{call!r:.80} is not a call's id: it has 0x and 64 hexadecimal digits.")
    call_id = bytes.fromhex(call[2:])
    found = place.arbiter.call_of(call_id)
    if found is None:
        raise NotAllowed(f"The arbiter {place.arbiter.address} knows no call {call}: `commonweight arbiter list`")
    now = place.chain.timestamp()
    if has_lapsed(place.arbiter, found, now):
        raise NotAllowed(
            f"The call {call} is {progress(place.arbiter, found, now)}. While there is time to decide, "
            "`commonweight arbiter resolve-epoch` or `resolve-slash` proposes it anew"
        )
    return call_id, found


def has_lapsed(contract: Arbiter, call: ArbiterCall, now: int) -> bool:
    """Whether nobody has executed the call in time: it is closed for good."""
    return 0 < call.executable_at <= now - contract.grace_s() and not call.executed


def progress(contract: Arbiter, call: ArbiterCall, now: int) -> str:
    """How far a decision is."""
    if call.executed:
        return "executed"
    if not call.executable_at:
        return f"confirmed by {call.confirmations} of the {contract.threshold()} members that it takes"
    if now < call.executable_at:
        return f"confirmed, and can be executed from {format_time(call.executable_at, now)}"
    if has_lapsed(contract, call, now):
        lapsed = format_time(call.executable_at + contract.grace_s(), now)
        return f"lapsed for good: nobody executed it by {lapsed}"
    return "confirmed, and can be executed: `commonweight arbiter execute`"
