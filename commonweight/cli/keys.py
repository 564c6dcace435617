"""`commonweight keys`: the one key of a node or an owner, kept in an encrypted file."""

import getpass
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from commonweight.cli.options import JsonOption, PasswordFileOption
from commonweight.cli.output import print_fields, print_json
from commonweight.errors import KeyStoreError

app = typer.Typer(no_args_is_help=True)

NewFile = Annotated[Path, typer.Argument(metavar="FILE", help="The key file to write. Never overwritten.")]
KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The key file.")]


@app.callback()
def keys() -> None:
    """Create, import and show keys.

    A key is the identity of a node or an owner: its address holds shares on the chain, its PeerId is how other nodes
    know it, and it signs both. It is kept in an encrypted file (Ethereum keystore v3, which geth, clef and cast open,
    too). Only the file together with its password can restore it: keep a copy of both.

    The password is asked for, or comes from --password-file, or from COMMONWEIGHT_PASSWORD. It is never an argument,
    because arguments are visible to every user of the machine.
    """


@app.command("new")
def new(file: NewFile, password_file: PasswordFileOption = None, as_json: JsonOption = False) -> None:
    """Create a key in a new file.

    Asks twice for a password, encrypts the key with it, reads the file back, and prints the address, the PeerId and
    the file. Never overwrites a file.

    \b
    Example:
      commonweight keys new owner.json
    """
    from commonweight.chain.keys import create_key, read_password

    _refuse_existing(file)
    key = create_key(file, read_password(password_file, confirm=True, prompt="Password for the new key: "))
    _print_key(file, key.address, _peer_id(key.secret), as_json)
    _advise(file)


@app.command("import")
def import_(file: NewFile, password_file: PasswordFileOption = None, as_json: JsonOption = False) -> None:
    """Keep a key that you have elsewhere in a new file.

    Asks for the secret, 64 hexadecimal digits, and twice for a password; without a terminal it reads the secret from
    standard input. Prints the address, the PeerId and the file. Never overwrites a file.

    \b
    Example:
      commonweight keys import owner.json
    """
    from commonweight.chain.keys import import_key, read_password

    _refuse_existing(file)
    secret = _read_secret()
    key = import_key(file, read_password(password_file, confirm=True, prompt="Password for the file: "), secret)
    _print_key(file, key.address, _peer_id(key.secret), as_json)
    _advise(file)


@app.command("show")
def show(
    file: KeyFile,
    unlock: Annotated[
        bool, typer.Option("--unlock", help="Ask for the password, prove the address and print the PeerId.")
    ] = False,
    password_file: PasswordFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the address of a key file.

    Needs no password: the address stands in the file as it is. The PeerId follows from the key itself, so it is
    printed only with --unlock (or --password-file), which also proves that the file holds the key of this address.
    The secret is never printed.

    \b
    Example:
      commonweight keys show owner.json
    """
    from commonweight.chain.keys import load_key, read_address, read_password

    if unlock or password_file is not None:
        key = load_key(file, read_password(password_file))
        _print_key(file, key.address, _peer_id(key.secret), as_json)
    else:
        _print_key(file, read_address(file), None, as_json)


def _refuse_existing(file: Path) -> None:
    """Before anybody types a password for nothing; `create_key` makes sure."""
    if file.exists():
        raise KeyStoreError(f"{file} exists; a key is never overwritten: move it away or choose another name.")


def _read_secret() -> bytes:
    typed = (
        getpass.getpass("Secret (64 hexadecimal digits, not shown): ") if sys.stdin.isatty() else sys.stdin.readline()
    )
    digits = typed.strip().removeprefix("0x")
    if not re.fullmatch("[0-9a-fA-F]{64}", digits):
        raise KeyStoreError(
            f"A secret has 64 hexadecimal digits, with or without 0x; {len(digits)} characters were given."
        )
    return bytes.fromhex(digits)


def _peer_id(secret: bytes) -> str:
    from commonweight.identity import NodeIdentity

    return NodeIdentity(secret).peer_id


def _print_key(file: Path, address: str, peer_id: str | None, as_json: bool) -> None:
    fields = {"address": address, "peer_id": peer_id, "file": str(file)}
    if as_json:
        print_json(fields)
    else:
        print_fields({name.replace("_", " "): value for name, value in fields.items() if value is not None})


def _advise(file: Path) -> None:
    typer.echo(f"Keep a copy of {file} and of its password: nobody else can restore this key.", err=True)
