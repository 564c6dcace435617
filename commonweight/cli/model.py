"""`commonweight model`: what a model is, told from its spec."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commonweight.cli.options import DirOption, JsonOption, ModelOption, RegistryOption, RpcOption
from commonweight.cli.output import (
    format_amount,
    format_engineering,
    format_percent,
    format_rounded,
    print_fields,
    print_json,
    print_table,
)
from commonweight.errors import MalformedMessage, SpecError

if TYPE_CHECKING:  # pydantic, which the rules need, takes 0.2 s to import
    from commonweight.rules.spec import ModelSpec

ERAS_SHOWN = 6

app = typer.Typer(no_args_is_help=True)


@app.callback()
def model() -> None:
    """Show what a model is."""


@app.command("show")
def show(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="The spec's JSON file.", show_default=False)
    ] = None,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model is: its architecture, its stages, its traffic and its shares.

    Needs the model's spec: a JSON file, or a model registered on a chain, whose spec is read from where the registry
    says. With both, the file must be the spec that was registered. Prints what each stage holds and costs, what a
    token costs over a boundary between stages, how many shares an epoch mints and who gets them.

    \b
    Examples:
      commonweight model show spec.json
      commonweight model show --dir runs/first
    """
    from commonweight.cli.model_facts import to_json

    spec = _read_spec(spec_file) if spec_file is not None else None
    on_chain = {}
    if spec is None or model is not None:
        from commonweight.cli.place import find_place, local_path, read_regular
        from commonweight.rules.spec import MAX_SPEC_BYTES

        place = find_place(rpc, registry, model, dir)
        terms = place.model.terms
        on_chain = {
            "model_id": place.model_id,
            "designer": terms.designer,
            "data_recipient": terms.data_recipient,
            "coordinator": terms.coordinator,
            "shares": place.model.shares,
            "settlement": place.model.settlement,
        }
        spec = spec or _read_spec(local_path(terms.spec_uri), lambda path: read_regular(path, MAX_SPEC_BYTES))
        if spec.spec_hash != terms.spec_hash:
            raise SpecError(
                f"The spec's hash is 0x{spec.spec_hash.hex()}; the one registered as {place.model_id} has "
                f"0x{terms.spec_hash.hex()}. Get that one from the model's designer, {terms.designer}."
            )
    if as_json:
        print_json(to_json(spec) | ({"registered": on_chain} if on_chain else {}))
    else:
        _print(spec, on_chain)


def _read_spec(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> "ModelSpec":
    from commonweight.rules.spec import parse_spec

    try:
        return parse_spec(read(path))
    except OSError as error:
        raise SpecError(f"The spec {path} can't be read: {error.strerror}.") from error
    except MalformedMessage as error:
        raise SpecError(f"{path} is no model spec: {Exception.__str__(error)}") from error


def _print(spec: "ModelSpec", on_chain: dict[str, str]) -> None:
    from commonweight.cli.model_facts import stages_of
    from commonweight.rules.stages import boundary_bytes_per_token

    a, t, stages = spec.architecture, spec.training, stages_of(spec)
    boundary = boundary_bytes_per_token(spec)
    ratio = boundary.uncompressed / boundary.sent
    print_fields(
        {
            "model": spec.name,
            "spec hash": f"0x{spec.spec_hash.hex()}",
            **{name.replace("_", " "): address for name, address in on_chain.items()},
            "parameters": f"{format_engineering(sum(stage.parameters for stage in stages))} trained",
            "decoder": f"{a.n_layers} layers, width {a.d_model}, {a.n_heads} heads ({a.n_kv_heads} key-value), "
            f"feed-forward {a.d_ff}, vocabulary {a.vocab_size:,}",
            "microbatch": f"{t.microbatch_sequences} × {t.sequence_length} tokens, {t.compute_dtype}",
            "round": f"{t.microbatches_per_round} microbatches, {t.tokens_per_round:,} tokens",
            "epoch": f"{spec.economics.rounds_per_epoch} rounds, "
            f"{t.tokens_per_round * spec.economics.rounds_per_epoch:,} tokens",
            "data": f"{spec.data.tokens:,} tokens, manifest {spec.data.manifest}",
            "boundary": f"{a.boundary_dim} numbers a token ({t.boundary_dtype}): {boundary.sent:,} bytes both ways, "
            f"with its id; uncompressed {boundary.uncompressed:,}, {ratio:.1f} times as many",
        }
    )
    typer.echo("\nStages")
    print_table(
        ("stage", "layers", "holds also", "parameters", "FLOPs a microbatch", "of the work"),
        [
            (
                each.stage,
                f"{each.layers[0]}–{each.layers[-1]}" if len(each.layers) > 1 else each.layers[0],
                ", ".join(each.parts) or "–",
                format_engineering(each.parameters),
                format_engineering(each.flops),
                format_percent(each.flops, sum(stage.flops for stage in stages)),
            )
            for each in stages
        ],
        right="rr rrr",
    )
    _print_economics(spec)


def _print_economics(spec: "ModelSpec") -> None:
    from commonweight.cli.model_facts import eras_of, splits_of
    from commonweight.rules.emission import BPS

    economics = spec.economics
    eras = list(eras_of(economics))
    rows = [
        (f"{era.first}–{era.last}", format_amount(era.shares), format_amount(era.total)) for era in eras[:ERAS_SHOWN]
    ]
    if len(eras) > ERAS_SHOWN:
        rows.append(("later", f"half every {economics.halving_epochs} epochs", format_rounded(eras[-1].total)))
    typer.echo("\nShares")
    print_table(("epochs", "minted by each, at most", "in all by then"), rows, right=" rr")
    typer.echo(f"Never more than {format_amount(int(economics.max_supply))}.")
    splits = (f"{format_percent(bps, BPS)} {who}" for who, bps in splits_of(economics).items())
    typer.echo(f"Of each epoch's shares: {', '.join(splits)}.")
