"""Proposals to slash seats, read from the chain, and the evidence that they name."""

from dataclasses import dataclass
from typing import Any

from eth_hash.auto import keccak

from commonweight.chain.events import SlashContested, SlashProposed
from commonweight.chain.records import NOBODY, SlashRecord, SlashStatus
from commonweight.cli.evidence import MAX_BYTES, Evidence, contradictions, meaning, parse_any
from commonweight.cli.output import format_time
from commonweight.cli.place import Place
from commonweight.errors import ConfigError, MalformedMessage, NotAllowed
from commonweight.rules.statement import to_hex
from commonweight.watch.fetch import fetch_text

UNSEEN = (
    "Nobody can check a claim without its evidence; uncontested, the slash is executed all the same. Ask the reporter, "
    "or whoever has the text, which its hash proves, and give it with --evidence."
)
NOT_IT = "It proves nothing; uncontested, the slash is executed all the same."
NOT_READ = "Any reporter may name any text. Uncontested, the slash is executed; contested, the arbiter has to read it."
NO_EVIDENCE = "This can't be evidence against the seat: contest it, and tell the arbiter."


@dataclass(frozen=True)
class Case:
    """A proposal to slash a seat: how it was made, and how it stands."""

    proposed: SlashProposed
    record: SlashRecord

    @property
    def number(self) -> int:
        return self.proposed.slash_id

    def facts(self) -> dict[str, Any]:
        """For programs."""
        record = self.record
        return {
            "slash_id": self.number,
            "stage": record.stage,
            "owner": record.owner,
            "status": record.status.name.lower(),
            "reporter": record.reporter,
            "contester": None if record.contester == NOBODY else record.contester,
            "deadline": record.deadline,
            "evidence_hash": to_hex(record.evidence_hash),
            "uri": self.proposed.uri,
        }

    def state(self, now: int) -> str:
        """How it stands at Unix time `now`, in words."""
        status, deadline = self.record.status, self.record.deadline
        may = "could" if deadline <= now else "can"
        if status is SlashStatus.PROPOSED:
            return f"proposed, {may} be contested until {format_time(deadline, now)}"
        if status is SlashStatus.CONTESTED:
            return f"contested, the arbiter {may} decide until {format_time(deadline, now)}"
        return status.name.lower()


def slashes_of(place: Place, owner: str | None) -> list[Case]:
    """All that were proposed against the model's seats, or against those of one owner, oldest first."""
    whose: dict[str, Any] = {} if owner is None else {"owner": owner}
    found = place.providers.events(SlashProposed, model_id=place.model.model_id, **whose)
    return [Case(event, place.providers.slash(event.slash_id)) for event in found]


def find_case(place: Place, number: int) -> Case:
    """Raises NotAllowed for a proposal that doesn't exist, ConfigError for one about another model."""
    found = place.providers.events(SlashProposed, slash_id=number)
    if not found:
        raise NotAllowed(f"Slash {number} doesn't exist: `commonweight slash list`")
    if (model_id := found[0].model_id) != place.model.model_id:
        raise ConfigError(f"Slash {number} is about model {to_hex(model_id)}: give it with --model.")
    return Case(found[0], place.providers.slash(number))


def answer_of(place: Place, number: int) -> str | None:
    """Where who contests it says that their answer is."""
    found = place.providers.events(SlashContested, slash_id=number)
    return found[0].uri if found else None


def stake_of(place: Place, case: Case) -> int:
    """What the seat would lose now, in the stake token's base units: 0 where it is slashed or released already."""
    seats = place.providers.seats_of(case.record.model_id, case.record.owner)
    return next((seat.stake for seat in seats if seat.stage == case.record.stage), 0)


@dataclass(frozen=True)
class Found:
    """What became of looking for a proposal's evidence."""

    evidence: Evidence | None
    problem: str | None
    """Why there is none to be relied on."""
    meaning: str

    def facts(self) -> dict[str, Any]:
        """For programs."""
        document = None if self.evidence is None else self.evidence.model_dump(mode="json")
        return {"document": document, "problem": self.problem, "meaning": self.meaning}


def read_evidence(place: Place, case: Case, given: str | None) -> Found:
    """The evidence at `given` (http, https, or a file), else where the proposal says: there no files are read."""
    uri = case.proposed.uri if given is None else given
    try:
        if given is None and not uri.startswith(("http://", "https://")):
            raise ValueError("the proposal's address is no http or https")
        text = fetch_text(uri, MAX_BYTES)
    except ValueError as error:
        return Found(None, f"It can't be had from {uri!r:.400}: {error}.", UNSEEN)
    if keccak(text) != case.record.evidence_hash:
        return Found(None, f"What is at {uri!r:.400} is another text: its hash isn't the one on chain.", NOT_IT)
    try:
        evidence = parse_any(text)
    except MalformedMessage as error:
        return Found(None, f"{error.args[0]} It begins {text[:200]!r}.", NOT_READ)
    if wrong := contradictions(place, case.record, evidence):
        return Found(evidence, f"It contradicts itself or the proposal: {'; '.join(wrong)}.", NO_EVIDENCE)
    return Found(evidence, None, meaning(evidence))
