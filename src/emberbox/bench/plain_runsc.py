"""gVisor by its own commands, without Emberbox: `runsc run`, `checkpoint` and `restore` of a plain OCI bundle."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

from emberbox.bench.alternatives import DEADLINE, HELLO, Unavailable, plain_env, run_hello, tail, waiting
from emberbox.bench.facts import with_descendants
from emberbox.bench.measure import Clock, in_thread
from emberbox.bench.results import RUNSC, RUNSC_RESTORE
from emberbox.config import Settings
from emberbox.machines.gvisor.runsc import find_runsc

_FLAGS = ("--platform=systrap", "--network=none", "--overlay2=none", "--ignore-cgroups")
"""Those of Emberbox's own machines, as far as they matter for time."""
_SESSION = """\
import sys
x = 41
words = {str(number): [number] * 10 for number in range(200)}
for number in range(4):
    with open(f"/tmp/{number}.txt", "w") as file:
        file.write("some text\\n" * 100)
print("hello", flush=True)
while line := sys.stdin.readline():
    print(eval(line), flush=True)
"""


def bundle_config(rootfs: Path, code: str) -> dict[str, Any]:
    """config.json of a container that runs Python over the image's files (OCI runtime specification 1.0.2)."""
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108 (inside)
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/usr/bin/python3", "-c", code],
            "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "plain",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


class _Runsc:
    """What all of them share: the program, a bundle, a folder for state with a short path."""

    name = ""
    code = ""

    def __init__(self, settings: Settings, rootfs: Path, folder: Path) -> None:
        self._settings = settings
        self._rootfs = rootfs
        self._folder = folder / secrets.token_hex(3)
        self._program = ""

    def _prepare(self) -> None:
        runsc, problems = find_runsc(self._settings)
        if runsc is None:
            raise Unavailable("; ".join(problems), "emberbox setup")
        self._program = str(runsc.program)
        (self._folder / "b").mkdir(parents=True)
        text = json.dumps(bundle_config(self._rootfs, self.code))
        (self._folder / "b/config.json").write_text(text, encoding="utf-8")

    def _command(self, state: str, *words: str) -> list[str]:
        # an ordinary user is root in a user namespace, as for Emberbox's own machines
        prefix = [] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--"]
        return [*prefix, self._program, f"--root={self._folder / state}", *_FLAGS, *words]

    @property
    def _bundle(self) -> str:
        return f"--bundle={self._folder / 'b'}"

    def _clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class RunscCold(_Runsc):
    """`runsc run` of Python, hello, and the end of the sandbox."""

    name = RUNSC
    code = HELLO

    async def __aenter__(self) -> Self:
        await in_thread(self._prepare)
        try:
            await self.once()
        except BaseException:
            self._clear()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._clear()

    async def once(self) -> float:
        argv = self._command("s", "run", self._bundle, f"c{secrets.token_hex(4)}")
        return await in_thread(lambda: run_hello(argv))


class RunscSession(_Runsc):
    """A container with a Python that holds some variables and files, and answers lines."""

    name = RUNSC_RESTORE
    code = _SESSION

    def __init__(self, settings: Settings, rootfs: Path, folder: Path) -> None:
        super().__init__(settings, rootfs, folder)
        self._stack = contextlib.ExitStack()
        self._id = f"c{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        try:
            await in_thread(self._start)
        except BaseException:
            await in_thread(self._end)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self._end)

    def _start(self) -> None:
        self._prepare()
        argv = self._command("s", "run", self._bundle, self._id)
        self._process = self._stack.enter_context(waiting(argv))
        read_line(self._process, b"hello\n")
        self.checkpoint()

    def _end(self) -> None:
        self._stack.close()
        self._clear()

    @property
    def pids(self) -> set[int]:
        """The processes of the sandbox, without the command that waits for it."""
        return with_descendants([self._process.pid]) - {self._process.pid} if self._process else set()

    def checkpoint(self) -> float:
        """Milliseconds of `runsc checkpoint`; `once` restores the last one."""
        files = self._folder / "snapshot"
        shutil.rmtree(files, ignore_errors=True)
        words = ["checkpoint", f"--image-path={files}", "--compression=none", "--leave-running", self._id]
        clock = Clock()
        done = subprocess.run(
            self._command("s", *words), capture_output=True, timeout=DEADLINE, check=False, env=plain_env()
        )
        taken = clock.ms()
        if done.returncode:
            raise Unavailable(f"checkpoint failed: {tail(done.stderr)}")
        return taken

    async def snapshot(self) -> float:
        return await in_thread(self.checkpoint)

    async def once(self) -> float:
        """Milliseconds from `runsc restore` to the first answer of the copy."""
        return await in_thread(self._restore)

    def _restore(self) -> float:
        state, name = secrets.token_hex(3), f"c{secrets.token_hex(4)}"
        words = ["restore", f"--image-path={self._folder / 'snapshot'}", self._bundle, name]
        clock = Clock()
        try:
            with waiting(self._command(state, *words)) as process:
                write_line(process, b"x + 1\n")
                read_line(process, b"42\n")
                return clock.ms()
        finally:
            shutil.rmtree(self._folder / state, ignore_errors=True)


def write_line(process: subprocess.Popen[bytes], line: bytes) -> None:
    """To its standard input, at once."""
    if process.stdin is None:
        raise ValueError("the process has no pipe")
    try:
        process.stdin.write(line)
        process.stdin.flush()
    except OSError as exc:
        raise Unavailable(f"it ended: {exc}") from exc


def read_line(process: subprocess.Popen[bytes], expected: bytes) -> None:
    """The next line; raises Unavailable if it is another one or late."""
    if process.stdout is None:
        raise ValueError("the process has no pipe")
    if not select.select([process.stdout], [], [], DEADLINE)[0]:
        raise Unavailable(f"no answer within {DEADLINE:g} s")
    line = process.stdout.readline()
    if line != expected:
        raise Unavailable(f"it answered {line!r:.100}")
