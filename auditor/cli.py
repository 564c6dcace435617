"""`commonweight auditor …`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import BootstrapOption, MdnsOption, PskFileOption

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Audit a model's stages."""


@app.command()
def run(
    context: typer.Context,
    key: Annotated[
        Path, typer.Option(help="Keystore file of the auditor's key, which its owner has bound as a node's.")
    ],
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="Where to enrol: PEERID@HOST:PORT, as the coordinator prints it. Or it is found: --bootstrap."
        ),
    ] = None,
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = False,
    psk_file: PskFileOption = None,
    rpc: Annotated[str | None, typer.Option(help="JSON-RPC endpoint of the chain; with --bootstrap.")] = None,
    registry: Annotated[str | None, typer.Option(help="Address of the ModelRegistry; with --bootstrap.")] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Id of the model to audit, 0x and 64 digits; with --bootstrap.")
    ] = None,
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
    from commonweight.locating import read_coordinator
    from commonweight.peers.config import read_peers_config
    from commonweight.runtime import run_until_stopped

    peers = read_peers_config(bootstrap, mdns, None, psk_file, "127.0.0.1")
    work_for = read_coordinator(coordinator, peers, rpc, registry, model_id)
    config = AuditorConfig(
        identity=NodeIdentity(load_key(key, read_password(password_file)).secret),
        coordinator=work_for,
        device=device,
        threads=threads,
    )
    make: Callable[[AuditorConfig], Auditor] = context.obj or Auditor
    run_until_stopped(make(config).run())
