"""What a node knows of the audits of its rounds, and so whom it lets fetch what.

    FOLDER/sealed.json    the epoch's tip, and of each round whose audits aren't decided what its beacon follows from

The coordinator's word isn't taken for it: a value must follow from the tip that the node has signed, and mix with the
output that it has signed. What isn't drawn then isn't served to anybody.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from eth_hash.auto import keccak
from pydantic import ValidationError

from commonweight.errors import CommitmentBroken, MalformedMessage, UnplannedMessage
from commonweight.rules.audits import Audit, Kind, draw_audits
from commonweight.rules.beacon import round_beacon, round_root
from commonweight.rules.merkle import HASH_BYTES
from commonweight.rules.receipt import Domain, Receipt
from commonweight.rules.report import round_receipt
from commonweight.rules.spec import Hash, ModelSpec, Record, parse_spec
from commonweight.rules.statement import Number, to_hex
from commonweight.wire.evidence import MAX_RETAINED_ROUNDS
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import audit_from_proto
from commonweight.wire.tls import peer_id_of
from node.receipts import Signed


class _Sealed(Record):
    """One round."""

    round: Number
    value: Hash
    outputs: tuple[Hash, ...]


class _Known(Record):
    """All of it. `tip` is of `epoch`, the last that was planned."""

    epoch: Number
    tip: Hash
    rounds: tuple[_Sealed, ...] = ()


@dataclass
class Draws:
    """Of one node in one model. Methods wait for the disk: call them off the event loop, but for `allows`."""

    folder: Path
    spec: ModelSpec
    stage: int
    model_id: bytes
    domain: Domain
    _known: _Known | None = None
    _checked: tuple[int, bytes] = (-1, b"")
    """The last round whose value was found to follow from its tip, and that value."""
    _drawn: dict[int, frozenset[Audit]] = field(default_factory=dict)
    _grants: dict[Audit, bytes] = field(default_factory=dict)
    """The certificate of the auditor of each unit."""
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, folder: Path, assignment: pb.Assignment) -> "Draws":
        """With what an earlier process has kept; what can't be read is as good as nothing."""
        domain = Domain(assignment.chain_id, assignment.settlement)
        draws = cls(folder, parse_spec(assignment.spec), assignment.stage, assignment.model_id, domain)
        try:
            draws._known = _Known.model_validate_json((folder / "sealed.json").read_bytes())
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
                self._keep(_Known(epoch=epoch, tip=text, rounds=() if known is None else known.rounds))
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

        Hearing of a round again changes nothing, but for what is retained. Raises MalformedMessage, or
        CommitmentBroken where the value doesn't follow from the tip, or the round was sealed with another output than
        this node's.
        """
        if any(len(each) != HASH_BYTES for each in (message.beacon, *message.outputs)):
            raise MalformedMessage(f"Round {message.round} was sealed with a hash that hasn't {HASH_BYTES} bytes.")
        if len(message.outputs) != self.spec.stages:
            raise MalformedMessage(f"Round {message.round} was sealed with {len(message.outputs)} outputs.")
        outputs = tuple(map(to_hex, message.outputs))
        sealed = _Sealed(round=message.round, value=to_hex(message.beacon), outputs=outputs)
        with self._lock:
            if signed is None or self._known is None:
                return  # lost with the disk: there is nothing to check it with, and so nothing to serve
            rounds = {each.round: each for each in self._known.rounds}
            if signed.round < sealed.round:
                raise CommitmentBroken(f"Round {sealed.round} was sealed; this node has signed no report of it.")
            if rounds.get(sealed.round, sealed) != sealed:
                raise CommitmentBroken(f"Round {sealed.round} was sealed before with another beacon or other outputs.")
            if signed.round == sealed.round and self._epoch(sealed.round) == self._known.epoch:
                self._check_output(sealed, signed)
                self._check_value(sealed)
                rounds[sealed.round] = sealed
            wanted = sorted(rounds.keys() & set(message.retained))[-MAX_RETAINED_ROUNDS:]
            self._keep(self._known.model_copy(update={"rounds": tuple(rounds[number] for number in wanted)}))
            self._drawn = {number: drawn for number, drawn in self._drawn.items() if number in wanted}
            self._grants = {audit: der for audit, der in self._grants.items() if audit.round in wanted}

    def grant(self, message: pb.AuditGrant) -> Audit:
        """Let this auditor fetch what it takes to replay a unit, which is returned.

        Raises UnplannedMessage where this node doesn't find it drawn, or it is no neighbour's; MalformedMessage or
        IdentityMismatch where it, or the certificate, is none.
        """
        audit = audit_from_proto(message.unit)
        peer_id_of(message.auditor)
        if abs(audit.stage - self.stage) > 1:
            raise UnplannedMessage(f"Stage {audit.stage} is no neighbour of this node's stage {self.stage}.")
        with self._lock:
            if audit not in self._draw(audit.round):
                raise UnplannedMessage(
                    f"Round {audit.round}, stage {audit.stage}, {audit.kind.value} isn't drawn, by all this node knows."
                )
            self._grants[audit] = message.auditor
        return audit

    def admitted(self) -> set[bytes]:
        """The certificates (DER) of all auditors."""
        return set(self._grants.copy().values())

    def allows_tensors(self, auditor: bytes, round_: int) -> bool:
        """Whether it may fetch what crossed this stage's sides in the round: to audit it, or a neighbour."""
        return any(der == auditor and audit.round == round_ for audit, der in self._grants.copy().items())

    def allows_parameters(self, auditor: bytes, round_: int, *, after: bool) -> bool:
        """Whether it may fetch this stage's parameters before or after the round: to audit this stage.

        A single microbatch is replayed with those before; tokens are compared without any.
        """
        kinds = self._granted(auditor, round_)
        return Kind.ROUND in kinds or (not after and bool(kinds - {Kind.DATA}))

    def allows_moments(self, auditor: bytes, round_: int) -> bool:
        """Whether it may fetch this stage's moments before and after the round: to audit the whole round."""
        return Kind.ROUND in self._granted(auditor, round_)

    def _granted(self, auditor: bytes, round_: int) -> set[Kind]:
        """What it audits of this stage's round."""
        return {
            audit.kind
            for audit, der in self._grants.copy().items()
            if der == auditor and (audit.round, audit.stage) == (round_, self.stage)
        }

    def _check_output(self, sealed: _Sealed, signed: Signed) -> None:
        output = bytes.fromhex(sealed.outputs[self.stage][2:])
        unit = round_receipt(self.model_id, signed.generation, sealed.round, self.stage, ()).unit
        digest = Receipt(self.model_id, self.stage, unit, output).digest(self.domain)
        if to_hex(digest) != signed.digest:
            raise CommitmentBroken(
                f"Round {sealed.round} was sealed with output {to_hex(output)} of stage {self.stage}, which isn't what "
                f"this node signed in generation {signed.generation}."
            )

    def _check_value(self, sealed: _Sealed) -> None:
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

    def _draw(self, round_: int) -> frozenset[Audit]:
        sealed = next((each for each in self._known.rounds if each.round == round_), None) if self._known else None
        if sealed is None:
            return frozenset()
        if round_ not in self._drawn:
            root = round_root([bytes.fromhex(output[2:]) for output in sealed.outputs])
            beacon = round_beacon(bytes.fromhex(sealed.value[2:]), root)
            self._drawn[round_] = frozenset(draw_audits(self.spec, round_, beacon))
        return self._drawn[round_]

    @property
    def _per_epoch(self) -> int:
        return self.spec.economics.rounds_per_epoch

    def _epoch(self, round_: int) -> int:
        return round_ // self._per_epoch

    def _keep(self, known: _Known) -> None:
        """Not synced, and no error where it can't be written: a node that restarts without it only serves less."""
        if known == self._known:
            return
        self._known = known
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            (scratch := self.folder / ".sealed.json").write_text(known.model_dump_json())
            scratch.replace(self.folder / "sealed.json")
