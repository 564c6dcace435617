"""What a checkpoint says of itself: meta.json beside its tensors. No torch here."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from commonweight.errors import MalformedMessage
from commonweight.rules.canonical import canonical_json, parse_json
from commonweight.rules.spec import ModelSpec
from node.published import META_FILE, version_path

MAX_META_BYTES = 64 * 1024


class Meta(BaseModel):
    """Of one checkpoint."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal["commonweight.checkpoint/2"]
    model: Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$", description="the spec's hash")]
    stage: Annotated[int, Field(ge=0)]
    round: Annotated[int, Field(ge=0, description="ready to train this one")]
    state_root: Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]


def meta_bytes(spec: ModelSpec, stage: int, round_: int, state_root: bytes) -> bytes:
    """The file of a checkpoint that is ready to train `round_`."""
    meta = Meta(
        format="commonweight.checkpoint/2",
        model="0x" + spec.spec_hash.hex(),
        stage=stage,
        round=round_,
        state_root="0x" + state_root.hex(),
    )
    return canonical_json(meta.model_dump())


def read_meta(data: bytes, what: str) -> Meta:
    """What a file says. Raises MalformedMessage or ValidationError."""
    return Meta.model_validate(parse_json(data, what, MAX_META_BYTES))


def stored_root(checkpoints: Path, round_: int) -> bytes | None:
    """The state root of this version, as its checkpoint says; None where there is none that can be read."""
    path = version_path(checkpoints, round_) / META_FILE
    try:
        return bytes.fromhex(read_meta(path.read_bytes(), str(path)).state_root[2:])
    except (OSError, MalformedMessage, ValidationError):
        return None
