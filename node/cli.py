"""`commonweight node …`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import BootstrapOption, MdnsOption, P2pListenOption, PskFileOption

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run a compute-provider node."""


@app.command()
def run(
    context: typer.Context,
    key: Annotated[Path, typer.Option(help="Keystore file of the node's key: its identity. See `keys new`.")],
    dir: Annotated[Path, typer.Option(help="Folder for the checkpoints of this node's stage.")],
    coordinator: Annotated[
        str | None,
        typer.Option(
            help="Where to enrol: PEERID@HOST:PORT, as the coordinator prints it. Or it is found: --bootstrap."
        ),
    ] = None,
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = False,
    p2p_listen: P2pListenOption = None,
    psk_file: PskFileOption = None,
    relayed: Annotated[
        bool,
        typer.Option("--relayed", help="Be reached through the --bootstrap peers, which relay: behind a NAT."),
    ] = False,
    model_id: Annotated[
        str | None, typer.Option(help="Id of the model to work for, 0x and 64 digits; with --bootstrap.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the packed text; the first stage needs it.")] = None,
    listen: Annotated[
        str, typer.Option(help="host:port for neighbouring stages; port 0 takes a free one.")
    ] = "127.0.0.1:0",
    advertise: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help="By which they reach it, if that is another host, or another port of a router that forwards it. The "
            "host is that of all services.",
        ),
    ] = None,
    payout: Annotated[
        str | None, typer.Option(help="Account that is paid for the work. Default: the node's own.")
    ] = None,
    password_file: Annotated[Path | None, typer.Option(help="File with the key's password.")] = None,
    device: Annotated[str, typer.Option(help="As torch names it: cpu, cuda:0.")] = "cpu",
    compile_stage: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Have torch.compile make one program of the stage: half a minute later it trains faster, with bits of "
            "its own. All replicas of a stage must do so, or none. Needs a C++ compiler.",
        ),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Compute threads.")] = 1,
    serve_listen: Annotated[
        str | None,
        typer.Option(help="host:port for generation. Default: the host of --listen with a free port."),
    ] = None,
    serve_advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="The same of --serve-listen. Default: the host of --advertise."),
    ] = None,
    evidence_listen: Annotated[
        str | None,
        typer.Option(help="host:port for auditors. Default: the host of --listen with a free port."),
    ] = None,
    evidence_advertise: Annotated[
        str | None,
        typer.Option(metavar="HOST[:PORT]", help="The same of --evidence-listen. Default: the host of --advertise."),
    ] = None,
    serve_mib: Annotated[
        int, typer.Option(min=1, max=1 << 20, help="Memory for all sequences that are generated at a time.")
    ] = 256,
    stay: Annotated[
        bool,
        typer.Option("--stay", help="Refuse to move to another stage, also where the model would train faster for it."),
    ] = False,
    rpc: Annotated[
        str | None,
        typer.Option(help="JSON-RPC endpoint of the chain: recompute every epoch, and challenge a wrong one."),
    ] = None,
    registry: Annotated[str | None, typer.Option(help="Address of the ModelRegistry; goes with --rpc.")] = None,
    mirror: Annotated[
        list[str] | None,
        typer.Option(help="URL of a node or coordinator that may have statements; repeat. With --rpc."),
    ] = None,
    http: Annotated[
        str | None, typer.Option(help="host:port on which to serve the checked statements to anyone; with --rpc.")
    ] = None,
    contest: Annotated[
        bool,
        typer.Option(
            "--contest",
            help="Contest whatever is proposed to slash the owner's seats, with the bond from --key's account: half of "
            "it comes on top if the arbiter rejects the slash, all is lost if it upholds it, as it will for a node "
            "that was rightly convicted. With --rpc.",
        ),
    ] = False,
) -> None:
    """Join a coordinator, hold the stage that it assigns, train it and generate with it.

    The node keeps its stage: stopped or killed, it goes on from its last checkpoint when it is started again with the
    same key. Where another stage holds up the model, and its owner may hold that one, too, it may be asked to move
    there: see --stay. Its events are JSON lines on stdout (readable lines on a terminal). It ends when training is
    complete.

    The coordinator is given, or found, wherever it is and moves: a bootstrap peer's address, the chain and the model's
    id are enough.
    """
    from dataclasses import replace

    from eth_utils.address import is_address, to_checksum_address

    from commonweight.chain.keys import load_key, read_password
    from commonweight.errors import ConfigError
    from commonweight.identity import NodeIdentity
    from commonweight.locating import read_coordinator
    from commonweight.peers.config import read_peers_config
    from commonweight.runtime import run_until_stopped
    from commonweight.wire.channel import check_advertised, join_address, split_address, split_advertised
    from node.config import NodeConfig
    from node.control import Node
    from node.watching import WatchConfig

    listen_host = split_address(listen)[0]
    host = None if advertise is None else split_advertised(advertise)[0]
    free_port = join_address(listen_host, 0)
    serve_listen, evidence_listen = serve_listen or free_port, evidence_listen or free_port
    serve_advertise, evidence_advertise = serve_advertise or host, evidence_advertise or host
    for where, reached in (
        (listen, advertise),
        (serve_listen, serve_advertise),
        (evidence_listen, evidence_advertise),
    ):
        check_advertised(where, None if reached is None else split_advertised(reached)[0])
    peers = read_peers_config(bootstrap, mdns, p2p_listen, psk_file, listen_host, host)
    if relayed:
        if peers is None or not peers.bootstrap:
            raise ConfigError("--relayed goes with --bootstrap MULTIADDR, of peers that run with --relay.")
        peers = replace(peers, relayed=True)
    work_for = read_coordinator(coordinator, peers, rpc, registry, model_id)
    if (rpc is None) != (registry is None) or ((http is not None or contest) and rpc is None):
        raise ConfigError(
            "To watch the chain a node needs both --rpc URL and --registry ADDRESS; --http and --contest go with them."
        )
    if registry is not None and not is_address(registry):
        raise ConfigError(f"--registry {registry!r} is not an address: 0x and 40 hexadecimal digits.")
    if payout is not None and not is_address(payout):
        raise ConfigError(f"--payout {payout!r} is not an address: 0x and 40 hexadecimal digits.")
    unlocked = load_key(key, read_password(password_file))
    identity = NodeIdentity(unlocked.secret)
    config = NodeConfig(
        identity=identity,
        coordinator=work_for,
        directory=dir,
        data=data,
        listen=listen,
        advertise=advertise,
        payout=to_checksum_address(payout) if payout else identity.address,
        device=device,
        compiles=compile_stage,
        threads=threads,
        decode_listen=serve_listen,
        decode_advertise=serve_advertise,
        evidence_listen=evidence_listen,
        evidence_advertise=evidence_advertise,
        cache_bytes=serve_mib << 20,
        stays=stay,
        watch=None
        if rpc is None or registry is None
        else WatchConfig(rpc, registry, unlocked, tuple(mirror or ()), http, contest),
    )
    make: Callable[[NodeConfig], Node] = context.obj or Node
    node = make(config)
    run_until_stopped(node.run(), node.leave)
