"""OpenAI's format: what a request says, what an answer and an error look like.

https://platform.openai.com/docs/api-reference, as the `openai` Python client reads it. Amounts of money, which that
format doesn't have, are decimal strings of base units.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse

COMPLETION_MAX_TOKENS = 16
"""Of /v1/completions where the request doesn't say, as with OpenAI."""
MAX_STOPS = 4
SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
CHAT_STOP = "\n\nUser:"
"""A base model goes on with the buyer's next line; the answer ends before it."""

_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "top_p": (1, 1.0),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
"""Fields that would change the answer and aren't supported, with the values (beside null) that change nothing.

Fields that aren't named here or below are ignored."""


class ApiError(Exception):
    """A request that is answered with an error, in OpenAI's form."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers, self.extra = dict(headers or {}), dict(extra or {})

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = _ERROR_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error, **self.extra}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


_ERROR_TYPES = {402: "payment_required", 429: "rate_limit_error"}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that can't be answered as it is."""
    return ApiError(400, code, message, param=param)


@dataclass(frozen=True)
class Ask:
    """What is asked for, whichever endpoint it came by."""

    model: str
    prompt: str
    is_chat: bool
    max_tokens: int | None
    """None: as many as fit."""
    temperature: float
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    """At the end of a stream."""


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _CompletionRequest(_Request):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)] = ""


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]


class _ChatRequest(_Request):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None


def parse_completion(body: bytes) -> Ask:
    """The request in the body of a POST to /v1/completions. Raises ApiError 400."""
    request = _parse(_CompletionRequest, body)
    assert isinstance(request, _CompletionRequest)
    prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
    return _ask(request, prompt, is_chat=False, max_tokens=request.max_tokens or COMPLETION_MAX_TOKENS)


def parse_chat(body: bytes) -> Ask:
    """The request in the body of a POST to /v1/chat/completions. Raises ApiError 400."""
    request = _parse(_ChatRequest, body)
    assert isinstance(request, _ChatRequest)
    max_tokens = request.max_completion_tokens or request.max_tokens
    return _ask(request, chat_prompt(request.messages), is_chat=True, max_tokens=max_tokens)


def chat_prompt(messages: list[_Message]) -> str:
    """The messages as a dialogue that a base model can go on with: "User: …", a blank line, "Assistant:"."""
    lines = [f"{SPEAKERS[each.role]}: {_content(each)}" for each in messages]
    return "\n\n".join([*lines, "Assistant:"])


def _content(message: _Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text for part in message.content)


def _parse(kind: type[_Request], body: bytes) -> _Request:
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        if fault["type"] == "json_invalid":
            raise invalid(f"The body isn't JSON: {fault['msg']}.", code="invalid_json") from error
        where = ".".join(map(str, fault["loc"])) or "The body"
        raise invalid(f"{where}: {fault['msg']}.", str(fault["loc"][0]) if fault["loc"] else None) from error
    for name, value in (request.model_extra or {}).items():
        if value is not None and name in _HARMLESS and not any(_same(value, each) for each in _HARMLESS[name]):
            raise invalid(f"{name} = {json.dumps(value):.80} isn't supported here.", name, "unsupported_parameter")
    return request


def _same(value: object, harmless: object) -> bool:
    return value == harmless and isinstance(value, bool) == isinstance(harmless, bool)  # to Python, 0 is False


def _ask(request: _Request, prompt: str, *, is_chat: bool, max_tokens: int | None) -> Ask:
    stops = () if request.stop is None else (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    if len(stops) > MAX_STOPS or "" in stops:
        raise invalid(f"stop takes up to {MAX_STOPS} sequences, none of them empty.", "stop")
    return Ask(
        model=request.model,
        prompt=prompt,
        is_chat=is_chat,
        max_tokens=max_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        seed=request.seed,
        stops=(*stops, CHAT_STOP) if is_chat else stops,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


@dataclass(frozen=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    cost: int

    def to_json(self) -> dict[str, Any]:
        """As in an answer; `cost` is ours."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "cost": str(self.cost),
        }


@dataclass(frozen=True)
class Format:
    """How one answer is written."""

    ask: Ask
    id: str
    created: int
    """Unix time."""

    def whole(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The answer to a request that isn't streamed."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **(content if self.ask.is_chat else {"text": text})}
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        kind = "chat.completion" if self.ask.is_chat else "text_completion"
        return self._object(kind, [choice]) | {"usage": usage.to_json()}

    def chunk(self, text: str, *, is_first: bool = False, finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of a stream; the one with `finish_reason` is the last that has a choice."""
        choice: dict[str, Any] = {"index": 0, "text": text}
        if self.ask.is_chat:
            content = {"content": text} if finish_reason is None else {}
            choice = {"index": 0, "delta": {"role": "assistant", **content} if is_first else content}
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        return self._object(self._chunk_kind, [choice]) | ({"usage": None} if self.ask.include_usage else {})

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk after the last choice."""
        return self._object(self._chunk_kind, []) | {"usage": usage.to_json()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.ask.is_chat else "text_completion"

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.ask.model, "choices": choices}


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> bytes:
    """One server-sent event. ASCII only: clients take U+2028 and others for the end of a line."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()
