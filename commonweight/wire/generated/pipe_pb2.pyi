from commonweight.wire.generated import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PipeFrame(_message.Message):
    __slots__ = ("hello", "tensor", "slice")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    hello: PipeHello
    tensor: TensorFrame
    slice: SliceFrame
    def __init__(self, hello: _Optional[_Union[PipeHello, _Mapping]] = ..., tensor: _Optional[_Union[TensorFrame, _Mapping]] = ..., slice: _Optional[_Union[SliceFrame, _Mapping]] = ...) -> None: ...

class SliceFrame(_message.Message):
    __slots__ = ("round", "summed", "offset", "data", "revision")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SUMMED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    round: int
    summed: bool
    offset: int
    data: bytes
    revision: int
    def __init__(self, round: _Optional[int] = ..., summed: _Optional[bool] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., revision: _Optional[int] = ...) -> None: ...

class PipeHello(_message.Message):
    __slots__ = ("spec_hash", "generation", "stage", "frozen_hash")
    SPEC_HASH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FROZEN_HASH_FIELD_NUMBER: _ClassVar[int]
    spec_hash: bytes
    generation: int
    stage: int
    frozen_hash: bytes
    def __init__(self, spec_hash: _Optional[bytes] = ..., generation: _Optional[int] = ..., stage: _Optional[int] = ..., frozen_hash: _Optional[bytes] = ...) -> None: ...

class TensorFrame(_message.Message):
    __slots__ = ("round", "microbatch", "headers", "offset", "data", "revision", "answered")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    round: int
    microbatch: int
    headers: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorHeader]
    offset: int
    data: bytes
    revision: int
    answered: bool
    def __init__(self, round: _Optional[int] = ..., microbatch: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[_tensor_pb2.TensorHeader, _Mapping]]] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., revision: _Optional[int] = ..., answered: _Optional[bool] = ...) -> None: ...
