from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecodeHello(_message.Message):
    __slots__ = ("spec_hash", "round", "stage", "client")
    SPEC_HASH_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    spec_hash: bytes
    round: int
    stage: int
    client: bytes
    def __init__(self, spec_hash: _Optional[bytes] = ..., round: _Optional[int] = ..., stage: _Optional[int] = ..., client: _Optional[bytes] = ...) -> None: ...

class DecodeFrame(_message.Message):
    __slots__ = ("hello", "open", "step", "close")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    hello: DecodeHello
    open: SessionOpen
    step: SessionStep
    close: SessionClose
    def __init__(self, hello: _Optional[_Union[DecodeHello, _Mapping]] = ..., open: _Optional[_Union[SessionOpen, _Mapping]] = ..., step: _Optional[_Union[SessionStep, _Mapping]] = ..., close: _Optional[_Union[SessionClose, _Mapping]] = ...) -> None: ...

class SessionOpen(_message.Message):
    __slots__ = ("session", "capacity", "temperature", "seed", "gateway", "client", "prompt_tokens", "nonce")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    capacity: int
    temperature: float
    seed: int
    gateway: str
    client: bytes
    prompt_tokens: int
    nonce: bytes
    def __init__(self, session: _Optional[bytes] = ..., capacity: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., gateway: _Optional[str] = ..., client: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class SessionStep(_message.Message):
    __slots__ = ("session", "position", "ids", "code")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    position: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    code: bytes
    def __init__(self, session: _Optional[bytes] = ..., position: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ..., code: _Optional[bytes] = ...) -> None: ...

class SessionClose(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class DecodeAnswer(_message.Message):
    __slots__ = ("hello", "token", "failed")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    hello: DecodeHello
    token: SessionToken
    failed: SessionFailed
    def __init__(self, hello: _Optional[_Union[DecodeHello, _Mapping]] = ..., token: _Optional[_Union[SessionToken, _Mapping]] = ..., failed: _Optional[_Union[SessionFailed, _Mapping]] = ...) -> None: ...

class SessionToken(_message.Message):
    __slots__ = ("session", "position", "id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    position: int
    id: int
    def __init__(self, session: _Optional[bytes] = ..., position: _Optional[int] = ..., id: _Optional[int] = ...) -> None: ...

class SessionFailed(_message.Message):
    __slots__ = ("session", "code", "message")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    code: str
    message: str
    def __init__(self, session: _Optional[bytes] = ..., code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
