"""What `node run` makes of its options, before anything is started."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from commonweight.chain.keys import SCRYPT_N_DEVNET, import_key
from commonweight.errors import ConfigError
from node.cli import app
from node.config import NodeConfig

COORDINATOR = "16Uiu2HAm7y4wLLNsMjdvS9dKgbXmmmDr8TaiL2HWZrd6sRFZqGZM@127.0.0.1:7700"


class Made(Exception):
    """Instead of a node."""


def config_of(folder: Path, *options: str) -> NodeConfig:
    """What a node would run with."""
    key, password = folder / "node.json", folder / "password"
    password.touch(mode=0o600)
    password.write_text("secret\n")
    import_key(key, "secret", b"\x01" * 32, scrypt_n=SCRYPT_N_DEVNET)

    def make(config: NodeConfig) -> None:
        raise Made(config)

    words = ("run", "--key", key, "--password-file", password, "--dir", folder, "--coordinator", COORDINATOR, *options)
    error = CliRunner().invoke(app, list(map(str, words)), obj=make).exception
    if isinstance(error, Made):
        (config,) = error.args
        assert isinstance(config, NodeConfig)
        return config
    assert error is not None
    raise error


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), (None, None, None)),
        (("--advertise", "node.example"), ("node.example",) * 3),
        (("--advertise", "node.example:17701"), ("node.example:17701", "node.example", "node.example")),
        (
            ("--advertise", "one:1", "--serve-advertise", "two:2", "--evidence-advertise", "three"),
            ("one:1", "two:2", "three"),
        ),
    ],
)
def test_each_service_is_reached_where_the_router_forwards_it(
    options: tuple[str, ...], told: tuple[str | None, ...], tmp_path: Path
) -> None:
    config = config_of(tmp_path, *options)
    assert (config.advertise, config.decode_advertise, config.evidence_advertise) == told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--listen", "0.0.0.0:7701"), "0.0.0.0:7701 listens on all addresses: say with --advertise"),
        (("--serve-listen", "0.0.0.0:7702"), "0.0.0.0:7702 listens on all addresses"),
        (("--advertise", "node.example:0"), "'node.example:0' can't be reached"),
        (("--serve-advertise", "node.example:x"), "'node.example:x' is not host:port"),
    ],
)
def test_what_nobody_could_reach_is_refused(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(tmp_path, *options)
