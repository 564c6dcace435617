"""How many microbatches are in flight follows how long their gradients take, and nothing else."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from commonweight.model.stage import Stage
from commonweight.rules.placement import in_flight
from commonweight.wire.tensors import digest
from node.stage_round import Activation, Gradient, StageRound
from node.traces import Traces
from tests.unit.shares import address, undivided_share
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=3)
COUNT = SPEC.training.microbatches_per_round
SHAPE = (SPEC.training.microbatch_sequences, SPEC.training.sequence_length, SPEC.architecture.boundary_dim)


class Sender:
    """The middle stage of three, at a time that stands until it is told to go on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("node.stage_round.time", SimpleNamespace(monotonic=lambda: self.now_s))
        self._stage, self._traces, self._gradients = Stage(SPEC, 1), Traces(folder / "a", 0), Traces(folder / "b", 0)

    def begin(self, round_: int, before: StageRound | None = None) -> StageRound:
        """A round of which all activations have come; `before` is the one that it overlaps."""
        begun = StageRound(
            share=undivided_share(SPEC, 1, 1, round_),
            stage=self._stage,
            dataset=None,
            trace=self._traces.begin(round_),
            gradients=self._gradients.begin(round_),
            send_down=lambda *_: None,
            send_up=lambda *_: None,
            answers={},
            window=COUNT,
            overlapped_s={} if before is None else before.fastest_s,
        )
        for number, tokens in enumerate(random_batches(SPEC, round_)):
            code = torch.zeros(SHAPE)
            begun.keep(Activation(1, address(0), round_, number, tokens, code, (digest(tokens), digest(code))))
        return begun

    def answer(self, round_: StageRound, at_s: list[float]) -> None:
        """All are sent now, and their gradients come at these times."""
        while round_.in_flight < COUNT:
            assert round_.compute()
        gradient = torch.zeros(SHAPE)
        for number, each_s in enumerate(at_s):
            self.now_s = each_s
            round_.keep(Gradient(1, address(2), round_.share.round, number, gradient, digest(gradient)))


def times(begin_s: float, first_s: float, each_s: float) -> list[float]:
    return [begin_s + first_s + number * each_s for number in range(COUNT)]


@pytest.mark.parametrize("alone_s", [math.inf, 1000.35], ids=["not sealed", "sealed meanwhile"])
def test_an_answer_takes_as_long_as_it_takes_whenever_the_round_before_is_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone_s: float
) -> None:
    sender = Sender(tmp_path, monkeypatch)
    round_ = sender.begin(0)
    round_.alone_s = alone_s
    sender.answer(round_, times(1000.0, first_s=0.4, each_s=0.05))
    assert round_.next_window == in_flight(1, 1 / 0.05, 0.4) > COUNT


def test_waiting_behind_others_makes_no_window_wider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rounds that overlap only the first begins with nothing in flight."""
    sender = Sender(tmp_path, monkeypatch)
    first = sender.begin(0)
    sender.answer(first, times(1000.0, first_s=0.4, each_s=0.05))
    begin_s = sender.now_s
    behind = sender.begin(1, before=first)
    sender.answer(behind, times(begin_s, first_s=3.0, each_s=0.05))
    assert behind.next_window == first.next_window
    begin_s = sender.now_s
    alone = sender.begin(2)
    sender.answer(alone, times(begin_s, first_s=3.0, each_s=0.05))
    assert alone.next_window > first.next_window
