"""The node's one secp256k1 key at rest: Ethereum keystore v3 files, passwords, and the devnet's well-known
keys.

Format: Web3 Secret Storage
(ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage), with scrypt. Files made
here open in geth, clef and foundry's `cast`, and the other way round.
"""

import contextlib
import getpass
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commonweight.disk import sync
from commonweight.errors import KeyStoreError

if TYPE_CHECKING:  # eth_account takes half a second to import
    from eth_account.signers.local import LocalAccount

SCRYPT_N = 2**18
"""Cost of unlocking a key: 0.6 s and 256 MiB."""
SCRYPT_N_DEVNET = 2**14
"""For keys that guard nothing: 40 ms."""
DEVNET_MNEMONIC = "test test test test test test test test test test test junk"
PASSWORD_VARIABLE = "COMMONWEIGHT_PASSWORD"  # noqa: S105 - the name, not the password

_MAX_FILE_BYTES = 64 << 10
_MAX_SCRYPT_MEMORY = 1 << 30
_MAX_PBKDF2_ITERATIONS = 10_000_000
_SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@dataclass(frozen=True, repr=False)
class Key:
    """A secp256k1 key and its Ethereum address. Neither `repr`, `str` nor an error message shows the secret."""

    secret: bytes
    """32 bytes, between 1 and the curve's order."""

    def __post_init__(self) -> None:
        if len(self.secret) != 32 or not 0 < int.from_bytes(self.secret, "big") < _SECP256K1_ORDER:
            raise KeyStoreError("a secp256k1 key is a number of 32 bytes between 1 and the order of the curve")

    def __repr__(self) -> str:
        return f"Key({self.address})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Key is not pickled: hand its file and password to the other process")

    @property
    def address(self) -> str:
        """Checksummed (EIP-55)."""
        return str(self.account.address)

    @cached_property
    def account(self) -> "LocalAccount":
        """The same key as eth_account signs with."""
        from eth_account import Account

        account: LocalAccount = Account.from_key(self.secret)
        return account

    def sign_digest(self, digest: bytes) -> bytes:
        """r ‖ s ‖ v over a 32-byte digest: 65 bytes, v 27 or 28."""
        return bytes(self.account.unsafe_sign_hash(digest).signature)  # type: ignore[arg-type]


def create_key(path: Path, password: str, *, scrypt_n: int = SCRYPT_N) -> Key:
    """Makes a random key and keeps it in a new file at `path`. Raises KeyStoreError."""
    secret = secrets.token_bytes(32)
    while not 0 < int.from_bytes(secret, "big") < _SECP256K1_ORDER:  # once in 2^128
        secret = secrets.token_bytes(32)
    return import_key(path, password, secret, scrypt_n=scrypt_n)


def import_key(path: Path, password: str, secret: bytes, *, scrypt_n: int = SCRYPT_N) -> Key:
    """Keeps `secret` (32 bytes) in a new file at `path`, mode 0600, that was read back and decrypted before
    it got its name.

    Never overwrites: raises KeyStoreError where there is a file already, for an empty password, a secret that
    is no key, and a disk that won't take it.
    """
    from eth_keyfile.keyfile import create_keyfile_json

    key = Key(secret)
    if not password:
        raise KeyStoreError("the password of a key can't be empty")
    if path.exists():
        raise KeyStoreError(f"{path} exists; a key is never overwritten: move it away or choose another name")
    keystore = create_keyfile_json(secret, password.encode(), kdf="scrypt", iterations=scrypt_n)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(keystore, file)
            file.flush()
            os.fsync(file.fileno())
        if load_key(temporary, password).secret != secret:
            raise KeyStoreError(f"{path} read back as another key than was written: check the disk")
        _link_new(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise KeyStoreError(f"can't write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return key


def load_key(path: Path, password: str) -> Key:
    """Decrypts the key at `path`. Raises KeyStoreError: missing, readable by others, malformed or another
    password.
    """
    from eth_keyfile.keyfile import decode_keyfile_json

    keystore = _read_keystore(path)
    _check_crypto(path, keystore)
    try:
        key = Key(bytes(decode_keyfile_json(keystore, password.encode())))
    except ValueError as error:
        if "mac" in str(error).lower():
            raise KeyStoreError(f"wrong password for {path} (address {keystore.get('address', 'unknown')})") from None
        raise KeyStoreError(f"{path} is not a keystore v3 file: {error}") from error
    except (KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise KeyStoreError(f"{path} is not a keystore v3 file: {type(error).__name__}: {error}") from error
    stated = keystore.get("address")
    if stated is not None and _normal(stated) != _normal(key.address):
        raise KeyStoreError(f"{path} says address {stated} but holds the key of {key.address}: don't use it")
    return key


def read_address(path: Path) -> str:
    """The checksummed address that the file states; `load_key` proves it. Raises KeyStoreError."""
    from eth_utils.address import to_checksum_address

    stated = _read_keystore(path).get("address")
    if not isinstance(stated, str) or not re.fullmatch(r"(0x)?[0-9a-fA-F]{40}", stated):
        raise KeyStoreError(f"{path} states no address; unlock it with its password instead")
    return to_checksum_address("0x" + _normal(stated))


def read_password(
    password_file: Path | None = None,
    *,
    confirm: bool = False,
    prompt: str = "Password of the key: ",
    environment: Mapping[str, str] = os.environ,
    ask: Callable[[str], str] = getpass.getpass,
) -> str:
    """A password from `password_file`, else from $COMMONWEIGHT_PASSWORD, else from a prompt. Never from an
    argument.

    The file's last line break doesn't belong to the password. `confirm`, for a new key, asks twice. Raises
    KeyStoreError: unreadable file, empty password, two that differ, or no terminal to ask at.
    """
    if password_file is not None:
        text = _read_private(password_file, "password file")
        password = text.removesuffix("\n").removesuffix("\r")
        source = str(password_file)
    elif PASSWORD_VARIABLE in environment:
        password, source = environment[PASSWORD_VARIABLE], f"${PASSWORD_VARIABLE}"
    else:
        if ask is getpass.getpass and not sys.stdin.isatty():
            raise KeyStoreError(f"no terminal to ask for the password: give --password-file or set {PASSWORD_VARIABLE}")
        password, source = ask(prompt), "the prompt"
        if confirm and ask("The same again: ") != password:
            raise KeyStoreError("the two passwords differ; nothing was written")
    if not password:
        raise KeyStoreError(f"the password from {source} is empty")
    return password


@cache
def devnet_key(index: int) -> Key:
    """Account `index` of the mnemonic that every Ethereum tool knows, as anvil and hardhat fund it.

    Public knowledge: whatever lies there on a real network is taken at once.
    """
    from eth_account.hdaccount import key_from_seed

    if index < 0:
        raise KeyStoreError(f"devnet accounts are counted from 0, not {index}")
    return Key(bytes(key_from_seed(_devnet_seed(), f"m/44'/60'/0'/0/{index}")))


@cache
def _devnet_seed() -> bytes:
    from eth_account.hdaccount import seed_from_mnemonic

    return bytes(seed_from_mnemonic(DEVNET_MNEMONIC, ""))


def _read_keystore(path: Path) -> dict[str, Any]:
    text = _read_private(path, "key file")
    try:
        keystore = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeyStoreError(f"{path} is not a keystore v3 file: it isn't JSON") from error
    # Some tools write "Crypto".
    if isinstance(keystore, dict) and "crypto" not in keystore and "Crypto" in keystore:
        keystore["crypto"] = keystore.pop("Crypto")
    if not isinstance(keystore, dict) or keystore.get("version") != 3:
        raise KeyStoreError(f'{path} is not a keystore v3 file: it has no "version": 3')
    if not isinstance(keystore.get("crypto"), dict):
        raise KeyStoreError(f'{path} is not a keystore v3 file: it has no "crypto" object')
    return keystore


def _check_crypto(path: Path, keystore: Mapping[str, Any]) -> None:
    """Refuses another cipher, and a file that would take more memory or time to unlock than any honest one."""
    crypto = keystore["crypto"]
    if crypto.get("cipher") != "aes-128-ctr":  # eth_keyfile doesn't look
        raise KeyStoreError(f"{path} is encrypted with {crypto.get('cipher')!r:.40}, not with aes-128-ctr")
    cost = crypto.get("kdfparams")
    if not isinstance(cost, dict):
        raise KeyStoreError(f'{path} is not a keystore v3 file: it has no "kdfparams"')
    numbers = {name: cost[name] for name in ("n", "r", "p", "c") if name in cost}
    if any(not isinstance(value, int) or value <= 0 for value in numbers.values()):
        raise KeyStoreError(f"{path} is not a keystore v3 file: its kdfparams are {numbers}")
    memory = 128 * numbers.get("n", 1) * numbers.get("r", 1)
    too_slow = numbers.get("p", 1) > 16 or numbers.get("c", 1) > _MAX_PBKDF2_ITERATIONS
    if memory > _MAX_SCRYPT_MEMORY or too_slow:
        raise KeyStoreError(f"{path} asks for {memory >> 20} MiB or too much time to unlock ({numbers}): refused")


def _read_private(path: Path, what: str) -> str:
    """The text of a small file that only its owner may read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyStoreError(f"the {what} {path} is not a regular file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyStoreError(
                    f"the {what} {path} has mode {mode:04o}, others can read it: run `chmod 600 {path}`"
                )
            content = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise KeyStoreError(f"there is no {what} at {path}") from error
    except OSError as error:
        raise KeyStoreError(f"can't read the {what} {path}: {error.strerror or error}") from error
    if len(content) > _MAX_FILE_BYTES:
        raise KeyStoreError(f"the {what} {path} has more than {_MAX_FILE_BYTES >> 10} KiB; it isn't one")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise KeyStoreError(f"the {what} {path} is not UTF-8 text") from error


def _link_new(temporary: Path, path: Path) -> None:
    """Gives the file its name; unlike a rename, fails where there is a file."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise KeyStoreError(f"{path} exists; a key is never overwritten") from error


def _normal(address: str) -> str:
    return str(address).lower().removeprefix("0x")
