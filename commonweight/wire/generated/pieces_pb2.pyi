from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PiecePart(_message.Message):
    __slots__ = ("head", "data")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    head: PieceHead
    data: bytes
    def __init__(self, head: _Optional[_Union[PieceHead, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PieceHead(_message.Message):
    __slots__ = ("manifest", "signature", "number", "key_share")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_SHARE_FIELD_NUMBER: _ClassVar[int]
    manifest: bytes
    signature: bytes
    number: int
    key_share: bytes
    def __init__(self, manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., number: _Optional[int] = ..., key_share: _Optional[bytes] = ...) -> None: ...

class PieceKept(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PieceRequest(_message.Message):
    __slots__ = ("stage", "round", "state_root")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_ROOT_FIELD_NUMBER: _ClassVar[int]
    stage: int
    round: int
    state_root: bytes
    def __init__(self, stage: _Optional[int] = ..., round: _Optional[int] = ..., state_root: _Optional[bytes] = ...) -> None: ...
