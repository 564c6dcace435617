"""Options and arguments that several commands have: one name, one variable and one help text each."""

from pathlib import Path
from typing import Annotated

import typer

RpcOption = Annotated[
    str | None,
    typer.Option("--rpc", metavar="URL", envvar="COMMONWEIGHT_RPC", help="JSON-RPC endpoint of the chain."),
]
RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        metavar="ADDRESS",
        envvar="COMMONWEIGHT_REGISTRY",
        help="The ModelRegistry contract there.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="ID", envvar="COMMONWEIGHT_MODEL", help="The model's id in the registry, 0x…"),
]
DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        metavar="DIR",
        envvar="COMMONWEIGHT_DIR",
        help="Directory of a devnet: its deployments.json says what isn't given.",
    ),
]
StatementsOption = Annotated[
    str | None,
    typer.Option(
        "--statements",
        metavar="DIR|URL",
        envvar="COMMONWEIGHT_STATEMENTS",
        help="Look for epochs' statements here before the address recorded on the chain: a directory of "
        "<hash>.json, or a coordinator's or node's HTTP address.",
    ),
]
ALL = "all"
"""In the place of an amount: whatever is there."""
AmountArgument = Annotated[str, typer.Argument(metavar="AMOUNT", help="In whole tokens, such as 1000 or 0.5.")]
PayeeArgument = Annotated[
    str | None,
    typer.Argument(metavar="ADDRESS", help="The account to be paid; that of --key if not given.", show_default=False),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key", metavar="FILE", envvar="COMMONWEIGHT_KEY", help="The key file that sends, and pays for the gas."
    ),
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file",
        metavar="FILE",
        envvar="COMMONWEIGHT_PASSWORD_FILE",
        help="Read the key's password from this file, which only you may read.",
    ),
]
OwnKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        envvar="COMMONWEIGHT_KEY",
        help="The key file of the account, if ADDRESS isn't given. Its password isn't needed.",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would happen and what it would cost, and stop. Needs no password.",
        allow_from_autoenv=False,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Don't ask before sending.", allow_from_autoenv=False)]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print JSON for programs.", allow_from_autoenv=False),
]
BootstrapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bootstrap",
        metavar="MULTIADDR",
        help="libp2p address of a peer to begin with, as `peers bootstrap` prints it; repeat.",
    ),
]
MdnsOption = Annotated[bool, typer.Option("--mdns", help="Look for peers on the LAN, too, by multicast DNS.")]
P2pListenOption = Annotated[
    str | None,
    typer.Option(
        "--p2p-listen",
        metavar="MULTIADDR",
        help="Where libp2p listens: /ip4/HOST/tcp/PORT. Default: the host of --listen with a free port.",
    ),
]
PskFileOption = Annotated[
    Path | None,
    typer.Option(
        "--psk-file", metavar="FILE", help="Key of a private network, 64 hexadecimal digits: others aren't heard."
    ),
]
