from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("certificate", "protocol_version")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    protocol_version: int
    def __init__(self, certificate: _Optional[bytes] = ..., protocol_version: _Optional[int] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("control_port",)
    CONTROL_PORT_FIELD_NUMBER: _ClassVar[int]
    control_port: int
    def __init__(self, control_port: _Optional[int] = ...) -> None: ...

class NodeMessage(_message.Message):
    __slots__ = ("join", "heartbeat", "pipes_open", "report", "pipes_failed", "version_ready", "version_failed", "auditor", "opinion", "recording", "answer", "version", "leave", "late", "pieces")
    JOIN_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PIPES_OPEN_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PIPES_FAILED_FIELD_NUMBER: _ClassVar[int]
    VERSION_READY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FAILED_FIELD_NUMBER: _ClassVar[int]
    AUDITOR_FIELD_NUMBER: _ClassVar[int]
    OPINION_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    join: Join
    heartbeat: Heartbeat
    pipes_open: PipesOpen
    report: SignedReport
    pipes_failed: PipesFailed
    version_ready: VersionReady
    version_failed: VersionFailed
    auditor: AuditorJoin
    opinion: AuditOpinion
    recording: AuditRecording
    answer: SignedAnswer
    version: HasVersion
    leave: Leave
    late: Late
    pieces: PiecesHeld
    def __init__(self, join: _Optional[_Union[Join, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., pipes_open: _Optional[_Union[PipesOpen, _Mapping]] = ..., report: _Optional[_Union[SignedReport, _Mapping]] = ..., pipes_failed: _Optional[_Union[PipesFailed, _Mapping]] = ..., version_ready: _Optional[_Union[VersionReady, _Mapping]] = ..., version_failed: _Optional[_Union[VersionFailed, _Mapping]] = ..., auditor: _Optional[_Union[AuditorJoin, _Mapping]] = ..., opinion: _Optional[_Union[AuditOpinion, _Mapping]] = ..., recording: _Optional[_Union[AuditRecording, _Mapping]] = ..., answer: _Optional[_Union[SignedAnswer, _Mapping]] = ..., version: _Optional[_Union[HasVersion, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., late: _Optional[_Union[Late, _Mapping]] = ..., pieces: _Optional[_Union[PiecesHeld, _Mapping]] = ...) -> None: ...

class Late(_message.Message):
    __slots__ = ("generation", "peer_id", "why")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    generation: int
    peer_id: str
    why: str
    def __init__(self, generation: _Optional[int] = ..., peer_id: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HasVersion(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("data_address", "certificate", "payout_account", "has_data", "evidence_address", "stays")
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PAYOUT_ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    HAS_DATA_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STAYS_FIELD_NUMBER: _ClassVar[int]
    data_address: str
    certificate: bytes
    payout_account: str
    has_data: bool
    evidence_address: str
    stays: bool
    def __init__(self, data_address: _Optional[str] = ..., certificate: _Optional[bytes] = ..., payout_account: _Optional[str] = ..., has_data: _Optional[bool] = ..., evidence_address: _Optional[str] = ..., stays: _Optional[bool] = ...) -> None: ...

class AuditorJoin(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PipesOpen(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class PipesFailed(_message.Message):
    __slots__ = ("generation", "code", "why", "peer_id")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    generation: int
    code: str
    why: str
    peer_id: str
    def __init__(self, generation: _Optional[int] = ..., code: _Optional[str] = ..., why: _Optional[str] = ..., peer_id: _Optional[str] = ...) -> None: ...

class SignedReport(_message.Message):
    __slots__ = ("generation", "report", "signature")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    report: StageReport
    signature: bytes
    def __init__(self, generation: _Optional[int] = ..., report: _Optional[_Union[StageReport, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class StageReport(_message.Message):
    __slots__ = ("round", "stage", "hops", "gradient_hash", "state_before", "state_after", "seconds", "bytes_down", "bytes_up", "numerics", "round_gradient_hash", "busy_seconds", "revision")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    STATE_AFTER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    ROUND_GRADIENT_HASH_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    round: int
    stage: int
    hops: _containers.RepeatedCompositeFieldContainer[Hop]
    gradient_hash: bytes
    state_before: bytes
    state_after: bytes
    seconds: float
    bytes_down: int
    bytes_up: int
    numerics: str
    round_gradient_hash: bytes
    busy_seconds: float
    revision: int
    def __init__(self, round: _Optional[int] = ..., stage: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[Hop, _Mapping]]] = ..., gradient_hash: _Optional[bytes] = ..., state_before: _Optional[bytes] = ..., state_after: _Optional[bytes] = ..., seconds: _Optional[float] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., numerics: _Optional[str] = ..., round_gradient_hash: _Optional[bytes] = ..., busy_seconds: _Optional[float] = ..., revision: _Optional[int] = ...) -> None: ...

class SignedAnswer(_message.Message):
    __slots__ = ("part", "signature")
    PART_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    part: AnswerPart
    signature: bytes
    def __init__(self, part: _Optional[_Union[AnswerPart, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AnswerPart(_message.Message):
    __slots__ = ("round", "session", "fed", "ids", "taken", "passed", "temperature", "seed", "prompt_tokens", "nonce")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FED_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    round: int
    session: bytes
    fed: int
    ids: bytes
    taken: bytes
    passed: bytes
    temperature: float
    seed: int
    prompt_tokens: int
    nonce: bytes
    def __init__(self, round: _Optional[int] = ..., session: _Optional[bytes] = ..., fed: _Optional[int] = ..., ids: _Optional[bytes] = ..., taken: _Optional[bytes] = ..., passed: _Optional[bytes] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("tokens", "activation_in", "activation_out", "gradient_in", "gradient_out", "loss", "sketch", "microbatch")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_IN_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_OUT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_IN_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_OUT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    tokens: bytes
    activation_in: bytes
    activation_out: bytes
    gradient_in: bytes
    gradient_out: bytes
    loss: float
    sketch: bytes
    microbatch: int
    def __init__(self, tokens: _Optional[bytes] = ..., activation_in: _Optional[bytes] = ..., activation_out: _Optional[bytes] = ..., gradient_in: _Optional[bytes] = ..., gradient_out: _Optional[bytes] = ..., loss: _Optional[float] = ..., sketch: _Optional[bytes] = ..., microbatch: _Optional[int] = ...) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("assignment", "formation", "plan", "pause", "heartbeat", "sealed", "finished", "publish", "decode_peers", "audit", "enlisted", "order", "recording", "answer", "version", "replicas", "make", "keep", "move")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    FORMATION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_FIELD_NUMBER: _ClassVar[int]
    DECODE_PEERS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    ENLISTED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAKE_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    formation: Formation
    plan: RoundPlan
    pause: Pause
    heartbeat: Heartbeat
    sealed: RoundSealed
    finished: Finished
    publish: Publish
    decode_peers: DecodePeers
    audit: AuditGrant
    enlisted: Enlisted
    order: AuditOrder
    recording: AuditOrder
    answer: AnswerRecorded
    version: Version
    replicas: ReplicaGrant
    make: MakePieces
    keep: KeepPieces
    move: Move
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ..., formation: _Optional[_Union[Formation, _Mapping]] = ..., plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., pause: _Optional[_Union[Pause, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., sealed: _Optional[_Union[RoundSealed, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., publish: _Optional[_Union[Publish, _Mapping]] = ..., decode_peers: _Optional[_Union[DecodePeers, _Mapping]] = ..., audit: _Optional[_Union[AuditGrant, _Mapping]] = ..., enlisted: _Optional[_Union[Enlisted, _Mapping]] = ..., order: _Optional[_Union[AuditOrder, _Mapping]] = ..., recording: _Optional[_Union[AuditOrder, _Mapping]] = ..., answer: _Optional[_Union[AnswerRecorded, _Mapping]] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., replicas: _Optional[_Union[ReplicaGrant, _Mapping]] = ..., make: _Optional[_Union[MakePieces, _Mapping]] = ..., keep: _Optional[_Union[KeepPieces, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("round", "state_root", "sources", "keepers", "makers", "steps")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_ROOT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    KEEPERS_FIELD_NUMBER: _ClassVar[int]
    MAKERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_root: bytes
    sources: _containers.RepeatedCompositeFieldContainer[EvidenceSource]
    keepers: _containers.RepeatedCompositeFieldContainer[EvidenceSource]
    makers: _containers.RepeatedScalarFieldContainer[bytes]
    steps: _containers.RepeatedCompositeFieldContainer[SealedStep]
    def __init__(self, round: _Optional[int] = ..., state_root: _Optional[bytes] = ..., sources: _Optional[_Iterable[_Union[EvidenceSource, _Mapping]]] = ..., keepers: _Optional[_Iterable[_Union[EvidenceSource, _Mapping]]] = ..., makers: _Optional[_Iterable[bytes]] = ..., steps: _Optional[_Iterable[_Union[SealedStep, _Mapping]]] = ...) -> None: ...

class SealedStep(_message.Message):
    __slots__ = ("round", "state_before", "gradient_hash")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_HASH_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_before: bytes
    gradient_hash: bytes
    def __init__(self, round: _Optional[int] = ..., state_before: _Optional[bytes] = ..., gradient_hash: _Optional[bytes] = ...) -> None: ...

class ReplicaGrant(_message.Message):
    __slots__ = ("certificates",)
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, certificates: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("spec", "stage", "model_id", "chain_id", "settlement")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENT_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    stage: int
    model_id: bytes
    chain_id: int
    settlement: str
    def __init__(self, spec: _Optional[bytes] = ..., stage: _Optional[int] = ..., model_id: _Optional[bytes] = ..., chain_id: _Optional[int] = ..., settlement: _Optional[str] = ...) -> None: ...

class Enlisted(_message.Message):
    __slots__ = ("spec", "model_id", "chain_id", "settlement")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CHAIN_ID_FIELD_NUMBER: _ClassVar[int]
    SETTLEMENT_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    model_id: bytes
    chain_id: int
    settlement: str
    def __init__(self, spec: _Optional[bytes] = ..., model_id: _Optional[bytes] = ..., chain_id: _Optional[int] = ..., settlement: _Optional[str] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("stage", "before", "after")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    stage: int
    before: float
    after: float
    def __init__(self, stage: _Optional[int] = ..., before: _Optional[float] = ..., after: _Optional[float] = ...) -> None: ...

class Formation(_message.Message):
    __slots__ = ("generation", "round", "previous", "next", "replicas")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    generation: int
    round: int
    previous: _containers.RepeatedCompositeFieldContainer[Neighbour]
    next: _containers.RepeatedCompositeFieldContainer[Neighbour]
    replicas: _containers.RepeatedCompositeFieldContainer[Neighbour]
    def __init__(self, generation: _Optional[int] = ..., round: _Optional[int] = ..., previous: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ..., next: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[Neighbour, _Mapping]]] = ...) -> None: ...

class Neighbour(_message.Message):
    __slots__ = ("peer_id", "data_address", "certificate")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    data_address: str
    certificate: bytes
    def __init__(self, peer_id: _Optional[str] = ..., data_address: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class RoundPlan(_message.Message):
    __slots__ = ("generation", "round", "beacon_tip", "stages", "revision", "since")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BEACON_TIP_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    round: int
    beacon_tip: bytes
    stages: _containers.RepeatedCompositeFieldContainer[StagePlan]
    revision: int
    since: int
    def __init__(self, generation: _Optional[int] = ..., round: _Optional[int] = ..., beacon_tip: _Optional[bytes] = ..., stages: _Optional[_Iterable[_Union[StagePlan, _Mapping]]] = ..., revision: _Optional[int] = ..., since: _Optional[int] = ...) -> None: ...

class StagePlan(_message.Message):
    __slots__ = ("members", "assignment", "revision")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[bytes]
    assignment: _containers.RepeatedScalarFieldContainer[int]
    revision: int
    def __init__(self, members: _Optional[_Iterable[bytes]] = ..., assignment: _Optional[_Iterable[int]] = ..., revision: _Optional[int] = ...) -> None: ...

class RoundSealed(_message.Message):
    __slots__ = ("round", "beacon", "stages", "retained", "salt", "answers", "replica", "next_taken_back")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BEACON_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    RETAINED_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NEXT_TAKEN_BACK_FIELD_NUMBER: _ClassVar[int]
    round: int
    beacon: bytes
    stages: _containers.RepeatedCompositeFieldContainer[SealedStage]
    retained: _containers.RepeatedScalarFieldContainer[int]
    salt: bytes
    answers: _containers.RepeatedCompositeFieldContainer[SealedAnswer]
    replica: int
    next_taken_back: bool
    def __init__(self, round: _Optional[int] = ..., beacon: _Optional[bytes] = ..., stages: _Optional[_Iterable[_Union[SealedStage, _Mapping]]] = ..., retained: _Optional[_Iterable[int]] = ..., salt: _Optional[bytes] = ..., answers: _Optional[_Iterable[_Union[SealedAnswer, _Mapping]]] = ..., replica: _Optional[int] = ..., next_taken_back: _Optional[bool] = ...) -> None: ...

class SealedStage(_message.Message):
    __slots__ = ("commitments", "loads")
    COMMITMENTS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    commitments: _containers.RepeatedScalarFieldContainer[bytes]
    loads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, commitments: _Optional[_Iterable[bytes]] = ..., loads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedAnswer(_message.Message):
    __slots__ = ("session", "round", "fed", "traces", "prompt_tokens", "replicas")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FED_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    round: int
    fed: int
    traces: _containers.RepeatedScalarFieldContainer[bytes]
    prompt_tokens: int
    replicas: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[bytes] = ..., round: _Optional[int] = ..., fed: _Optional[int] = ..., traces: _Optional[_Iterable[bytes]] = ..., prompt_tokens: _Optional[int] = ..., replicas: _Optional[_Iterable[int]] = ...) -> None: ...

class AnswerRecorded(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class AuditGrant(_message.Message):
    __slots__ = ("unit", "auditor")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    AUDITOR_FIELD_NUMBER: _ClassVar[int]
    unit: AuditUnit
    auditor: bytes
    def __init__(self, unit: _Optional[_Union[AuditUnit, _Mapping]] = ..., auditor: _Optional[bytes] = ...) -> None: ...

class AuditUnit(_message.Message):
    __slots__ = ("round", "stage", "kind", "microbatch", "replica")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    round: int
    stage: int
    kind: str
    microbatch: int
    replica: int
    def __init__(self, round: _Optional[int] = ..., stage: _Optional[int] = ..., kind: _Optional[str] = ..., microbatch: _Optional[int] = ..., replica: _Optional[int] = ...) -> None: ...

class AuditOrder(_message.Message):
    __slots__ = ("unit", "report", "sources", "answer", "version_root")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    VERSION_ROOT_FIELD_NUMBER: _ClassVar[int]
    unit: AuditUnit
    report: StageReport
    sources: _containers.RepeatedCompositeFieldContainer[EvidenceSource]
    answer: AnswerPart
    version_root: bytes
    def __init__(self, unit: _Optional[_Union[AuditUnit, _Mapping]] = ..., report: _Optional[_Union[StageReport, _Mapping]] = ..., sources: _Optional[_Iterable[_Union[EvidenceSource, _Mapping]]] = ..., answer: _Optional[_Union[AnswerPart, _Mapping]] = ..., version_root: _Optional[bytes] = ...) -> None: ...

class EvidenceSource(_message.Message):
    __slots__ = ("peer_id", "address", "certificate")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    address: str
    certificate: bytes
    def __init__(self, peer_id: _Optional[str] = ..., address: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class AuditOpinion(_message.Message):
    __slots__ = ("unit", "verdict", "why", "evidence", "seconds", "cpu_seconds", "fetched_bytes", "signature")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    unit: AuditUnit
    verdict: str
    why: str
    evidence: bytes
    seconds: float
    cpu_seconds: float
    fetched_bytes: int
    signature: bytes
    def __init__(self, unit: _Optional[_Union[AuditUnit, _Mapping]] = ..., verdict: _Optional[str] = ..., why: _Optional[str] = ..., evidence: _Optional[bytes] = ..., seconds: _Optional[float] = ..., cpu_seconds: _Optional[float] = ..., fetched_bytes: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class AuditRecording(_message.Message):
    __slots__ = ("unit", "operators", "signature")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    unit: AuditUnit
    operators: bytes
    signature: bytes
    def __init__(self, unit: _Optional[_Union[AuditUnit, _Mapping]] = ..., operators: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Pause(_message.Message):
    __slots__ = ("generation", "why")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    generation: int
    why: str
    def __init__(self, generation: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Publish(_message.Message):
    __slots__ = ("round", "load")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    round: int
    load: bool
    def __init__(self, round: _Optional[int] = ..., load: _Optional[bool] = ...) -> None: ...

class VersionReady(_message.Message):
    __slots__ = ("round", "decode_address")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DECODE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    round: int
    decode_address: str
    def __init__(self, round: _Optional[int] = ..., decode_address: _Optional[str] = ...) -> None: ...

class VersionFailed(_message.Message):
    __slots__ = ("round", "code", "why", "retrying")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RETRYING_FIELD_NUMBER: _ClassVar[int]
    round: int
    code: str
    why: str
    retrying: bool
    def __init__(self, round: _Optional[int] = ..., code: _Optional[str] = ..., why: _Optional[str] = ..., retrying: _Optional[bool] = ...) -> None: ...

class DecodePeers(_message.Message):
    __slots__ = ("round", "previous", "next", "gateways")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    GATEWAYS_FIELD_NUMBER: _ClassVar[int]
    round: int
    previous: Neighbour
    next: Neighbour
    gateways: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, round: _Optional[int] = ..., previous: _Optional[_Union[Neighbour, _Mapping]] = ..., next: _Optional[_Union[Neighbour, _Mapping]] = ..., gateways: _Optional[_Iterable[bytes]] = ...) -> None: ...

class MakePieces(_message.Message):
    __slots__ = ("keepers", "before_report")
    KEEPERS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_REPORT_FIELD_NUMBER: _ClassVar[int]
    keepers: _containers.RepeatedCompositeFieldContainer[EvidenceSource]
    before_report: bool
    def __init__(self, keepers: _Optional[_Iterable[_Union[EvidenceSource, _Mapping]]] = ..., before_report: _Optional[bool] = ...) -> None: ...

class KeepPieces(_message.Message):
    __slots__ = ("makers", "seekers")
    MAKERS_FIELD_NUMBER: _ClassVar[int]
    SEEKERS_FIELD_NUMBER: _ClassVar[int]
    makers: _containers.RepeatedCompositeFieldContainer[PieceGrant]
    seekers: _containers.RepeatedCompositeFieldContainer[PieceGrant]
    def __init__(self, makers: _Optional[_Iterable[_Union[PieceGrant, _Mapping]]] = ..., seekers: _Optional[_Iterable[_Union[PieceGrant, _Mapping]]] = ...) -> None: ...

class PieceGrant(_message.Message):
    __slots__ = ("stage", "certificate")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    stage: int
    certificate: bytes
    def __init__(self, stage: _Optional[int] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class PiecesHeld(_message.Message):
    __slots__ = ("pieces",)
    PIECES_FIELD_NUMBER: _ClassVar[int]
    pieces: _containers.RepeatedCompositeFieldContainer[PieceHeld]
    def __init__(self, pieces: _Optional[_Iterable[_Union[PieceHeld, _Mapping]]] = ...) -> None: ...

class PieceHeld(_message.Message):
    __slots__ = ("stage", "round", "state_root", "manifest", "threshold")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_ROOT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    stage: int
    round: int
    state_root: bytes
    manifest: bytes
    threshold: int
    def __init__(self, stage: _Optional[int] = ..., round: _Optional[int] = ..., state_root: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., threshold: _Optional[int] = ...) -> None: ...
