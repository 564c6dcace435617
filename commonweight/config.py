"""Options from a TOML file: they stand below flags and COMMONWEIGHT_* variables, above built-in defaults.

    rpc = "https://rpc.example"        # for every command that has --rpc

    [ownership.show]                   # for `commonweight ownership show` alone
    statements = "/srv/statements"

A table is named like a command, a key like an option without its dashes. What stands in an outer table holds for all
commands inside, unless an inner one says otherwise. A name that fits nothing is refused: a typing mistake that is
silently ignored costs an operator an epoch.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from commonweight.errors import ConfigError

SHARED = frozenset({"model", "registry", "rpc"})
"""The keys that may stand at the top of the file, outside of every table: they mean the same to each command."""

Tree = Mapping[str, "str | Tree"]
"""A command's options (name without dashes → name of the parameter) and, in a group, its commands by name."""


def load_config(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it is missing or isn't TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration file {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from error


def defaults_for(config: Mapping[str, Any], command: str, tree: Tree, commands: Collection[str]) -> dict[str, Any]:
    """What `config` says about `command` and the commands inside it: parameter → value, nested like `tree`.

    `commands` are the names of all root commands: tables of others than `command` are left unread. Raises ConfigError
    for a name that fits nothing.
    """
    _refuse_unknown(config, {*SHARED, *commands}, where="")
    inherited = {_plain(key): value for key, value in config.items() if key not in commands}
    return _defaults(_table(config, command, where=""), tree, inherited, where=command)


def _defaults(table: Mapping[str, Any], tree: Tree, inherited: Mapping[str, Any], where: str) -> dict[str, Any]:
    subcommands = {name for name, target in tree.items() if not isinstance(target, str)}
    _refuse_unknown(table, {*_option_names(tree), *subcommands}, where)
    values = {**inherited, **{_plain(key): value for key, value in table.items() if key not in subcommands}}
    found: dict[str, Any] = {}
    for name, target in tree.items():
        if not isinstance(target, str):
            found[name] = _defaults(_table(table, name, where), target, values, f"{where}.{name}")
        elif name in values:
            found[target] = values[name]
    return found


def _option_names(tree: Tree) -> Iterator[str]:
    """Of the command and of all commands inside it: these are what its table may set."""
    for name, target in tree.items():
        if isinstance(target, str):
            yield name
        else:
            yield from _option_names(target)


def _table(table: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    inner = table.get(name, {})
    if not isinstance(inner, dict):
        raise ConfigError(
            f"{_path(where, name)} = {inner!r} in the configuration file must be a table: it is a command."
        )
    return inner


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in table:
        if key not in known and _plain(key) not in known:
            guess = get_close_matches(_plain(key), known, 1)
            hint = f"Did you mean {guess[0]!r}?" if guess else f"Known here: {', '.join(sorted(known))}."
            if not where:
                hint += " Options of one command stand in its table, such as [claim]."
            raise ConfigError(f"{_path(where, key)} in the configuration file is no option or command. {hint}")


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _plain(key: str) -> str:
    return key.replace("_", "-")
