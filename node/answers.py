"""What a node keeps of the answers that went through its stage: their traces on the disk, and what it signs about them.

    FOLDER/round-00000030/SESSION.answer    by version and by the session's id in hex: the ids, the codes that came in
                                            and what went out, as in commonweight/rules/answer.py, one after the other
    FOLDER/round-00000030/SESSION.part      what is said of it: an AnswerPart

Nobody but their owner may look into the folders: they hold what buyers wrote.

The decode process writes a trace when its session is over, whole or not at all. Nothing is synced: it outlives the
node, and a power cut may cost it, and so what its answer would have been paid. No torch here.
"""

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from google.protobuf.message import DecodeError

from commonweight.errors import MalformedMessage
from commonweight.events import emit
from commonweight.identity import NodeIdentity
from commonweight.rules.answer import CHOICE, Answer, pack_ids, piece_hash
from commonweight.rules.receipt import Domain
from commonweight.wire.generated import control_pb2 as pb
from commonweight.wire.messages import answer_from_proto, answer_to_proto
from node.published import version_path

MAX_UNRECORDED = 1024
"""Parts that wait for the coordinator at a time."""
RESERVE_FILES = 1024
"""That can still be made on the disk: checkpoints and receipts are files, too."""


@dataclass(slots=True)
class OpenTrace:
    """Of one session on one stage. It grows with each step, by what the step moves; see Answer for the fields."""

    version: int
    session: bytes
    nonce: bytes
    prompt_tokens: int
    temperature: float
    seed: int
    fed: int = 0
    ids: bytearray = field(default_factory=bytearray)
    taken: bytearray = field(default_factory=bytearray)
    passed: bytearray = field(default_factory=bytearray)

    def take(self, ids: list[int], code: bytes) -> None:
        """These tokens went through the stage; `code` is empty on the first one."""
        self.fed += len(ids)
        self.ids += pack_ids(ids)
        self.taken += code

    def choose(self, id_: int, logit: float) -> None:
        """The last stage has chosen the token after those that were fed, by this float32 logit."""
        self.passed += CHOICE.pack(id_, logit)

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.ids) + len(self.taken) + len(self.passed)

    def answer(self) -> Answer:
        """The part of the answer, with the hash of each piece."""
        return Answer(
            version=self.version,
            session=self.session,
            nonce=self.nonce,
            prompt_tokens=self.prompt_tokens,
            fed=self.fed,
            ids=piece_hash(self.ids),
            taken=piece_hash(self.taken),
            passed=piece_hash(self.passed),
            temperature=self.temperature,
            seed=self.seed,
        )


def answers_folder(directory: Path, stage: int) -> Path:
    """Where a node with this directory keeps the traces of its stage."""
    return directory / "answers" / f"stage-{stage}"


def answer_path(folder: Path, version: int, session: bytes) -> Path:
    """Where the trace of a session lies."""
    return version_path(folder, version) / f"{session.hex()}.answer"


def write_trace(folder: Path, trace: OpenTrace, reserve_bytes: int = 0) -> Answer:
    """Put it on the disk, where `reserve_bytes` and RESERVE_FILES stay free for training. Returns what is said of it.

    Raises OSError where it can't be; FileExistsError for a second session of this id: it isn't an answer of its own.
    """
    path = answer_path(folder, trace.version, trace.session)
    for place in (folder.parent, folder, path.parent):  # `parents` doesn't take the mode
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError("there is a trace of another session with this id")
    disk = os.statvfs(path.parent)
    if disk.f_bavail * disk.f_frsize < reserve_bytes + trace.size:
        raise OSError(f"less than {reserve_bytes} bytes are free, which the next checkpoint may take")
    if disk.f_files and disk.f_favail < RESERVE_FILES:  # 0: a file system without a limit
        raise OSError(f"{disk.f_favail} more files can be made; {RESERVE_FILES} are left to training")
    scratch = path.with_suffix(".writing")
    try:
        with scratch.open("wb") as file:
            for piece in (trace.ids, trace.taken, trace.passed):
                file.write(piece)
        answer = trace.answer()
        path.with_suffix(".part").write_bytes(answer_to_proto(answer).SerializeToString())
        scratch.replace(path)
    except OSError:
        for suffix in (".writing", ".part"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        raise
    return answer


def read_part(folder: Path, version: int, session: bytes) -> Answer | None:
    """What this node says of a session, or None where it keeps no trace of it."""
    return _part_of(answer_path(folder, version, session))


def kept_parts(folder: Path, versions: Collection[int]) -> list[Answer]:
    """What this node says of the answers by these versions whose traces it keeps: MAX_UNRECORDED at most, those by the
    newest versions, oldest version first.
    """
    newest_first = (version_path(folder, version) for version in sorted(versions, reverse=True))
    traces = (path for place in newest_first for path in sorted(place.glob("*.answer")))
    parts = (part for path in traces if (part := _part_of(path)) is not None)
    return list(islice(parts, MAX_UNRECORDED))[::-1]


def _part_of(trace: Path) -> Answer | None:
    try:
        return answer_from_proto(pb.AnswerPart.FromString(trace.with_suffix(".part").read_bytes()))
    except (OSError, DecodeError, MalformedMessage):
        return None


def remove_trace(folder: Path, version: int, session: bytes) -> None:
    """Nobody can audit it any more. One that can't be removed goes with its version."""
    for suffix in (".answer", ".part"):
        with suppress(OSError):
            answer_path(folder, version, session).with_suffix(suffix).unlink()


def keep_traces(folder: Path, versions: Collection[int]) -> None:
    """Remove the traces of all other versions; what can't be removed is next time."""
    kept = {version_path(folder, version) for version in versions}
    with suppress(OSError):
        for path in folder.glob("round-*"):
            if path not in kept:
                shutil.rmtree(path)


@dataclass
class Unrecorded:
    """The parts of answers that a node has signed and the coordinator hasn't recorded yet, oldest first."""

    identity: NodeIdentity
    parts: dict[bytes, pb.SignedAnswer] = field(default_factory=dict)
    """By session."""

    def sign(self, assignment: pb.Assignment, part: pb.AnswerPart) -> pb.SignedAnswer:
        """The part with the node's signature, kept until it is recorded.

        Where too many wait the oldest is forgotten, and told: its answer won't be paid.
        """
        receipt = answer_from_proto(part).receipt(assignment.model_id, assignment.stage)
        domain = Domain(assignment.chain_id, assignment.settlement)
        signed = pb.SignedAnswer(part=part, signature=self.identity.sign_digest(receipt.digest(domain)))
        self.parts[part.session] = signed
        if len(self.parts) > MAX_UNRECORDED:
            oldest = self.parts.pop(next(iter(self.parts))).part
            emit_lost(oldest.round, oldest.session, f"{MAX_UNRECORDED} parts wait for the coordinator")
        return signed

    def recorded(self, session: bytes) -> None:
        """The coordinator has it; one that it was told of before changes nothing."""
        self.parts.pop(session, None)

    def keep(self, versions: Collection[int]) -> None:
        """Forget the parts of all other versions: without their parameters nobody can audit them."""
        self.parts = {id_: signed for id_, signed in self.parts.items() if signed.part.round in versions}


def emit_lost(version: int, session: bytes, message: str) -> None:
    """The stage's part of this answer isn't said, and so nobody is paid for it."""
    emit("answer.lost", version=version, session=session.hex(), message=message)
