"""Two networks behind NATs of their own and a public one between them, as network namespaces. Needs root, ip and nft.

near 10.0.2.2 ── NAT 203.0.113.2 ──┐
                                   ├── public 203.0.113.1
far  10.0.3.2 ── NAT 203.0.113.3 ──┘
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

RULES = """
table ip nat {{
  chain out {{ type nat hook postrouting priority 100; oifname "wan" masquerade {ports}; }}
}}
table ip filter {{
  chain in {{
    type filter hook input priority 0; policy drop;
    iifname "lan" accept; ct state established,related accept;
  }}
  chain through {{
    type filter hook forward priority 0; policy drop;
    iifname "lan" accept; ct state established,related accept;
  }}
}}
"""


def missing() -> str | None:
    """Why this machine can't have such a network; None: it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip") or not shutil.which("nft"):
        return "needs the commands ip and nft (Debian: iproute2, nftables)"
    name = f"cw{os.getpid()}try"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "netns", "exec", name, "nft", "-f", "-", stdin=RULES.format(ports=""))
    except subprocess.CalledProcessError as error:
        return f"namespaces or NAT don't work here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@contextmanager
def two_nats(symmetric: bool) -> Iterator[dict[str, list[str]]]:
    """The command that runs another one in "public", "near" or "far". A symmetric NAT takes another port for each
    connection; otherwise it keeps the number.
    """
    places = ("public", "nat2", "nat3", "near", "far")
    names = {place: f"cw{os.getpid()}{place}" for place in places}
    try:
        for name in names.values():
            _run("ip", "netns", "add", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        public = names["public"]
        _run("ip", "-n", public, "link", "add", "hub", "type", "bridge")
        _run("ip", "-n", public, "addr", "add", "203.0.113.1/24", "dev", "hub")
        _run("ip", "-n", public, "link", "set", "hub", "up")
        for number, place in ((2, "near"), (3, "far")):
            nat, inside = names[f"nat{number}"], names[place]
            _link(nat, "wan", f"203.0.113.{number}/24", public, f"port{number}", None)
            _run("ip", "-n", public, "link", "set", f"port{number}", "master", "hub")
            _link(nat, "lan", f"10.0.{number}.1/24", inside, "eth0", f"10.0.{number}.2/24")
            _run("ip", "-n", inside, "route", "add", "default", "via", f"10.0.{number}.1")
            _run("ip", "netns", "exec", nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
            rules = RULES.format(ports="random" if symmetric else "")
            _run("ip", "netns", "exec", nat, "nft", "-f", "-", stdin=rules)
        yield {place: ["ip", "netns", "exec", names[place]] for place in ("public", "near", "far")}
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _link(one: str, device: str, address: str, other: str, peer: str, peer_address: str | None) -> None:
    _run("ip", "link", "add", device, "netns", one, "type", "veth", "peer", "name", peer, "netns", other)
    for name, each, where in ((one, device, address), (other, peer, peer_address)):
        if where is not None:
            _run("ip", "-n", name, "addr", "add", where, "dev", each)
        _run("ip", "-n", name, "link", "set", each, "up")


def _run(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin, text=True, capture_output=True, check=True, timeout=20)
