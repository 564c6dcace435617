from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouteRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServingRoute(_message.Message):
    __slots__ = ("id", "spec", "model_id", "round", "stages")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    spec: bytes
    model_id: bytes
    round: int
    stages: _containers.RepeatedCompositeFieldContainer[ServingStage]
    def __init__(self, id: _Optional[bytes] = ..., spec: _Optional[bytes] = ..., model_id: _Optional[bytes] = ..., round: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[ServingStage, _Mapping]]] = ...) -> None: ...

class ServingStage(_message.Message):
    __slots__ = ("peer_id", "decode_address", "certificate", "account")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    DECODE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    decode_address: str
    certificate: bytes
    account: str
    def __init__(self, peer_id: _Optional[str] = ..., decode_address: _Optional[str] = ..., certificate: _Optional[bytes] = ..., account: _Optional[str] = ...) -> None: ...

class ServedReport(_message.Message):
    __slots__ = ("request_id", "round", "prompt_tokens", "completion_tokens", "session", "signature")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    round: int
    prompt_tokens: int
    completion_tokens: int
    session: bytes
    signature: bytes
    def __init__(self, request_id: _Optional[bytes] = ..., round: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., session: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ServedReceipt(_message.Message):
    __slots__ = ("recorded",)
    RECORDED_FIELD_NUMBER: _ClassVar[int]
    recorded: bool
    def __init__(self, recorded: _Optional[bool] = ...) -> None: ...
