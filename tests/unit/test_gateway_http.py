"""The gateway's HTTP without money: OpenAI's format as the `openai` client reads it, refusals, limits, ends."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from commonweight.errors import NoRoom, RpcUnreachable, StageLost
from commonweight.model.tokenizer import ByteTokenizer
from gateway import app as app_module
from gateway import shop as shop_module
from gateway.app import make_app
from gateway.shop import Limits
from tests.unit.gateway_world import SPEC, LongPieces, Scripted, open_shop, stalled_buyer

pytestmark = pytest.mark.asyncio
NAME = SPEC.name
CONTEXT = SPEC.training.sequence_length
MESSAGES: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
]


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


async def refusal(url: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(url + path, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error


async def test_a_completion(tmp_path: Path) -> None:
    backend = Scripted()
    async with open_shop(backend, tmp_path) as (url, _), client(url) as buyer:
        answer = await buyer.completions.create(model=NAME, prompt="Say: ", max_tokens=5, temperature=0, seed=-1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello", "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 5, 10)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert backend.asked == [(b"Say: ", 5, 0.0, 2**64 - 1)]
    assert backend.ended == 1


async def test_a_streamed_completion(tmp_path: Path) -> None:
    backend = Scripted("2 € 🌍".encode())
    async with open_shop(backend, tmp_path) as (url, _), client(url) as buyer:
        stream = await buyer.completions.create(
            model=NAME, prompt="?", max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["2", " ", "€", " ", "🌍", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 5 + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 10
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_chat(tmp_path: Path) -> None:
    backend = Scripted(b" Hello!\n\nUser: and I say")
    async with open_shop(backend, tmp_path) as (url, _), client(url) as buyer:
        answer = await buyer.chat.completions.create(model=NAME, messages=MESSAGES, max_completion_tokens=60)
    assert backend.asked[0][0] == b"System: Be brief.\n\nUser: Hi\n\nAssistant:"
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", " Hello!", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(" Hello!"), "the stop sequence isn't delivered, and not counted"
    assert answer.object == "chat.completion"


async def test_a_streamed_chat(tmp_path: Path) -> None:
    async with open_shop(Scripted(b"Hi!"), tmp_path) as (url, _), client(url) as buyer:
        stream = await buyer.chat.completions.create(model=NAME, messages=MESSAGES, stream=True, stop="!")
        chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["H", "i", None]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


async def test_an_empty_streamed_chat_says_who_is_silent(tmp_path: Path) -> None:
    async with open_shop(Scripted(b""), tmp_path) as (url, _), client(url) as buyer:
        stream = await buyer.chat.completions.create(model=NAME, messages=MESSAGES, stream=True)
        (chunk,) = [chunk.choices[0] async for chunk in stream]
    assert (chunk.delta.role, chunk.delta.content, chunk.finish_reason) == ("assistant", None, "stop")


async def test_tokens_without_text_end_no_answer(tmp_path: Path) -> None:
    """A model may have more tokens than its tokenizer."""
    async with open_shop(Scripted([72, 256, 2**32 - 1, 105]), tmp_path) as (url, _), client(url) as buyer:
        answer = await buyer.completions.create(model=NAME, prompt="a", max_tokens=9)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hi", "stop")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4


async def test_a_chat_takes_what_fits_unless_told(tmp_path: Path) -> None:
    backend = Scripted()
    async with open_shop(backend, tmp_path) as (url, _), client(url) as buyer:
        await buyer.chat.completions.create(model=NAME, messages=MESSAGES)
        await buyer.completions.create(model=NAME, prompt="a" * CONTEXT, max_tokens=1)
        await buyer.completions.create(model=NAME, prompt="")
    prompt, fits, *_ = backend.asked[0]
    assert fits == CONTEXT + 1 - len(prompt)
    assert backend.asked[2][:2] == (b"\0", 16), "an empty prompt is the beginning of a document"


async def test_the_model_is_listed(tmp_path: Path) -> None:
    async with open_shop(Scripted(), tmp_path) as (url, _), client(url) as buyer:
        (model,) = (await buyer.models.list()).data
        assert (await buyer.models.retrieve(NAME)).model_dump() == model.model_dump()
        with pytest.raises(openai.NotFoundError, match="Only 'devnet'"):
            await buyer.models.retrieve("other")
    listed: Any = model.model_dump()
    assert (listed["id"], listed["object"], listed["context_length"]) == (NAME, "model", CONTEXT)
    assert listed["pricing"] == {"prompt_per_mtok": "0", "completion_per_mtok": "0"}


async def test_health(tmp_path: Path) -> None:
    async with open_shop(Scripted(), tmp_path) as (url, shop), httpx.AsyncClient() as http:
        answer = await http.get(f"{url}/healthz")
        assert (answer.status_code, answer.json()["round"], answer.json()["chain_reachable"]) == (200, 30, None)
        shop.closing.set()
        assert (await http.get(f"{url}/healthz")).status_code == 503


class Clock:
    """A till whose chain tells the time when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()
        self.is_away = False

    def time(self) -> int:
        self.asked += 1
        assert self.answers.wait(20)
        if self.is_away:
            raise RpcUnreachable("Nobody is there.")
        return 0


async def test_health_asks_a_slow_chain_once_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    till: Any = Clock()
    async with open_shop(Scripted(), tmp_path, till=till) as (url, _), httpx.AsyncClient(timeout=20) as http:

        async def reachable() -> bool:
            answer = await http.get(f"{url}/healthz")
            assert answer.status_code == (200 if answer.json()["chain_reachable"] else 503)
            return bool(answer.json()["chain_reachable"])

        with monkeypatch.context() as patch:
            patch.setattr(app_module, "HEALTH_S", 0.01)
            assert await asyncio.gather(*(reachable() for _ in range(20))) == [False] * 20
        assert till.asked == 1
        till.answers.set()
        assert await reachable()
        till.is_away = True
        assert not await reachable()
        till.is_away = False
        assert await reachable()


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"model": "gpt-5"}, 404, "model", "model_not_found"),
    ({"model": None}, 400, "model", "invalid_value"),
    ({"n": 2}, 400, "n", "unsupported_parameter"),
    ({"logprobs": 0}, 400, "logprobs", "unsupported_parameter"),
    ({"echo": True}, 400, "echo", "unsupported_parameter"),
    ({"best_of": 3}, 400, "best_of", "unsupported_parameter"),
    ({"top_p": 0.5}, 400, "top_p", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
    ({"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
    ({"max_tokens": "9"}, 400, "max_tokens", "invalid_value"),
    ({"temperature": 2.1}, 400, "temperature", "invalid_value"),
    ({"temperature": -0.1}, 400, "temperature", "invalid_value"),
    ({"seed": 2**63}, 400, "seed", "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "invalid_value"),
    ({"stop": ""}, 400, "stop", "invalid_value"),
    ({"prompt": ["a", "b"]}, 400, "prompt", "invalid_value"),
    ({"prompt": "a\0b"}, 400, "prompt", "invalid_value"),
    ({"prompt": "a" * (CONTEXT + 1)}, 400, "prompt", "context_length_exceeded"),
    ({"prompt": "a" * CONTEXT, "max_tokens": 2}, 400, "prompt", "context_length_exceeded"),
]
MALFORMED = [
    ("/v1/completions", b"{", 400, "invalid_json"),
    ("/v1/completions", b'{"a":' * 10_000, 400, "invalid_json"),
    ("/v1/completions", b'{"model":"devnet","prompt":"\\ud800"}', 400, "invalid_json"),
    ("/v1/completions", b'{"model":"devnet","temperature":NaN}', 400, "invalid_value"),
    ("/v1/completions", b"[]", 400, "invalid_value"),
    ("/v1/chat/completions", b'{"model":"devnet","messages":[]}', 400, "invalid_value"),
    ("/v1/chat/completions", b'{"model":"devnet","messages":[{"role":"tool","content":""}]}', 400, "invalid_value"),
    ("/v1/completions", b" " * (2 << 20), 413, "body_too_large"),
    ("/v1/embeddings", b"{}", 404, "no_such_endpoint"),
    ("/v1/models", b"{}", 405, "no_such_endpoint"),
]


async def test_what_cant_be_answered_is_refused(tmp_path: Path) -> None:
    backend = Scripted()
    async with open_shop(backend, tmp_path) as (url, _):
        for change, status, param, code in REFUSED:
            found, error = await refusal(url, "/v1/completions", {"model": NAME, "prompt": "a"} | change)
            assert (found, error["param"], error["code"]) == (status, param, code), error["message"]
    assert backend.asked == []


async def test_malformed_requests(tmp_path: Path) -> None:
    async with open_shop(Scripted(), tmp_path) as (url, _):
        for path, body, status, code in MALFORMED:
            found, error = await refusal(url, path, body)
            assert (found, error["code"]) == (status, code), body[:80]


async def test_what_changes_nothing_is_ignored(tmp_path: Path) -> None:
    body = {"model": NAME, "prompt": ["a"], "user": "me", "top_p": 1, "n": 1, "logit_bias": {}, "tools": None, "x": [1]}
    body |= {"logprobs": False, "top_logprobs": 0}
    async with open_shop(Scripted(), tmp_path) as (url, _), httpx.AsyncClient() as http:
        assert (await http.post(f"{url}/v1/completions", json=body)).status_code == 200


async def test_over_the_limit_is_asked_to_wait(tmp_path: Path) -> None:
    gate = asyncio.Semaphore(0)
    backend = Scripted(gate=gate)
    async with open_shop(backend, tmp_path, limits=Limits(concurrent=1)) as (url, _), client(url) as buyer:
        first = asyncio.create_task(buyer.completions.create(model=NAME, prompt="a", max_tokens=1))
        async with asyncio.timeout(10), httpx.AsyncClient() as http:
            await backend.begun.wait()
            answer = await http.post(f"{url}/v1/completions", json={"model": ""})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
        gate.release()
        assert (await first).choices[0].text == "H"


class SlowTokenizer(ByteTokenizer):
    """Encodes when it is let."""

    def __init__(self) -> None:
        self.encodes, self.encoded = threading.Event(), threading.Event()

    def encode(self, text: str) -> bytes:
        self.encodes.set()
        assert self.encoded.wait(5), "nobody else came to anything"
        return super().encode(text)


async def test_a_prompt_that_takes_long_to_encode_keeps_nobody_waiting(tmp_path: Path) -> None:
    async with open_shop(Scripted(), tmp_path) as (url, shop), client(url) as buyer:
        shop.tokenizer = slow = SlowTokenizer()
        first = asyncio.create_task(buyer.completions.create(model=NAME, prompt="a", max_tokens=1))
        assert await asyncio.to_thread(slow.encodes.wait, 10)
        assert len((await buyer.models.list()).data) == 1
        slow.encoded.set()
        assert (await first).choices[0].text == "H"


@pytest.mark.parametrize(("error", "status"), [(NoRoom("Full."), 429), (StageLost("Stage 2 is gone."), 503)])
async def test_a_model_that_cant_begin(tmp_path: Path, error: Any, status: int) -> None:
    async with open_shop(Scripted(refusal=error), tmp_path) as (url, _):
        for stream in (False, True):
            found, body = await refusal(url, "/v1/completions", {"model": NAME, "prompt": "a", "stream": stream})
            assert (found, body["code"]) == (status, error.code)


async def test_a_stage_that_dies_in_mid_answer(tmp_path: Path) -> None:
    backend = Scripted(b"Hel", failure=StageLost("Stage 2 is gone."))
    async with open_shop(backend, tmp_path) as (url, _), client(url) as buyer:
        stream = await buyer.completions.create(model=NAME, prompt="a", stream=True)
        assert [(await anext(stream)).choices[0].text for _ in "Hel"] == ["H", "e", "l"]
        with pytest.raises(openai.APIError, match="Stage 2 is gone") as caught:
            await anext(stream)
        assert caught.value.code == "WIRE_STAGE_LOST"
        with pytest.raises(openai.InternalServerError, match="Stage 2 is gone"):
            await buyer.completions.create(model=NAME, prompt="a")
    assert backend.ended == 2


async def test_a_buyer_that_hangs_up_frees_the_model(tmp_path: Path) -> None:
    gate = asyncio.Semaphore(1)
    backend = Scripted(gate=gate)
    async with open_shop(backend, tmp_path) as (url, shop), httpx.AsyncClient() as http:
        body = {"model": NAME, "prompt": "a", "stream": True}
        async with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
            assert b"H" in await anext(answer.aiter_bytes())
        async with asyncio.timeout(10):
            await shop.close(finish_s=10, collect_s=0)
    assert backend.ended == 1


@pytest.mark.parametrize("lost_at", [1, 2, 5, 13])
async def test_what_is_sent_into_a_lost_connection_isn_t_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_at: int
) -> None:
    """A server says so to whoever waits for the buyer, and drops the rest without a word."""
    ends: list[dict[str, Any]] = []
    monkeypatch.setattr(shop_module, "emit", lambda _name, **fields: ends.append(fields))
    body = json.dumps({"model": NAME, "prompt": "a", "stream": True}).encode()
    lost, given = asyncio.Event(), iter([{"type": "http.request", "body": body}])

    async def receive() -> Any:
        if (message := next(given, None)) is None:
            await lost.wait()
            return {"type": "http.disconnect"}
        return message

    sent = 0

    async def send(message: Any) -> None:
        nonlocal sent
        if message["type"] == "http.response.body" and message["body"]:
            sent += 1
            if sent == lost_at:
                lost.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    async with open_shop(Scripted(), tmp_path) as (_, shop):
        await make_app(shop)({**scope, "server": ("a", 1), "scheme": "http"}, receive, send)
    (end,) = ends
    assert (end["completion_tokens"], end["ended"]) == (lost_at - 1, "disconnected")


@pytest.mark.parametrize(("stream", "times"), [(True, 1), (False, 2)])
async def test_a_buyer_that_reads_no_further_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool, times: int
) -> None:
    """A whole answer is handed over at once, but not another one after it."""
    monkeypatch.setattr(app_module, "SEND_S", 0.05)
    backend, request = Scripted([1] * 60), {"model": NAME, "prompt": "a", "max_tokens": 60, "stream": stream}
    async with open_shop(backend, tmp_path) as (url, shop), asyncio.timeout(20):
        shop.tokenizer = LongPieces()
        async with stalled_buyer(url, request, times=times):
            for _ in range(times):
                await backend.begun.wait()
                backend.begun.clear()
            await shop.close(finish_s=20, collect_s=0)
    assert backend.ended == times


async def test_closing_cuts_an_answer(tmp_path: Path) -> None:
    gate = asyncio.Semaphore(1)
    async with open_shop(Scripted(gate=gate), tmp_path) as (url, shop), client(url) as buyer:
        stream = await buyer.completions.create(model=NAME, prompt="a", stream=True)
        assert (await anext(stream)).choices[0].text == "H"
        closing = asyncio.create_task(shop.close(finish_s=0, collect_s=0))
        with pytest.raises(openai.APIError, match="shutting down"):
            await anext(stream)
        await closing
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            await buyer.completions.create(model=NAME, prompt="a")


async def test_an_answer_has_a_deadline(tmp_path: Path) -> None:
    gate = asyncio.Semaphore(0)
    limits = Limits(answer_s=0.05)
    async with open_shop(Scripted(gate=gate), tmp_path, limits=limits) as (url, _):
        status, error = await refusal(url, "/v1/completions", {"model": NAME, "prompt": "a"})
    assert (status, error["code"]) == (504, "answer_too_slow")


async def test_a_body_has_a_deadline(tmp_path: Path) -> None:
    async with open_shop(Scripted(), tmp_path, limits=Limits(read_s=0.05)) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        async with asyncio.timeout(10):
            assert b" 408 " in await reader.readline()
        writer.close()
