"""The model spec: all that decides what is trained, how, and who is owed what for it.

Every initial weight, every batch and every share follows from the spec, so two parties that agree on its hash
agree on all of these.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from commonweight.errors import SpecError
from commonweight.rules.canonical import content_hash, parse_json

MAX_SPEC_BYTES = 64 * 1024
MAX_SUPPLY = 2**96
MAX_FAULTS = 20
"""So many wrong fields are named at once."""

Dtype = Literal["float32", "bfloat16", "float16"]
Asynchrony = Literal["none", "delayed", "look_ahead"]
"""See `Training.asynchrony`."""
Averaging = Literal["float32", "int8"]
"""See `Training.averaging`."""


def _decimal(text: str) -> str:
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", text):
        raise ValueError("must be a plain decimal number that isn't negative, such as 0 or 0.003")
    return text


def _below_one(text: str) -> str:
    if not text.startswith("0"):
        raise ValueError("must be below 1")
    return text


def _at_most_one(text: str) -> str:
    if not text.startswith("0") and text != "1":
        raise ValueError("must be at most 1")
    return text


def _integer(text: str) -> str:
    if not text.isascii() or not text.isdigit() or (text[0] == "0" and text != "0"):
        raise ValueError(f"{text!r} must be a plain decimal integer")
    if int(text) > MAX_SUPPLY:
        raise ValueError(f"{text!r} is over 2^96")
    return text


Fraction = Annotated[str, Field(max_length=40), AfterValidator(_decimal)]
"""A non-negative number as a plain decimal string, such as "0.003": JSON floats have no canonical form."""

Beta = Annotated[Fraction, AfterValidator(_below_one)]
"""The decay of a running mean: at 1 it would never learn, and its bias correction would divide by zero."""

Rate = Annotated[Fraction, AfterValidator(_at_most_one)]
"""A probability."""

Amount = Annotated[str, Field(max_length=40), AfterValidator(_integer)]
"""An integer of base units as a decimal string; at most 2^96."""

Hash = Annotated[str, Field(pattern=r"^0x[0-9a-f]{64}$")]
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]


class Record(BaseModel):
    """A frozen record that refuses unknown fields and silent conversions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Architecture(Record):
    """A Llama-style decoder in factored subspace form (Subspace Networks, arXiv 2506.01260)."""

    vocab_size: Annotated[int, Field(ge=2, le=2**20)]
    d_model: Annotated[int, Field(gt=0, le=2**15, description="width of the residual stream")]
    boundary_dim: Annotated[
        int, Field(gt=0, le=2**15, description="k: numbers per token between stages; = d_model: dense")
    ]
    n_layers: Annotated[int, Field(gt=0, le=1024)]
    n_heads: Annotated[int, Field(gt=0, le=1024)]
    n_kv_heads: Annotated[int, Field(gt=0, le=1024)]
    d_ff: Annotated[int, Field(gt=0, le=2**18, description="inner width of the SwiGLU")]
    rope_theta: Count
    norm_eps: Fraction

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def is_dense(self) -> bool:
        """Whether boundaries carry the residual stream itself (U = I, F = 0)."""
        return self.boundary_dim == self.d_model

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise ValueError(f"d_model {self.d_model} over n_heads {self.n_heads} must be an even integer")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.boundary_dim > self.d_model:
            raise ValueError(f"boundary_dim {self.boundary_dim} is over d_model {self.d_model}")
        return self


class Training(Record):
    """What a round is, and how a stage steps at its end."""

    sequence_length: Annotated[int, Field(gt=0, le=2**20, description="tokens per sequence")]
    microbatch_sequences: Annotated[int, Field(gt=0, le=2**12)]
    microbatches_per_round: Annotated[int, Field(gt=0, le=2**12)]
    compute_dtype: Literal["float32", "bfloat16"] = Field(description="bfloat16: autocast; weights stay float32")
    boundary_dtype: Dtype = Field(description="of what travels between stages")
    learning_rate: Fraction
    final_learning_rate: Fraction
    warmup_rounds: Annotated[int, Field(ge=0, le=2**31 - 1)]
    decay_rounds: Annotated[int, Field(ge=0, le=2**31 - 1, description="cosine length after the warm-up")]
    beta1: Beta
    beta2: Beta
    adam_eps: Fraction
    weight_decay: Fraction
    grad_clip: Fraction = Field(description="of the whole model; each stage clips to grad_clip / sqrt(stages)")
    asynchrony: Asynchrony = Field(description="whether a round begins before the last one's step; see model/adamw.py")
    averaging: Averaging = Field(description="how gradients travel between replicas; see rules/averaging.py")
    averaging_rounds: Count = Field(description="replicas average every so many rounds; see model/adamw.py")
    outer_learning_rate: Fraction = Field(description="of the step that is then taken, where that is over 1")
    outer_momentum: Beta = Field(description="likewise")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps_alone and self.is_asynchronous:
            raise ValueError(f"averaging_rounds {self.averaging_rounds} goes with asynchrony none only")
        return self

    @property
    def steps_alone(self) -> bool:
        """Whether replicas step by themselves between rounds in which they average."""
        return self.averaging_rounds > 1

    def averages_in(self, round_: int) -> bool:
        """Whether replicas average in this round."""
        return (round_ + 1) % self.averaging_rounds == 0

    def moves_anchor(self, round_: int) -> bool:
        """Whether this round ends with an outer step: replicas that step alone otherwise average in it."""
        return self.steps_alone and self.averages_in(round_)

    def adam_steps(self, round_: int) -> int:
        """How many AdamW has taken with that of this round; replicas that step alone count from where they averaged."""
        return round_ % self.averaging_rounds + 1 if self.steps_alone else round_ + 1

    @property
    def is_asynchronous(self) -> bool:
        """Whether a round's parameters don't wait for the gradient of the round before."""
        return self.asynchrony != "none"

    @property
    def optimizer_parts(self) -> tuple[str, ...]:
        """What the optimizer keeps for each parameter: Adam's moments; master weights where it is asynchronous; where
        replicas step alone, the parameters that they have averaged last, and that step's momentum.
        """
        if self.is_asynchronous:
            return ("moment1", "moment2", "master")
        return ("moment1", "moment2", "anchor", "velocity") if self.steps_alone else ("moment1", "moment2")

    @property
    def tokens_per_microbatch(self) -> int:
        """Trained positions in one microbatch."""
        return self.sequence_length * self.microbatch_sequences

    @property
    def tokens_per_round(self) -> int:
        """Trained positions in one round."""
        return self.tokens_per_microbatch * self.microbatches_per_round


class Verification(Record):
    """How much of the work is replayed, and what counts as the same result. See docs/verification.md."""

    round_rate: Rate = Field(description="of each stage's rounds: replayed whole, with the step that ends them")
    microbatch_rate: Rate = Field(description="of each stage's other rounds: one microbatch of each, and the step")
    data_rate: Rate = Field(description="of the microbatches of the first stage: that their tokens are those due")
    answer_rate: Rate = Field(description="of each stage's parts of answers: codes, or chosen tokens")
    known_bad_rate: Rate = Field(description="of the units that seat holders audit: shown with a false report first")
    tolerance: Fraction = Field(description="relative L2 error allowed between numerics classes; within one: none")


class Data(Record):
    """Which text, by content."""

    tokenizer: Annotated[str, Field(pattern=r"^(bytes|0x[0-9a-f]{64})$", description="or keccak of tokenizer.json")]
    manifest: Hash
    tokens: Annotated[int, Field(gt=0, le=2**53 - 1)]


class Economics(Record):
    """What an epoch mints and for whom. Never changes after registration."""

    rounds_per_epoch: Count
    max_supply: Amount
    initial_emission: Amount = Field(description="shares (base units) of epoch 0")
    halving_epochs: Count
    designer_bps: Annotated[int, Field(ge=0, le=10_000)]
    data_bps: Annotated[int, Field(ge=0, le=10_000)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.designer_bps + self.data_bps > 10_000:
            raise ValueError(f"designer_bps {self.designer_bps} + data_bps {self.data_bps} is over 10,000")
        bound = 2 * int(self.initial_emission) * self.halving_epochs
        if bound > int(self.max_supply):
            raise ValueError(f"emission can reach {bound}, over max_supply {self.max_supply}")
        return self


class ModelSpec(Record):
    """A model that can be trained by strangers: see the parts."""

    format: Literal["commonweight.model/7"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    seed: Annotated[int, Field(ge=0, le=2**53 - 1)]
    stages: Annotated[int, Field(gt=0, le=1024)]
    architecture: Architecture
    training: Training
    verification: Verification
    data: Data
    economics: Economics

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stages > self.architecture.n_layers:
            raise ValueError(f"{self.stages} stages need as many layers; there are {self.architecture.n_layers}")
        window = self.training.sequence_length + 1
        if self.data.tokens < window:
            raise ValueError(f"the data has {self.data.tokens} tokens; one sequence with its target needs {window}")
        if self.economics.rounds_per_epoch % self.training.averaging_rounds:
            raise ValueError(
                f"rounds_per_epoch {self.economics.rounds_per_epoch} must be a multiple of averaging_rounds "
                f"{self.training.averaging_rounds}: what is served are averaged parameters"
            )
        return self

    @property
    def spec_hash(self) -> bytes:
        """keccak256 of the canonical JSON: what the registry stores."""
        return content_hash(self.model_dump())


def parse_spec(data: bytes) -> ModelSpec:
    """The spec in a JSON text of at most 64 KiB. Raises SpecError that names each wrong field."""
    return build_spec(parse_json(data, "the model spec", MAX_SPEC_BYTES))


def build_spec(fields: Any) -> ModelSpec:
    """The spec with these fields. Raises SpecError that names each wrong field."""
    try:
        return ModelSpec.model_validate(fields)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, e['loc'])) or 'spec':.80}: {e['msg']} (got {e['input']!r:.80})"
            for e in error.errors()[:MAX_FAULTS]
        ]
        raise SpecError("The model spec can't be used. " + "; ".join(faults) + ".") from error
