"""What a node signs, and that it never signs twice for one unit."""

from pathlib import Path

import pytest

from commonweight.errors import StateError
from commonweight.watch.judge import OwnReceipt
from node.receipts import Receipts


def receipts(folder: Path) -> Receipts:
    return Receipts(folder / "receipts", rounds_per_epoch=2)


def own(round_: int, generation: int = 1) -> OwnReceipt:
    return OwnReceipt(round=round_, stage=0, generation=generation, signature="0x" + f"{round_:02x}" * 65)


def test_later_units_are_promised_and_the_same_one_again(tmp_path: Path) -> None:
    mine = receipts(tmp_path)
    for generation, round_ in ((1, 0), (1, 1), (3, 1), (3, 2)):
        mine.promise(generation, round_, bytes([generation, round_]) * 16)
        mine.promise(generation, round_, bytes([generation, round_]) * 16)


@pytest.mark.parametrize(("generation", "round_"), [(3, 5), (3, 4), (2, 9)])
def test_no_second_digest_for_a_unit_even_after_a_restart(tmp_path: Path, generation: int, round_: int) -> None:
    receipts(tmp_path).promise(3, 5, b"\1" * 32)
    with pytest.raises(StateError, match="won't sign"):
        receipts(tmp_path).promise(generation, round_, b"\2" * 32)
    receipts(tmp_path).promise(3, 5, b"\1" * 32)  # a report that is sent again
    receipts(tmp_path).promise(3, 6, b"\2" * 32)


def test_a_damaged_memory_is_not_taken_for_none(tmp_path: Path) -> None:
    receipts(tmp_path).promise(1, 0, b"\1" * 32)
    (tmp_path / "receipts" / "last.json").write_text("{")
    with pytest.raises(StateError, match="can't be read"):
        receipts(tmp_path)


def test_only_sealed_rounds_are_kept_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    mine = receipts(tmp_path)
    mine.promise(1, 0, b"\1" * 32)
    mine.signed(own(0))
    mine.signed(own(1))
    mine.signed(own(1, generation=2))  # the round was trained again
    mine.signed(own(2))
    assert mine.of_epoch(0) == ()
    mine.seal(0)
    mine.seal(1)
    mine.seal(1)
    with (tmp_path / "receipts" / "epoch-00000000.jsonl").open("a") as file:
        file.write('{"round": 1, "sta')
    assert receipts(tmp_path).of_epoch(0) == [own(0), own(1, generation=2)]
    assert mine.of_epoch(1) == ()
