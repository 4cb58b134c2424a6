"""The chat client against a real HTTP server that follows a script."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chat_server import ChatServer, Reply, Request, calls, raw_calls, refuses, says
from emberbox.agent import Role
from emberbox.agent.chat import MAX_ANSWER_BYTES, ChatClient, ToolsRefusedError
from emberbox.errors import (
    ApiError,
    ExecutionTimeout,
    Forbidden,
    TooManyRequests,
    Unauthorized,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)

KEY = "sk-test-0123456789abcdef"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = [{"type": "function", "function": {"name": "ExecuteInVM", "parameters": {}}}]


@asynccontextmanager
async def client_of(role: dict[str, Any]) -> AsyncIterator[ChatClient]:
    client = ChatClient(Role.of(role), backoff_seconds=0.001)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    return KEY


async def test_a_question_and_its_answer(key: str) -> None:
    with ChatServer([says("hi", usage=(7, 3))]) as server:
        async with client_of(server.role(llm_temperature=0.5, llm_max_tokens=99)) as client:
            answer = await client.complete(HELLO)
    assert (answer.text, answer.tool_calls, answer.model, answer.cut) == ("hi", (), "scripted-1", False)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 3, 10)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "scripted", "messages": HELLO, "stream": False, "temperature": 0.5, "max_tokens": 99,
    }  # fmt: skip


async def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with ChatServer([says("hi")]) as server:
        async with client_of(server.role()) as client:
            await client.complete(HELLO)
    assert "Authorization" not in server.requests[0].headers


async def test_tools_are_offered_and_called() -> None:
    with ChatServer([calls(("python", "1"), ("bash", "ls"), text="let me see"), says("done")]) as server:
        async with client_of(server.role()) as client:
            answer = await client.complete(HELLO, TOOL)
            await client.complete(HELLO, TOOL, may_call=False)
    assert answer.text == "let me see"
    assert [(call.name, json.loads(call.arguments)["code"]) for call in answer.tool_calls] == [
        ("ExecuteInVM", "1"),
        ("ExecuteInVM", "ls"),
    ]
    assert len({call.id for call in answer.tool_calls}) == 2
    assert [request.body["tool_choice"] for request in server.requests] == ["auto", "none"]


async def test_calls_as_smaller_servers_write_them() -> None:
    with ChatServer([raw_calls(("ExecuteInVM", {"language": "python", "code": "1"}), ("x", ""), ids=False)]) as server:
        async with client_of(server.role()) as client:
            answer = await client.complete(HELLO, TOOL)
    assert [call.id for call in answer.tool_calls] == ["call_1", "call_2"]
    assert json.loads(answer.tool_calls[0].arguments) == {"language": "python", "code": "1"}


def body(document: object) -> Reply:
    return Reply(json.dumps(document).encode())


async def test_an_answer_in_parts_and_one_that_was_cut() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    answers = [body({"choices": [{"message": {"content": parts}}]}), says("half", finish_reason="length"), says(None)]
    with ChatServer(answers) as server:
        async with client_of(server.role()) as client:
            first = await client.complete(HELLO)
            assert (first.text, first.model, first.usage) == ("ab", "scripted", None)
            assert (await client.complete(HELLO)).cut
            assert (await client.complete(HELLO)).text == ""


async def test_any_text_can_be_asked_and_answered() -> None:
    strange = "\ud800 \x00 \u2028 é 🐍 </s>"
    with ChatServer([lambda request: says(request.last)]) as server:
        async with client_of(server.role()) as client:
            answer = await client.complete([{"role": "user", "content": strange}])
    assert answer.text == strange.replace("\ud800", "?")


# --- errors ---------------------------------------------------------------------------------------------------------


async def failing(
    *script: Reply | Callable[[Request], Reply], tools: bool = False, **keys: Any
) -> tuple[VmExecutionError, int]:
    """The error of a question, and how often it was asked."""
    with ChatServer(script) as server:
        async with client_of(server.role(**keys)) as client:
            with pytest.raises(VmExecutionError) as caught:
                await client.complete(HELLO, TOOL if tools else ())
    return caught.value, len(server.requests)


async def test_a_wrong_key_names_its_variable_and_is_not_shown(key: str) -> None:
    error, asked = await failing(refuses(401, f"Incorrect API key provided: {KEY}."))
    assert isinstance(error, Unauthorized)
    assert "VLLM_API_KEY" in error.remediation
    assert "Incorrect API key provided: [REDACTED]." in error.message
    assert asked == 1
    assert KEY not in "".join(traceback.format_exception(error)) + repr(error) + json.dumps(error.to_dict())


async def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEAM_KEY", raising=False)
    error, _ = await failing(refuses(401, "no key"))
    assert "Set the environment variable VLLM_API_KEY" in error.remediation


async def test_the_key_is_in_no_repr(key: str) -> None:
    with ChatServer() as server:
        async with client_of(server.role()) as client:
            shown = [repr(client), repr(client.endpoint), repr(vars(client)), repr(client._client.headers)]
    assert all(KEY not in text for text in shown)


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refuses(403, "not for you"), Forbidden, "not for you"),
        (refuses(404, "model 'scripted' not found"), ApiError, "model 'scripted' not found"),
        (refuses(400, "context length exceeded"), ApiError, "context length exceeded"),
        (Reply(b"<html>\n<b>oops</b>", 500), ApiError, "HTTP 500.*<html> <b>oops</b>"),
        (Reply(b"", 500), ApiError, "no reason given"),
        (Reply(b'[{"error": {"message": "in a list"}}]', 400), ApiError, "in a list"),
        (body({"error": {"message": "no credits", "code": 402}}), ApiError, "HTTP 402.*no credits"),
        (body({"error": "model is loading"}), ApiError, "model is loading"),
        (
            Reply(b"", 302, {"Location": "https://elsewhere.example/login"}),
            ApiError,
            "sends us on to 'https://elsewhere",
        ),
        (Reply(b"hello"), ApiError, "it is not JSON and begins with 'hello'"),
        (Reply(b""), ApiError, "it is not JSON"),
        (Reply(b"[" * 200_000), ApiError, "it is not JSON"),
        (body([]), ApiError, "no answer of a chat model"),
        (body({}), ApiError, "choices: Field required"),
        (body({"choices": []}), ApiError, "it has no choices"),
        (body({"choices": [{"message": {"content": 7}}]}), ApiError, "no answer of a chat model: choices"),
        (body({"choices": [{"message": {"tool_calls": [{"function": {}}]}}]}), ApiError, "name: Field required"),
        (Reply(gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"}), ApiError, "it is compressed"),
        (Reply(b" " * (MAX_ANSWER_BYTES + 1)), ApiError, "it is longer than 8388608 bytes"),
    ],
)
async def test_what_servers_answer_instead(reply: Reply, kind: type[VmExecutionError], words: str) -> None:
    error, asked = await failing(reply)
    assert type(error) is kind
    assert re.search(words, error.message, re.DOTALL), error.message
    assert error.remediation
    assert len(error.message) < 800
    assert asked == 1


async def test_a_redirection_does_not_carry_the_key_elsewhere(key: str) -> None:
    with ChatServer([says("stolen")]) as other:
        error, _ = await failing(Reply(b"", 307, {"Location": f"{other.url}/chat/completions"}))
    assert "sends us on" in error.message
    assert other.requests == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_what_passes_is_tried_again(status: int) -> None:
    with ChatServer([refuses(status, "later"), refuses(status, "later", Retry_After="0"), says("now")]) as server:
        async with client_of(server.role()) as client:
            assert (await client.complete(HELLO)).text == "now"
    assert len(server.requests) == 3


async def test_trying_again_ends() -> None:
    error, asked = await failing(*[refuses(429, "slow down")] * 10)
    assert isinstance(error, TooManyRequests)
    assert asked == 4
    error, asked = await failing(*[refuses(503, "overloaded")] * 10)
    assert type(error) is ApiError
    assert error.details == {"status": 503}
    error, asked = await failing(
        body({"error": {"message": "upstream", "code": 502}}), refuses(500, "broken"), says("x")
    )
    assert (asked, "broken" in error.message) == (2, True)


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        role = {"name": "r", "llm_provider": "ollama", "llm_model": "m", "llm_base_url": url}
        async with client_of(role) as client:
            with pytest.raises(VmConnectionError, match=f"{url} cannot be reached") as caught:
                await client.complete(HELLO)
    assert "ollama serve" in caught.value.remediation
    assert caught.value.retryable


async def test_a_server_that_hangs_is_given_up() -> None:
    error, _ = await failing(Reply(hangs=True), llm_timeout_seconds=0.3)
    assert isinstance(error, ExecutionTimeout)
    assert "within 0.3 s" in error.message
    assert "llm_timeout_seconds" in error.remediation


async def test_a_connection_that_breaks_is_said_and_not_tried_again() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    asked: list[int] = []
    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with client_of({"name": "r", "llm_provider": "vllm", "llm_model": "m", "llm_base_url": url}) as client:
            with pytest.raises(VmConnectionError, match="broke"):
                await client.complete(HELLO)
    assert len(asked) == 1


async def test_being_cancelled_leaves_nothing_open() -> None:
    with ChatServer([Reply(hangs=True)]) as server:
        async with client_of(server.role()) as client:
            asking = asyncio.create_task(client.complete(HELLO))
            await asyncio.to_thread(server.asked.wait, 10)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_after_closing_it_says_so() -> None:
    with ChatServer() as server:
        async with client_of(server.role()) as client:
            await client.aclose()
            with pytest.raises(VmNotAvailable, match="closed"):
                await client.complete(HELLO)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "registry.ollama.ai/library/gemma:2b does not support tools"),
        (404, "No endpoints found that support tool use."),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (500, "tools param requires --jinja flag"),
    ],
)
async def test_servers_that_take_no_tools_are_told_apart(status: int, said: str) -> None:
    with ChatServer([refuses(status, said), refuses(status, said)]) as server:
        async with client_of(server.role()) as client:
            with pytest.raises(ToolsRefusedError) as caught:
                await client.complete(HELLO, TOOL)
            assert "use_tools" in caught.value.error.remediation
            with pytest.raises(ApiError):
                await client.complete(HELLO)


async def test_openai_itself_gets_the_newer_name_of_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    async with client_of({"name": "r", "llm_provider": "openai", "llm_model": "m", "llm_max_tokens": 7}) as client:
        assert client._options == {"max_completion_tokens": 7}
