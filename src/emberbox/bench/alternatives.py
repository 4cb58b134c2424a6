"""Plain ways to do the same without Emberbox: programs that are started, print hello, and end.

One that cannot be used here raises `Unavailable`, which becomes a line of the table and no error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

from emberbox.bench.facts import with_descendants
from emberbox.bench.measure import Clock, in_thread
from emberbox.bench.results import BWRAP, PYTHON

HELLO = "print('hello')"
DEADLINE = 30.0
_WAITING = "print('hello', flush=True); input()"


class Unavailable(Exception):
    """An alternative cannot be measured here: why, and what to do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Alternative(Protocol):
    """Something to compare with. Use it as an async context manager; entering raises Unavailable."""

    name: str

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...

    async def once(self) -> float:
        """Milliseconds from nothing to the answer, and nothing is left."""


class Program:
    """A program that starts Python anew for each hello.

    Args:
        name: of the figure.
        command: gives the command line up to Python's own arguments; raises Unavailable.
    """

    def __init__(self, name: str, command: Callable[[], Sequence[str]]) -> None:
        self.name = name
        self._command = command

    async def __aenter__(self) -> Self:
        await self.once()
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def once(self) -> float:
        return await in_thread(lambda: run_hello([*self._command(), "-c", HELLO]))

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[set[int]]:
        """One that has said hello and waits; its processes."""
        with waiting([*self._command(), "-c", _WAITING]) as process:
            await in_thread(lambda: expect_hello(process))
            yield with_descendants([process.pid])


def run_hello(argv: Sequence[str], cwd: Path | None = None) -> float:
    """Milliseconds from the start of a program to its end. Raises Unavailable if it did not print hello."""
    clock = Clock()
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False, cwd=cwd, env=plain_env()
        )
    except (OSError, subprocess.SubprocessError) as exc:
        raise Unavailable(f"{argv[0]}: {exc}") from exc
    taken = clock.ms()
    if done.stdout != b"hello\n":
        raise Unavailable(f"it did not work (status {done.returncode}): {tail(done.stderr)}")
    return taken


@contextlib.contextmanager
def waiting(argv: Sequence[str], stderr: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """A program with pipes that ends when its standard input does, or is killed."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=plain_env(), start_new_session=True
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program of `waiting` with all below it, and reap it."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        for pid in with_descendants([process.pid]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        process.wait(5)


def expect_hello(process: subprocess.Popen[bytes]) -> None:
    """Wait for its first line; raises Unavailable if that is not hello."""
    if process.stdout is None or process.stdout.readline() != b"hello\n":
        raise Unavailable("it did not say hello")


def plain_env() -> dict[str, str]:
    """No settings of Python's or of ours reach what is compared with."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def tail(output: bytes) -> str:
    """The end of what a program said, for one line."""
    return " / ".join(output.decode("utf-8", "replace").split("\n")[-4:]).strip(" /")[-200:] or "it said nothing"


# --- bare Python, bubblewrap --------------------------------------------------------------------------------------


def host_python() -> str:
    """The system's own python3, which starts faster than one of a virtual environment."""
    system = Path("/usr/bin/python3")
    return str(system) if system.exists() else str(Path(sys.base_prefix) / "bin/python3")


def bare_python() -> Program:
    """`python3 -c` on the host: no isolation at all."""
    return Program(PYTHON, lambda: [host_python()])


def bubblewrap(rootfs: Path) -> Program:
    """Namespaces without a kernel of its own, over the same files."""

    def command() -> Sequence[str]:
        program = shutil.which("bwrap")
        if program is None:
            raise Unavailable("not installed", "apt-get install bubblewrap")
        options = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 (inside)
        alone = ["--unshare-all", "--die-with-parent", "--new-session"]
        return [program, "--ro-bind", str(rootfs), "/", *options, *alone, "/usr/bin/python3"]

    return Program(BWRAP, command)


@contextlib.asynccontextmanager
async def usable(
    alternatives: Sequence[Alternative],
) -> AsyncIterator[tuple[list[Alternative], dict[str, Unavailable]]]:
    """Those that work here, entered, and why the others do not, by name."""
    found: list[Alternative] = []
    missing: dict[str, Unavailable] = {}
    async with contextlib.AsyncExitStack() as stack:
        for alternative in alternatives:
            try:
                found.append(await stack.enter_async_context(alternative))
            except Unavailable as exc:
                missing[alternative.name] = exc
        yield found, missing
