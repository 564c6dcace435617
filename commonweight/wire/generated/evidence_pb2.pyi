from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class EvidenceRequest(_message.Message):
    __slots__ = ("round", "tensor", "parameters_after", "moments_after", "answer", "version", "gradient")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_AFTER_FIELD_NUMBER: _ClassVar[int]
    MOMENTS_AFTER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    round: int
    tensor: bytes
    parameters_after: bool
    moments_after: bool
    answer: bytes
    version: int
    gradient: bytes
    def __init__(self, round: _Optional[int] = ..., tensor: _Optional[bytes] = ..., parameters_after: _Optional[bool] = ..., moments_after: _Optional[bool] = ..., answer: _Optional[bytes] = ..., version: _Optional[int] = ..., gradient: _Optional[bytes] = ...) -> None: ...

class EvidencePart(_message.Message):
    __slots__ = ("size", "data")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    size: int
    data: bytes
    def __init__(self, size: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
