"""How a command's options say where the coordinator is, and with whom to look for it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweight.errors import ConfigError
from commonweight.identity import NodeIdentity
from commonweight.locating import Lookup, read_coordinator
from commonweight.peers.address import PeerAddress, parse_listen, parse_peer
from commonweight.peers.config import read_peers_config

PEER_ID = NodeIdentity(bytes(31) + b"\x01").peer_id
BOOTSTRAP = f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER_ID}"
COORDINATOR = f"{PEER_ID}@coordinator.example:7700"
MODEL = "0x" + 64 * "a"


@pytest.mark.parametrize(
    "text",
    [
        BOOTSTRAP,
        f"/ip6/2001:db8::7/tcp/1/p2p/{PEER_ID}",
        f"/dns/bootstrap.example/tcp/65535/p2p/{PEER_ID}",
    ],
)
def test_an_address_is_read_as_it_is_written(text: str) -> None:
    address = parse_peer(text)
    assert str(address) == text
    assert address == PeerAddress(text.partition("/p2p/")[0], PEER_ID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "203.0.113.7:4001",
        "/ip4/203.0.113.7/tcp/4001",
        f"/ip4/203.0.113.7/udp/4001/p2p/{PEER_ID}",
        f"/ip4/203.0.113.777/tcp/4001/p2p/{PEER_ID}",
        f"/ip4/203.0.113.7/tcp/0/p2p/{PEER_ID}",
        f"/ip4/203.0.113.7/tcp/65536/p2p/{PEER_ID}",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER_ID[:-1]}",
        f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER_ID}/p2p-circuit",
        f"/dns//tcp/4001/p2p/{PEER_ID}",
    ],
)
def test_whatever_else_is_refused_with_what_is_wrong(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_peer(text)


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    for parse in (parse_peer, parse_listen):
        try:
            parsed = parse(text)
        except ConfigError:
            continue
        assert str(parsed) == text


def test_listening_is_on_an_ip_and_on_any_port() -> None:
    assert parse_listen("/ip4/0.0.0.0/tcp/0") == "/ip4/0.0.0.0/tcp/0"
    with pytest.raises(ConfigError, match="IP address"):
        parse_listen("/dns/here.example/tcp/4001")


def test_who_looks_for_nobody_runs_no_libp2p() -> None:
    assert read_peers_config(None, False, None, None, "127.0.0.1") is None
    with pytest.raises(ConfigError, match="--bootstrap"):
        read_peers_config(None, False, "/ip4/0.0.0.0/tcp/0", None, "127.0.0.1")
    with pytest.raises(ConfigError, match="16"):
        read_peers_config([BOOTSTRAP] * 17, False, None, None, "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "listen", "advertise"),
    [
        ("192.0.2.1", "/ip4/192.0.2.1/tcp/0", None),
        ("::1", "/ip6/::1/tcp/0", None),
        ("node.example", "/ip4/0.0.0.0/tcp/0", "node.example"),
    ],
)
def test_libp2p_listens_beside_the_rest(host: str, listen: str, advertise: str | None) -> None:
    config = read_peers_config([BOOTSTRAP], False, None, None, host)
    assert config is not None
    assert (config.listen, config.advertise, config.bootstrap) == (listen, advertise, (parse_peer(BOOTSTRAP),))


def test_who_listens_on_all_interfaces_says_how_it_is_reached() -> None:
    everywhere = "/ip4/0.0.0.0/tcp/4001"
    with pytest.raises(ConfigError, match="--advertise"):
        read_peers_config([BOOTSTRAP], False, everywhere, None, "0.0.0.0")
    with pytest.raises(ConfigError, match="no address"):
        read_peers_config([BOOTSTRAP], False, everywhere, None, "0.0.0.0", "")
    config = read_peers_config([BOOTSTRAP], False, everywhere, None, "0.0.0.0", "node.example")
    assert config is not None
    assert config.advertise == "node.example"


def test_a_private_key_is_read_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "psk"
    path.write_text("AB" * 32 + "\n")
    config = read_peers_config(None, True, None, path, "127.0.0.1")
    assert config is not None
    assert config.psk == "ab" * 32
    assert "abab" not in repr(config)
    for wrong in ("abab", "xy" * 32, "ab" * 33):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="64 hexadecimal") as raised:
            read_peers_config(None, True, None, path, "127.0.0.1")
        assert wrong not in str(raised.value)
    with pytest.raises(ConfigError, match="can't be read"):
        read_peers_config(None, True, None, tmp_path / "missing", "127.0.0.1")


def test_the_coordinator_is_given_or_found_and_never_both() -> None:
    peers = read_peers_config([BOOTSTRAP], False, None, None, "127.0.0.1")
    assert read_coordinator(COORDINATOR, None, None, None, None) == COORDINATOR
    assert peers is not None
    found = read_coordinator(None, peers, "http://rpc", "0xregistry", MODEL)
    assert found == Lookup(peers, "http://rpc", "0xregistry", b"\xaa" * 32)
    for options, what in (
        ((COORDINATOR, peers, None, None, None), "not both"),
        ((COORDINATOR, None, None, None, MODEL), "not both"),
        (("nowhere", None, None, None, None), "nowhere"),
        ((None, None, "http://rpc", "0xregistry", MODEL), "--bootstrap"),
        ((None, peers, None, None, MODEL), "--rpc"),
        ((None, peers, "http://rpc", "0xregistry", None), "--model-id"),
        ((None, peers, "http://rpc", "0xregistry", "0x12"), "64 hexadecimal"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_coordinator(*options)  # type: ignore[arg-type]
