"""`commonweight model register`: put a model on the chain, with its terms, for good."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from commonweight.cli.money import Plan, Purse, Step
from commonweight.cli.options import (
    DirOption,
    DryRunOption,
    JsonOption,
    KeyOption,
    PasswordFileOption,
    RegistryOption,
    RpcOption,
    YesOption,
)
from commonweight.errors import ConfigError


def register(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.toml", help="The spec and the terms of the model.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Write the spec as canonical JSON here, which is where the chain will say it is if the file has no "
            "spec_uri.",
            show_default=False,
        ),
    ] = None,
    key: KeyOption = None,
    password_file: PasswordFileOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a model: its spec and its terms, which never change.

    Needs the registrant's key and a TOML file: the tables of the model's spec, and a table [registration] with the
    name of its share token, who is who, how revenue is split, windows, bonds, and what a seat takes. Shows all of it,
    and what it would cost to buy one replica of every stage; asks, sends, and prints the model's id and contracts.
    Where the account has registered this spec already, it says so and exits 0.

    \b
    Examples:
      commonweight model register mine.toml --key owner.json --dry-run --dir runs/first
      commonweight model register mine.toml --out mine.json --key owner.json --dir runs/first
    """
    from commonweight.chain.records import NOBODY
    from commonweight.cli.model import print_spec
    from commonweight.cli.model_facts import to_json
    from commonweight.cli.place import find_registry
    from commonweight.cli.registration import read_registration, to_terms
    from commonweight.cli.terms import term_facts, term_fields
    from commonweight.rules.canonical import canonical_json

    purse = Purse(key, password_file, dry_run, yes, as_json)
    spec, given = read_registration(spec_file)
    spec_uri = given.spec_uri or (out.resolve().as_uri() if out is not None else None)
    if spec_uri is None:
        raise ConfigError(
            "Say where the spec can be fetched: give spec_uri in [registration], or --out FILE to write it there."
        )
    contract, registrant = find_registry(rpc, registry, dir), purse.account
    model_id = contract.model_id_of(registrant, spec.spec_hash)
    facts: dict[str, Any] = {"model_id": "0x" + model_id.hex(), "registrant": registrant, "spec_uri": spec_uri}
    if contract.coordinator_of(model_id) != NOBODY:
        purse.nothing(facts, f"{registrant} has registered this spec already, as model 0x{model_id.hex()}.")
        return
    terms, revenue, stake = to_terms(spec, given, spec_uri, contract)
    if not as_json:
        print_spec(spec, {})
        typer.echo("\nRegistration")
    if out is not None and not dry_run:
        _write(out, canonical_json(spec.model_dump()))
    shown: dict[str, object] = {
        "registrant": registrant,
        "coordinator": terms.coordinator,
        **term_fields(terms, revenue, stake),
        "spec at": spec_uri,
        "model id": f"0x{model_id.hex()}",
    }

    def done(_: Sequence[object]) -> tuple[str, dict[str, Any]]:
        model = contract.model(model_id)
        text = (
            f"Model 0x{model_id.hex()} is registered.\n"
            f"shares {model.shares}, settlement {model.settlement}, router {model.router}"
        )
        return text, {"shares": model.shares, "settlement": model.settlement, "router": model.router}

    facts |= {"spec": to_json(spec), "coordinator": terms.coordinator, "terms": term_facts(terms, revenue, stake)}
    step = Step(f"register the model {spec.name} and deploy its contracts", contract.registration(terms))
    purse.carry_out(contract.chain, Plan(facts, shown, [step], done))


def _write(path: Path, text: bytes) -> None:
    """Raises ConfigError where the file has other contents, or can't be written."""
    try:
        if path.exists() and path.read_bytes() != text:
            raise ConfigError(f"{path} exists with another text. Choose another file for --out, or move it away.")
        path.write_bytes(text)
    except OSError as error:
        raise ConfigError(f"{path} can't be written: {error.strerror}.") from error
