"""A scripted model: a real HTTP server of the OpenAI-compatible chat API on a free port of this host.

    with ChatServer([says("hello"), calls(("python", "print(1)")), says("done")]) as server:
        role = {"name": "t", "llm_provider": "vllm", "llm_model": "m", "llm_base_url": server.url}
        …
    assert server.requests[0].messages[-1]["content"] == "hi"

An answer of the script may be a function of the request, for models that react to what they are told. After the end of
the script every request is answered with HTTP 500, which says so.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    """What was asked."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def messages(self) -> list[dict[str, Any]]:
        return list(self.body["messages"])

    @property
    def last(self) -> str:
        """The text of the last message."""
        return str(self.messages[-1]["content"])

    @property
    def text(self) -> str:
        """Everything that was sent, as one text."""
        return json.dumps(self.body)


@dataclass(frozen=True)
class Reply:
    """What is answered. `hangs`: nothing at all, until the server is closed or the client goes away."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False


Script = Sequence["Reply | Callable[[Request], Reply]"]
_numbers = iter(range(1, 1 << 30))


def says(text: str | None, *, usage: tuple[int, int] | None = (10, 5), **choice: Any) -> Reply:
    """An answer in words."""
    return _answer({"role": "assistant", "content": text}, usage, **{"finish_reason": "stop", **choice})


def calls(
    *code: tuple[str, str], text: str | None = None, tool: str = "ExecuteInVM", usage: tuple[int, int] | None = (10, 5)
) -> Reply:
    """Calls of the tool: (language, code) each."""
    made = [{"language": language, "code": source} for language, source in code]
    return raw_calls(*[(tool, json.dumps(arguments)) for arguments in made], text=text, usage=usage)


def raw_calls(
    *made: tuple[str, Any], text: str | None = None, usage: tuple[int, int] | None = (10, 5), ids: bool = True
) -> Reply:
    """Calls of tools with whatever arguments."""
    tool_calls = [
        {"type": "function", "function": {"name": name, "arguments": arguments}}
        | ({"id": f"call_{next(_numbers)}x"} if ids else {})
        for name, arguments in made
    ]
    message = {"role": "assistant", "content": text, "tool_calls": tool_calls}
    return _answer(message, usage, finish_reason="tool_calls")


def refuses(status: int, message: str = "", **headers: str) -> Reply:
    """An error as OpenAI's servers send it."""
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def _answer(message: Mapping[str, Any], usage: tuple[int, int] | None, **choice: Any) -> Reply:
    document: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "scripted-1",
        "choices": [{"index": 0, "message": dict(message), **choice}],
    }
    if usage is not None:
        sent, made = usage
        document["usage"] = {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}
    return Reply(json.dumps(document).encode(), headers={"Content-Type": "application/json"})


class ChatServer:
    """The server. `requests` has what it was asked, in order.

    Args:
        script: the answers, in order; or one function that answers everything.
        port: 0 for any.
    """

    def __init__(self, script: Script | Callable[[Request], Reply] = (), *, port: int = 0) -> None:
        self._script = script if callable(script) else list(script)
        self.requests: list[Request] = []
        self.asked = threading.Event()
        """Set with the first request."""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = False  # so that closing waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """The base URL, with /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def role(self, **keys: Any) -> dict[str, Any]:
        """A role that asks this server and runs code in this process."""
        keys.setdefault("vm_execution", {"enabled": True, "history": {"integration_mode": "direct"}})
        return {
            "name": "tester", "llm_provider": "vllm", "llm_model": "scripted", "llm_base_url": self.url, **keys,
        }  # fmt: skip

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _next(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            self.asked.set()
            if callable(self._script):
                found: Reply | Callable[[Request], Reply] = self._script
            elif self._script:
                found = self._script.pop(0)
            else:
                return refuses(500, "the script has ended")
        return found if isinstance(found, Reply) else found(request)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                reply = outer._next(Request(self.path, dict(self.headers), json.loads(data)))
                if reply.hangs:
                    outer._closing.wait(30)
                    return
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    self.wfile.write(reply.body)
                except OSError:  # who asked has gone
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name in the base class)
                del format, args

        return Handler
