"""A libp2p host in a process of its own, for what tests do to processes."""

import secrets

import trio

from commonweight.events import emit, log_to_stdout
from commonweight.identity import NodeIdentity
from commonweight.peers.host import HostConfig, open_host


async def main() -> None:
    config = HostConfig(NodeIdentity(secrets.token_bytes(32)), "/ip4/127.0.0.1/tcp/0")
    async with open_host(config) as host:
        emit("child.listening", address=host.addresses[0])
        await trio.sleep_forever()


if __name__ == "__main__":
    log_to_stdout()
    trio.run(main)
