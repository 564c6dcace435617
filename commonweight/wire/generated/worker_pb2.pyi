from commonweight.wire.generated import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerCommand(_message.Message):
    __slots__ = ("listen", "start", "formation", "plan", "pause", "retain", "follow")
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    FORMATION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    RETAIN_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    listen: WorkerListen
    start: WorkerStart
    formation: _control_pb2.Formation
    plan: _control_pb2.RoundPlan
    pause: _control_pb2.Pause
    retain: Retain
    follow: Follow
    def __init__(self, listen: _Optional[_Union[WorkerListen, _Mapping]] = ..., start: _Optional[_Union[WorkerStart, _Mapping]] = ..., formation: _Optional[_Union[_control_pb2.Formation, _Mapping]] = ..., plan: _Optional[_Union[_control_pb2.RoundPlan, _Mapping]] = ..., pause: _Optional[_Union[_control_pb2.Pause, _Mapping]] = ..., retain: _Optional[_Union[Retain, _Mapping]] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("round", "gradient")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    round: int
    gradient: str
    def __init__(self, round: _Optional[int] = ..., gradient: _Optional[str] = ...) -> None: ...

class Retain(_message.Message):
    __slots__ = ("round", "retained")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RETAINED_FIELD_NUMBER: _ClassVar[int]
    round: int
    retained: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[int] = ..., retained: _Optional[_Iterable[int]] = ...) -> None: ...

class WorkerListen(_message.Message):
    __slots__ = ("address", "certificate", "private_key")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    address: str
    certificate: bytes
    private_key: bytes
    def __init__(self, address: _Optional[str] = ..., certificate: _Optional[bytes] = ..., private_key: _Optional[bytes] = ...) -> None: ...

class WorkerStart(_message.Message):
    __slots__ = ("spec", "stage", "state_dir", "data_dir", "device", "compile")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    DATA_DIR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    COMPILE_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    stage: int
    state_dir: str
    data_dir: str
    device: str
    compile: bool
    def __init__(self, spec: _Optional[bytes] = ..., stage: _Optional[int] = ..., state_dir: _Optional[str] = ..., data_dir: _Optional[str] = ..., device: _Optional[str] = ..., compile: _Optional[bool] = ...) -> None: ...

class WorkerEvent(_message.Message):
    __slots__ = ("listening", "pipes_open", "report", "failure", "started", "late", "followed")
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    PIPES_OPEN_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_FIELD_NUMBER: _ClassVar[int]
    listening: WorkerListening
    pipes_open: _control_pb2.PipesOpen
    report: WorkerReport
    failure: WorkerFailure
    started: WorkerStarted
    late: _control_pb2.Late
    followed: Followed
    def __init__(self, listening: _Optional[_Union[WorkerListening, _Mapping]] = ..., pipes_open: _Optional[_Union[_control_pb2.PipesOpen, _Mapping]] = ..., report: _Optional[_Union[WorkerReport, _Mapping]] = ..., failure: _Optional[_Union[WorkerFailure, _Mapping]] = ..., started: _Optional[_Union[WorkerStarted, _Mapping]] = ..., late: _Optional[_Union[_control_pb2.Late, _Mapping]] = ..., followed: _Optional[_Union[Followed, _Mapping]] = ...) -> None: ...

class Followed(_message.Message):
    __slots__ = ("round", "state_root", "code", "message")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_ROOT_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_root: bytes
    code: str
    message: str
    def __init__(self, round: _Optional[int] = ..., state_root: _Optional[bytes] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class WorkerStarted(_message.Message):
    __slots__ = ("frozen_hash",)
    FROZEN_HASH_FIELD_NUMBER: _ClassVar[int]
    frozen_hash: bytes
    def __init__(self, frozen_hash: _Optional[bytes] = ...) -> None: ...

class WorkerListening(_message.Message):
    __slots__ = ("port",)
    PORT_FIELD_NUMBER: _ClassVar[int]
    port: int
    def __init__(self, port: _Optional[int] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("generation", "report")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    generation: int
    report: _control_pb2.StageReport
    def __init__(self, generation: _Optional[int] = ..., report: _Optional[_Union[_control_pb2.StageReport, _Mapping]] = ...) -> None: ...

class WorkerFailure(_message.Message):
    __slots__ = ("code", "message", "fatal", "generation", "peer_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FATAL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    fatal: bool
    generation: int
    peer_id: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., fatal: _Optional[bool] = ..., generation: _Optional[int] = ..., peer_id: _Optional[str] = ...) -> None: ...

class DecoderCommand(_message.Message):
    __slots__ = ("listen", "load", "peers")
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    listen: WorkerListen
    load: DecoderLoad
    peers: _control_pb2.DecodePeers
    def __init__(self, listen: _Optional[_Union[WorkerListen, _Mapping]] = ..., load: _Optional[_Union[DecoderLoad, _Mapping]] = ..., peers: _Optional[_Union[_control_pb2.DecodePeers, _Mapping]] = ...) -> None: ...

class DecoderLoad(_message.Message):
    __slots__ = ("spec", "stage", "round", "state_dir", "device", "cache_bytes", "idle_s", "answers_dir")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_DIR_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    stage: int
    round: int
    state_dir: str
    device: str
    cache_bytes: int
    idle_s: float
    answers_dir: str
    def __init__(self, spec: _Optional[bytes] = ..., stage: _Optional[int] = ..., round: _Optional[int] = ..., state_dir: _Optional[str] = ..., device: _Optional[str] = ..., cache_bytes: _Optional[int] = ..., idle_s: _Optional[float] = ..., answers_dir: _Optional[str] = ...) -> None: ...

class DecoderEvent(_message.Message):
    __slots__ = ("listening", "loaded", "failure", "answer")
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    listening: WorkerListening
    loaded: DecoderLoaded
    failure: DecoderFailure
    answer: _control_pb2.AnswerPart
    def __init__(self, listening: _Optional[_Union[WorkerListening, _Mapping]] = ..., loaded: _Optional[_Union[DecoderLoaded, _Mapping]] = ..., failure: _Optional[_Union[DecoderFailure, _Mapping]] = ..., answer: _Optional[_Union[_control_pb2.AnswerPart, _Mapping]] = ...) -> None: ...

class DecoderLoaded(_message.Message):
    __slots__ = ("round",)
    ROUND_FIELD_NUMBER: _ClassVar[int]
    round: int
    def __init__(self, round: _Optional[int] = ...) -> None: ...

class DecoderFailure(_message.Message):
    __slots__ = ("code", "message", "round")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    round: int
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...
