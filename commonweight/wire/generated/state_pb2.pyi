from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kept(_message.Message):
    __slots__ = ("round", "state_root", "gradient")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_ROOT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    round: int
    state_root: bytes
    gradient: bytes
    def __init__(self, round: _Optional[int] = ..., state_root: _Optional[bytes] = ..., gradient: _Optional[bytes] = ...) -> None: ...

class StateManifest(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileManifest]
    def __init__(self, files: _Optional[_Iterable[_Union[FileManifest, _Mapping]]] = ...) -> None: ...

class FileManifest(_message.Message):
    __slots__ = ("size", "chunk_hashes")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_HASHES_FIELD_NUMBER: _ClassVar[int]
    size: int
    chunk_hashes: bytes
    def __init__(self, size: _Optional[int] = ..., chunk_hashes: _Optional[bytes] = ...) -> None: ...

class ChunkRequest(_message.Message):
    __slots__ = ("of", "file", "index")
    OF_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    of: Kept
    file: int
    index: int
    def __init__(self, of: _Optional[_Union[Kept, _Mapping]] = ..., file: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class StateChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
