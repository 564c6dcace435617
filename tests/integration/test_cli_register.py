"""`model register` on a real local chain."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from commonweight.chain.providers import ProviderRegistry
from commonweight.chain.reverts import ContractReverted
from commonweight.errors import ConfigError, NotAllowed, SpecError
from commonweight.rules.canonical import canonical_json
from commonweight.rules.spec import build_spec
from tests.integration import cli_world
from tests.integration.cli_world import (
    ALICE,
    ARBITRATION_S,
    BOB,
    CAROL,
    COOLDOWN_S,
    DESIGNER,
    SHARE,
    TREASURY,
    USD,
    WINDOW_S,
    World,
)

world = cli_world.world  # pytest finds fixtures by their names here


def to_toml(fields: dict[str, Any]) -> str:
    """Of flat tables of texts and integers."""
    tables = {name: value for name, value in fields.items() if isinstance(value, dict)}
    lines = [f"{name} = {value!r}" for name, value in fields.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {value!r}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def fields_of(world: World, **changed: Any) -> dict[str, Any]:
    """A file that can be registered, but for `changed` terms."""
    terms = world.model.terms
    registration = {
        "token_name": "Mine",
        "token_symbol": "MINE",
        "designer": ALICE.address,
        "data_recipient": BOB.address,
        "coordinator": CAROL.address,
        "arbiter": terms.arbiter,
        "treasury": TREASURY.address,
        "providers": terms.providers,
        "revenue_token": terms.revenue_token,
        "genesis_designer": "1000.5",
        "operator_bps": 1_000,
        "treasury_bps": 0,
        "stream_period_s": 86_400,
        "window_s": WINDOW_S,
        "arbitration_s": ARBITRATION_S,
        "proposer_bond": "25.5",
        "challenger_bond": "0",
        "max_stages_per_owner": 3,
        "seat_stake": "250",
        "seat_cooldown_s": COOLDOWN_S,
    }
    spec = world.spec.model_dump() | {"name": "mine"}
    return spec | {"registration": {k: v for k, v in (registration | changed).items() if v is not None}}


def write(world: World, tmp_path: Path, **changed: Any) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(fields_of(world, **changed)))
    return str(path)


def test_registered_as_written(world: World, tmp_path: Path) -> None:
    file, out = write(world, tmp_path), tmp_path / "mine.json"
    height = world.chain.block_number()
    planned = world.run(
        "model", "register", file, "--out", str(out), "--key", str(world.dir / "designer.json"), "--dry-run"
    )
    for said in (
        "1.15 M trained",
        "revenue goes to    90.00 % shares, 10.00 % operators, 0.00 % treasury",
        "genesis shares     1,000.5 designer, 0 data",
        "proposer's bond    25.5 tUSD",
        "whole model costs  at least 1,000 tUSD of stake, by 2 owners, for one seat of every stage",
        "Nothing was sent",
    ):
        assert said in planned.stdout
    assert (world.chain.block_number(), out.exists()) == (height, False)

    done = world.json("model", "register", file, "--out", str(out), *world.key_options("designer"))
    model = world.registry.model(bytes.fromhex(done["model_id"][2:]))
    spec = build_spec({k: v for k, v in fields_of(world).items() if k != "registration"})
    assert out.read_bytes() == canonical_json(spec.model_dump())
    terms = model.terms
    assert (model.registrant, terms.spec_hash, terms.spec_uri) == (DESIGNER.address, spec.spec_hash, out.as_uri())
    assert (terms.designer, terms.data_recipient, terms.coordinator) == (ALICE.address, BOB.address, CAROL.address)
    assert (terms.genesis_designer, terms.proposer_bond, terms.challenger_bond) == (
        1000 * SHARE + SHARE // 2,
        25_500_000,
        0,
    )
    assert (terms.seat_stake, terms.max_stages_per_owner, terms.stream_period_s) == (250 * USD, 3, 86_400)
    assert done["router"] == model.router

    shown = world.run("model", "show", "--model", done["model_id"]).stdout
    assert "share token        Mine (MINE)" in shown
    assert "seat stake covers  166.666666 tUSD of outside gain from a round's work being false" in shown
    again = world.run("model", "register", file, "--out", str(out), *world.key_options("designer")).stdout
    assert f"has registered this spec already, as model {done['model_id']}" in again


def test_an_address_of_one_s_own_for_the_spec(world: World, tmp_path: Path) -> None:
    file = write(world, tmp_path, spec_uri="https://example.org/mine.json")
    done = world.json("model", "register", file, *world.key_options("designer"))
    assert world.registry.model(bytes.fromhex(done["model_id"][2:])).terms.spec_uri == "https://example.org/mine.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.toml"]


def test_somebody_must_say_where_the_spec_is(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out FILE"):
        world.run("model", "register", write(world, tmp_path), *world.key_options("designer"))


def test_the_seats_must_be_kept_for_this_registry(world: World, tmp_path: Path) -> None:
    usd = world.model.terms.revenue_token
    other = ProviderRegistry.deploy(world.sender(), world.model.shares, usd, TREASURY.address, 1)
    file = write(world, tmp_path, spec_uri="https://example.org/mine.json", providers=other.address)
    with pytest.raises(NotAllowed, match="nobody could take a seat"):
        world.run("model", "register", file, *world.key_options("designer"))


def test_another_text_is_never_overwritten(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("precious")
    out = str(tmp_path / "mine.json")
    with pytest.raises(ConfigError, match="exists with another text"):
        world.run("model", "register", write(world, tmp_path), "--out", out, *world.key_options("designer"))
    assert (tmp_path / "mine.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        (
            {"token_name": None, "designer": "me"},
            SpecError,
            r"registration\.token_name: Field required.*'me' is not an",
        ),
        ({"max_stages": 2}, SpecError, r"registration\.max_stages: Extra inputs"),
        ({"seat_stake": 250}, SpecError, r"registration\.seat_stake: Input should be a valid string \(got 250\)"),
        ({"seat_stake": "0.0000001"}, SpecError, "registration.seat_stake 0.0000001 has 7 decimals; tUSD has 6"),
        ({"proposer_bond": "-1"}, SpecError, "registration.proposer_bond '-1' is not a plain decimal"),
        ({"operator_bps": 10_001}, SpecError, "registration.operator_bps"),
        ({"revenue_token": ALICE.address}, NotAllowed, "lets no model take revenue in"),
        ({"window_s": 0}, ContractReverted, r"ModelRegistryBadPeriod\(param=window, given=0"),
        ({"arbiter": CAROL.address}, ContractReverted, "ModelRegistryPartialArbiter"),
        ({"genesis_data": "9000000"}, ContractReverted, "ModelRegistryEmissionExceedsCap"),
    ],
)
def test_terms_that_can_t_be(
    world: World, tmp_path: Path, changed: dict[str, Any], error: type[Exception], said: str
) -> None:
    height = world.chain.block_number()
    file = write(world, tmp_path, spec_uri="https://example.org/mine.json", **changed)
    with pytest.raises(error, match=said):
        world.run("model", "register", file, *world.key_options("designer"))
    assert world.chain.block_number() == height


def test_a_model_must_be_able_to_have_revenue(world: World, tmp_path: Path) -> None:
    """Genesis and the first halving period together need one share: here one base unit less, and just that."""
    out = "https://example.org/mine.json"
    for missing, said in ((1, "can mint 0.999999999999999999 shares; a model takes revenue from 1 shares on"), (0, "")):
        fields = fields_of(world, spec_uri=out)
        genesis = SHARE - fields["economics"]["halving_epochs"] - missing
        fields["registration"]["genesis_designer"] = f"0.{genesis:018d}"
        fields["economics"] = fields["economics"] | {"initial_emission": "1"}
        (tmp_path / "mine.toml").write_text(to_toml(fields))
        command = ["model", "register", str(tmp_path / "mine.toml"), *world.key_options("designer")]
        if missing:
            with pytest.raises(SpecError, match=said):
                world.run(*command)
        else:
            assert "is registered" in world.run(*command).stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "is not TOML"),
        ('name = "x"', r"no \[registration\] table"),
        ("[registration]", "The model spec can't be used. format: Field required"),
    ],
)
def test_a_file_that_is_no_registration(world: World, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(SpecError, match=said):
        world.run("model", "register", str(tmp_path / "mine.toml"), *world.key_options("designer"))
    with pytest.raises(SpecError, match="can't be read: No such file"):
        world.run("model", "register", str(tmp_path / "none.toml"), *world.key_options("designer"))


def test_the_toml_of_these_tests_says_what_it_should(world: World) -> None:
    assert tomllib.loads(to_toml(fields_of(world))) == fields_of(world)
