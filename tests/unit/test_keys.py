"""Keys at rest: what is written can be read by nobody else, and by us only with the password."""

import json
import pickle
import stat
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_keyfile.keyfile import create_keyfile_json
from hypothesis import given
from hypothesis import strategies as st

from commonweight.chain.keys import (
    PASSWORD_VARIABLE,
    SCRYPT_N,
    SCRYPT_N_DEVNET,
    Key,
    create_key,
    devnet_key,
    import_key,
    load_key,
    read_address,
    read_password,
)
from commonweight.errors import KeyStoreError

FAST = 2**10
SECRET = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"  # of SECRET, from the eth-account documentation


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "owner.json"
    import_key(path, "correct horse", SECRET, scrypt_n=FAST)
    return path


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_created_key_comes_back_with_its_password(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    key = create_key(path, "pass", scrypt_n=FAST)
    assert load_key(path, "pass") == key
    assert read_address(path) == key.address
    assert create_key(tmp_path / "other.json", "pass", scrypt_n=FAST).secret != key.secret


def test_a_file_of_ours_opens_with_eth_account_and_the_other_way_round(key_file: Path, tmp_path: Path) -> None:
    assert bytes(Account.decrypt(json.loads(key_file.read_text()), "correct horse")) == SECRET
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps(Account.encrypt(SECRET, "geheim", kdf="pbkdf2", iterations=1000)))
    theirs.chmod(0o600)
    assert load_key(theirs, "geheim").address == ADDRESS


def test_the_web3_secret_storage_test_vector_opens(tmp_path: Path) -> None:
    """The PBKDF2 vector of the Web3 Secret Storage definition."""
    path = tmp_path / "vector.json"
    path.write_text(
        json.dumps(
            {
                "crypto": {
                    "cipher": "aes-128-ctr",
                    "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
                    "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
                    "kdf": "pbkdf2",
                    "kdfparams": {
                        "c": 262144,
                        "dklen": 32,
                        "prf": "hmac-sha256",
                        "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
                    },
                    "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
                },
                "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
                "version": 3,
            }
        )
    )
    path.chmod(0o600)
    key = load_key(path, "testpassword")
    assert key.secret.hex() == "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d"
    with pytest.raises(KeyStoreError, match="states no address"):
        read_address(path)


def test_the_default_cost_is_the_standard_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = []

    def cheaper(*arguments: Any, iterations: int, **options: Any) -> Any:
        costs.append(iterations)
        return create_keyfile_json(*arguments, iterations=FAST, **options)

    monkeypatch.setattr("eth_keyfile.keyfile.create_keyfile_json", cheaper)
    create_key(tmp_path / "real.json", "pass")
    assert costs == [SCRYPT_N] == [2**18]
    assert SCRYPT_N_DEVNET == 2**14


def test_nobody_else_can_read_the_file(key_file: Path) -> None:
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
    assert list(key_file.parent.iterdir()) == [key_file], "no temporary file stays"


def test_an_existing_file_is_never_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(KeyStoreError, match="never overwritten"):
        create_key(key_file, "pass", scrypt_n=FAST)
    assert key_file.read_bytes() == before


def test_a_key_that_reads_back_as_another_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Key(b"\x01" * 32)
    monkeypatch.setattr("commonweight.chain.keys.load_key", lambda *_: other)
    with pytest.raises(KeyStoreError, match="check the disk"):
        import_key(tmp_path / "k.json", "pass", SECRET, scrypt_n=FAST)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyStoreError, match="can't write"):
        create_key(tmp_path / "file" / "k.json", "pass", scrypt_n=FAST)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_can_read_is_refused_with_the_remedy(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(KeyStoreError, match=f"chmod 600 {key_file}"):
        load_key(key_file, "correct horse")


def test_a_wrong_password_says_so_and_names_the_account(key_file: Path) -> None:
    with pytest.raises(KeyStoreError, match=rf"wrong password.*(?i:{ADDRESS[2:]})") as caught:
        load_key(key_file, "battery staple")
    assert "battery" not in str(caught.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="no key file at"):
        load_key(tmp_path / "none.json", "pass")
    with pytest.raises(KeyStoreError, match=r"not a regular file|can't read"):
        load_key(tmp_path, "pass")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version":3}',
        b'{"version":3,"crypto":7}',
        b'{"version":4,"crypto":{}}',
        b"\xff\xfe",
    ],
)
def test_a_malformed_file_is_an_error_of_ours(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k.json"
    path.touch(0o600)
    path.write_bytes(content)
    for read in (lambda: load_key(path, "pass"), lambda: read_address(path)):
        with pytest.raises(KeyStoreError):
            read()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(field=st.sampled_from(["cipher", "cipherparams", "ciphertext", "kdf", "kdfparams", "mac"]), value=json_values)
def test_no_damage_to_a_field_gets_past_us(tmp_path_factory: pytest.TempPathFactory, field: str, value: object) -> None:
    path = tmp_path_factory.mktemp("keys") / "k.json"
    import_key(path, "pass", SECRET, scrypt_n=2)
    crypto = json.loads(path.read_text())["crypto"]
    rewrite(path, crypto={**crypto, field: value})
    with pytest.raises(KeyStoreError):
        load_key(path, "pass")


@pytest.mark.parametrize("cost", [{"n": 2**40}, {"r": 2**30}, {"p": 2**20}, {"n": -1}, {"n": "1"}])
def test_a_file_that_would_eat_the_machine_is_refused_at_once(key_file: Path, cost: dict[str, object]) -> None:
    crypto = json.loads(key_file.read_text())["crypto"]
    rewrite(key_file, crypto={**crypto, "kdfparams": {**crypto["kdfparams"], **cost}})
    with pytest.raises(KeyStoreError, match=r"refused|kdfparams"):
        load_key(key_file, "correct horse")


def test_a_file_that_lies_about_its_address_is_refused(key_file: Path) -> None:
    rewrite(key_file, address="00" * 20)
    with pytest.raises(KeyStoreError, match=f"holds the key of {ADDRESS}"):
        load_key(key_file, "correct horse")


@pytest.mark.parametrize("secret", [b"", b"\x01" * 31, b"\x01" * 33, bytes(32), b"\xff" * 32])
def test_what_is_no_key_is_refused(tmp_path: Path, secret: bytes) -> None:
    with pytest.raises(KeyStoreError, match="secp256k1"):
        import_key(tmp_path / "k.json", "pass", secret, scrypt_n=FAST)


def test_an_empty_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="empty"):
        create_key(tmp_path / "k.json", "", scrypt_n=FAST)


def test_the_secret_is_never_shown(key_file: Path) -> None:
    key = load_key(key_file, "correct horse")
    shown = [repr(key), str(key), f"{key}", repr([key]), "%s %r" % (key, key)]  # noqa: UP031
    try:
        raise ValueError(key)
    except ValueError:
        shown.append(traceback.format_exc())
    assert all(SECRET.hex() not in text and repr(SECRET) not in text for text in shown)
    assert ADDRESS in repr(key)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)


def test_a_password_file_wins_over_the_variable_and_that_over_the_prompt(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(0o600)
    path.write_text("from the file\n")
    environment = {PASSWORD_VARIABLE: "from the variable"}
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "from the prompt"

    assert read_password(path, environment=environment, ask=ask) == "from the file"
    assert read_password(environment=environment, ask=ask) == "from the variable"
    assert prompts == []
    assert read_password(environment={}, ask=ask, confirm=True) == "from the prompt"
    assert len(prompts) == 2


def test_two_different_passwords_are_refused() -> None:
    answers = iter(["one", "two"])
    with pytest.raises(KeyStoreError, match="differ"):
        read_password(environment={}, ask=lambda _: next(answers), confirm=True)


def test_a_password_that_is_empty_or_public_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(0o644)
    path.write_text("geheim")
    path.chmod(0o644)
    with pytest.raises(KeyStoreError, match="chmod 600"):
        read_password(path)
    with pytest.raises(KeyStoreError, match="empty"):
        read_password(environment={PASSWORD_VARIABLE: ""})
    with pytest.raises(KeyStoreError, match="no password file"):
        read_password(tmp_path / "none")


def test_without_a_terminal_the_message_names_the_other_ways() -> None:
    with pytest.raises(KeyStoreError, match=rf"--password-file or set {PASSWORD_VARIABLE}"):
        read_password(environment={})  # pytest's standard input is no terminal


def test_devnet_keys_are_the_ones_that_everybody_knows() -> None:
    assert devnet_key(0).address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert devnet_key(0).secret.hex() == "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
    assert devnet_key(9).address == "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"
    with pytest.raises(KeyStoreError):
        devnet_key(-1)


def test_importing_the_module_loads_neither_web3_nor_eth_account() -> None:
    script = (
        "import sys, commonweight.chain.keys, commonweight.chain.local, commonweight.chain.child\n"
        "heavy = {'web3', 'eth_account', 'eth', 'eth_keyfile', 'requests'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
