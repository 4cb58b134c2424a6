"""A small synchronous client, and an agent to talk to: the real one, as a child process over pipes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import emberbox.guest
from emberbox.config import default_cache_dir
from emberbox.guest.protocol import FINAL_EVENTS, FrameDecoder, Header, encode

PACKAGE_PARENT = Path(emberbox.guest.__file__).parent.parent
LIMIT = 1 << 20
PATIENCE = 60.0


class Outcome:
    """Everything that came back for one request."""

    def __init__(self) -> None:
        self.events: list[tuple[Header, bytes]] = []

    def of(self, event: str) -> bytes:
        """The payloads of all events of that name, joined."""
        return b"".join(payload for header, payload in self.events if header["ev"] == event)

    @property
    def final(self) -> Header:
        return self.events[-1][0]

    @property
    def payload(self) -> bytes:
        return self.events[-1][1]

    @property
    def stdout(self) -> str:
        return self.of("stdout").decode()

    @property
    def stderr(self) -> str:
        return self.of("stderr").decode()

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for header, payload in self.events if header["ev"] == "result"]

    @property
    def main(self) -> dict[str, Any] | None:
        found = [json.loads(payload) for header, payload in self.events if header.get("main")]
        return found[0] if found else None

    @property
    def reason(self) -> str:
        return str(self.final["reason"])


class Client:
    """Speaks the protocol with an agent over a pair of pipes."""

    def __init__(self, argv: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            argv, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.fd_in, self.fd_out = self.process.stdout.fileno(), self.process.stdin.fileno()
        self._decoder = FrameDecoder()
        self._next = 0
        self.outcomes: dict[int, Outcome] = {0: Outcome()}
        self.workdir = cwd

    def receive(self) -> tuple[Header, bytes]:
        """The next frame, whichever request it belongs to."""
        deadline = time.monotonic() + PATIENCE
        while True:
            frame = self._decoder.next()
            if frame is not None:
                self.outcomes[frame[0]["id"]].events.append(frame)
                return frame
            assert select.select([self.fd_in], [], [], deadline - time.monotonic())[0], "the agent is silent"
            data = os.read(self.fd_in, 1 << 18)
            if not data:
                raise EOFError
            self._decoder.feed(data)

    def begin(self, op: str, payload: bytes = b"", **fields: Any) -> int:
        """Send a request and do not wait for anything."""
        self._next += 1
        self.outcomes[self._next] = Outcome()
        data = encode({"id": self._next, "op": op, **fields}, payload)
        while data:
            data = data[os.write(self.fd_out, data) :]
        return self._next

    def pending(self) -> bytes:
        """What has arrived and was not asked for; nothing, unless the agent speaks unasked."""
        return os.read(self.fd_in, 1 << 18) if select.select([self.fd_in], [], [], 0)[0] else b""

    def wait(self, ident: int, event: str | None = None) -> Outcome:
        """Until the request is over, or an event of that name has come."""
        outcome = self.outcomes[ident]
        while not any(header["ev"] in (FINAL_EVENTS | {event}) for header, _ in outcome.events):
            self.receive()
        return outcome

    def finish(self, ident: int) -> Outcome:
        """Until the request is over."""
        outcome = self.outcomes[ident]
        while not outcome.events or outcome.final["ev"] not in FINAL_EVENTS:
            self.receive()
        return outcome

    def call(self, op: str, payload: bytes = b"", **fields: Any) -> Outcome:
        """A request and its whole answer."""
        return self.finish(self.begin(op, payload, **fields))

    def begin_code(self, code: str, language: str = "python", stdin: bytes = b"", **fields: Any) -> int:
        """Send `run_code`."""
        options = {"stdout_limit": LIMIT, "stderr_limit": LIMIT, "results_limit": LIMIT, **fields}
        return self.begin("run_code", code.encode() + stdin, language=language, stdin_size=len(stdin), **options)

    def code(self, code: str, language: str = "python", stdin: bytes = b"", **fields: Any) -> Outcome:
        """`run_code` and its whole answer, which must not be an error of the request."""
        outcome = self.finish(self.begin_code(code, language, stdin, **fields))
        assert outcome.final["ev"] == "done", outcome.final
        return outcome

    def begin_exec(self, *argv: str, stdin: bool = False, **fields: Any) -> int:
        """Send `exec`."""
        options = {"stdout_limit": LIMIT, "stderr_limit": LIMIT, **fields}
        return self.begin("exec", argv=list(argv), stdin=stdin, **options)

    def exec(self, *argv: str, **fields: Any) -> Outcome:
        """`exec` and its whole answer."""
        return self.finish(self.begin_exec(*argv, **fields))

    def close(self) -> None:
        """Hang up and wait for the agent to go."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(PATIENCE)


def agent_argv() -> list[str]:
    """How the agent is started in a machine, with the interpreter of the tests."""
    return [sys.executable, "-ESs", "-m", "guest"]


def node_folders() -> list[str]:
    """Where acorn may be: on the host, or in the image that a setup built."""
    named = [folder for folder in os.environ.get("NODE_PATH", "").split(":") if folder]
    images = default_cache_dir().glob("images/default-*/rootfs/node_modules")
    return [*named, "/usr/share/nodejs", "/usr/lib/nodejs", *sorted(map(str, images))]


def environment() -> dict[str, str]:
    """What programs of the host need to be found, and a toolchain in the home directory of whoever runs the tests."""
    found = {name: os.environ[name] for name in ("PATH", "RUSTUP_HOME") if name in os.environ}
    found["NODE_PATH"] = ":".join(node_folders())
    toolchains = Path.home() / ".rustup"
    return {"RUSTUP_HOME": str(toolchains), **found} if toolchains.is_dir() else found


def configuration(home: Path, **changes: Any) -> dict[str, Any]:
    """A `configure` request for tests on the host."""
    workdir = home / "work"
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "home": str(home),
        "workdir": str(workdir),
        "hostname": "test",
        "env": environment(),
        "languages": ["python", "javascript", "bash", "rust"],
        "warm": [],
        "warmup": None,
        "nproc": -1,
        "nofile": 512,
        "memory": None,
        "python_path": [],
        **changes,
    }


@pytest.fixture
def bare_agent() -> Iterator[Client]:
    """An agent that has not been configured."""
    client = Client(agent_argv(), PACKAGE_PARENT)
    client.wait(0, "hello")
    yield client
    client.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A configured agent, shared by the tests of a module."""
    client = Client(agent_argv(), PACKAGE_PARENT)
    client.wait(0, "hello")
    home = tmp_path_factory.mktemp("home")
    assert client.call("configure", **configuration(home)).final["ev"] == "done"
    client.workdir = home / "work"
    yield client
    client.close()


@pytest.fixture
def context(agent: Client) -> Iterator[str]:
    """A Python context of its own for a test."""
    ident = agent.call("context_create", language="python").final["context"]
    yield ident
    agent.call("context_remove", context=ident)
