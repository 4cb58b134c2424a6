"""A guest that has taken over its agent: whatever it sends, the host stays whole and the caller is told.

The hostile agent runs in a real sandbox, in place of the real one: it gets the channel and sends what it likes.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import AsyncIterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from emberbox import Engine, Settings, TerminationReason
from emberbox.errors import ExecutionFailed, ExecutionTimeout, GuestFileError, VmExecutionError, VmNotAvailable
from emberbox.images.store import Image
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners, RunOptions
from emberbox.sandbox.manager import SandboxManager

AGENT = """
import json, os, struct, sys, time

BOTH_GVISORS = True

def frame(header, payload=b""):
    head = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("!II", 4 + len(head) + len(payload), len(head)) + head + payload

def send(data):
    while data:
        data = data[os.write(1, data):]

def read(count):
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data

def request():
    size, head = struct.unpack("!II", read(8))
    body = read(size - 4)
    return json.loads(body[:head]), body[head:]

def hello():
    send(frame({"id": 0, "ev": "hello", "protocol": 1}))
    while True:
        header, payload = request()
        if header["op"] in ("configure", "quiesce", "wake"):
            send(frame({"id": header["id"], "ev": "done"}))
        else:
            return header, payload

def done(id, **more):
    fields = dict(exit_code=0, reason="completed", context="c", context_survived=True, execution_count=1, error=None,
                  stdout_truncated=False, stderr_truncated=False, results_truncated=False, duration_ms=1.0)
    send(frame({"id": id, "ev": "done", **{**fields, **more}}))

"""


@pytest.fixture
async def hostile(engine: Engine, settings: Settings, tmp_path: Path) -> AsyncIterator[object]:
    """Starts a sandbox whose agent runs this Python code instead."""
    image = await engine.image("minimal")
    await engine._open()
    assert engine._factory is not None
    manager = SandboxManager(
        engine._factory,
        boot_timeout=15,
        snapshot_base=tmp_path / "snapshots",
        store=engine.kept_snapshots(),
    )
    tmp_path.chmod(0o755)

    async def start(code: str) -> SandboxInstance:
        guest = tmp_path / "guest"
        guest.mkdir(exist_ok=True)
        (guest / "__init__.py").write_text("")
        (guest / "__main__.py").write_text(AGENT + code)
        changed: Image = dataclasses.replace(image, guest_dir=guest)
        return await manager.create(changed, image.limits)

    yield start
    await manager.close()


NONSENSE = {
    "random bytes": "hello(); send(os.urandom(100000)); time.sleep(100)",
    "a frame of 4 GiB": "hello(); send(struct.pack('!II', 0xFFFFFFFF, 10)); time.sleep(100)",
    "a header longer than its frame": "hello(); send(struct.pack('!II', 8, 1000)); time.sleep(100)",
    "a header that is not JSON": "hello(); send(frame(b'not json')); time.sleep(100)",
    "a header that is a list": "hello(); send(frame(b'[1]')); time.sleep(100)",
    "deeply nested JSON": "hello(); send(frame(b'[' * 500000)); time.sleep(100)",
    "an id that is a boolean": "hello(); send(frame({'id': True, 'ev': 'done'})); time.sleep(100)",
    "an answer to nobody": "hello(); send(frame({'id': 4711, 'ev': 'done'})); time.sleep(100)",
    "a second hello": "h, p = hello(); send(frame({'id': 0, 'ev': 'hello', 'protocol': 1})); time.sleep(100)",
    "no event": "h, p = hello(); send(frame({'id': h['id']})); time.sleep(100)",
    "an event that is a number": "h, p = hello(); send(frame({'id': h['id'], 'ev': 7})); time.sleep(100)",
    "a wrong exit code": "h, p = hello(); done(h['id'], exit_code='zero'); time.sleep(100)",
    "an unknown reason": "h, p = hello(); done(h['id'], reason='boredom'); time.sleep(100)",
    "an endless duration": "h, p = hello(); done(h['id'], duration_ms=float('inf')); time.sleep(100)",
    "a result that is no bundle": "h, p = hello(); send(frame({'id': h['id'], 'ev': 'result'}, b'7')); time.sleep(100)",
    "an error that is a string": "h, p = hello(); done(h['id'], error='x'); time.sleep(100)",
}


@pytest.mark.parametrize("code", NONSENSE.values(), ids=NONSENSE.keys())
async def test_nonsense_gets_the_machine_killed_and_the_caller_told(hostile, code: str) -> None:  # type: ignore[no-untyped-def]
    session = await hostile(code)
    run = await session.runner.run_code("python", "1", RunOptions(timeout=20), Listeners())
    assert run.termination_reason is TerminationReason.KILLED
    assert not run.succeeded
    assert "broke the protocol" in run.error.value
    with pytest.raises(VmNotAvailable, match="broke the protocol"):
        session.open_channel()


async def test_output_without_end_is_bounded(hostile) -> None:  # type: ignore[no-untyped-def]
    """The agent is asked to cap output; one that does not is cut off by the host."""
    session = await hostile("h, p = hello()\nwhile True: send(frame({'id': h['id'], 'ev': 'stdout'}, b'x' * 1000000))")
    run = await session.runner.run_code("python", "1", RunOptions(timeout=20), Listeners())
    assert run.termination_reason is TerminationReason.KILLED
    assert len(run.stdout) < 100 << 20


async def test_silence_is_ended_by_the_hosts_own_deadline(hostile, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("emberbox.sandbox.runner._GRACE_SECONDS", 0.2)
    session = await hostile("hello(); time.sleep(1000)")
    run = await session.runner.run_code("python", "1", RunOptions(timeout=0.3), Listeners())
    assert run.termination_reason is TerminationReason.TIMEOUT
    with pytest.raises(VmNotAvailable):
        session.open_channel()


async def test_an_agent_that_dies_is_a_crash(hostile) -> None:  # type: ignore[no-untyped-def]
    session = await hostile("hello(); os._exit(3)")
    run = await session.runner.run_code("python", "1", RunOptions(timeout=20), Listeners())
    assert run.termination_reason is TerminationReason.CRASHED


@pytest.mark.parametrize(
    "code", ["os._exit(1)", "raise SystemError('broken agent')", "send(os.urandom(1000)); time.sleep(100)"]
)
async def test_an_agent_that_never_comes_up_fails_the_start(hostile, code: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VmNotAvailable, match="died while it started"):
        await hostile(code)


async def test_an_agent_that_says_nothing_fails_the_start(engine: Engine, hostile, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(SandboxManager, "create", _impatient(SandboxManager.create))
    with pytest.raises(ExecutionTimeout, match="did not answer"):
        await hostile("time.sleep(1000)")


def _impatient(create: Any) -> Any:
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._boot_timeout = 1.0
        return await create(self, *args, **kwargs)

    return wrapper


async def test_another_protocol_version_is_refused(hostile) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(VmNotAvailable, match="protocol version"):
        await hostile("send(frame({'id': 0, 'ev': 'hello', 'protocol': 99})); time.sleep(100)")


REPLIES = {
    "metrics": ("metrics", "{'disk_used': 'a lot'}"),
    "contexts": ("contexts.list", "{'contexts': [7]}"),
    "processes": ("processes.list", "{'processes': [{'pid': 'x'}]}"),
}


@pytest.mark.parametrize(("method", "fields"), REPLIES.values(), ids=REPLIES.keys())
async def test_answers_that_make_no_sense_are_errors_of_the_machine(hostile, method: str, fields: str) -> None:  # type: ignore[no-untyped-def]
    session = await hostile(
        f"h, p = hello(); send(frame({{'id': h['id'], 'ev': 'done', **{fields}}})); time.sleep(100)"
    )
    with pytest.raises(ExecutionFailed, match="is not valid"):
        await attrgetter(method)(session)()


async def test_file_answers_that_make_no_sense(hostile) -> None:  # type: ignore[no-untyped-def]
    session = await hostile("h, p = hello(); send(frame({'id': h['id'], 'ev': 'done', 'entry': {'type': 'hole'}}))")
    with pytest.raises(ExecutionFailed, match="is not valid"):
        await session.files.get_info("x")


async def test_a_read_without_progress_ends(hostile) -> None:  # type: ignore[no-untyped-def]
    answer = "send(frame({'id': h['id'], 'ev': 'done', 'eof': False}))"
    code = f"h, p = hello()\nwhile True:\n    {answer}\n    h, p = request()"
    session = await hostile(code)
    with pytest.raises(ExecutionFailed, match="no data"):
        await session.files.read_bytes("x")


async def test_errors_of_the_guest_are_bounded(hostile) -> None:  # type: ignore[no-untyped-def]
    code = "h, p = hello(); send(frame({'id': h['id'], 'ev': 'error', 'kind': 'file', 'message': 'm' * 500000}))"
    session = await hostile(code)
    with pytest.raises(GuestFileError) as error:
        await session.files.get_info("x")
    assert len(str(error.value)) < 5000


def test_the_frame_format_here_is_that_of_the_protocol() -> None:
    """The hostile agent above builds frames by hand; if the format changes, its tests must change with it."""
    from emberbox.guest.protocol import encode

    head = b'{"id":1}'
    assert encode({"id": 1}, b"xy") == struct.pack("!II", 4 + len(head) + 2, len(head)) + head + b"xy"
    assert issubclass(ExecutionTimeout, VmExecutionError)
