"""hivemind's RemoteExpert pipeline as a baseline: `commonweight.bench.hivemind_peer`, run by a Python that has it.

The trainer reads lines from stdin as `commonweight.bench.baseline` does, and starts one server process for each stage.
Each server holds one expert: the same layers that our stage has, the embedding with the first and head and loss with
the last. Servers find each other by hivemind's DHT, calls cross its daemons on loopback, and each expert steps once a
round. Servers are left at hivemind's defaults: they merge what waits into one batch, and compute an expert's forward
pass anew in its backward pass.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hivemind
import torch
import torch.nn.functional as F
from hivemind.moe.client.expert import create_remote_experts
from hivemind.moe.server.dht_handler import declare_experts, get_experts
from hivemind.moe.server.module_backend import ModuleBackend
from hivemind.moe.server.server import Server
from hivemind.utils import get_dht_time
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from torch import Tensor, nn

from commonweight.model.boundary import boundary_plan, tokens_plan
from commonweight.model.data import Dataset
from commonweight.model.stage import Stage
from commonweight.rules.spec import ModelSpec, parse_spec

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
HANDLERS = 4
"""Processes that take requests: hivemind recommends four for an expert."""
MAX_BATCH_SEQUENCES = 4096
"""hivemind's default."""
READY_S, STARTS = 60.0, 3
"""hivemind forks while it has threads, so that a child may stand still for good: then another server is started."""
END_S = 10.0
DECLARED_S = 60.0
"""Longer than until the server declares it again."""


class Expert(nn.Module):
    """One stage as a server hosts it: token ids and code in; code, or the mean loss of each sequence, out."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.decoder = stage.module
        self.stage = stage
        self.trained_sequences = 0
        """That went backwards in this round."""

    def forward(self, tokens: Tensor, code: Tensor | None = None) -> Tensor:
        """`tokens` [b, t + 1]; `code` [b, t, k] in the boundary dtype, None on the first stage."""
        if torch.is_grad_enabled():
            self.trained_sequences += len(tokens)
        spec, ids = self.stage.spec, tokens.to(torch.int64)
        wide = None if code is None else code.to(self.stage.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.training.compute_dtype == "bfloat16"):
            result: Tensor = self.decoder(ids[:, :-1], wide)
        if not self.stage.is_last:
            return result.to(self.stage.boundary_dtype)
        losses = F.cross_entropy(result.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).mean(1)


class RoundStep:
    """What a server calls after each backward pass in place of an optimizer: one step, at the end of the round."""

    def __init__(self, expert: Expert) -> None:
        self._expert = expert
        training = expert.stage.spec.training
        self._sequences = training.microbatch_sequences * training.microbatches_per_round

    def step(self) -> None:
        """Step if all sequences of the round have been through."""
        assert self._expert.trained_sequences <= self._sequences, "a round is over before the next one begins"
        if self._expert.trained_sequences == self._sequences:
            self._expert.stage.step()
            self._expert.trained_sequences = 0

    def zero_grad(self) -> None:
        """Gradients add up until the step, which forgets them."""


def serve(spec: ModelSpec, index: int) -> None:
    """Host one stage until stdin ends."""
    expert = Expert(Stage(spec, index))
    dht = hivemind.DHT(start=True, host_maddrs=[LOOPBACK])
    inputs = [torch.zeros(shape, dtype=dtype) for dtype, shape in (tokens_plan(spec), boundary_plan(spec))]
    backend = ModuleBackend(
        name=_uid(index),
        module=expert,
        optimizer=RoundStep(expert),
        args_schema=tuple(BatchTensorDescriptor.from_tensor(each) for each in inputs[: 1 if index == 0 else 2]),
        max_batch_size=MAX_BATCH_SEQUENCES,
    )
    expert.trained_sequences = 0  # hivemind ran it once to see the outputs' shape
    server = Server(dht, {_uid(index): backend}, num_connection_handlers=HANDLERS)
    try:
        server.run_in_background(timeout=READY_S)
    except TimeoutError:
        os.killpg(0, signal.SIGKILL)  # with what it has forked
    # Now, and not when the server's own thread comes to it: who hears of the addresses finds the expert there.
    declare_experts(dht, [_uid(index)], expiration_time=get_dht_time() + DECLARED_S)
    print(json.dumps({"addresses": [str(address) for address in dht.get_visible_maddrs()]}), flush=True)  # noqa: T201
    sys.stdin.read()
    server.shutdown()


def hivemind_pipeline(spec: ModelSpec, data: Path, spec_file: str, stack: ExitStack) -> Callable[[int, int], None]:
    """The trainer, which is told a round, and how many of its microbatches may be under way at a time. Its servers end
    with `stack`.
    """
    addresses = [address for index in range(spec.stages) for address in _start_server(spec_file, index, stack)]
    dht = hivemind.DHT(start=True, host_maddrs=[LOOPBACK], initial_peers=addresses)
    stack.callback(dht.shutdown)
    experts = create_remote_experts(_find(dht, spec.stages), dht)
    dataset = Dataset.open(data, spec)
    microbatches = spec.training.microbatches_per_round

    def train_microbatch(tokens: Tensor) -> None:
        result = experts[0](tokens)
        for expert in experts[1:]:
            result = expert(tokens, result)
        (result.mean() / microbatches).backward()

    def train(round_: int, in_flight: int) -> None:
        with ThreadPoolExecutor(in_flight) as pool:
            list(pool.map(train_microbatch, [dataset.microbatch(round_, number) for number in range(microbatches)]))

    return train


def _uid(index: int) -> str:
    return f"stage.{index}"


def _start_server(spec_file: str, index: int, stack: ExitStack) -> list[str]:
    """Its addresses, when it is ready."""
    command = [sys.executable, "-m", "commonweight.bench.hivemind_peer", spec_file, str(index)]
    for _ in range(STARTS):
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        stack.callback(_end_server, server)
        assert server.stdout is not None
        if line := server.stdout.readline():
            addresses: list[str] = json.loads(line)["addresses"]
            return addresses
    raise TimeoutError(f"None of {STARTS} servers for stage {index} was ready within {READY_S:g} s.")


def _end_server(server: "subprocess.Popen[str]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _find(dht: Any, stages: int) -> list[Any]:
    found = get_experts(dht, [_uid(index) for index in range(stages)])
    if None in found:
        raise LookupError(f"hivemind's DHT has {found} for the {stages} experts, all of which were declared.")
    return list(found)


def main() -> None:
    """With a spec's file and a stage's number: a server. Without: the trainer, until stdin ends."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if len(sys.argv) > 1:
        serve(parse_spec(Path(sys.argv[1]).read_bytes()), int(sys.argv[2]))
        return
    order: dict[str, Any] = json.loads(sys.stdin.readline())
    with ExitStack() as stack:
        train = hivemind_pipeline(
            parse_spec(Path(order["spec"]).read_bytes()), Path(order["data"]), order["spec"], stack
        )
        print(json.dumps({"ready": True}), flush=True)  # noqa: T201
        for line in sys.stdin:
            started_s, told = time.perf_counter(), json.loads(line)
            train(told["round"], told["in_flight"])
            print(json.dumps({"seconds": time.perf_counter() - started_s}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
