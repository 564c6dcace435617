"""What a node knows of the audits of its rounds, and so whom it lets fetch what.

    FOLDER/sealed.json    the epoch's tip, and of each round whose audits aren't decided what its beacon follows from

What is kept of a round is kept with the stage that the node held in it: one that has moved serves audits of its rounds
in the stage before, and removes what it has of that once none of them is open.

The coordinator's word isn't taken for it: a value must follow from the tip that the node has signed, and mix with the
output that it has signed, and with what it says of each answer. What isn't drawn then isn't served to anybody.
"""

import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from eth_hash.auto import keccak
from pydantic import ValidationError

from commonweight.errors import CommitmentBroken, MalformedMessage, UnplannedMessage
from commonweight.rules.audits import TRAINING, WORK, Audit, Kind, draw_audits
from commonweight.rules.beacon import blinded, round_beacon
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.spec import ModelSpec, parse_spec
from commonweight.rules.statement import to_hex
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import audit_from_proto
from commonweight.wire.tls import peer_id_of
from node.answers import answers_folder, read_part, remove_trace
from node.receipts import Signed
from node.sealed import Known, OwnAnswer, Sealed, check_form


@dataclass
class Draws:
    """Of one node in one model. Methods wait for the disk: call them off the event loop, but for `allows`."""

    directory: Path
    """The node's."""
    folder: Path
    spec: ModelSpec
    stage: int
    """That the node holds."""
    _known: Known | None = None
    _checked: tuple[int, bytes] = (-1, b"")
    """The last round whose value was found to follow from its tip, and that value."""
    _drawn: dict[int, frozenset[Audit]] = field(default_factory=dict)
    _grants: dict[Audit, bytes] = field(default_factory=dict)
    """The certificate of the auditor of each unit."""
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, directory: Path, assignment: pb.Assignment) -> "Draws":
        """Of the node with this directory, with what an earlier process has kept; what can't be read is as good as
        nothing.
        """
        folder = directory / "receipts" / assignment.model_id.hex()
        draws = cls(directory, folder, parse_spec(assignment.spec), assignment.stage)
        try:
            draws._known = Known.model_validate_json((folder / "sealed.json").read_bytes())
        except (OSError, ValidationError):
            draws._known = None
        return draws

    def plan(self, round_: int, tip: bytes) -> None:
        """The round is to be trained, in the epoch of this tip.

        Raises MalformedMessage for a tip that is none, CommitmentBroken for another one than the epoch's.
        """
        if len(tip) != HASH_BYTES:
            raise MalformedMessage(f"beacon_tip: a hash has {HASH_BYTES} bytes; this one has {len(tip)}.")
        epoch, text = self._epoch(round_), to_hex(tip)
        with self._lock:
            known = self._known
            if known is None or epoch > known.epoch:
                self._keep(Known(epoch=epoch, tip=text, rounds=() if known is None else known.rounds))
            elif (known.epoch, known.tip) != (epoch, text):
                raise CommitmentBroken(
                    f"Round {round_} is planned with the beacon tip {text} of epoch {epoch}; this node has signed "
                    f"reports with {known.tip} in epoch {known.epoch}: with another tip other work would be audited."
                )

    def tip(self, round_: int) -> bytes:
        """What a report of this round signs. Raises UnplannedMessage where it wasn't planned."""
        known = self._known
        if known is None or known.epoch != self._epoch(round_):
            raise UnplannedMessage(f"A report of round {round_} came without its plan.")
        return bytes.fromhex(known.tip[2:])

    def seal(self, message: pb.RoundSealed, signed: Signed | None) -> None:
        """The coordinator says what chooses the round's audits; `signed` is what this node signed last.

        Hearing of a round again changes nothing, but for what is retained. Traces of answers that can't be audited any
        more are removed. Raises MalformedMessage, or CommitmentBroken where the value doesn't follow from the tip, or
        the round was sealed with another output, or with another trace of an answer, than this node's, or without it.
        """
        check_form(message, self.spec)
        with self._lock:
            if signed is None or self._known is None:
                return  # lost with the disk: there is nothing to check it with, and so nothing to serve
            if message.salt and signed.round < message.round:
                raise CommitmentBroken(f"Round {message.round} was sealed; this node has signed no report of it.")
            rounds = {each.round: each for each in self._known.rounds}
            before = rounds.get(message.round)
            sealed = Sealed.of(message, self.spec, signed.stage if before is None else before.stage)
            if before is not None and before.model_copy(update={"drawn_answers": ()}) != sealed:
                raise CommitmentBroken(
                    f"Round {sealed.round} was sealed before with another beacon, other commitments or other answers."
                )
            over = [(each.stage, answer) for each in rounds.values() for answer in each.drawn_answers]
            is_own = signed.round == sealed.round and signed.is_loaded
            if before is None and is_own and self._epoch(sealed.round) == self._known.epoch:
                self._check_output(message, signed)
                self._check_value(sealed)
                own = self._own_answers(message, sealed.stage)
                drawn = {audit.answer for audit in self._draw(sealed) if self._is_own_answer(sealed, audit)}
                mine = tuple(answer for answer in own if answer.index in drawn)
                rounds[sealed.round] = sealed.model_copy(update={"drawn_answers": mine})
                over += [(sealed.stage, answer) for answer in own]
            wanted = sorted(rounds.keys() & set(message.retained))[-MAX_RETAINED_ROUNDS:]
            self._keep(self._known.model_copy(update={"rounds": tuple(rounds[number] for number in wanted)}))
            self._drawn = {number: drawn for number, drawn in self._drawn.items() if number in wanted}
            self._grants = {audit: der for audit, der in self._grants.items() if audit.round in wanted}
            needed = {(rounds[number].stage, answer) for number in wanted for answer in rounds[number].drawn_answers}
            for stage, answer in set(over) - needed:
                remove_trace(answers_folder(self.directory, stage), *answer.name)
            self._vacate({self.stage, signed.stage} | {rounds[number].stage for number in wanted})

    def grant(self, message: pb.AuditGrant) -> Audit:
        """Let this auditor fetch what it takes to replay a unit, which is returned.

        Raises UnplannedMessage where this node doesn't find it drawn, where it is no neighbour's, or a part of an
        answer that isn't this node's or that it doesn't know; MalformedMessage or IdentityMismatch where it, or the
        certificate, is none.
        """
        audit = audit_from_proto(message.unit)
        peer_id_of(message.auditor)
        with self._lock:
            sealed = self._sealed(audit.round)
            if sealed is not None and not self._is_concerned(sealed, audit):
                raise UnplannedMessage(f"{audit}: it is neither this node's, nor a neighbour's.")
            if sealed is None or audit not in self._draw(sealed):
                raise UnplannedMessage(
                    f"Round {audit.round}, stage {audit.stage}, {audit.kind.value} isn't drawn, by all this node knows."
                )
            if audit.kind is Kind.ANSWER and self._drawn_answer(audit) is None:
                raise UnplannedMessage(f"{audit}: this node has no part of it, or none that it knows of.")
            self._grants[audit] = message.auditor
        return audit

    def admitted(self) -> set[bytes]:
        """The certificates (DER) of all auditors."""
        return set(self._grants.copy().values())

    def allows_tensors(self, auditor: bytes, round_: int) -> bool:
        """Whether it may fetch what crossed this stage's sides in the round: to audit it, or a neighbour."""
        return any(audit.kind in TRAINING for audit in self._granted(auditor, round_))

    def allows_state(self, auditor: bytes, round_: int) -> bool:
        """Whether it may fetch the parameters and moments before and after the round of the stage that this node held
        in it, and its gradient: to replay that stage's work. Tokens are compared without any.
        """
        held = self.stage_in(round_)
        return any(audit.stage == held and audit.kind in WORK for audit in self._granted(auditor, round_))

    def stage_in(self, round_: int) -> int | None:
        """The stage that this node held in a round whose audits aren't decided; None where it knows of none."""
        sealed = self._sealed(round_)
        return None if sealed is None else sealed.stage

    def _is_concerned(self, sealed: Sealed, audit: Audit) -> bool:
        """Whether it is this node's, or one of a neighbouring stage."""
        is_own = (audit.stage, audit.replica) == (sealed.stage, sealed.replica)
        return is_own or abs(audit.stage - sealed.stage) == 1

    def granted_answers(self, auditor: bytes, round_: int) -> dict[bytes, int]:
        """The answers, sealed with the round, whose trace here it may fetch, and their versions' parameters: by session
        the version.
        """
        answers = map(self._drawn_answer, self._granted(auditor, round_))
        return {session: version for version, session in (answer.name for answer in answers if answer is not None)}

    def needed_versions(self) -> frozenset[int]:
        """With which drawn answers were generated whose audits aren't decided."""
        rounds = self._known.rounds if self._known else ()
        return frozenset(answer.version for sealed in rounds for answer in sealed.drawn_answers)

    def _granted(self, auditor: bytes, round_: int) -> list[Audit]:
        """Of this node's or a neighbour's round."""
        return [audit for audit, der in self._grants.copy().items() if der == auditor and audit.round == round_]

    def _is_own_answer(self, sealed: Sealed, audit: Audit) -> bool:
        return audit.kind is Kind.ANSWER and (audit.stage, audit.replica) == (sealed.stage, sealed.replica)

    def _drawn_answer(self, audit: Audit) -> OwnAnswer | None:
        """What this node has that the audit looks at."""
        sealed = self._sealed(audit.round)
        if sealed is None or not self._is_own_answer(sealed, audit):
            return None
        return next((each for each in sealed.drawn_answers if each.index == audit.answer), None)

    def _check_output(self, message: pb.RoundSealed, signed: Signed) -> None:
        own = blinded(bytes.fromhex(signed.output[2:]), message.salt)
        commitments = message.stages[signed.stage].commitments
        if not message.salt or commitments[message.replica : message.replica + 1] != [own]:
            raise CommitmentBroken(
                f"Round {message.round} was sealed with {[to_hex(each) for each in commitments]!r:.300} of stage "
                f"{signed.stage}. What this node signed in generation {signed.generation} isn't replica "
                f"{message.replica} of these: with the salt that came ({len(message.salt)} bytes) it is {to_hex(own)}."
            )

    def _own_answers(self, message: pb.RoundSealed, stage: int) -> list[OwnAnswer]:
        """Those that this node knows, drawn or not: a trace that is lost can neither be checked nor served."""
        own, folder = [], answers_folder(self.directory, stage)
        for index, sealed in enumerate(message.answers):
            if sealed.replicas[stage] != message.replica:
                continue
            part = read_part(folder, sealed.round, sealed.session)
            if part is None:
                continue
            if (part.fed, part.trace) != (sealed.fed, sealed.traces[stage]):
                raise CommitmentBroken(
                    f"Round {message.round} was sealed with {sealed.fed} tokens and trace "
                    f"{to_hex(sealed.traces[stage])} of session {sealed.session.hex()}; this node has signed "
                    f"{part.fed} and {to_hex(part.trace)}."
                )
            own.append(OwnAnswer(index=index, version=sealed.round, session=sealed.session.hex()))
        return own

    def _check_value(self, sealed: Sealed) -> None:
        assert self._known is not None, "there is a tip"
        value = hashed = bytes.fromhex(sealed.value[2:])
        behind, target = sealed.round // self._per_epoch * self._per_epoch - 1, bytes.fromhex(self._known.tip[2:])
        if behind < self._checked[0] < sealed.round:
            behind, target = self._checked
        for _ in range(sealed.round - behind):
            hashed = keccak(hashed)
        if hashed != target:
            raise CommitmentBroken(
                f"Round {sealed.round} was sealed with the value {sealed.value}, which doesn't follow from the tip "
                f"{self._known.tip} of its epoch: the coordinator would choose by itself what is audited."
            )
        self._checked = sealed.round, value

    def _sealed(self, round_: int) -> Sealed | None:
        return next((each for each in self._known.rounds if each.round == round_), None) if self._known else None

    def _draw(self, sealed: Sealed) -> frozenset[Audit]:
        if sealed.round not in self._drawn:
            beacon = round_beacon(bytes.fromhex(sealed.value[2:]), bytes.fromhex(sealed.root[2:]))
            answers = sealed.answers, bytes.fromhex(sealed.answers_root[2:])
            drawn = draw_audits(self.spec, sealed.round, beacon, sealed.loads, *answers)
            self._drawn[sealed.round] = frozenset(drawn)
        return self._drawn[sealed.round]

    @property
    def _per_epoch(self) -> int:
        return self.spec.economics.rounds_per_epoch

    def _epoch(self, round_: int) -> int:
        return round_ // self._per_epoch

    def _vacate(self, needed: Collection[int]) -> None:
        """Remove all that is kept of other stages than these; what can't be removed is next time."""
        kept = {f"stage-{stage}" for stage in needed}
        for folder in (self.directory, self.directory / "published", answers_folder(self.directory, 0).parent):
            for path in folder.glob("stage-*"):
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _keep(self, known: Known) -> None:
        """Not synced, and no error where it can't be written: a node that restarts without it only serves less."""
        if known == self._known:
            return
        self._known = known
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (scratch := self.folder / ".sealed.json").write_text(known.model_dump_json())
            scratch.replace(self.folder / "sealed.json")
