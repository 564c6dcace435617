"""`commonweight ask`: buy an answer from a model."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.money import EXIT_DECLINED, confirm
from commonweight.cli.options import DirOption, JsonOption, ModelOption, PasswordFileOption, RegistryOption, RpcOption
from commonweight.cli.output import print_fields, print_json
from commonweight.errors import ConfigError, CostAboveLimit, InsufficientFunds, Refused

if TYPE_CHECKING:  # web3 and x402 take a second to import
    from commonweight.buyer import Answered, Offer
    from commonweight.cli.place import Place

app = typer.Typer()


@app.command("ask")
def ask(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name, as the gateway lists it.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the model is to go on with.")],
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="URL", help="The gateway to ask, http://… or https://…")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", metavar="N", min=1, help="The longest answer.")] = 64,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0, max=2, help="0 takes the most likely token each time.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="S", help="Equal seeds draw equal tokens.", show_default=False)
    ] = None,
    max_cost: Annotated[
        str | None,
        typer.Option("--max-cost", metavar="X", help="Sign for no more than this, in the revenue token: 0.01, say."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", envvar="COMMONWEIGHT_KEY", help="The key file of who pays."),
    ] = None,
    password_file: PasswordFileOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before signing.", allow_from_autoenv=False)] = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    registered: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model, and pay for the answer.

    The gateway says what the answer costs at most; you are asked before that is signed for. The chain must be known
    then (--dir, or --rpc and --registry): a payment is signed only for the model's own router, in its own token. What
    isn't delivered isn't charged: the rest comes back in the same transaction. Paying needs no gas. Prints the answer
    as it comes, then what was used, its cost and the transaction.

    \b
    Examples:
      commonweight ask devnet "The sea " --dir runs/first
      commonweight ask devnet "The sea " --gateway https://gateway.example --key me.json \\
        --rpc https://rpc.example --registry 0x5FbD… --max-cost 0.01 --yes
    """
    from commonweight.buyer import ask as ask_gateway

    known = _known(dir)
    url = gateway or known.get("gateway_url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ConfigError("Say whom to ask: give --gateway http://… or https://…, or --dir DIR of a devnet with one.")
    place: Place | None = None

    def pay(offer: "Offer") -> str:
        nonlocal place
        place = _find_place(rpc, registry, registered, dir)
        return _pay(offer, place, max_cost, _payer(key, password_file, known), yes)

    request = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    answered = ask_gateway(url.rstrip("/"), request, pay, _ignore if as_json else _show)
    _print(answered, place, as_json)


def _known(folder: Path | None) -> dict[str, Any]:
    """A devnet's deployments.json; `gateway_url`, `buyer_key` and `password_file` are of use here."""
    if folder is None:
        return {}
    from commonweight.cli.place import read_deployments

    return read_deployments(folder)


def _find_place(rpc: str | None, registry: str | None, model: str | None, folder: Path | None) -> "Place":
    from commonweight.cli.place import find_place

    if folder is None and (rpc is None or registry is None):
        raise ConfigError(
            "The gateway wants a payment, and without the chain nobody can tell whether that would go to the model. "
            "Give --rpc URL and --registry ADDRESS, or --dir DIR of a devnet."
        )
    return find_place(rpc, registry, model, folder)


def _payer(key: Path | None, password_file: Path | None, known: dict[str, Any]) -> tuple[Path, Path | None]:
    if key is None and isinstance(known.get("buyer_key"), str):
        return Path(known["buyer_key"]), password_file or Path(known["password_file"])
    if key is None:
        raise ConfigError("The gateway wants a payment: give --key FILE of the account that pays.")
    return key, password_file


def _pay(offer: "Offer", place: "Place", max_cost: str | None, payer: tuple[Path, Path | None], yes: bool) -> str:
    """The signed payment, once all of the offer has been checked and agreed to."""
    from commonweight.buyer import sign
    from commonweight.chain.keys import load_key, read_address, read_password
    from commonweight.chain.token import Token

    model = place.model
    wanted = (place.chain.chain_id, model.terms.revenue_token.lower(), model.router.lower())
    if (offer.chain_id, offer.token.lower(), offer.pay_to.lower()) != wanted:
        raise Refused(
            f"The gateway asks for token {offer.token} on chain {offer.chain_id}, to {offer.pay_to}; model "
            f"{place.model_id} is paid in {model.terms.revenue_token} on chain {place.chain.chain_id}, to its router "
            f"{model.router}. Nothing was signed. Ask another gateway."
        )
    currency = place.revenue_token
    most = currency.show(offer.amount)
    if max_cost is not None and offer.amount > currency.parse(max_cost, "--max-cost", least=0):
        raise CostAboveLimit(
            f"The answer may cost up to {most}, more than --max-cost {max_cost}. Nothing was signed. Ask for fewer "
            "tokens, or allow more."
        )
    path, password_file = payer
    balance = Token(place.chain, offer.token).balance_of(read_address(path))
    if balance < offer.amount:
        raise InsufficientFunds(
            f"The answer may cost up to {most}; {read_address(path)} has {currency.show(balance)}. Send it some, or "
            "ask for fewer tokens."
        )
    if not yes:
        typer.echo(f"The answer costs at most {most}, paid to the model's router {offer.pay_to}.", err=True)
        if not confirm("Sign for it?"):
            typer.echo("Nothing was signed.", err=True)
            raise typer.Exit(EXIT_DECLINED)
    key = load_key(path, read_password(password_file, prompt=f"Password of {path}: "))
    # The chain's clock decides; on a devnet it may be ahead of this machine's.
    return sign(offer, key, max(int(time.time()), place.chain.timestamp()))


def _show(piece: str) -> None:
    typer.echo(piece, nl=False)


def _ignore(_piece: str) -> None:
    """For --json, which prints all at the end."""


def _print(answered: "Answered", place: "Place | None", as_json: bool) -> None:
    if as_json:
        print_json({**asdict(answered), "cost": str(answered.cost)})
        return
    typer.echo("\n")
    fields: dict[str, object] = {
        "tokens": f"{answered.prompt_tokens} of prompt, {answered.completion_tokens} of answer",
        "cost": "nothing",
    }
    if place is not None:
        fields["cost"] = place.revenue_token.show(answered.cost)
        fields["transaction"] = answered.transaction or "to come: the gateway collects the payment later"
    print_fields(fields)
