"""`commonweight model`: what a model is, told from its spec and its registration."""

from collections.abc import Mapping
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commonweight.cli.model_coordinator import app as coordinator
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
from commonweight.cli.register import register

if TYPE_CHECKING:  # pydantic, which the rules need, takes 0.2 s to import
    from fractions import Fraction

    from commonweight.cli.currency import Currency
    from commonweight.cli.place import Place
    from commonweight.rules.spec import ModelSpec

ERAS_SHOWN = 6

app = typer.Typer(no_args_is_help=True)


@app.callback()
def model() -> None:
    """Show what a model is, and register one."""


app.command("register")(register)
app.add_typer(coordinator, name="coordinator")


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
    """Show what a model is: its architecture, its stages, its traffic, its shares and its terms.

    Needs the model's spec: a JSON file, or a model registered on a chain, whose spec is read from where the registry
    says. With both, the file must be the spec that was registered. Prints what each stage holds and costs, what a
    token costs over a boundary between stages, how much of the work is audited and what cheating risks, how many shares
    an epoch mints and who gets them; of a registered model also its terms, how many seats of each stage are held, what
    a seat's stake covers, and the least stake that buys one replica of every stage.

    \b
    Examples:
      commonweight model show spec.json
      commonweight model show --dir runs/first
    """
    from commonweight.cli.model_facts import to_json
    from commonweight.cli.spec_file import read_spec, registered_spec

    spec, place = read_spec(spec_file) if spec_file is not None else None, None
    if spec is None or model is not None:
        from commonweight.cli.place import find_place

        place = find_place(rpc, registry, model, dir)
        spec = registered_spec(place, spec)
    if as_json:
        print_json(to_json(spec) | ({"registered": _registered(place)} if place is not None else {}))
        return
    print_spec(spec, {"model id": place.model_id} if place is not None else {})
    if place is not None:
        _print_registration(place, spec)


def _registered(place: "Place") -> dict[str, Any]:
    """What the chain says about the model, for programs."""
    from commonweight.cli.terms import term_facts

    model = place.model
    return {
        "model_id": place.model_id,
        "registrant": model.registrant,
        "coordinator": model.coordinator,
        "retired": model.retired,
        "shares": model.shares,
        "settlement": model.settlement,
        "router": model.router,
        "seats_held": _seats_held(place),
        **term_facts(model.terms, place.revenue_token, place.stake_token),
    }


def _print_registration(place: "Place", spec: "ModelSpec") -> None:
    from commonweight.cli.terms import term_fields

    model = place.model
    seats = (f"stage {stage}: {count}" for stage, count in enumerate(_seats_held(place)))
    typer.echo("\nRegistration")
    print_fields(
        {
            "registrant": model.registrant,
            "coordinator": model.coordinator,
            "retired": "yes: no more seats can be taken" if model.retired else "no",
            "shares": model.shares,
            "settlement": model.settlement,
            "router": f"{model.router}, to which buyers pay",
            **term_fields(model.terms, place.revenue_token, place.stake_token),
            "seat stake covers": _covered(spec, model.terms.seat_stake, place.stake_token),
            "seats held": ", ".join(seats),
        }
    )


def _covered(spec: "ModelSpec", seat_stake: int, currency: "Currency") -> list[str]:
    """What cheating a seat's stake makes unprofitable, in sentences, whatever shares are worth."""
    from commonweight.cli.model_facts import cheats_of

    names = {
        ("work", "rounds"): "a round's work",
        ("work", "one"): "a round's gradient in one microbatch",
        ("step", "rounds"): "a round's gradient or step",
        ("text", "rounds"): "a round's text",
    }
    cheats = {(each.cheat.value, each.spread.value): each for each in cheats_of(spec)}
    lines = [
        f"{currency.show(int(seat_stake * cheats[which].round_risk))} of outside gain from {name} being false"
        for which, name in names.items()
    ]
    needed = max(each.stake for each in cheats.values())
    if 0 < needed < inf:
        most = currency.show(int(seat_stake / needed))
        lines.append(f"all computing being saved, while what a stage earns in an epoch is worth at most {most}")
    return lines


def _seats_held(place: "Place") -> list[int]:
    """How many seats of each stage are held."""
    from commonweight.cli.stakes import seats_of_model

    held = [each.seat.stage for each in seats_of_model(place) if each.is_held]
    return [held.count(stage) for stage in range(place.model.terms.stages)]


def print_spec(spec: "ModelSpec", more: Mapping[str, object]) -> None:
    """What the spec says, with `more` fields after its hash."""
    from commonweight.cli.model_facts import stages_of
    from commonweight.rules.stages import boundary_bytes_per_token

    a, t, stages = spec.architecture, spec.training, stages_of(spec)
    boundary = boundary_bytes_per_token(spec)
    ratio = boundary.uncompressed / boundary.sent
    print_fields(
        {
            "model": spec.name,
            "spec hash": f"0x{spec.spec_hash.hex()}",
            **more,
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
    _print_verification(spec)
    _print_economics(spec)


def _print_verification(spec: "ModelSpec") -> None:
    from commonweight.cli.model_facts import COLLUSION, WITHIN_EPOCHS, audits_of, cheats_of

    units = {"round": "a whole round", "microbatch": "one microbatch and the step", "data": "text, on stage 0"}
    audits, cheats = audits_of(spec), cheats_of(spec)
    rows = [
        (units[each.kind.value], _percent(each.rate), f"{float(each.per_epoch):,.4g}", _percent(each.of_work))
        for each in audits
    ]
    typer.echo("\nVerification")
    print_table(
        ("audit of", "rate", "in a stage and epoch", "of the stage's work"),
        [*rows, ("together", "", "", _percent(sum(each.of_work for each in audits)))],
        right=" rrr",
    )
    names = {
        ("work", "microbatches"): "single microbatches",
        ("work", "rounds"): "whole rounds",
        ("work", "one"): "gradients of rounds, in one microbatch",
        ("step", "rounds"): "gradients or steps of rounds",
        ("text", "rounds"): "text, on stage 0",
    }
    typer.echo("")
    print_table(
        ("what is false", f"a tenth: caught in {WITHIN_EPOCHS} epochs", "all: caught in one", "stake needed"),
        [
            (
                names[each.cheat.value, each.spread.value],
                _percent(each.caught),
                _percent(each.caught_at_once),
                f"{each.stake:.3f}" if isfinite(each.stake) else "none is enough",
            )
            for each in cheats
        ],
        right=" rrr",
    )
    accomplices = f"{COLLUSION:.0%} of the audits are by accomplices"
    leaving = max(each.leaving for each in cheats)
    gained = (
        f"nothing to who stays, and to who leaves for good at most {leaving:,.1f} rounds' pay, once"
        if isfinite(leaving)
        else "nothing where there are audits; what none looks at needn't be withheld"
    )
    typer.echo(
        "Stake: so that cheating costs what it saves, in rewards of a stage for an epoch, as shares have no price; if\n"
        f"computing costs all of them, nothing is gained outside, and {accomplices}.\n"
        "The chances are without accomplices. Who withholds what an audit needs loses no stake, but isn't paid from\n"
        "the epoch's last audit that passed on until another one passes that looks at as much, be it epochs later. So\n"
        f"it brings {gained}. Text can't be withheld."
    )
    typer.echo(_about_answers(spec))
    _print_auditors(spec)


def _about_answers(spec: "ModelSpec") -> str:
    from commonweight.cli.model_facts import CERTAINTY, answers_until_caught

    count = answers_until_caught(spec)
    if not isfinite(count):
        return "Answers aren't audited: what a stage generates is its word."
    return (
        f"Of the answers that are sold {_percent(spec.verification.answer_rate)} are audited at each stage: who\n"
        f"falsifies every one is caught within {count:,} with a probability of {CERTAINTY:.0%}."
    )


def _print_auditors(spec: "ModelSpec") -> None:
    from commonweight.cli.model_facts import least_known_bad_rate, panels_of

    panels, least = panels_of(spec), least_known_bad_rate(spec)
    if not panels:
        return
    typer.echo("")
    print_table(
        ("auditors of a stage", "pass one friend's work", "shown known bad", "stake needed", "of all pay"),
        [
            (
                each.seats,
                _percent(each.passes),
                _percent(each.known_bad),
                f"{each.stake:.3f}" if isfinite(each.stake) else "none is enough",
                _percent(each.of_pay),
            )
            for each in panels
        ],
        right="rrrrr",
    )
    enough = f"a known-bad rate of {_percent(least)} is enough" if isfinite(least) else "no known-bad rate is enough"
    typer.echo(
        "Auditors besides the coordinator's referee, all there; without any it audits alone. One who is a friend of\n"
        "the provider's passes what is false where nobody was asked before him. To convict takes the referee, too.\n"
        "Stake: so that passing audits unseen costs what it saves. An audit pays like the work that it repeats, and\n"
        f"costs as much. With a stake of one epoch's reward {enough}."
    )


def _percent(share: "str | float | Fraction") -> str:
    return "> 99.99 %" if 0.99995 <= float(share) < 1 else f"{100 * float(share):.2f} %"


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
