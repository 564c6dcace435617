"""`bench convergence`: how many tokens models with compressed boundaries, and asynchronous ones, take to a loss that a
dense synchronous one reaches.

A dense model (k = d) and compressed ones train on the same text, in the same order. A compressed model's projections
into k numbers are smaller, so its feed-forward is made wider, until it has as many trained parameters as the dense one.
An asynchronous model is the dense one but for its steps, and so is one of which two replicas step alone. Each is
trained with every learning rate, and its best one counts. The loss is that of text which nobody trains on.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commonweight.bench.measure import Result, Summary
from commonweight.bench.pipeline import PipelineBench
from commonweight.model.corpus import build_dataset, default_corpus
from commonweight.model.data import Dataset, Manifest
from commonweight.model.stage import Stage, accumulate
from commonweight.model.tokenizer import ByteTokenizer
from commonweight.rules.spec import Asynchrony, ModelSpec
from commonweight.rules.stages import boundary_bytes_per_token, stage_parameters

HELD_OUT = 10
"""One file of so many isn't trained on."""
REPLICAS = 2
"""That step alone, where they do."""


@dataclass(frozen=True)
class Convergence:
    """What is trained, and how far."""

    shape: PipelineBench = field(default_factory=lambda: PipelineBench(microbatch_sequences=2))
    """Of the dense model, and of every round."""
    dtype: str = "float32"
    over: tuple[int, ...] = (8, 16, 32)
    """Compressed models have k = d_model / this."""
    asynchrony: tuple[Asynchrony, ...] = ("delayed", "look_ahead")
    """Of dense models that differ from the first one in nothing else."""
    averaging_rounds: tuple[int, ...] = (8,)
    """Likewise; each is two replicas that step alone, and average every so many rounds."""
    target_loss: float = 2.0
    """In nats per token, of held-out text."""
    max_rounds: int = 400
    """A run that hasn't reached the target by then is given up."""
    evaluate_every: int = 5
    held_out_microbatches: int = 8
    learning_rates: tuple[str, ...] = ("0.001", "0.003")
    seeds: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Run:
    """One model, trained once."""

    learning_rate: str
    curve: list[tuple[int, float]]
    """Tokens trained, and the held-out loss then."""
    seconds: float
    reached: bool

    @property
    def tokens(self) -> int:
        """Until the target was reached, or until the run was given up."""
        return self.curve[-1][0]

    @property
    def loss(self) -> float:
        """The last one."""
        return self.curve[-1][1]


@dataclass(frozen=True)
class Texts:
    """Two data sets: what is trained on, and what isn't."""

    train: Path
    held_out: Path

    @classmethod
    def build(cls, folder: Path) -> "Texts":
        """Of the default corpus."""
        files = default_corpus()
        held_out = files[HELD_OUT - 1 :: HELD_OUT]
        for name, chosen in (("train", [f for f in files if f not in set(held_out)]), ("held-out", held_out)):
            build_dataset(chosen, folder / name, ByteTokenizer())
        return cls(folder / "train", folder / "held-out")


def run_convergence(bench: Convergence, say: Callable[[str], None]) -> tuple[list[Result], dict[str, Any]]:
    """The results, and what belongs to the configuration: sizes, and every run's curve. `say` hears of each run."""
    with tempfile.TemporaryDirectory() as scratch:
        texts = Texts.build(Path(scratch))
        models = _models(bench, texts.train)
        runs: dict[str, list[list[Run]]] = {name: [] for name in models}
        for seed in bench.seeds:
            for name, model in models.items():
                tried = []
                for rate in bench.learning_rates:
                    spec = _with(model, learning_rate=rate, final_learning_rate=rate)
                    tried.append(run := _train(bench, spec.model_copy(update={"seed": seed}), texts))
                    reached = "reached" if run.reached else "didn't reach"
                    say(f"{name}, seed {seed}, {rate}: {reached} {bench.target_loss} ({run.loss:.3f}, {run.tokens:,})")
                runs[name].append(tried)
    best = {name: [min(tried, key=_rank) for tried in of_seeds] for name, of_seeds in runs.items()}
    sizes = {
        name: {
            "boundary_dim": model.architecture.boundary_dim,
            "asynchrony": model.training.asynchrony,
            "averaging_rounds": model.training.averaging_rounds,
            "d_ff": model.architecture.d_ff,
            "parameters": sum(stage_parameters(model, stage) for stage in range(model.stages)),
            "boundary_bytes_per_token": boundary_bytes_per_token(model).sent,
        }
        for name, model in models.items()
    }
    curves = {name: [[asdict(run) for run in tried] for tried in of_seeds] for name, of_seeds in runs.items()}
    results = [_result(bench, name, best[name], best["dense"]) for name in models if name != "dense"]
    results += [
        Result(f"{name}: loss at the end of the run", "nats", Summary.of([run.loss for run in chosen]))
        for name, chosen in best.items()
    ]
    return results, {"models": sizes, "runs": curves}


def match_d_ff(dense: ModelSpec, boundary_dim: int) -> int:
    """The inner width at which a model with this k has as many trained parameters as a dense one, or nearly."""

    def parameters(d_ff: int) -> int:
        shape = {"boundary_dim": boundary_dim, "d_ff": d_ff}
        model = dense.model_copy(update={"architecture": dense.architecture.model_copy(update=shape)})
        return sum(stage_parameters(model, stage) for stage in range(model.stages))

    # They grow by the same number with each unit of d_ff.
    missing = sum(stage_parameters(dense, stage) for stage in range(dense.stages)) - parameters(1)
    return 1 + round(missing / (parameters(2) - parameters(1)))


def _models(bench: Convergence, folder: Path) -> dict[str, ModelSpec]:
    manifest = Manifest.read(folder)
    shape = replace(bench.shape, boundary_dim=bench.shape.d_model)
    dense = shape.spec(manifest.hash, manifest.tokens, bench.dtype, shape.stages)
    models = {"dense": dense}
    for over in bench.over:
        width = shape.d_model // over
        narrow = {"boundary_dim": width, "d_ff": match_d_ff(dense, width)}
        models[f"k = d/{over}"] = dense.model_copy(
            update={"architecture": dense.architecture.model_copy(update=narrow)}
        )
    for mode in bench.asynchrony:
        models[f"dense, {mode}"] = _with(dense, asynchrony=mode)
    for rounds in bench.averaging_rounds:
        models[f"dense, two replicas that average every {rounds} rounds"] = _with(dense, averaging_rounds=rounds)
    return models


def _with(model: ModelSpec, **training: str | int) -> ModelSpec:
    return model.model_copy(update={"training": model.training.model_copy(update=training)})


def _train(bench: Convergence, spec: ModelSpec, texts: Texts) -> Run:
    started_s = time.perf_counter()
    replicas = [[Stage(spec, index) for index in range(spec.stages)]]
    if spec.training.steps_alone:
        replicas += [[Stage(spec, index) for index in range(spec.stages)] for _ in range(REPLICAS - 1)]
    text, held_out = Dataset.open(texts.train, spec), Dataset.open(texts.held_out, _on(spec, texts.held_out))
    curve: list[tuple[int, float]] = []
    for round_ in range(bench.max_rounds):
        _train_round(replicas, [text.microbatch(round_, j) for j in range(spec.training.microbatches_per_round)])
        if (round_ + 1) % bench.evaluate_every == 0 or round_ + 1 == bench.max_rounds:
            loss = _evaluate(replicas[0], held_out, bench.held_out_microbatches)
            curve.append(((round_ + 1) * spec.training.tokens_per_round, loss))
            if loss <= bench.target_loss:
                break
    return Run(spec.training.learning_rate, curve, time.perf_counter() - started_s, curve[-1][1] <= bench.target_loss)


def _train_round(replicas: list[list[Stage]], batches: list[Tensor]) -> None:
    """The replicas divide it evenly."""
    for number, stages in enumerate(replicas):
        accumulate(stages, batches[number :: len(replicas)])
    for of_stage in zip(*replicas, strict=True):
        training, round_ = of_stage[0].spec.training, of_stage[0].round
        if training.moves_anchor(round_):
            for stage in of_stage:
                stage.weigh_movement(1 / len(replicas))
            total = torch.stack([stage.flat_gradient() for stage in of_stage]).sum(0)
            for stage in of_stage:
                stage.replace_gradient(total)
        for stage in of_stage:
            stage.step()


def _evaluate(stages: list[Stage], held_out: Dataset, microbatches: int) -> float:
    per_round = held_out.spec.training.microbatches_per_round
    losses = []
    with torch.no_grad():
        for number in range(microbatches):
            tokens, code = held_out.microbatch(*divmod(number, per_round)), None
            for stage in stages:
                output = stage.forward(tokens, code).output
                if isinstance(output, float):
                    losses.append(output)
                else:
                    code = output
    return sum(losses) / len(losses)


def _on(spec: ModelSpec, folder: Path) -> ModelSpec:
    manifest = Manifest.read(folder)
    data = {"manifest": manifest.hash, "tokens": manifest.tokens}
    return spec.model_copy(update={"data": spec.data.model_copy(update=data)})


def _rank(run: Run) -> tuple[bool, int, float]:
    """The best first: what reached the target soonest, else what came nearest."""
    return not run.reached, run.tokens if run.reached else 0, run.loss


def _result(bench: Convergence, name: str, ours: list[Run], dense: list[Run]) -> Result:
    what, tokens = f"{name}: tokens to {bench.target_loss:g} nats", Summary.of([run.tokens for run in ours])
    if not all(run.reached for run in (*ours, *dense)):
        return Result(f"{what}, not reached by all", "tokens", tokens)
    ratios = [mine.tokens / its.tokens for mine, its in zip(ours, dense, strict=True)]
    return Result(what, "tokens", tokens, Summary.of([run.tokens for run in dense]), Summary.of(ratios))
