"""What one devnet is started with."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from commonweight.chain.local import Backend, local_chain_command
from commonweight.devnet.accounts import auditor_stages, node_stages
from commonweight.devnet.byzantine import Cheating, parse_byzantine
from commonweight.devnet.churn import Partition, Slow, parse_link, parse_partition, parse_slow
from commonweight.devnet.spec import ROUNDS_PER_EPOCH, devnet_spec
from commonweight.errors import ConfigError
from commonweight.links.link import LinkShape
from commonweight.rules.spec import ModelSpec

MAX_SEATS = 8
"""Of one owner: so many stakes its pocket money pays for."""
UNATTENDED_EPOCHS = 3
"""Without a terminal a devnet ends after this many, if nothing else is said."""


@dataclass(frozen=True)
class DevnetOptions:
    """Checked when made, before anything is written or started.

    Raises ConfigError, SpecError where the model has fewer layers than stages, ChainError where anvil is missing.
    """

    stages: int = 4
    """Of the model."""
    replicas: int = 1
    """Nodes of each stage."""
    seats: int = 1
    """Stages in which each node's owner has a seat: with more than one its node may move."""
    until_epoch: int | None = None
    """End when this many epochs are final; None: when asked to."""
    backend: Backend = "auto"
    seed: int = 0
    asynchrony: str = "none"
    """Of training, as in a spec."""
    averaging: str = "float32"
    """Likewise, of gradients between replicas."""
    averaging_rounds: int = 1
    """Likewise: replicas average every so many rounds."""
    kill_every_s: float | None = None
    """In every such stretch of time a node is killed with SIGKILL, and started again soon after; None: none is."""
    slow: tuple[str, ...] = ()
    """NODE:TIME of each whose worker takes so much longer for a microbatch."""
    link: str | None = None
    """How all links between nodes are, as docs/links.md writes it; None: they are this machine's."""
    partition: tuple[str, ...] = ()
    """NODE[,NODE…][:in|:out] that are cut off from all others once the first round is sealed."""
    folder: Path | None = None
    """None: a new one under runs/."""
    report: Path | None = None
    live: bool = False
    """Redraw a view instead of printing lines."""
    rounds_per_epoch: int = ROUNDS_PER_EPOCH
    buyers: int = 1
    """Each asks the model something every few seconds, once there is a version to ask, and pays for it."""
    auditors: int = 1
    """Dealt to the stages in turn; 0: only the coordinator's referee audits."""
    byzantine: tuple[str, ...] = ()
    """STAGE:KIND or STAGE:KIND:FRACTION of each stage whose node or auditor cheats."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(Backend):
            raise ConfigError(f"--backend {self.backend!r} is none of {', '.join(get_args(Backend))}.")
        for name, least in (
            ("stages", 1),
            ("replicas", 1),
            ("seats", 1),
            ("seed", 0),
            ("rounds_per_epoch", 1),
            ("buyers", 0),
            ("auditors", 0),
        ):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least {least}.")
        if self.seats > min(self.stages, MAX_SEATS):
            raise ConfigError(f"--seats {self.seats}: an owner has one in each stage at most, and {MAX_SEATS} in all.")
        if self.byzantine and self.seats > 1:
            raise ConfigError("--byzantine names stages, so its nodes mustn't move: leave out --seats.")
        if self.until_epoch is not None and self.until_epoch < 1:
            raise ConfigError(f"--until-epoch {self.until_epoch} must be at least 1: epoch 0 is the first to end.")
        if self.report is not None:
            parent = self.report.absolute().parent
            if not parent.is_dir() and (self.folder is None or parent != self.folder.absolute()):
                raise ConfigError(f"--report {self.report}: there is no folder {parent}.")
        self.spec("0x" + "0" * 64, 2**20)
        parse_byzantine(self.byzantine, self.stages, self.auditors, self.buyers)
        _ = self.slowed, self.link_shape, self.partitions
        local_chain_command(self.backend)

    @property
    def node_stages(self) -> dict[str, int]:
        """By the name of each provider's process, the stage in which its owner has its first seat."""
        return node_stages(self.stages, self.replicas)

    @property
    def auditor_stages(self) -> dict[str, int]:
        """By the name of each auditor, the stage in which it has its seat."""
        return auditor_stages(self.stages, self.auditors)

    @property
    def cheating(self) -> dict[str, Cheating]:
        """How who cheats, by the name of its process."""
        return parse_byzantine(self.byzantine, self.stages, self.auditors, self.buyers)

    @property
    def slowed(self) -> tuple[Slow, ...]:
        """Who is slow, and by how much."""
        return tuple(parse_slow(text, self.node_stages, "--slow") for text in self.slow)

    @property
    def link_shape(self) -> LinkShape | None:
        """Of all links between nodes; None: there are no links that could be shaped or cut."""
        if self.link is not None:
            return parse_link(self.link, "--link")
        return LinkShape() if self.partition else None

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """Who is cut off from whom once the first round is sealed."""
        return tuple(parse_partition(text, self.node_stages, "--partition") for text in self.partition)

    def spec(self, manifest_hash: str, tokens: int) -> ModelSpec:
        """The model to train on the corpus with this manifest and this many tokens."""
        return devnet_spec(
            self.stages,
            self.seed,
            manifest_hash,
            tokens,
            rounds_per_epoch=self.rounds_per_epoch,
            asynchrony=self.asynchrony,
            averaging=self.averaging,
            averaging_rounds=self.averaging_rounds,
        )
