"""`commonweight auditor …`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Audit a model's stages."""


@app.command()
def run(
    context: typer.Context,
    coordinator: Annotated[str, typer.Option(help="Where to enrol: PEERID@HOST:PORT, as the coordinator prints it.")],
    key: Annotated[
        Path, typer.Option(help="Keystore file of the auditor's key, which its owner has bound as a node's.")
    ],
    password_file: Annotated[Path | None, typer.Option(help="File with the key's password.")] = None,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda:0.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Compute threads.")] = 1,
) -> None:
    """Replay what is drawn of the stages in which the key's owner has seats, and sign what comes of it.

    An opinion is paid as the work that it repeats, unless it turns out wrong: then the owner's seat is at stake. Use a
    key of its own, not one that trains. Its events are JSON lines on stdout (readable lines on a terminal). It keeps
    nothing on the disk, and ends when training is complete.
    """
    from auditor.control import Auditor, AuditorConfig
    from commonweight.chain.keys import load_key, read_password
    from commonweight.identity import NodeIdentity
    from commonweight.runtime import run_until_stopped
    from commonweight.wire.messages import split_peer

    split_peer(coordinator)
    config = AuditorConfig(
        identity=NodeIdentity(load_key(key, read_password(password_file)).secret),
        coordinator=coordinator,
        device=device,
        threads=threads,
    )
    make: Callable[[AuditorConfig], Auditor] = context.obj or Auditor
    run_until_stopped(make(config).run())
