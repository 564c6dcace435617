from commonweight.wire.generated import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RefereeCommand(_message.Message):
    __slots__ = ("start", "audit")
    START_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    start: RefereeStart
    audit: RefereeAudit
    def __init__(self, start: _Optional[_Union[RefereeStart, _Mapping]] = ..., audit: _Optional[_Union[RefereeAudit, _Mapping]] = ...) -> None: ...

class RefereeStart(_message.Message):
    __slots__ = ("spec", "certificate", "private_key", "data_dir", "device")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_KEY_FIELD_NUMBER: _ClassVar[int]
    DATA_DIR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    certificate: bytes
    private_key: bytes
    data_dir: str
    device: str
    def __init__(self, spec: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., private_key: _Optional[bytes] = ..., data_dir: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class RefereeAudit(_message.Message):
    __slots__ = ("unit", "report", "sources")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    unit: _control_pb2.AuditUnit
    report: _control_pb2.StageReport
    sources: _containers.RepeatedCompositeFieldContainer[EvidenceSource]
    def __init__(self, unit: _Optional[_Union[_control_pb2.AuditUnit, _Mapping]] = ..., report: _Optional[_Union[_control_pb2.StageReport, _Mapping]] = ..., sources: _Optional[_Iterable[_Union[EvidenceSource, _Mapping]]] = ...) -> None: ...

class EvidenceSource(_message.Message):
    __slots__ = ("peer_id", "address", "certificate")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    address: str
    certificate: bytes
    def __init__(self, peer_id: _Optional[str] = ..., address: _Optional[str] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class RefereeEvent(_message.Message):
    __slots__ = ("ready", "verdict")
    READY_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ready: RefereeReady
    verdict: RefereeVerdict
    def __init__(self, ready: _Optional[_Union[RefereeReady, _Mapping]] = ..., verdict: _Optional[_Union[RefereeVerdict, _Mapping]] = ...) -> None: ...

class RefereeReady(_message.Message):
    __slots__ = ("numerics",)
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    numerics: str
    def __init__(self, numerics: _Optional[str] = ...) -> None: ...

class RefereeVerdict(_message.Message):
    __slots__ = ("unit", "verdict", "why", "evidence", "seconds", "cpu_seconds", "fetched_bytes")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    unit: _control_pb2.AuditUnit
    verdict: str
    why: str
    evidence: bytes
    seconds: float
    cpu_seconds: float
    fetched_bytes: int
    def __init__(self, unit: _Optional[_Union[_control_pb2.AuditUnit, _Mapping]] = ..., verdict: _Optional[str] = ..., why: _Optional[str] = ..., evidence: _Optional[bytes] = ..., seconds: _Optional[float] = ..., cpu_seconds: _Optional[float] = ..., fetched_bytes: _Optional[int] = ...) -> None: ...
