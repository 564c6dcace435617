"""`commonweight coordinator …`."""

from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import BootstrapOption, MdnsOption, P2pListenOption, PskFileOption

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Run the coordinator of a model."""


@app.command()
def run(
    spec: Annotated[Path, typer.Option(help="The model spec that was registered, as JSON.")],
    key: Annotated[Path, typer.Option(help="Keystore file of the coordinator's key; it pays for the gas.")],
    rpc: Annotated[str, typer.Option(help="JSON-RPC endpoint of the chain.")],
    chain_id: Annotated[int, typer.Option(min=1, help="Id of the chain that must be there.")],
    registry: Annotated[str, typer.Option(help="Address of the ModelRegistry.")],
    model_id: Annotated[str, typer.Option(help="Id of the model in the registry, 0x and 64 digits.")],
    statements: Annotated[Path, typer.Option(help="Folder in which to keep the epochs' statements.")],
    ledger: Annotated[
        str, typer.Option(help="SQLAlchemy URL of the ledger; one with a password belongs in the variable.")
    ] = "sqlite:///ledger.db",
    listen: Annotated[str, typer.Option(help="host:port where nodes enrol; port 0 takes a free one.")] = "127.0.0.1:0",
    control_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the nodes' control streams, on the same host; 0: a free one.")
    ] = 0,
    advertise: Annotated[str | None, typer.Option(help="Host by which nodes reach it, if another one.")] = None,
    http: Annotated[
        str, typer.Option(help="host:port on which statements are served to anyone; port 0 takes a free one.")
    ] = "127.0.0.1:0",
    statements_url: Annotated[
        str | None,
        typer.Option(help="Base URL that anyone reaches that service by, if --advertise and --http don't give it."),
    ] = None,
    confirmations: Annotated[
        int, typer.Option(min=0, max=10_000, help="Blocks on top of an epoch's finalisation before going on from it.")
    ] = 0,
    password_file: Annotated[Path | None, typer.Option(help="File with the key's password.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Address of a node that may take part; repeat. Default: any.")
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="Address of a gateway that may generate with the model; repeat.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the packed text; audits of the tokens need it, and are undecided without."),
    ] = None,
    referee_device: Annotated[str, typer.Option(help="For the audits, as torch names it: cpu, cuda:0.")] = "cpu",
    referee_threads: Annotated[int, typer.Option(min=1, max=1024, help="Compute threads of the audits.")] = 1,
    durable: Annotated[
        bool, typer.Option(help="Seal a round only when other providers keep pieces of the state that it led to.")
    ] = False,
    until_epoch: Annotated[int | None, typer.Option(min=1, help="End when this many epochs are final.")] = None,
    bootstrap: BootstrapOption = None,
    mdns: MdnsOption = False,
    p2p_listen: P2pListenOption = None,
    psk_file: PskFileOption = None,
) -> None:
    """Admit nodes, plan and seal rounds, have what is drawn of them replayed, settle epochs on the chain.

    The coordinator never receives an activation or a weight; its referee, a process of its own, fetches what an audit
    takes and forgets it. It keeps all that it must not forget in its ledger:
    killed at any moment, it goes on from there when it is started again with the same options. Its events are JSON
    lines on stdout; the first says where nodes reach it:

        commonweight node run --coordinator PEERID@HOST:PORT …

    With --bootstrap it announces itself, and nodes find it by the chain, wherever it listens.
    """
    from eth_utils.address import is_address, to_checksum_address

    from commonweight.chain.keys import load_key, read_password
    from commonweight.errors import ConfigError, SpecError
    from commonweight.peers.config import read_peers_config
    from commonweight.rules.spec import parse_spec
    from commonweight.runtime import run_until_stopped
    from commonweight.wire.channel import check_advertised, split_address
    from coordinator.run import CoordinatorConfig, run_coordinator

    for address in (registry, *(allow or ()), *(gateway or ())):
        if not is_address(address):
            raise ConfigError(f"{address!r} is not an address: 0x and 40 hexadecimal digits.")
    try:
        model = bytes.fromhex(model_id.removeprefix("0x"))
        text = spec.read_bytes()
    except ValueError as error:
        raise ConfigError(f"--model-id {model_id!r} is not hexadecimal.") from error
    except OSError as error:
        raise SpecError(f"The spec {spec} can't be read: {error.strerror}.") from error
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data} is no folder. Give the one that `commonweight data pack` has written.")
    if len(model) != 32:
        raise ConfigError(f"--model-id has {len(model)} bytes; a model's id has 32.")
    config = CoordinatorConfig(
        spec=parse_spec(text),
        key=load_key(key, read_password(password_file)),
        ledger_url=ledger,
        listen=listen,
        control_port=control_port,
        advertise=check_advertised(listen, advertise),
        rpc_url=rpc,
        chain_id=chain_id,
        registry=to_checksum_address(registry),
        model_id=model,
        statements=statements,
        http=http,
        statements_url=statements_url,
        confirmations=confirmations,
        allowed=frozenset(map(to_checksum_address, allow or ())),
        gateways=frozenset(map(to_checksum_address, gateway or ())),
        durable=durable,
        end_epoch=until_epoch,
        data=data,
        referee_device=referee_device,
        referee_threads=referee_threads,
        peers=read_peers_config(bootstrap, mdns, p2p_listen, psk_file, split_address(listen)[0], advertise),
    )
    run_until_stopped(run_coordinator(config))
