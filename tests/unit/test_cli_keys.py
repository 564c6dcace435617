"""`commonweight keys`: what is written, what is shown, and what never is."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from commonweight.chain import keys as keystore
from commonweight.cli.keys import app
from commonweight.errors import KeyStoreError
from commonweight.identity import NodeIdentity, address_of

PASSWORD = "correct horse"
SECRET = "0x" + "4c" * 32

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs `keys` with cheap encryption and no password in the environment; raises what the command raised."""
    monkeypatch.delenv("COMMONWEIGHT_PASSWORD", raising=False)
    for name in ("create_key", "import_key"):
        # A test needn't take the 0.6 s that guard a real key.
        monkeypatch.setitem(getattr(keystore, name).__kwdefaults__, "scrypt_n", keystore.SCRYPT_N_DEVNET)

    def run(*arguments: object, input: str | None = None, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input, env=env)
        if isinstance(result.exception, KeyStoreError):
            raise result.exception
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert PASSWORD not in result.output
        assert SECRET[2:] not in result.output
        return result

    return run


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o600)
    return file


def test_a_new_key_is_encrypted_private_and_shown(run: Run, tmp_path: Path, password: Path) -> None:
    file = tmp_path / "owner.json"
    shown = json.loads(run("new", file, "--password-file", password, "--json").stdout)
    key = keystore.load_key(file, PASSWORD)
    assert shown == {"address": key.address, "peer_id": NodeIdentity(key.secret).peer_id, "file": str(file)}
    assert address_of(shown["peer_id"]) == shown["address"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_password_can_come_from_the_environment(run: Run, tmp_path: Path) -> None:
    result = run("new", tmp_path / "a.json", env={"COMMONWEIGHT_PASSWORD": PASSWORD})
    assert result.stdout.startswith("address  0x")
    assert "Keep a copy" in result.stderr
    keystore.load_key(tmp_path / "a.json", PASSWORD)


def test_a_key_is_never_overwritten(run: Run, tmp_path: Path, password: Path) -> None:
    file = tmp_path / "owner.json"
    run("new", file, "--password-file", password)
    before = file.read_bytes()
    for command in ("new", "import"):
        with pytest.raises(KeyStoreError, match="never overwritten"):
            run(command, file, "--password-file", password, input=SECRET + "\n")
    assert file.read_bytes() == before


def test_an_imported_key_is_that_key(run: Run, tmp_path: Path, password: Path) -> None:
    for name, text in (("a.json", SECRET), ("b.json", SECRET[2:].upper())):
        result = run("import", tmp_path / name, "--password-file", password, input=text + "\n")
        assert NodeIdentity(bytes.fromhex(SECRET[2:])).address in result.stdout
        assert keystore.load_key(tmp_path / name, PASSWORD).secret == bytes.fromhex(SECRET[2:])


@pytest.mark.parametrize("text", ["", "0x1234", SECRET + "00", "zz" * 32, "0x" + "00" * 32])
def test_what_is_no_secret_is_refused_without_repeating_it(run: Run, tmp_path: Path, password: Path, text: str) -> None:
    with pytest.raises(KeyStoreError) as caught:
        run("import", tmp_path / "a.json", "--password-file", password, input=text + "\n")
    assert not text or text not in str(caught.value)
    assert not (tmp_path / "a.json").exists()


def test_showing_the_address_needs_no_password(run: Run, tmp_path: Path, password: Path) -> None:
    run("import", tmp_path / "a.json", "--password-file", password, input=SECRET)
    shown = json.loads(run("show", tmp_path / "a.json", "--json").stdout)
    assert shown["address"] == NodeIdentity(bytes.fromhex(SECRET[2:])).address
    assert shown["peer_id"] is None


def test_unlocking_shows_the_peer_id(run: Run, tmp_path: Path, password: Path) -> None:
    run("import", tmp_path / "a.json", "--password-file", password, input=SECRET)
    peer_id = NodeIdentity(bytes.fromhex(SECRET[2:])).peer_id
    assert peer_id in run("show", tmp_path / "a.json", "--password-file", password).stdout
    assert peer_id in run("show", tmp_path / "a.json", "--unlock", env={"COMMONWEIGHT_PASSWORD": PASSWORD}).stdout
    with pytest.raises(KeyStoreError, match="wrong password"):
        run("show", tmp_path / "a.json", "--unlock", env={"COMMONWEIGHT_PASSWORD": "another"})


def test_there_is_no_way_to_give_a_password_as_an_argument(run: Run, tmp_path: Path) -> None:
    for command in ("new", "import", "show"):
        assert run(command, tmp_path / "a.json", "--password", "x").exit_code == 2


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_at_a_terminal_the_password_is_asked_for_twice(tmp_path: Path) -> None:
    import pty
    import sys

    program = (
        "import commonweight.chain.keys as k, sys\n"
        "k.create_key.__kwdefaults__['scrypt_n'] = k.SCRYPT_N_DEVNET\n"
        f"sys.argv = ['commonweight', 'keys', 'new', {str(tmp_path / 'a.json')!r}]\n"
        "from commonweight.cli.main import main\nmain()"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("COMMONWEIGHT_PASSWORD", None)
        os.chdir(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-c", program])
    output = b""
    prompts = iter((b"Password for the new key", b"The same again"))
    expected: bytes | None = next(prompts)
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux answers EIO when the child is gone
            break
        if not chunk:
            break
        output += chunk
        if expected is not None and expected in output:
            os.write(terminal, PASSWORD.encode() + b"\n")
            expected = next(prompts, None)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, output
    assert expected is None
    assert PASSWORD.encode() not in output
    keystore.load_key(tmp_path / "a.json", PASSWORD)
