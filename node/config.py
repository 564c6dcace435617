"""What a node runs with."""

from dataclasses import dataclass
from pathlib import Path

from commonweight.identity import NodeIdentity
from commonweight.locating import Lookup
from node.watching import WatchConfig


@dataclass(frozen=True)
class NodeConfig:
    """What one node runs with."""

    identity: NodeIdentity
    coordinator: str | Lookup
    """PEERID@host:port of its enrolment service, or where to look for it."""
    directory: Path
    """For checkpoints."""
    data: Path | None
    """The packed text; only the holder of the first stage needs it."""
    listen: str
    """host:port of the data plane; port 0 takes a free one."""
    advertise: str | None
    """host or host:port by which neighbours reach it, where that isn't where it listens."""
    payout: str
    """Account that is paid."""
    device: str
    compiles: bool
    """Whether the stage is compiled before it is trained."""
    threads: int
    decode_listen: str
    """host:port of the decode process; port 0 takes a free one."""
    decode_advertise: str | None
    """As `advertise`, for gateways and neighbours that generate."""
    evidence_listen: str
    """host:port for auditors and for replicas that fetch a state; port 0 takes a free one."""
    evidence_advertise: str | None
    """As `advertise`, for them."""
    cache_bytes: int
    """Memory for the keys, values and traces of all sequences that are generated at a time."""
    stays: bool
    """Whether it refuses to move to another stage."""
    watch: WatchConfig | None
    """How it watches the chain; None: it doesn't."""
