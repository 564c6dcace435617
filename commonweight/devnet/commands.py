"""The command lines of a devnet's processes: those that anyone would type, with this Python."""

import sys
from collections.abc import Sequence
from pathlib import Path

from commonweight.devnet.accounts import key_file, password_file
from commonweight.devnet.deployment import Deployment
from commonweight.devnet.folder import RunFolder
from commonweight.devnet.options import DevnetOptions

ANY_PORT = "127.0.0.1:0"


def pack_command(folder: RunFolder) -> list[str]:
    """Packs the corpus."""
    return [sys.executable, "-m", "commonweight.devnet.pack", str(folder.data)]


def coordinator_command(
    folder: RunFolder, options: DevnetOptions, deployment: Deployment, nodes: Sequence[str]
) -> list[str]:
    """Leads the model; only `nodes` (addresses) may take part."""
    command = [
        *(*_commonweight("coordinator", "run"), "--spec", str(folder.spec), "--ledger", folder.ledger),
        *(*_key(folder.keys, "coordinator"), "--listen", ANY_PORT),
        *("--rpc", deployment.rpc_url, "--chain-id", str(deployment.chain_id)),
        *("--model-id", deployment.model_id, "--registry", deployment.registry),
        *("--statements", str(folder.statements)),
    ]
    if options.until_epoch is not None:
        command += ["--until-epoch", str(options.until_epoch)]
    for address in nodes:
        command += ["--allow", address]
    return command


def node_command(folder: RunFolder, name: str, coordinator: str) -> list[str]:
    """Holds one stage. `coordinator`: PeerId@host:port."""
    return [
        *(*_commonweight("node", "run"), "--coordinator", coordinator, *_key(folder.keys, name)),
        *("--dir", str(folder.node(name)), "--data", str(folder.data), "--listen", ANY_PORT, "--threads", "1"),
    ]


def _commonweight(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "commonweight", *words)


def _key(keys: Path, role: str) -> tuple[str, ...]:
    return ("--key", str(key_file(keys, role)), "--password-file", str(password_file(keys)))
