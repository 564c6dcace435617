"""Writes the reference in docs/cli.md: the help of every command, as it is printed. Run it when a command changes."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.testing import CliRunner

from commonweight.cli.main import MOUNTS, app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
BEGIN = "Written by `python tools/build_cli_docs.py`.\n"


def command_paths() -> list[tuple[str, ...]]:
    """The words of every command, groups first: ("keys",), ("keys", "new")…; a role that isn't there is left out."""
    return [path for mount in MOUNTS if find_spec(mount.module) for path in _walk(mount.load(), (mount.name,))]


def help_of(path: tuple[str, ...]) -> str:
    """What `commonweight … --help` prints, at a width of 80."""
    result = CliRunner().invoke(app, [*path, "--help"], prog_name="commonweight", env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def reference() -> str:
    """The page's part after `BEGIN`."""
    sections = ((" ".join(("commonweight", *path)), help_of(path)) for path in [(), *command_paths()])
    return "".join(f"\n### `{title}`\n\n```text\n{text}\n```\n" for title, text in sections)


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            if not inner.hidden:
                yield from _walk(inner, (*path, name))


def main() -> None:
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert mark, f"{PAGE} has lost its line {BEGIN!r}"
    PAGE.write_text(head + mark + reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
