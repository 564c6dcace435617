from commonweight.wire.generated import control_pb2 as _control_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RefereeCommand(_message.Message):
    __slots__ = ("start", "audit", "record")
    START_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    start: RefereeStart
    audit: _control_pb2.AuditOrder
    record: RecordOperators
    def __init__(self, start: _Optional[_Union[RefereeStart, _Mapping]] = ..., audit: _Optional[_Union[_control_pb2.AuditOrder, _Mapping]] = ..., record: _Optional[_Union[RecordOperators, _Mapping]] = ...) -> None: ...

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

class RecordOperators(_message.Message):
    __slots__ = ("order", "tensors_of")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_OF_FIELD_NUMBER: _ClassVar[int]
    order: _control_pb2.AuditOrder
    tensors_of: int
    def __init__(self, order: _Optional[_Union[_control_pb2.AuditOrder, _Mapping]] = ..., tensors_of: _Optional[int] = ...) -> None: ...

class RefereeEvent(_message.Message):
    __slots__ = ("ready", "opinion", "recording")
    READY_FIELD_NUMBER: _ClassVar[int]
    OPINION_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    ready: RefereeReady
    opinion: _control_pb2.AuditOpinion
    recording: Recording
    def __init__(self, ready: _Optional[_Union[RefereeReady, _Mapping]] = ..., opinion: _Optional[_Union[_control_pb2.AuditOpinion, _Mapping]] = ..., recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...

class RefereeReady(_message.Message):
    __slots__ = ("numerics",)
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    numerics: str
    def __init__(self, numerics: _Optional[str] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ("operators", "record", "tensors", "failure", "numerics")
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    operators: bytes
    record: bytes
    tensors: bytes
    failure: str
    numerics: str
    def __init__(self, operators: _Optional[bytes] = ..., record: _Optional[bytes] = ..., tensors: _Optional[bytes] = ..., failure: _Optional[str] = ..., numerics: _Optional[str] = ...) -> None: ...
