"""The OpenAI-compatible chat API: one question, one answer, with deadlines, bounds and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from emberbox.agent.models import TokenUsage
from emberbox.agent.providers import Endpoint, endpoint_of
from emberbox.agent.role import KNOWN_PROVIDERS, Role
from emberbox.errors import (
    ApiError,
    ConfigError,
    ExecutionTimeout,
    Forbidden,
    TooManyRequests,
    Unauthorized,
    VmConnectionError,
    VmExecutionError,
    VmNotAvailable,
)

Message = dict[str, Any]
"""As it goes over the wire."""
MAX_ANSWER_BYTES = 8 << 20
CONNECT_SECONDS = 10.0
RETRIES = 3
_LONGEST_PAUSE = 20.0
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_LATER = frozenset({429, 502, 503, 504})
_REFUSES_TOOLS = frozenset({400, 404, 422, 500, 501})
_SPEAKS_OF_TOOLS = re.compile(r"\btools?\b|tool[_ -]?(?:use|choice|call)|function[_ -]?call", re.IGNORECASE)
_SHORT = 300
_KINDS: Mapping[int, type[ApiError]] = {401: Unauthorized, 403: Forbidden}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model wants a tool to do. `arguments` is JSON, if the model kept to it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a model answered."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    model: str
    usage: TokenUsage | None
    cut: bool
    """It ended at a limit of tokens."""


class ToolsRefusedError(Exception):
    """The server, or its model, takes no tools."""

    def __init__(self, error: VmExecutionError) -> None:
        super().__init__(error.message)
        self.error = error


class _LaterError(Exception):
    """It may work a little later."""

    def __init__(self, error: VmExecutionError, pause: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.pause = pause


# What we read of an answer. Servers add keys of their own; wrong types make it no answer.
class _Function(BaseModel):
    name: str
    arguments: str | dict[str, Any] = ""


class _Call(BaseModel):
    id: str | None = None
    function: _Function


class _Said(BaseModel):
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[_Call] | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Said
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(BaseModel):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class ChatClient:
    """Asks the model of a role. `aclose()` it.

    Args:
        role: names the model, its server and the limits of a call.
        backoff_seconds: pause before the first retry; it doubles with each.

    Raises:
        ConfigError: the address, the key or a proxy is missing or wrong.
    """

    def __init__(self, role: Role, *, backoff_seconds: float = 0.3) -> None:
        self.endpoint: Endpoint = endpoint_of(role)
        self.model = role.llm_model or ""
        self._seconds = role.llm_timeout_seconds
        self._options: dict[str, Any] = {}
        if role.llm_temperature is not None:
            self._options["temperature"] = role.llm_temperature
        if role.llm_max_tokens is not None:
            # OpenAI's newer models refuse the old name, other servers do not know the new one
            is_openai = self.endpoint.url == KNOWN_PROVIDERS["openai"]
            self._options["max_completion_tokens" if is_openai else "max_tokens"] = role.llm_max_tokens
        self._backoff = backoff_seconds
        key = self.endpoint.key
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        try:
            self._client = httpx.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the deadline of a call is one for all of it
                follow_redirects=False,  # the key goes where the role says, and nowhere else
                trust_env=not self.endpoint.is_local,
            )
        except (ValueError, OSError, ImportError) as exc:
            raise ConfigError(
                f"No connection can be made to a model: {exc}.",
                remediation="Look at the variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and SSL_CERT_FILE.",
            ) from exc

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def complete(
        self, messages: Sequence[Message], tools: Sequence[Message] = (), *, may_call: bool = True
    ) -> ChatAnswer:
        """The model's answer to a conversation.

        Args:
            messages: all of it, as it goes over the wire.
            tools: that it knows.
            may_call: it may call them now.

        Raises:
            ToolsRefusedError: there were `tools`, and the server takes none.
            VmConnectionError: it cannot be reached, or the connection broke.
            ExecutionTimeout: no answer within `llm_timeout_seconds`.
            Unauthorized, Forbidden, TooManyRequests, ApiError: it refuses, or its answer is none.
        """
        body: dict[str, Any] = {"model": self.model, "messages": list(messages), "stream": False, **self._options}
        if tools:
            body |= {"tools": list(tools), "tool_choice": "auto" if may_call else "none"}
        if self._client.is_closed:
            raise VmNotAvailable("The agent is closed.", remediation="Make a new one.")
        content = json.dumps(body).encode("ascii")
        try:
            async with asyncio.timeout(self._seconds):
                return await self._with_retries(content, has_tools=bool(tools))
        except TimeoutError as exc:
            raise ExecutionTimeout(
                f"{self._who} did not answer within {self._seconds:g} s.",
                remediation="Raise llm_timeout_seconds in the role file, or take a faster model.",
            ) from exc

    @property
    def _who(self) -> str:
        return f"The model {self.model} at {self.endpoint.url}"

    async def _with_retries(self, content: bytes, *, has_tools: bool) -> ChatAnswer:
        for attempt in range(RETRIES):
            try:
                return await self._once(content, has_tools=has_tools)
            except _LaterError as exc:
                pause = self._backoff * 2**attempt if exc.pause is None else exc.pause
            await asyncio.sleep(pause)
        try:
            return await self._once(content, has_tools=has_tools)
        except _LaterError as exc:
            raise exc.error from exc.__cause__

    async def _once(self, content: bytes, *, has_tools: bool) -> ChatAnswer:
        url = f"{self.endpoint.url}/chat/completions"
        try:
            async with self._client.stream("POST", url, content=content) as response:
                status, headers, data = response.status_code, response.headers, await self._read(response)
        except _NEVER_SENT as exc:
            raise _LaterError(self._unreachable(exc)) from exc
        except httpx.HTTPError as exc:
            raise VmConnectionError(
                self.endpoint.without_key(f"The connection to {url} broke: {exc or type(exc).__name__}."),
                remediation="Try again; the log of the model's server may say more.",
            ) from exc
        if status != httpx.codes.OK:
            raise self._refusal(status, headers, data, has_tools=has_tools)
        parsed = self._json(data)
        if isinstance(parsed, dict) and parsed.get("error") and not parsed.get("choices"):
            told = parsed["error"].get("code") if isinstance(parsed["error"], dict) else None
            raise self._refusal(told if isinstance(told, int) else status, headers, data, has_tools=has_tools)
        return self._answer(parsed)

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, within bounds."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise self._no_answer("it is compressed, which was not asked for")
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > MAX_ANSWER_BYTES:
                raise self._no_answer(f"it is longer than {MAX_ANSWER_BYTES} bytes")
        return bytes(data)

    def _json(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as exc:
            start = self.endpoint.without_key(_line(data[:_SHORT].decode("utf-8", "replace")))[:80]
            raise self._no_answer(f"it is not JSON and begins with {start!r}") from exc

    def _answer(self, parsed: Any) -> ChatAnswer:
        try:
            answer = _Answer.model_validate(parsed)
        except ValidationError as exc:
            first = exc.errors(include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole of it"
            raise self._no_answer(f"{where}: {first['msg']}") from exc
        if not answer.choices:
            raise self._no_answer("it has no choices")
        choice = answer.choices[0]
        return ChatAnswer(
            text=_text(choice.message),
            tool_calls=_calls(choice.message),
            model=(answer.model or self.model)[:_SHORT],
            usage=_usage(answer.usage),
            cut=choice.finish_reason == "length",
        )

    # --- errors -----------------------------------------------------------------------------------------------------

    def _no_answer(self, why: str) -> ApiError:
        return ApiError(
            f"What {self.endpoint.url} sent is no answer of a chat model: {why}.",
            remediation="Is llm_base_url the address of an OpenAI-compatible API, with its /v1?",
        )

    def _unreachable(self, exc: httpx.HTTPError) -> VmConnectionError:
        start = {
            "ollama": "Is Ollama running (`ollama serve`)?",
            "vllm": "Is vLLM running (`vllm serve MODEL`)?",
        }.get(self.endpoint.provider, "Is there a network, and does it need a proxy (HTTPS_PROXY)?")
        return VmConnectionError(
            self.endpoint.without_key(f"{self._who} cannot be reached: {exc or type(exc).__name__}."),
            remediation=f"{start} Is llm_base_url right?",
            retryable=True,
        )

    def _refusal(self, status: int, headers: Mapping[str, str], data: bytes, *, has_tools: bool) -> Exception:
        said = self.endpoint.without_key(_said_by(data))
        message, details = f"{self._who} refuses (HTTP {status}): {said or 'no reason given'}", {"status": status}
        if status in _LATER:
            kind = TooManyRequests if status == httpx.codes.TOO_MANY_REQUESTS else ApiError
            remedy = "Try again later, or take another model."
            return _LaterError(kind(message, remediation=remedy, retryable=True, details=details), _pause(headers))
        if has_tools and status in _REFUSES_TOOLS and _SPEAKS_OF_TOOLS.search(said):
            remedy = 'Set use_tools to "auto" or "never" in the role file: code blocks are run as well.'
            return ToolsRefusedError(ApiError(message, remediation=remedy, details=details))
        if 300 <= status < 400:
            message = f"{self.endpoint.url} sends us on to {_line(headers.get('location', 'nowhere'))!r:.200}."
        kind = _KINDS.get(status, ApiError)
        return kind(message, remediation=self._remedy(status), details=details)

    def _remedy(self, status: int) -> str:
        """What to do about an HTTP status."""
        variable = self.endpoint.key_variable
        if status == httpx.codes.UNAUTHORIZED:
            if self.endpoint.key is None:
                return f"Set the environment variable {variable} to a key."
            return f"The key in the environment variable {variable} is wrong or has expired."
        if status == httpx.codes.FORBIDDEN:
            return f"May the key in {variable} use this model? Does the provider allow the request?"
        if 300 <= status < 400:
            return "Set llm_base_url to the address itself."
        if status == httpx.codes.NOT_FOUND:
            pull = f"`ollama pull {self.model}` fetches it. " if self.endpoint.provider == "ollama" else ""
            return f"Is llm_model right? {pull}Does llm_base_url end as the provider says, such as in /v1?"
        return "Look at llm_model and the limits in the role file, and at what the server says."


def _pause(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After."""
    try:
        return min(_LONGEST_PAUSE, max(0.0, float(headers.get("retry-after", ""))))
    except ValueError:
        return None


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _said_by(data: bytes) -> str:
    """The reason in the body of an error, on one line."""
    text = data[: 64 << 10].decode("utf-8", "replace")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return _line(text)[:_SHORT]
    if isinstance(found, list) and found:  # as Google's endpoint has it
        found = found[0]
    if isinstance(found, dict):
        error = found.get("error", found.get("message", found.get("detail", found)))
        if isinstance(error, dict):
            error = error.get("message", error)
        text = error if isinstance(error, str) else json.dumps(error)
    return _line(text)[:_SHORT]


def _text(said: _Said) -> str:
    content = said.content
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if part.get("type", "text") == "text")
    text = content or said.refusal or ""
    return text.encode("utf-8", "replace").decode()


def _calls(said: _Said) -> tuple[ToolCall, ...]:
    calls, taken = [], set[str]()
    for number, call in enumerate(said.tool_calls or (), 1):
        arguments = call.function.arguments
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        name = call.id if call.id and call.id not in taken else f"call_{number}"  # some servers give none
        taken.add(name)
        calls.append(ToolCall(name, call.function.name, text.encode("utf-8", "replace").decode()))
    return tuple(calls)


def _usage(usage: _Usage | None) -> TokenUsage | None:
    if usage is None:
        return None
    sent, made = max(0, usage.prompt_tokens or 0), max(0, usage.completion_tokens or 0)
    whole = max(usage.total_tokens or 0, sent + made)
    return TokenUsage(prompt_tokens=sent, completion_tokens=made, total_tokens=whole)
