"""What `bench verification` measures, and on what."""

from dataclasses import dataclass
from pathlib import Path

from commonweight.bench.verification_workers import Setting
from commonweight.devnet.spec import devnet_spec
from commonweight.rules.spec import ModelSpec

FOREIGN = (
    Setting("2 threads, math attention", threads=2, attention="math"),
    Setting("AVX2 kernels", environment={"ATEN_CPU_CAPABILITY": "avx2"}),
    Setting("MKL for all processors", environment={"MKL_CBWR": "COMPATIBLE"}),
)


@dataclass(frozen=True)
class VerificationBench:
    """What is measured."""

    audits: int = 10_000
    """Honest ones within a class, and as many across: a tenth with the devnet's model, the others with a small one."""
    epochs: int = 10_000
    """Simulated at the devnet's rates, and a hundredth of that with `long_epoch` rounds an epoch."""
    bias_rounds: int = 60
    seed: int = 0
    lie_rounds: int = 12
    """Rounds that are trained before and while cheats are tried: in the last, and in one in the middle."""
    turns: int = 7
    stake: float = 1.0
    """In rewards of an epoch."""
    cost: float = 0.8
    """What computing an epoch costs, likewise."""
    long_epoch: int = 1_000
    """Rounds."""
    foreign: tuple[Setting, ...] = FOREIGN
    """Auditors of other numerics classes than that of the trainers; they take turns."""
    is_small: bool = False
    """The small model in place of the devnet's, and no pipes: for tests."""


def small_spec(manifest: str, tokens: int) -> ModelSpec:
    """A model of which an audit takes milliseconds."""
    spec = devnet_spec(3, 0, manifest, tokens)
    architecture = {"d_model": 32, "boundary_dim": 8, "n_layers": 3, "d_ff": 64}
    training = {"sequence_length": 32, "microbatches_per_round": 4}
    return spec.model_copy(
        update={
            "architecture": spec.architecture.model_copy(update=architecture),
            "training": spec.training.model_copy(update=training),
        }
    )


@dataclass(frozen=True)
class World:
    """Where it is measured, and on what."""

    bench: VerificationBench
    folder: Path
    data: Path
    spec: ModelSpec
    small: ModelSpec
