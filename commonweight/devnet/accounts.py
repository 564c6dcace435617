"""Who is who on a devnet: accounts of the public mnemonic, and the key files of those that run a process."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from commonweight.chain.keys import SCRYPT_N_DEVNET, Key, devnet_key, import_key

FIXED = (
    "deployer",
    "coordinator",
    "designer",
    "data provider",
    "arbiter-0",
    "arbiter-1",
    "arbiter-2",
    "treasury",
    "gateway",
)
"""Roles of the first accounts, in order."""
FIRST_NODE = 10
PASSWORD = "devnet"  # noqa: S105 - of keys that everybody knows


@dataclass(frozen=True)
class Account:
    """An account and what it does here."""

    role: str
    """"deployer", "coordinator", …, "arbiter-0", …, "node-0", …, "auditor-0", …, "buyer-0", …"""
    key: Key

    @property
    def address(self) -> str:
        return self.key.address


def devnet_accounts(nodes: Iterable[str], buyers: int = 0, auditors: Iterable[str] = ()) -> dict[str, Account]:
    """All accounts of a devnet, by role; `nodes` and `auditors` are names. The first call imports eth_account: half a
    second.
    """
    roles = {role: index for index, role in enumerate(FIXED)}
    others = [*nodes]
    others += [buyer_name(index) for index in range(buyers)]
    others += auditors
    roles |= {role: FIRST_NODE + index for index, role in enumerate(others)}
    return {role: Account(role, devnet_key(index)) for role, index in roles.items()}


def node_name(stage: int, replica: int = 0) -> str:
    """Of a replica's process, its account and its folder; a stage's first one has the stage's number alone."""
    return f"node-{stage}-{replica}" if replica else f"node-{stage}"


def node_stages(stages: int, replicas: int = 1) -> dict[str, int]:
    """By the name of each provider's process, the stage in which it has its seat."""
    return {node_name(stage, replica): stage for replica in range(replicas) for stage in range(stages)}


def auditor_name(stage: int, index: int = 0) -> str:
    """Of the process of a stage's auditor and of its account; the first has its stage's number alone."""
    return f"auditor-{stage}-{index}" if index else f"auditor-{stage}"


def auditor_stages(stages: int, auditors: int) -> dict[str, int]:
    """Which stage each of so many auditors has its seat in, by its name: one in each, then a second, and so on."""
    return {auditor_name(number % stages, number // stages): number % stages for number in range(auditors)}


def buyer_name(index: int) -> str:
    """Of a buyer's process and its account."""
    return f"buyer-{index}"


def key_file(keys: Path, role: str) -> Path:
    """Where the key of a role that runs a process is kept."""
    return keys / f"{role}.json"


def password_file(keys: Path) -> Path:
    """Where their common password is."""
    return keys / "password.txt"


def write_keys(keys: Path, accounts: dict[str, Account]) -> None:
    """Key files for all who run a process or decide something, 0.1 s each, and the password file."""
    password = password_file(keys)
    password.touch(mode=0o600)
    password.write_text(PASSWORD + "\n")
    for role, account in accounts.items():
        if role in ("coordinator", "gateway") or role.startswith(("arbiter-", "node-", "auditor-", "buyer-")):
            import_key(key_file(keys, role), PASSWORD, account.key.secret, scrypt_n=SCRYPT_N_DEVNET)
