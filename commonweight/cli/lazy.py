"""A command group whose commands are imported when one of them is run, not when all are listed.

Listing, suggestions and the root's help use the short texts given here; `commonweight --help` thus imports neither
torch nor web3 nor grpc, and a provider's command never imports the coordinator.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from commonweight.config import Tree, defaults_for, load_config


@dataclass(frozen=True)
class Mount:
    """Where a command of the root is defined."""

    name: str
    module: str
    """Has a typer.Typer named `app`: the group itself, or with `single` the one command in it."""
    help: str
    """One line for the root's help."""
    single: bool = False

    def load(self) -> Any:
        """The command (a click command in typer's own copy of click). Imports the module."""
        group = get_group(import_module(self.module).app)
        command = group.commands[self.name] if self.single else group
        _prepare(command, f"COMMONWEIGHT_{self.name}")
        return command


class MountedCommand(TyperCommand):
    """Stands for a command in listings until it is run."""

    def __init__(self, mount: Mount) -> None:
        super().__init__(mount.name, help=mount.help, rich_markup_mode=None)
        self.mount = mount


class LazyGroup(TyperGroup):
    """A root group of mounted commands, which get the defaults that --config holds for them."""

    mounts: tuple[Mount, ...] = ()

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for mount in self.mounts:
            self.add_command(MountedCommand(mount))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that `args` begin with, imported, and its defaults in `ctx.default_map`."""
        name, command, rest = super().resolve_command(ctx, args)
        if not isinstance(command, MountedCommand):
            return name, command, rest
        loaded = command.mount.load()
        if not ctx.resilient_parsing and ctx.params.get("config") is not None:
            config = load_config(ctx.params["config"])
            ctx.default_map = {name: defaults_for(config, command.mount.name, options_of(loaded), self.commands)}
        return name, loaded, rest


def options_of(command: Any) -> Tree:
    """The options and commands of a click command, as `config.defaults_for` wants them."""
    tree: dict[str, str | Tree] = {
        opt.removeprefix("--"): param.name for param in command.params for opt in param.opts if opt.startswith("--")
    }
    if isinstance(command, TyperGroup):
        tree.update((name, options_of(inner)) for name, inner in command.commands.items())
    return tree


def _prepare(command: Any, prefix: str) -> None:
    """The same conventions for every command, whoever wrote it.

    Help is plain text: it is faster than boxes, and can be copied, piped and searched. Each option's variable is named
    after the option, not after the function's parameter; help mentions only variables that have a name of their own,
    because the root's help tells the rule for the others.
    """
    command.rich_markup_mode = None
    for param in command.params:
        if getattr(param, "allow_from_autoenv", False) and param.envvar is None:
            option = next((opt for opt in param.opts if opt.startswith("--")), param.name)
            param.envvar = f"{prefix}_{option.removeprefix('--')}".replace("-", "_").upper()
            param.show_envvar = False
    inner: Mapping[str, Any] = command.commands if isinstance(command, TyperGroup) else {}
    for name, each in inner.items():
        _prepare(each, f"{prefix}_{name}")
