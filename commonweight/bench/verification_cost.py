"""What verification costs one stage: processor seconds of each part beside those of training a round."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from commonweight.bench.lies import INNER
from commonweight.bench.measure import interleave
from commonweight.bench.replays import Made, Replays, Taken, compute, judge
from commonweight.bench.round_files import read_round
from commonweight.identity import NodeIdentity
from commonweight.model.data import Dataset
from commonweight.model.hashing import tensors_hash
from commonweight.model.replay import replay_microbatch
from commonweight.model.stage import Stage, state_parts
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.receipt import Domain
from commonweight.rules.report import Hop, Report, report_receipt
from commonweight.rules.spec import ModelSpec
from commonweight.wire.tensors import digest, to_bytes

KEY = NodeIdentity(b"\x01" * 32)
DOMAIN = Domain(31337, "0x" + "5e" * 20)


def measure_cost(spec: ModelSpec, dataset: Dataset, file: Path, turns: int) -> dict[str, list[float]]:
    """By part, for a whole round of an inner stage, and for an audit of each kind. `file`: of `write_round`.

    An audit has what it needs in memory: it checks the hashes of state, gradient and inputs, replays, and hashes what
    results.
    """
    taken, made = read_round(file)
    parameters, moments = state_parts(taken.state)
    stage, summed = Stage(spec, INNER, blank=True), Stage(spec, INNER, blank=True)
    summed.load(taken.state, taken.round)
    compute(summed, taken)
    trace = file.with_name("trace")

    def train() -> None:
        stage.load(taken.state, taken.round)
        for given in zip(taken.tokens, taken.codes, taken.gradients, strict=True):
            replay_microbatch(stage, *given)
        stage.step()

    crossing = [tensor for n in made.outputs for tensor in _sides(taken, made, n)]

    def hash_crossing() -> list[bytes]:
        return [digest(tensor) for tensor in crossing]

    hashes = hash_crossing()
    sketched = summed.sketch()
    sides = zip(*(hashes[side::5] for side in range(5)), strict=True)
    hops = tuple(Hop(n, a, b, c, d, e, sketched, 0.0) for n, (a, b, c, d, e) in enumerate(sides))

    def receipt() -> None:
        gradients, states = (made.gradient_hash,) * 2, (made.next_root,) * 2
        commitments = Report(taken.round, INNER, hops, *gradients, *states).commitments(len(hops))
        KEY.sign_digest(report_receipt(bytes(32), 1, taken.round, INNER, commitments, bytes(32)).digest(DOMAIN))

    def commit() -> None:
        tensors_hash(parameters)
        tensors_hash(moments)
        tensors_hash(made.gradient)

    def sketch() -> None:
        for _ in hops:
            summed.sketch()

    def write_trace() -> None:
        with trace.open("wb") as out:
            for name, tensor in zip(hashes, crossing, strict=True):
                os.statvfs(trace.parent)
                out.write(name + tensor.nbytes.to_bytes(8, "little"))
                out.write(to_bytes(tensor))

    def audit(kind: Kind, microbatch: int | None = None) -> None:
        tensors_hash(parameters)
        tensors_hash(moments)
        if microbatch is not None:
            tensors_hash(made.gradient)
        for tokens in taken.tokens if microbatch is None else [taken.tokens[microbatch]]:
            digest(tokens)
        replays = Replays(Stage(spec, INNER, blank=True), taken)
        # It hashes what was signed as made, which is as large as what was taken, which an audit hashes instead.
        judge(spec, Audit(taken.round, INNER, kind, microbatch), made, replays, exact=True)

    parts: dict[str, Callable[[], object]] = {
        "train": train,
        "hash what crosses": hash_crossing,
        "hash gradient and state": commit,
        "receipt": receipt,
        "sketch": sketch,
        "trace": write_trace,
        "round": lambda: audit(Kind.ROUND),
        "microbatch": lambda: audit(Kind.MICROBATCH, 0),
        "data": lambda: digest(dataset.microbatch(taken.round, 0)),
    }
    return interleave({name: _timed(part) for name, part in parts.items()}, turns)


def _sides(taken: Taken, made: Made, n: int) -> list[Tensor]:
    """What crosses the sides of an inner stage for a microbatch, in the order of a hop."""
    sides = taken.tokens[n], taken.codes[n], made.outputs[n], taken.gradients[n], made.input_gradients[n]
    return [tensor for tensor in sides if tensor is not None]


def _timed(part: Callable[[], object]) -> Callable[[int], float]:
    def run(_: int) -> float:
        started_s = time.process_time()
        part()
        return time.process_time() - started_s

    return run
