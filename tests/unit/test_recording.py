"""What a referee records of a unit's replay: the same wherever it is recorded, or a reason why not."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
import torch
from eth_hash.auto import keccak

from commonweight.errors import MalformedMessage
from commonweight.model import narrowing
from commonweight.model.operators import rerun_operator
from commonweight.rules.audits import Audit, Kind
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.recording import OperatorRecord, operator_hash
from commonweight.wire.generated.referee_pb2 import Recording
from referee import recording
from referee.auditor import Auditor
from referee.recording import record_unit
from tests.unit.referee_world import MICROBATCHES, SPEC, OtherSum, Text, World, single, train, train_divided, whole

torch.set_num_threads(1)

UNITS = [whole(0), whole(2), single(1), single(2), whole(1, round_=0), single(1, round_=0)]


@pytest.fixture(scope="module")
def honest() -> World:
    return train()


@pytest.fixture(scope="module")
def referee() -> Auditor:
    return Auditor(SPEC, dataset=Text())  # type: ignore[arg-type]


def recorded(referee: Auditor, world: World, unit: Audit, tensors_of: int | None = None) -> Recording:
    return asyncio.run(
        record_unit(referee, unit, world.report(unit), world.sources(unit.stage, unit.replica), tensors_of)
    )


def without_text() -> list[str]:
    """What another auditor records, who fetches the tokens, too."""
    auditor, world = Auditor(SPEC), train()
    return [recorded(auditor, world, unit).operators.hex() for unit in UNITS]


def test_another_process_records_the_same(referee: Auditor, honest: World) -> None:
    code = "from tests.unit.test_recording import without_text; print(*without_text())"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    ours = [recorded(referee, honest, unit) for unit in UNITS]
    assert theirs.stdout.split() == [found.operators.hex() for found in ours]
    assert not any(found.failure or found.record or found.tensors for found in ours)
    assert {found.operators[:HASH_BYTES] for found in ours} == {keccak(referee.numerics.encode())}
    of_round, of_one = (recorded(referee, honest, unit(1)).operators for unit in (whole, single))
    assert len(of_round) > 2 * len(of_one) > HASH_BYTES * MICROBATCHES


def test_of_one_microbatch_the_step_is_recorded_too(referee: Auditor, honest: World) -> None:
    of_one = recorded(referee, honest, single(1)).operators
    last = recorded(referee, honest, single(1), len(of_one) // HASH_BYTES - 2)
    assert OperatorRecord.model_validate_json(last.record).phase == "step"
    world = train(OtherSum, 1)
    false = recorded(referee, world, single(1)).operators
    assert false != of_one
    assert len(false) == len(of_one)


def test_a_replica_s_step_is_recorded_with_the_round_s_gradient(referee: Auditor) -> None:
    """As it was signed: so what is recorded of the step of two replicas is the same."""
    world = train_divided()
    steps = []
    for unit in (whole(1, replica=0), single(1, 0, replica=0), whole(1, replica=1), single(1, 1, replica=1)):
        found = recorded(referee, world, unit)
        count = len(found.operators) // HASH_BYTES - 1
        last = OperatorRecord.model_validate_json(recorded(referee, world, unit, count - 1).record)
        assert last.phase == "step"
        steps.append(last)
    assert len({step.hash for step in steps}) == 1
    world.nodes[1].gradients.pop((1, world.reports[1, 1].round_gradient_hash))
    assert "Nobody served the gradient" in recorded(referee, world, whole(1)).failure


def test_the_wanted_operator_can_be_run_again(referee: Auditor, honest: World) -> None:
    found = recorded(referee, honest, whole(1), 3)
    text = OperatorRecord.model_validate_json(found.record)
    assert text.hash == keccak(found.record) == operator_hash(found.operators, 3)
    assert rerun_operator(text, found.tensors) == text
    plain = recorded(referee, honest, whole(1))
    assert plain.operators == found.operators
    beyond = recorded(referee, honest, whole(1), len(found.operators) // HASH_BYTES - 1)
    assert beyond == plain


def test_tensors_that_are_too_large_aren_t_shown(
    referee: Auditor, honest: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing, "MAX_TENSORS_BYTES", 8)
    found = recorded(referee, honest, whole(1), 3)
    assert found.record
    assert not found.tensors


def test_what_isn_t_there_is_told(referee: Auditor, honest: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "replays no operator" in recorded(referee, honest, Audit(1, 0, Kind.DATA, 0)).failure
    world = train()
    world.nodes[1].states.clear()
    assert "Nobody served" in recorded(referee, world, whole(1)).failure
    other = train()
    for node in other.nodes:
        node.tensors.clear()
    assert "Nobody served activation_in of microbatch 1" in recorded(referee, other, single(1)).failure

    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(recording, "record", broken)
    failed = recorded(referee, honest, whole(1))
    assert failed == Recording(failure="The recording broke off: ZeroDivisionError: a bug")
    monkeypatch.undo()
    monkeypatch.setattr(recording, "MAX_RECORD_BYTES", 10)
    assert "record of operator 3 has" in recorded(referee, honest, whole(1), 3).failure
    monkeypatch.undo()
    assert not recorded(referee, honest, whole(1)).failure, "the next one is none the worse"


def test_an_error_of_ours_is_told_with_its_code(
    referee: Auditor, honest: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: Any) -> Any:
        raise MalformedMessage("An operator's argument is a Generator.")

    monkeypatch.setattr(narrowing, "write_arguments", odd)
    assert recorded(referee, honest, single(1)).failure == "[WIRE_MALFORMED] An operator's argument is a Generator."
