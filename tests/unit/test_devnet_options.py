"""What a devnet is started with: bad input is one clear error, before anything is started."""

import os
from pathlib import Path
from typing import Any

import pytest

from commonweight.devnet.folder import RunFolder, write_json
from commonweight.devnet.observer import read_state
from commonweight.devnet.options import DevnetOptions
from commonweight.devnet.spec import devnet_spec
from commonweight.errors import ChainError, ConfigError, SpecError

MANIFEST = "0x" + "ab" * 32


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backend": "geth"}, "--backend 'geth' is none of auto, anvil, embedded"),
        ({"stages": 0}, "--stages 0 must be at least 1"),
        ({"seed": -1}, "--seed -1"),
        ({"until_epoch": 0}, "--until-epoch 0"),
        ({"rounds_per_epoch": 0}, "--rounds-per-epoch 0"),
        ({"report": Path("/nowhere/at/all.json")}, "there is no folder /nowhere/at"),
    ],
)
def test_bad_options_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DevnetOptions(**given)


def test_a_report_may_go_into_the_runs_own_folder(tmp_path: Path) -> None:
    DevnetOptions(folder=tmp_path / "run", report=tmp_path / "run" / "report.json")


def test_more_stages_than_layers() -> None:
    with pytest.raises(SpecError, match="9 stages need as many layers; there are 8"):
        DevnetOptions(stages=9)


def test_anvil_that_isnt_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMMONWEIGHT_ANVIL", "/nowhere/anvil")
    with pytest.raises(ChainError, match="/nowhere/anvil can't be executed"):
        DevnetOptions(backend="anvil")


def test_the_devnets_model_is_small_and_its_round_is_8192_tokens() -> None:
    spec = devnet_spec(4, 7, MANIFEST, 1_000_000)
    assert spec.training.tokens_per_round == 8192
    assert (spec.seed, spec.stages, spec.data.manifest) == (7, 4, MANIFEST)
    assert spec.architecture.boundary_dim * 4 == spec.architecture.d_model


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "new" / "run")
    assert folder.logs.is_dir()
    assert folder.keys.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="already holds"):
        RunFolder.create(tmp_path / "new" / "run")


def test_a_folder_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't hold a run"):
        RunFolder.create(tmp_path / "file" / "run")


def test_the_newest_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no devnet under"):
        RunFolder.find(None)
    for age, name in ((100, "devnet-b"), (50, "devnet-a")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        state = tmp_path / "runs" / name / "state.json"
        state.write_text("{}")
        os.utime(state, (1_000_000 - age, 1_000_000 - age))
    assert RunFolder.find(None).path.name == "devnet-a"
    with pytest.raises(ConfigError, match="not the state of a devnet"):
        read_state(None)
    with pytest.raises(ConfigError, match="holds no devnet"):
        RunFolder.find(tmp_path)


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    write_json(tmp_path / "a.json", {"b": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 2\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
