"""docs/cli.md is true: its examples run as printed, its reference is what --help says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commonweight.cli.main import MOUNTS
from commonweight.config import load_config
from commonweight.devnet.spec import devnet_spec
from commonweight.rules.canonical import canonical_json
from tools.build_cli_docs import BEGIN, PAGE, command_paths, help_of, reference

TEXT = PAGE.read_text(encoding="utf-8")
OURS = {mount.name for mount in MOUNTS if mount.module.startswith("commonweight.cli.")}
SHELL = f"""
commonweight() {{ PYTHONPATH={PAGE.parents[1]} {sys.executable} -m commonweight "$@"; }}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def steps(block: str) -> list[tuple[str, str]]:
    """(command, expected output) of each "$ " line."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_the_examples_print_what_the_page_says(tmp_path: Path) -> None:
    spec = devnet_spec(4, 0, "0x" + "ab" * 32, 10**6)
    (tmp_path / "spec.json").write_bytes(canonical_json(spec.model_dump()))
    (block,) = blocks("console")
    expected = steps(block)
    assert len(expected) >= 8
    # One shell for all, so that `export` reaches what follows; a line of its own ends each command's output.
    script = SHELL + "".join(f'{command}\necho "=== $?"\n' for command, _ in expected)
    env = {name: value for name, value in os.environ.items() if not name.startswith("COMMONWEIGHT_")}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, env=env)
    printed = re.split(r"^=== (\d+)\n", result.stdout, flags=re.MULTILINE)
    for (command, output), got, code in zip(expected, printed[::2], printed[1::2], strict=False):
        assert code == "0", f"{command}: {got}{result.stderr}"
        pattern = ".*".join(map(re.escape, output.split("…")))
        assert re.fullmatch(pattern, got, re.DOTALL), f"{command} printed:\n{got}\nthe page says:\n{output}"
    assert len(printed) == 2 * len(expected) + 1


def test_the_reference_is_what_help_says() -> None:
    assert TEXT.partition(BEGIN)[2] == reference(), "run `python tools/build_cli_docs.py`"


def test_every_example_names_a_command_that_exists() -> None:
    known = {" ".join(path) for path in command_paths()}
    lines = [line for language in ("console", "sh") for block in blocks(language) for line in block.splitlines()]
    used = [match[1] for line in lines for match in re.finditer(r"(?:^|\| |\$ )commonweight ((?:[a-z]+ ?)+)", line)]
    assert used
    for words in used:
        assert any(words.strip().startswith(path) for path in known), words


def test_the_page_s_configuration_is_accepted(tmp_path: Path) -> None:
    from commonweight.cli.lazy import options_of
    from commonweight.config import defaults_for

    (block,) = blocks("toml")
    (tmp_path / "c.toml").write_text(block)
    config, names = load_config(tmp_path / "c.toml"), [mount.name for mount in MOUNTS]
    for mount in MOUNTS:
        if mount.module.startswith("commonweight.cli."):
            defaults_for(config, mount.name, options_of(mount.load()), names)


@pytest.mark.parametrize("path", [path for path in command_paths() if path[0] in OURS])
def test_each_command_tells_a_newcomer_what_it_does(path: tuple[str, ...]) -> None:
    text = help_of(path)
    if not any(other[:-1] == path for other in command_paths()):  # no group
        assert "Example" in text
        assert f"commonweight {' '.join(path)}" in text.partition("Example")[2]
        assert re.search(r"print|list|show", text, re.IGNORECASE)


def test_every_exit_code_is_documented() -> None:
    from commonweight import errors
    from commonweight.cli.main import EXIT_BUG, EXIT_INTERRUPTED

    ours = {each.exit_code for each in vars(errors).values() if hasattr(each, "exit_code")}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)}
    assert listed == ours | {0, EXIT_BUG, EXIT_INTERRUPTED}


def test_every_short_variable_is_documented() -> None:
    listed = set(re.findall(r"^\| `(COMMONWEIGHT_\w+)`", TEXT, re.MULTILINE)) | {"COMMONWEIGHT_CONFIG"}
    own = [path for path in command_paths() if path[0] in OURS]
    # Help breaks lines, so words are joined before looking.
    shown = {name for path in own for name in re.findall(r"env var: (\w+)", " ".join(help_of(path).split()))}
    assert shown <= listed
