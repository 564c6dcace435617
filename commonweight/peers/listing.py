"""Who is announced at the moment, asked for once."""

import asyncio
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from commonweight.errors import PeerUnreachable
from commonweight.identity import NodeIdentity
from commonweight.peers.announced import Announced
from commonweight.peers.config import PeersConfig
from commonweight.peers.discovery import DIALS, Discovery


@dataclass(frozen=True)
class AnnouncedLine:
    """One announcement, and what came of dialling it."""

    role: str
    model_id: str
    stage: int | None
    capacity: int | None
    peer: str
    """PEERID@host:port."""
    account: str
    age_s: float
    """Since it was issued, by the announcer's clock."""
    reachable: bool
    why: str
    """Why it isn't; "" where it is."""

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        return asdict(self)


async def list_announced(config: PeersConfig, model_id: bytes | None, timeout_s: float) -> list[AnnouncedLine]:
    """Every live announcement that the peers know of, of a model or of all.

    Raises PeerUnreachable where none of them answers within `timeout_s`.
    """
    discovery = Discovery(NodeIdentity(secrets.token_bytes(32)), config, model_id)
    await discovery.start()
    try:
        async with asyncio.timeout(timeout_s):
            await discovery.met.wait()
            await discovery.ask(model_id)
    except TimeoutError:
        where = ", ".join(map(str, config.bootstrap)) or "the LAN"
        raise PeerUnreachable(
            f"No libp2p peer answered within {timeout_s:g} s at {where}. Check the address, and --psk-file."
        ) from None
    else:
        dialling = asyncio.Semaphore(DIALS)

        async def line(announced: Announced) -> AnnouncedLine:
            async with dialling:
                error = await discovery.confirm(announced)
            said = announced.announcement
            return AnnouncedLine(
                said.role.value,
                "0x" + said.model_id.hex(),
                said.stage,
                said.capacity,
                announced.target,
                announced.account,
                max(0.0, round(time.time() - said.issued_at_s, 1)),
                error is None,
                "" if error is None else error.args[0],
            )

        entries = discovery.directory.live(model_id)
        return list(await asyncio.gather(*(line(entry.announced) for entry in entries)))
    finally:
        await discovery.stop()
