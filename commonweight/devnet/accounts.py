"""Who is who on a devnet: accounts of the public mnemonic, and the key files of those that run a process."""

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
    """"deployer", "coordinator", …, "arbiter-0", …, "node-0", …, "buyer-0", …"""
    key: Key

    @property
    def address(self) -> str:
        return self.key.address


def devnet_accounts(nodes: int, buyers: int = 0) -> dict[str, Account]:
    """All accounts of a devnet, by role. The first call imports eth_account: half a second."""
    last = FIRST_NODE + nodes
    roles = {role: index for index, role in enumerate(FIXED)}
    roles |= {node_name(index): FIRST_NODE + index for index in range(nodes)}
    roles |= {buyer_name(index): last + index for index in range(buyers)}
    return {role: Account(role, devnet_key(index)) for role, index in roles.items()}


def node_name(index: int) -> str:
    """Of a provider's process, its account and its folder."""
    return f"node-{index}"


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
        if role in ("coordinator", "gateway") or role.startswith(("arbiter-", "node-", "buyer-")):
            import_key(key_file(keys, role), PASSWORD, account.key.secret, scrypt_n=SCRYPT_N_DEVNET)
