"""`commonweight peers …`."""

from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import BootstrapOption, MdnsOption, PasswordFileOption, PskFileOption

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run a bootstrap peer, and show who is announced."""


@app.command()
def bootstrap(
    key: Annotated[Path, typer.Option(help="Keystore file of the peer's key: its address names it.")],
    listen: Annotated[
        str, typer.Option(metavar="MULTIADDR", help="Where it listens: /ip4/HOST/tcp/PORT; port 0 takes a free one.")
    ] = "/ip4/127.0.0.1/tcp/0",
    advertise: Annotated[str | None, typer.Option(help="Host by which others reach it, if another one.")] = None,
    join: Annotated[
        list[str] | None,
        typer.Option("--join", metavar="MULTIADDR", help="Another bootstrap peer to stay connected to; repeat."),
    ] = None,
    relay: Annotated[
        bool, typer.Option("--relay", help="Let peers behind a NAT be reached through this one, within limits.")
    ] = False,
    mdns: MdnsOption = False,
    psk_file: PskFileOption = None,
    password_file: PasswordFileOption = None,
) -> None:
    """Run a peer that others begin with: it passes announcements on, and tells who comes in what is announced.

    It decides nothing and holds no secret of anybody: announcements are signed by whom they are about. Run two, on
    different machines. Its events are JSON lines on stdout; `discovery.listening` has the address to give to others.

    \b
    Examples:
      commonweight peers bootstrap --key bootstrap.json --listen /ip4/0.0.0.0/tcp/4001 --advertise boot.example
    """
    from commonweight.chain.keys import load_key, read_password
    from commonweight.identity import NodeIdentity
    from commonweight.peers.address import parse_listen, parse_peer
    from commonweight.peers.config import PeersConfig, check_p2p_advertised, read_psk
    from commonweight.runtime import run_until_stopped

    config = PeersConfig(
        parse_listen(listen),
        tuple(map(parse_peer, join or ())),
        mdns,
        relay=relay,
        advertise=check_p2p_advertised(listen, advertise),
        psk=read_psk(psk_file),
    )
    identity = NodeIdentity(load_key(key, read_password(password_file)).secret)

    async def run() -> None:
        from commonweight.peers.discovery import Discovery

        discovery = Discovery(identity, config, confirms=True)
        await discovery.start()
        try:
            await discovery.run()
        finally:
            await discovery.stop()

    run_until_stopped(run())


@app.command("list")
def list_peers(
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = False,
    psk_file: PskFileOption = None,
    model_id: Annotated[str | None, typer.Option("--model-id", help="Only of this model: 0x and 64 digits.")] = None,
    timeout: Annotated[float, typer.Option(min=1, max=300, metavar="SECONDS", help="For peers to answer.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", allow_from_autoenv=False)] = False,
) -> None:
    """Show who is announced, where, and whether they are really there.

    Asks the bootstrap peers, with a key made for the occasion, and dials every announced address: it counts where the
    announced certificate is presented.

    \b
    Examples:
      commonweight peers list --bootstrap /ip4/203.0.113.7/tcp/4001/p2p/16Uiu2HA…
      commonweight peers list --mdns --json
    """
    import asyncio

    from commonweight.cli.output import print_json, print_table
    from commonweight.errors import ConfigError
    from commonweight.locating import parse_model_id
    from commonweight.peers.config import read_peers_config
    from commonweight.peers.listing import list_announced

    config = read_peers_config(bootstrap, mdns, None, psk_file, "127.0.0.1")
    if config is None:
        raise ConfigError("Nobody to ask: give --bootstrap MULTIADDR, or --mdns.")
    model = None if model_id is None else parse_model_id(model_id)
    found = asyncio.run(list_announced(config, model, timeout))
    if as_json:
        print_json({"announced": [line.to_json() for line in found]})
        return
    print_table(
        ("role", "model", "stage", "peer", "age", "reachable"),
        [
            (
                line.role,
                line.model_id[:10] + "…",
                "-" if line.stage is None else line.stage,
                line.peer,
                f"{line.age_s:.0f} s",
                "yes" if line.reachable else line.why,
            )
            for line in found
        ],
    )
