"""A node's own receipts in one model: it signs once for each unit, and keeps what was sealed.

    FOLDER/last.json               the last unit that was signed for; on the disk before the signature leaves
    FOLDER/epoch-00000003.jsonl    one OwnReceipt per line, appended when the coordinator says that the round is sealed

Two signatures for one unit cost the seat's stake (ProviderRegistry.slashEquivocation). So a coordinator that asks for a
second one, be it hostile or be its ledger lost, is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from commonweight.disk import replace_file
from commonweight.errors import StateError
from commonweight.rules.spec import Hash, Record
from commonweight.rules.statement import Number, to_hex
from commonweight.watch.judge import OwnReceipt


class Signed(Record):
    """The last unit that was signed for."""

    generation: Number
    round: Number
    stage: Number
    output: Hash
    """Of its receipt."""
    is_loaded: bool
    """Whether it was of any work; otherwise the node shadowed the round, and is credited nothing."""


@dataclass
class Receipts:
    """The receipts of one node in one model. Raises StateError where they can't be kept."""

    folder: Path
    rounds_per_epoch: int
    last: Signed | None = None
    _unsealed: dict[int, OwnReceipt] = field(default_factory=dict)
    """By round: the last that was signed and isn't known to be sealed."""

    def __post_init__(self) -> None:
        try:
            self.last = Signed.model_validate_json((self.folder / "last.json").read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            raise StateError(
                f"{self.folder / 'last.json'} can't be read, so nobody knows what this node has signed. Restore "
                "it; to sign twice for one unit costs the seat's stake."
            ) from error

    def promise(self, generation: int, round_: int, stage: int, output: bytes, *, is_loaded: bool) -> None:
        """Note that this output is about to be signed. Raises StateError where an older or another one would be."""
        last = self.last
        wanted = Signed(generation=generation, round=round_, stage=stage, output=to_hex(output), is_loaded=is_loaded)
        if last == wanted:
            return
        if last is not None and (generation, round_) <= (last.generation, last.round):
            raise StateError(
                f"This node has signed for round {last.round} of generation {last.generation} and won't sign for round "
                f"{round_} of generation {generation} again: two signatures for one unit cost its stake. "
                "The coordinator has lost its ledger, or is up to something."
            )
        try:
            replace_file(self.folder / "last.json", wanted.model_dump_json().encode())
        except OSError as error:
            raise self._failure("what is signed", error) from error
        self.last = wanted

    def signed(self, receipt: OwnReceipt) -> None:
        """A later one for the same round, of a later generation, replaces it."""
        self._unsealed[receipt.round] = receipt

    def seal(self, round_: int) -> None:
        """The coordinator has sealed this round."""
        receipt = self._unsealed.get(round_)
        self._unsealed = {number: kept for number, kept in self._unsealed.items() if number > round_}
        if receipt is None:
            return  # signed before a restart: one receipt less to check with
        try:
            with self._path(round_ // self.rounds_per_epoch).open("a") as file:
                file.write(receipt.model_dump_json() + "\n")
        except OSError as error:
            raise self._failure(f"the receipt of round {round_}", error) from error

    def of_epoch(self, epoch: int) -> Sequence[OwnReceipt]:
        """All of an epoch's; a line that was cut short by a crash is left out."""
        try:
            lines = self._path(epoch).read_text().splitlines()
        except OSError:
            return ()
        receipts = []
        for line in lines:
            try:
                receipts.append(OwnReceipt.model_validate_json(line))
            except ValidationError:
                continue
        return receipts

    def _path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:08d}.jsonl"

    def _failure(self, what: str, error: OSError) -> StateError:
        return StateError(f"{what} can't be kept in {self.folder}: {error.strerror}.")
