"""A model as its designer writes it down: a TOML file with the spec's tables and one of terms.

format = "commonweight.model/7"      # the spec, as in docs and `ModelSpec`: name, seed, stages, architecture, …

[registration]
token_name = "Mine"
seat_stake = "1000"                  # amounts in whole tokens, as decimal text
"""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.records import NOBODY, ModelTerms
from commonweight.chain.registry import ModelRegistry
from commonweight.cli.currency import SHARES, Currency
from commonweight.cli.place import parse_address, read_currency, read_regular
from commonweight.errors import ConfigError, NotAllowed, SpecError
from commonweight.rules.emission import MIN_SUPPLY
from commonweight.rules.spec import MAX_FAULTS, MAX_SPEC_BYTES, ModelSpec, Record, build_spec

Account = Annotated[str, AfterValidator(parse_address)]
Bps = Annotated[int, Field(ge=0, le=10_000)]
Seconds = Annotated[int, Field(ge=0, le=2**32 - 1)]
Decimal = Annotated[str, Field(max_length=80, description="of whole tokens")]


class Registration(Record):
    """What a registration decides besides the spec; see IModelRegistry.Params."""

    token_name: Annotated[str, Field(min_length=1, max_length=64)]
    token_symbol: Annotated[str, Field(min_length=1, max_length=16)]
    designer: Account
    data_recipient: Account
    coordinator: Account
    arbiter: Account
    treasury: Account
    providers: Account = Field(description="the provider registry")
    transfer_policy: Account = NOBODY
    revenue_token: Account
    genesis_designer: Decimal = "0"
    genesis_data: Decimal = "0"
    operator_bps: Bps
    treasury_bps: Bps
    stream_period_s: Seconds
    window_s: Seconds
    arbitration_s: Seconds
    proposer_bond: Decimal
    challenger_bond: Decimal
    max_stages_per_owner: Annotated[int, Field(ge=1, le=64)]
    seat_stake: Decimal
    seat_cooldown_s: Seconds
    spec_uri: Annotated[str, Field(min_length=1, max_length=2048)] | None = None


def read_registration(path: Path) -> tuple[ModelSpec, Registration]:
    """The spec and the terms in a TOML file. Raises SpecError that names each wrong field."""
    try:
        tables = tomllib.loads(read_regular(path, 2 * MAX_SPEC_BYTES).decode())
    except OSError as error:
        raise SpecError(f"{path} can't be read: {error.strerror}.") from error
    except ConfigError as error:
        raise SpecError(error.args[0]) from error
    except ValueError as error:  # not UTF-8 either
        raise SpecError(f"{path} is not TOML: {error}.") from error
    terms = tables.pop("registration", None)
    if terms is None:
        raise SpecError(f"{path} has no [registration] table: it says under which terms the model is registered.")
    spec = build_spec(tables)
    try:
        return spec, Registration.model_validate(terms)
    except ValidationError as error:
        faults = [
            f"registration.{'.'.join(map(str, each['loc']))}: {each['msg']} (got {each['input']!r:.80})"
            for each in error.errors()[:MAX_FAULTS]
        ]
        raise SpecError(f"The model can't be registered so. {'; '.join(faults)}.") from error


def to_terms(
    spec: ModelSpec, given: Registration, spec_uri: str, registry: ModelRegistry
) -> tuple[ModelTerms, Currency, Currency]:
    """The terms with all amounts in base units, and the tokens that revenue and stakes are in.

    Raises NotAllowed where the registry takes no revenue in that token, or the seats would be in another registry's,
    SpecError for an amount that can't be, or too few shares.
    """
    if not registry.is_allowed_token(given.revenue_token):
        raise NotAllowed(
            f"The registry {registry.address} lets no model take revenue in the token {given.revenue_token}: choose "
            "one of those that it was deployed with"
        )
    chain, economics = registry.chain, spec.economics
    revenue = read_currency(chain, given.revenue_token)
    providers = ProviderRegistry(chain, given.providers)
    if providers.registry() != registry.address:
        raise NotAllowed(
            f"The provider registry {given.providers} keeps seats of the models of {providers.registry()}, not of "
            f"{registry.address}: nobody could take a seat of this model"
        )
    stake = read_currency(chain, providers.bond_token())

    def units(field: str, currency: Currency) -> int:
        try:
            return currency.parse(getattr(given, field), f"registration.{field}", least=0)
        except ConfigError as error:
            raise SpecError(error.args[0]) from error

    terms = ModelTerms(
        spec_hash=spec.spec_hash,
        spec_uri=spec_uri,
        name=given.token_name,
        symbol=given.token_symbol,
        designer=given.designer,
        data_recipient=given.data_recipient,
        coordinator=given.coordinator,
        arbiter=given.arbiter,
        treasury=given.treasury,
        providers=given.providers,
        transfer_policy=given.transfer_policy,
        revenue_token=given.revenue_token,
        max_supply=int(economics.max_supply),
        genesis_designer=units("genesis_designer", SHARES),
        genesis_data=units("genesis_data", SHARES),
        designer_bps=economics.designer_bps,
        data_bps=economics.data_bps,
        initial_emission=int(economics.initial_emission),
        halving_epochs=economics.halving_epochs,
        operator_bps=given.operator_bps,
        treasury_bps=given.treasury_bps,
        stream_period_s=given.stream_period_s,
        window_s=given.window_s,
        arbitration_s=given.arbitration_s,
        proposer_bond=units("proposer_bond", revenue),
        challenger_bond=units("challenger_bond", revenue),
        stages=spec.stages,
        max_stages_per_owner=given.max_stages_per_owner,
        seat_stake=units("seat_stake", stake),
        seat_cooldown_s=given.seat_cooldown_s,
    )
    least = terms.genesis_designer + terms.genesis_data + terms.initial_emission * terms.halving_epochs
    if least < MIN_SUPPLY:
        raise SpecError(
            f"Genesis and the first {terms.halving_epochs} epochs can mint {SHARES.show(least)}; a model takes revenue "
            f"from {SHARES.show(MIN_SUPPLY)} on, and has to reach that by then. Raise economics.initial_emission, "
            "economics.halving_epochs or registration.genesis_designer."
        )
    return terms, revenue, stake
