"""The baselines, each in processes of its own: `python -m commonweight.bench.baseline`.

Reads one JSON object with what to build from its first line of stdin, then trains a round, or generates an answer, for
each further line and answers with the seconds that it took. Plain PyTorch: no wire, no hashes, no checkpoints.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from commonweight.model.compiling import compile_stage
from commonweight.model.data import Dataset
from commonweight.model.inference import InferenceStage, generate
from commonweight.model.stage import Stage, train_round
from commonweight.rules.spec import ModelSpec, parse_spec


def unsplit(spec: ModelSpec, dataset: Dataset, sequences: int, compiled: Path | None = None) -> Callable[[int], None]:
    """The whole model in this process, with `sequences` per microbatch. `compiled`: where its programs are written, if
    it is compiled.
    """
    stage = Stage(spec.model_copy(update={"stages": 1}), 0)
    if compiled is not None:
        compile_stage(stage, compiled)

    def train(round_: int) -> None:
        batch = read_round(spec, dataset, round_)
        microbatches = torch.split(batch, sequences)
        # The gradient of a microbatch is scaled by microbatches_per_round: the spec's, which only changes the scale.
        train_round([stage], microbatches)

    return train


def answer(spec: ModelSpec, prompt: list[int], tokens: int) -> Callable[[int], None]:
    """The whole model in this process at version 0, generating after the prompt."""
    stage = InferenceStage.initial(spec.model_copy(update={"stages": 1}), 0)

    def generate_all(_: int) -> None:
        assert len(list(generate([stage], prompt, tokens))) == tokens

    return generate_all


class PipelineModule(nn.Module):
    """A stage as torch.distributed.pipelining wants it: activations in, activations or logits out."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.decoder = stage.module
        self.is_first = stage.is_first
        self.autocast = stage.spec.training.compute_dtype == "bfloat16"

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """`x` is ids on the first stage, the code elsewhere, where `ids` come beside it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out: Tensor = self.decoder(x, None) if self.is_first else self.decoder(ids, x)
        return out.float()


def torch_pipeline(spec: ModelSpec, dataset: Dataset, rank: int, store: Path) -> Callable[[int], None]:
    """One rank of Schedule1F1B over gloo: the same stages, cut and microbatches."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=spec.stages)
    stage = Stage(spec, rank)
    pipeline_stage = PipelineStage(PipelineModule(stage), rank, spec.stages, torch.device("cpu"))

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    schedule = Schedule1F1B(pipeline_stage, spec.training.microbatches_per_round, loss_fn=loss)

    def train(round_: int) -> None:
        batch = read_round(spec, dataset, round_).to(torch.int64)
        ids, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        if stage.is_first:
            schedule.step(ids)
        elif stage.is_last:
            schedule.step(ids=ids, target=targets, losses=[])
        else:
            schedule.step(ids=ids)
        stage.step()

    return train


def read_round(spec: ModelSpec, dataset: Dataset, round_: int) -> Tensor:
    """All sequences of a round, [sequences, time + 1]."""
    return torch.cat([dataset.microbatch(round_, j) for j in range(spec.training.microbatches_per_round)])


def main() -> None:
    """Serve rounds until stdin ends."""
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    spec = parse_spec(Path(order["spec"]).read_bytes())
    if order["kind"] == "generate":
        train = answer(spec, order["prompt"], order["tokens"])
    elif order["kind"] == "unsplit":
        compiled = Path(order["store"]) if order["compile"] else None
        train = unsplit(spec, Dataset.open(Path(order["data"]), spec), order["sequences"], compiled)
    else:
        train = torch_pipeline(spec, Dataset.open(Path(order["data"]), spec), order["rank"], Path(order["store"]))
    print(json.dumps({"ready": True}), flush=True)  # noqa: T201
    for line in sys.stdin:
        started_s = time.perf_counter()
        train(json.loads(line)["round"])
        print(json.dumps({"seconds": time.perf_counter() - started_s}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
