"""What a process lets its peers reach through libp2p. Imports nothing of libp2p, so that commands stay quick."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Service = Literal["data", "decode", "evidence"]
"""What a node serves to other nodes, auditors and gateways."""


@dataclass
class Offered:
    """To whom, and where on this machine. Both are replaced as a whole, from any thread."""

    services: Mapping[Service, str] = field(default_factory=dict)
    """host:port of each."""
    admitted: frozenset[str] = frozenset()
    """PeerIds."""
