"""Which Python `bench pipeline --against hivemind` takes, and what it says of one that won't do."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commonweight.bench.cli import app
from commonweight.bench.hivemind_python import ask_versions, make_hivemind_python
from commonweight.errors import ConfigError


def python_that(folder: Path, does: str) -> Path:
    """A program that stands where a Python should be."""
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return program


def test_an_environment_that_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    program = python_that(tmp_path, "exit 7")
    assert make_hivemind_python(tmp_path) == program


def test_a_python_without_hivemind_is_refused_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"No module named 'hivemind'.*Install hivemind=="):
        ask_versions(Path(sys.executable))


def test_a_python_with_another_torch_is_refused(tmp_path: Path) -> None:
    program = python_that(tmp_path, """echo '{"hivemind": "1.1.12", "torch": "1.0.0"}'""")
    with pytest.raises(ConfigError, match=r"has torch 1\.0\.0"):
        ask_versions(program)


def test_what_isnt_a_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be run"):
        ask_versions(tmp_path / "python")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--against", "petals"], "petals isn't known"),
        (["--against", "hivemind"], "--hivemind-python PATH or --hivemind-venv FOLDER"),
        (["--against", "hivemind", "--hivemind-python", "a", "--hivemind-venv", "b"], "not both"),
    ],
)
def test_options_that_dont_say_what_to_compare_with_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["pipeline", *options])
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
