"""A newcomer in a process of its own, for tests that kill it. It must not need torch."""

import asyncio
import json
import sys
from pathlib import Path

from commonweight.rules.spec import parse_spec
from commonweight.wire.evidence import Source
from commonweight.wire.tls import Certificate, peer_id_of
from node.fetching import Version, fetch_version


async def main() -> None:
    work = json.loads(sys.stdin.readline())
    der = bytes.fromhex(work["certificate"])
    roots = (bytes.fromhex(work[name]) for name in ("state_root", "frozen_hash"))
    version = Version(parse_spec(work["spec"].encode()), work["stage"], work["round"], *roots)
    certificates = [(address, bytes.fromhex(certificate)) for address, certificate in work["sources"]]
    sources = [Source(peer_id_of(certificate), address, certificate) for address, certificate in certificates]
    assert "torch" not in sys.modules
    mine = Certificate(der, work["private_key"].encode(), peer_id_of(der))
    await fetch_version(mine, version, Path(work["folder"]), sources)


if __name__ == "__main__":
    asyncio.run(main())
