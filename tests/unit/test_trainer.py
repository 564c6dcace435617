"""What a stage keeps of a round is what it reports, and no more than it must."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

import pytest
import safetensors.torch
import torch

from commonweight.errors import CheckpointError, CommonweightError, MalformedMessage
from commonweight.model.hashing import tensors_hash
from commonweight.model.replay import finish_round, replay_microbatch, step_from
from commonweight.model.stage import Stage
from commonweight.rules.following import FOLLOWED_ROUNDS
from commonweight.rules.report import HOP_WORDS, NO_TENSOR
from commonweight.rules.spec import ModelSpec
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from commonweight.wire.tensors import digest
from node.checkpoint import Checkpoints
from node.published import version_path
from node.stage_round import Activation, Gradient
from node.traces import read_index, trace_path
from node.trainer import Follow, Forget, Item, Outlet, Quit, Restore, TrainedRound, Trainer, TrainRound
from tests.unit.shares import address, undivided_share
from tests.unit.tiny import random_batches, tiny_spec

torch.set_num_threads(1)

SPEC = tiny_spec(stages=3, grad_clip="1")
TRAINING = SPEC.training
SHAPE = (TRAINING.microbatch_sequences, TRAINING.sequence_length, SPEC.architecture.boundary_dim)


def codes(seed: int) -> torch.Tensor:
    """What crosses one boundary in a round [microbatch, b, t, k]."""
    count = TRAINING.microbatches_per_round
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


GRADIENTS = codes(1000)


class Middle:
    """The middle stage of three, whose neighbours send noise."""

    def __init__(self, folder: Path, spec: ModelSpec = SPEC) -> None:
        self.folder, self.spec = folder, spec
        self._withheld: tuple[int, int] | None = None
        self._until: tuple[int, int] | None = None
        self._last = 0
        """The round after whose report the trainer ends."""
        self.inbox: SimpleQueue[Item] = SimpleQueue()
        self.failures: list[CommonweightError] = []
        self._reports: list[TrainedRound] = []
        outlet = Outlet(
            send_down=lambda share, node, microbatch, _: self._answer(node, share.round, microbatch),
            send_up=lambda *_: None,
            send_slice=lambda *_: None,
            report=self._report,
            fail=lambda _, error, *__: self.failures.append(error),
            late=lambda *_: None,
        )
        self.trainer = Trainer.open(
            spec, 1, state_dir=folder, data_dir=None, device="cpu", inbox=self.inbox, outlet=outlet
        )

    def train(self, round_: int, *, generation: int = 1, meanwhile: Item | None = None) -> TrainedRound:
        """Train this round; `meanwhile` comes while it is trained."""
        self.inbox.put(Restore(generation, round_, Future()))
        self.inbox.put(TrainRound(undivided_share(SPEC, 1, generation, round_)))
        if meanwhile is not None:
            self.inbox.put(meanwhile)
        self._put_activations(round_, generation)
        self._last = round_
        self.trainer.run()
        assert self.failures == []
        return self._reports.pop()

    def withhold(self, gradient: tuple[int, int], until: tuple[int, int]) -> None:
        """This gradient (round, microbatch) comes once that activation is sent on."""
        self._withheld, self._until = gradient, until

    def train_rounds(self, rounds: int) -> list[TrainedRound]:
        """Train so many rounds from 0 on, of which all plans and activations are there at once."""
        self.inbox.put(Restore(1, 0, Future()))
        for round_ in range(rounds):
            self.inbox.put(TrainRound(undivided_share(self.spec, 1, 1, round_)))
        for round_ in range(rounds):
            self._put_activations(round_, 1)
        self._last = rounds - 1
        self.trainer.run()
        assert self.failures == []
        return self._reports

    def _put_activations(self, round_: int, generation: int) -> None:
        batches = random_batches(self.spec, round_)
        for number, (tokens, code) in enumerate(zip(batches, codes(generation), strict=True)):
            names = digest(tokens), digest(code)
            self.inbox.put(Activation(generation, address(0), round_, number, tokens, code, names))

    def forget(self, item: Forget) -> None:
        self.inbox.put(item)
        self.inbox.put(Quit())
        self.trainer.run()

    def _report(self, trained: TrainedRound) -> None:
        self._reports.append(trained)
        if trained.report.round == self._last:
            self.inbox.put(Quit())

    def _answer(self, node: str, round_: int, microbatch: int) -> None:
        """The next stage's gradient."""
        if (round_, microbatch) == self._until and self._withheld is not None:
            withheld, self._withheld = self._withheld, None
            self._answer(node, *withheld)
        if (round_, microbatch) == self._withheld:
            return
        gradient = GRADIENTS[microbatch]
        self.inbox.put(Gradient(self.trainer.generation, node, round_, microbatch, gradient, digest(gradient)))

    def trace(self, round_: int, of: str = "traces") -> dict[bytes, bytes]:
        path = trace_path(self.folder / of, round_)
        content = path.read_bytes()
        return {name: content[begin : begin + size] for name, (begin, size) in read_index(path).items()}

    def versions(self) -> tuple[int, ...]:
        return Checkpoints(self.folder, SPEC, 1).rounds()


def test_a_round_can_be_replayed_from_its_trace_and_the_state_before(tmp_path: Path) -> None:
    middle = Middle(tmp_path)
    middle.train(0)
    middle.forget(Forget(0, {0}))
    report = middle.train(1).report
    trace = middle.trace(1)
    named = {getattr(hop, name) for hop in report.hops for name in HOP_WORDS if name != "sketch"}
    assert NO_TENSOR not in named
    assert trace.keys() == named

    def read(name: bytes, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(trace[name]), dtype=dtype).view(shape)

    ids = TRAINING.microbatch_sequences, TRAINING.sequence_length + 1
    stage = Stage(SPEC, 1)
    Checkpoints(tmp_path, SPEC, 1).load(stage, 1)
    for hop in report.hops:
        output, input_gradient, _ = replay_microbatch(
            stage,
            read(hop.tokens, torch.int32, *ids),
            read(hop.activation_in, torch.float32, *SHAPE),
            read(hop.gradient_in, torch.float32, *SHAPE),
        )
        assert output is not None
        assert input_gradient is not None
        assert (digest(output), digest(input_gradient)) == (hop.activation_out, hop.gradient_out)
        assert stage.sketch() == hop.sketch
    replayed = finish_round(stage)
    assert (replayed.gradient_hash, replayed.next_root) == (report.gradient_hash, report.state_after)


@pytest.mark.parametrize("asynchrony", ["delayed", "look_ahead"])
def test_where_training_is_asynchronous_the_next_round_begins_before_this_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchrony: str
) -> None:
    """This one's last gradient comes when the next one's first microbatch was sent on."""
    monkeypatch.setattr("node.trainer.STALL_S", 10.0)
    spec = tiny_spec(stages=3, asynchrony=asynchrony)
    middle = Middle(tmp_path, spec)
    middle.withhold((0, spec.training.microbatches_per_round - 1), until=(1, 0))
    assert [each.report.round for each in middle.train_rounds(2)] == [0, 1]


def test_a_rounds_gradient_is_kept_as_it_was_before_clipping(tmp_path: Path) -> None:
    middle = Middle(tmp_path)
    report = middle.train(0).report
    ((name, data),) = middle.trace(0, "gradients").items()
    gradient = safetensors.torch.load(data)
    assert name == tensors_hash(gradient) == report.gradient_hash
    stage = Stage(SPEC, 1)
    assert stage.sketched(gradient).norm > float(TRAINING.grad_clip)
    assert step_from(stage, gradient)[0] == report.state_after


def test_a_round_that_is_trained_again_has_the_trace_and_the_gradient_of_the_last_time(tmp_path: Path) -> None:
    middle = Middle(tmp_path)
    first = middle.train(0, generation=1).report
    last = middle.train(0, generation=2).report
    assert last.hops[0].activation_in in middle.trace(0)
    assert first.hops[0].activation_in not in middle.trace(0)
    assert middle.trace(0, "gradients").keys() == {last.gradient_hash} != {first.gradient_hash}


def test_versions_traces_and_gradients_stay_for_as_long_as_the_round_is_retained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.trainer.FOLLOWED_ROUNDS", 0)
    middle, retained = Middle(tmp_path), {0, 2}
    for round_ in range(7):
        middle.train(round_)
        middle.forget(Forget(round_, {each for each in retained if each <= round_}))
    assert middle.versions() == (1, 2, 3, 5, 6, 7)
    assert middle.trainer.traces.rounds() == middle.trainer.round_gradients.rounds() == [0, 2]
    restarted = Middle(tmp_path)
    restarted.train(7)
    assert restarted.versions() == (1, 2, 3, 5, 6, 7, 8)
    restarted.forget(Forget(7, {2}))
    restarted.train(8)
    assert restarted.versions() == (2, 3, 7, 8, 9)
    assert restarted.trainer.traces.rounds() == restarted.trainer.round_gradients.rounds() == [2, 8]


def test_what_may_be_forgotten_interrupts_no_round(tmp_path: Path) -> None:
    middle = Middle(tmp_path)
    middle.train(0)
    middle.train(1, meanwhile=Forget(0, ()))
    assert middle.trainer.traces.rounds() == [1]


def test_a_coordinator_that_never_lets_go_costs_a_bounded_number_of_versions(tmp_path: Path) -> None:
    checkpoints, stage = Checkpoints(tmp_path, SPEC, 1), Stage(SPEC, 1)
    for round_ in range(MAX_RETAINED_ROUNDS + 6):
        stage.load(stage.state(), round_)
        checkpoints.save(stage)
        checkpoints.retain(range(round_ + 1))
    assert len(checkpoints.rounds()) == MAX_RETAINED_ROUNDS + 1


@pytest.mark.parametrize(("lost", "kept"), [("traces", "gradients"), ("gradients", "traces")])
def test_what_is_kept_for_audits_changes_nothing_in_what_is_reported(tmp_path: Path, lost: str, kept: str) -> None:
    """A disk on which one of them can't be written."""
    report = Middle(tmp_path / "kept").train(0).report
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / lost).write_text("")
    middle = Middle(tmp_path / "full")
    assert middle.train(0).report == report
    assert middle.trace(0, kept)


def follow(middle: Middle, round_: int, gradient: Path) -> bytes:
    done: Future[bytes] = Future()
    middle.inbox.put(Follow(round_, gradient, done))
    middle.inbox.put(Quit())
    middle.trainer.run()
    return done.result(0)


def write_gradient(middle: Middle, round_: int, path: Path) -> Path:
    ((_, data),) = middle.trace(round_, "gradients").items()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("asynchrony", ["none", "delayed", "look_ahead"])
def test_who_follows_comes_to_the_states_of_those_who_train(tmp_path: Path, asynchrony: str) -> None:
    spec = tiny_spec(stages=3, asynchrony=asynchrony)
    leader, follower = Middle(tmp_path / "leader", spec), Middle(tmp_path / "follower", spec)
    roots = [each.report.state_after for each in leader.train_rounds(2)]
    gradients = [write_gradient(leader, round_, tmp_path / f"gradient-{round_}") for round_ in range(2)]
    assert follow(follower, 0, gradients[0]) == roots[0]
    restarted = Middle(tmp_path / "follower", spec)
    assert follow(restarted, 1, gradients[1]) == roots[1]
    assert restarted.versions() == (1, 2)
    assert follow(restarted, 0, gradients[0]) == roots[0], "from any version that is there"


def test_who_has_followed_trains_what_the_others_train(tmp_path: Path) -> None:
    leader, follower = Middle(tmp_path / "leader"), Middle(tmp_path / "follower")
    leader.train(0)
    follow(follower, 0, write_gradient(leader, 0, tmp_path / "gradient"))
    assert follower.train(1).report == leader.train(1).report


def test_a_gradient_that_isn_t_of_the_stage_changes_nothing(tmp_path: Path) -> None:
    middle, path = Middle(tmp_path), tmp_path / "gradient"
    before = middle.train(0).report.state_after
    gradient = safetensors.torch.load(write_gradient(middle, 0, path).read_bytes())
    name = min(gradient)
    for wrong in ({}, gradient | {name: gradient[name][:-1]}, gradient | {"more": torch.zeros(1)}):
        safetensors.torch.save_file(wrong, path)
        with pytest.raises(MalformedMessage, match="is no gradient of stage 1"):
            follow(middle, 1, path)
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="can't be read"):
        follow(middle, 1, path)
    assert middle.train(1).report.state_before == before


def test_a_version_that_was_replaced_on_the_disk_is_gone_on_with(tmp_path: Path) -> None:
    """As of a node that came out otherwise than the others, and has fetched what was sealed."""
    middle, other = Middle(tmp_path / "own"), Middle(tmp_path / "other")
    own = middle.train(0, generation=1).report.state_after
    sealed = other.train(0, generation=2).report.state_after
    assert own != sealed
    path = version_path(tmp_path / "own", 1)
    shutil.rmtree(path)
    shutil.copytree(version_path(tmp_path / "other", 1), path)
    assert middle.train(1).report.state_before == sealed


def test_gradients_of_the_last_rounds_stay_for_who_follows(tmp_path: Path) -> None:
    middle = Middle(tmp_path)
    for round_ in range(FOLLOWED_ROUNDS + 2):
        middle.train(round_)
    middle.forget(Forget(FOLLOWED_ROUNDS, ()))
    assert middle.trainer.traces.rounds() == [FOLLOWED_ROUNDS + 1]
    assert middle.trainer.round_gradients.rounds() == list(range(1, FOLLOWED_ROUNDS + 2))
