"""Where an option's value comes from: flag, variable, TOML file, default, in this order."""

import json
import types
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from commonweight.cli.lazy import options_of
from commonweight.cli.main import app
from commonweight.config import SHARED, defaults_for, load_config
from commonweight.errors import ConfigError

TREE = {"run": {"rpc": "rpc", "max-gas": "max_gas"}, "stop": {"rpc": "rpc", "drain": "drain"}}
COMMANDS = ("node", "keys")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """`commonweight bench echo`, which prints the options it got."""
    module = types.ModuleType("commonweight.bench.cli")
    group = typer.Typer()

    @group.callback()
    def callback() -> None:
        """A group, though it has one command."""

    @group.command()
    def echo(
        rpc: Annotated[str, typer.Option("--rpc", envvar="COMMONWEIGHT_RPC")] = "default",
        max_gas: Annotated[int, typer.Option("--max-gas")] = 1,
        directory: Annotated[Path, typer.Option("--folder")] = Path("default"),
        fast: Annotated[bool, typer.Option("--fast")] = False,
    ) -> None:
        typer.echo(json.dumps([rpc, max_gas, str(directory), fast]))

    module.app = group  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "commonweight.bench.cli", module)


def echo(tmp_path: Path, toml: str, *flags: str, env: dict[str, str] | None = None) -> Any:
    file = tmp_path / "config.toml"
    file.write_text(toml)
    result = CliRunner().invoke(app, ["--config", str(file), "bench", "echo", *flags], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return json.loads(result.stdout)


@pytest.mark.usefixtures("bench")
class TestPrecedence:
    TOML = '[bench.echo]\nrpc = "toml"\nmax_gas = 2\nfolder = "toml"\nfast = true\n'

    def test_the_default_is_last(self, tmp_path: Path) -> None:
        assert echo(tmp_path, "") == ["default", 1, "default", False]

    def test_the_file_beats_the_default(self, tmp_path: Path) -> None:
        assert echo(tmp_path, self.TOML) == ["toml", 2, "toml", True]

    def test_the_variable_beats_the_file(self, tmp_path: Path) -> None:
        env = {"COMMONWEIGHT_RPC": "variable", "COMMONWEIGHT_BENCH_ECHO_MAX_GAS": "3"}
        assert echo(tmp_path, self.TOML, env=env)[:2] == ["variable", 3]

    def test_a_variable_is_named_after_the_option(self, tmp_path: Path) -> None:
        assert echo(tmp_path, "", env={"COMMONWEIGHT_BENCH_ECHO_FOLDER": "variable"})[2] == "variable"
        assert echo(tmp_path, "", env={"COMMONWEIGHT_BENCH_ECHO_FAST": "true"})[3] is True

    def test_the_flag_beats_all(self, tmp_path: Path) -> None:
        env = {"COMMONWEIGHT_RPC": "variable", "COMMONWEIGHT_BENCH_ECHO_MAX_GAS": "3"}
        assert echo(tmp_path, self.TOML, "--rpc", "flag", "--max-gas", "4", env=env)[:2] == ["flag", 4]

    def test_an_inner_table_beats_an_outer_one(self, tmp_path: Path) -> None:
        assert echo(tmp_path, 'rpc = "root"\n')[0] == "root"
        assert echo(tmp_path, 'rpc = "root"\n[bench]\nrpc = "group"\n')[0] == "group"
        assert echo(tmp_path, 'rpc = "root"\n[bench]\nrpc = "group"\n[bench.echo]\nrpc = "own"\n')[0] == "own"

    def test_the_file_itself_can_be_named_by_a_variable(self, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text(self.TOML)
        env = {"COMMONWEIGHT_CONFIG": str(tmp_path / "c.toml")}
        assert json.loads(CliRunner().invoke(app, ["bench", "echo"], env=env).stdout)[0] == "toml"

    def test_a_value_of_the_wrong_type_is_a_usage_error(self, tmp_path: Path) -> None:
        (tmp_path / "c.toml").write_text('[bench.echo]\nmax-gas = "much"\n')
        result = CliRunner().invoke(app, ["--config", str(tmp_path / "c.toml"), "bench", "echo"])
        assert result.exit_code == 2
        assert "--max-gas" in result.stderr


def test_keys_are_written_with_dashes_or_underscores() -> None:
    for key in ("max-gas", "max_gas"):
        assert defaults_for({"node": {"run": {key: 2}}}, "node", TREE, COMMANDS)["run"] == {"max_gas": 2}


def test_a_group_passes_on_only_what_a_command_has() -> None:
    found = defaults_for({"node": {"rpc": "a", "max-gas": 2}}, "node", TREE, COMMANDS)
    assert found == {"run": {"rpc": "a", "max_gas": 2}, "stop": {"rpc": "a"}}


@pytest.mark.parametrize(
    ("config", "named", "hint"),
    [
        ({"rcp": "x"}, "rcp", "'rpc'"),
        ({"nod": {}}, "nod", "'node'"),
        ({"folder": "x"}, "folder", "stand in its table"),
        ({"node": {"rnu": {}}}, "node.rnu", "'run'"),
        ({"node": {"run": {"max-gass": 1}}}, "node.run.max-gass", "'max-gas'"),
        ({"node": {"run": {"drain": 1}}}, "node.run.drain", "Known here: max-gas, rpc"),
        ({"node": {"run": 3}}, "node.run", "must be a table"),
        ({"node": 3}, "node", "must be a table"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(config: dict[str, Any], named: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        defaults_for(config, "node", TREE, COMMANDS)
    assert named in str(caught.value)
    assert hint in str(caught.value)


def test_other_commands_tables_are_left_unread() -> None:
    assert defaults_for({"keys": {"what": 1}}, "node", TREE, COMMANDS) == {"run": {}, "stop": {}}


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml can't be read"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not TOML: .*line 1"):
        load_config(tmp_path / "bad.toml")


def test_every_shared_key_is_an_option_that_exists() -> None:
    from commonweight.cli.main import MOUNTS

    ours = [mount for mount in MOUNTS if mount.module.startswith("commonweight.cli.")]
    names = {name for mount in ours for name in _names(options_of(mount.load()))}
    assert names >= SHARED


def _names(tree: Any) -> set[str]:
    return {name for key, value in tree.items() for name in ({key} if isinstance(value, str) else _names(value))}
