"""The command lines of a devnet's processes: those that anyone would type, with this Python."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from commonweight.devnet.accounts import key_file, password_file
from commonweight.devnet.byzantine import Cheating
from commonweight.devnet.deployment import USD, Deployment
from commonweight.devnet.folder import RunFolder
from commonweight.devnet.options import DevnetOptions

ANY_PORT = "127.0.0.1:0"
ADVERTISE = {"data": "--advertise", "decode": "--serve-advertise", "evidence": "--evidence-advertise"}
"""A node's options, by service."""
PRICE_PROMPT, PRICE_COMPLETION = 20 * USD, 100 * USD
"""Of a million tokens, in base units of play money."""
PROMPTS = ("import ", "def __init__(self", "class ", "    return ", "for i in range(")
"""What a model of Python's library might know how to go on from."""


def pack_command(folder: RunFolder) -> list[str]:
    """Packs the corpus."""
    return [sys.executable, "-m", "commonweight.devnet.pack", str(folder.data)]


def coordinator_command(
    folder: RunFolder, options: DevnetOptions, deployment: Deployment, members: Sequence[str], gateway: str
) -> list[str]:
    """Leads the model; only `members` (addresses) may train and audit, and `gateway` may sell."""
    command = [
        *(*_commonweight("coordinator", "run"), "--spec", str(folder.spec), "--ledger", folder.ledger),
        *(*_key(folder.keys, "coordinator"), "--listen", ANY_PORT),
        *("--rpc", deployment.rpc_url, "--chain-id", str(deployment.chain_id)),
        *("--model-id", deployment.model_id, "--registry", deployment.registry),
        *("--statements", str(folder.statements), "--http", ANY_PORT, "--gateway", gateway),
        *("--data", str(folder.data)),
    ]
    if options.until_epoch is not None:
        command += ["--until-epoch", str(options.until_epoch)]
    for address in members:
        command += ["--allow", address]
    return command


def node_command(
    folder: RunFolder,
    deployment: Deployment,
    name: str,
    coordinator: str,
    cheating: Cheating | None,
    front: Mapping[str, str] | None = None,
) -> list[str]:
    """Holds one stage, and watches the epochs. `coordinator`: PeerId@host:port. `cheating`: how, if it does. `front`:
    where others reach each of its services, if not where they listen.
    """
    cheats = (sys.executable, "-m", "adversary", str(cheating))
    return [
        *(_commonweight("node", "run") if cheating is None else cheats),
        *("--coordinator", coordinator, *_key(folder.keys, name)),
        *("--dir", str(folder.node(name)), "--data", str(folder.data), "--listen", ANY_PORT, "--threads", "1"),
        *("--rpc", deployment.rpc_url, "--registry", deployment.registry, "--http", ANY_PORT),
        *(word for service, address in (front or {}).items() for word in (ADVERTISE[service], address)),
    ]


def auditor_command(folder: RunFolder, name: str, coordinator: str, cheating: Cheating | None) -> list[str]:
    """Audits the stage in which its account holds a seat. `cheating`: how, if it does."""
    cheats = (sys.executable, "-m", "adversary.auditor", str(cheating))
    return [
        *(_commonweight("auditor", "run") if cheating is None else cheats),
        *("--coordinator", coordinator, *_key(folder.keys, name)),
    ]


def gateway_command(folder: RunFolder, deployment: Deployment, coordinator: str) -> list[str]:
    """Sells answers."""
    return [
        *(*_commonweight("gateway", "run"), "--coordinator", coordinator, *_key(folder.keys, "gateway")),
        *("--rpc", deployment.rpc_url, "--chain-id", str(deployment.chain_id)),
        *("--model-id", deployment.model_id, "--registry", deployment.registry),
        *("--price-prompt", str(PRICE_PROMPT), "--price-completion", str(PRICE_COMPLETION)),
        *("--ledger", folder.gateway_ledger, "--listen", ANY_PORT),
    ]


def ask_command(folder: RunFolder, model: str, name: str, number: int) -> list[str]:
    """Buys one answer with the key of the buyer `name`."""
    return [
        *(*_commonweight("ask", model, PROMPTS[number % len(PROMPTS)], "--dir", str(folder.path)),),
        *(*_key(folder.keys, name), "--max-tokens", "48", "--temperature", "0.8", "--seed", str(number)),
        *("--max-cost", "0.01", "--yes", "--json"),
    ]


def _commonweight(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "commonweight", *words)


def _key(keys: Path, role: str) -> tuple[str, ...]:
    return ("--key", str(key_file(keys, role)), "--password-file", str(password_file(keys)))
