"""`commonweight watch`."""

from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import DirOption, ModelOption, PasswordFileOption, RegistryOption, RpcOption

app = typer.Typer()


@app.command("watch")
def watch(
    spec: Annotated[
        Path | None, typer.Option("--spec", help="The model's spec as JSON; that of --dir if not given.")
    ] = None,
    statements: Annotated[
        Path, typer.Option("--statements", help="Folder in which to keep every statement that was checked.")
    ] = Path("statements"),
    mirror: Annotated[
        list[str] | None,
        typer.Option("--mirror", help="URL of a node or coordinator that may have statements; repeat."),
    ] = None,
    http: Annotated[
        str | None, typer.Option("--http", help="host:port on which to serve the kept statements to anyone.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="Key file that challenges and posts the bond; without one faults are only told."),
    ] = None,
    password_file: PasswordFileOption = None,
    once: Annotated[
        bool, typer.Option("--once", help="Check what is on chain now, and end.", allow_from_autoenv=False)
    ] = False,
    rpc: RpcOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    dir: DirOption = None,
) -> None:
    """Recompute every proposed epoch from its public statement, and challenge a wrong one.

    Follows the chain until it is stopped. An epoch whose statement nobody serves is challenged, too, when a quarter of
    its window is left. Tells each proposal to slash a seat, too. Its events are JSON lines on stdout: epoch.checked,
    epoch.disputed, epoch.challenged, slash.seen.

    \b
    Examples:
      commonweight watch --dir runs/first --key watcher.json
      commonweight watch --dir runs/first --once
    """

    from contextlib import AsyncExitStack

    from commonweight.chain.keys import load_key, read_password
    from commonweight.chain.sender import Sender
    from commonweight.cli.place import find_place, read_deployments
    from commonweight.errors import ConfigError, SpecError
    from commonweight.events import emit, log_to_stdout
    from commonweight.http import serving_http
    from commonweight.rules.spec import parse_spec
    from commonweight.runtime import run_until_stopped
    from commonweight.watch.store import StatementStore
    from commonweight.watch.watcher import Watcher

    place = find_place(rpc, registry, model, dir)
    path = spec or (Path(read_deployments(dir)["spec"]) if dir is not None else None)
    if path is None:
        raise ConfigError(
            "Statements are checked against the model's spec: give --spec FILE, or --dir DIR of a devnet."
        )
    try:
        parsed = parse_spec(path.read_bytes())
    except OSError as error:
        raise SpecError(f"The spec {path} can't be read: {error.strerror}.") from error
    if parsed.spec_hash != place.model.spec_hash:
        raise SpecError(
            f"{path} hashes to 0x{parsed.spec_hash.hex()}; the model was registered with "
            f"0x{place.model.spec_hash.hex()}. Give the spec that was registered."
        )
    sender = None
    if key is not None:
        sender = Sender(place.chain, load_key(key, read_password(password_file, prompt=f"Password of {key}: ")))
    store = StatementStore(statements)
    watcher = Watcher(parsed, place.chain, place.model, store, tuple(mirror or ()), sender)
    if once:
        log_to_stdout()
        watcher.look_for_slashes()
        watcher.step()
        return

    async def follow() -> None:
        emit("watch.started", model_id=place.model_id, challenger=sender.address if sender else None)
        async with AsyncExitStack() as stack:
            if http is not None:
                address = await stack.enter_async_context(serving_http(store.app(), http))
                emit("statements.served", address=address)
            await watcher.run()

    run_until_stopped(follow())
