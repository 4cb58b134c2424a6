"""Rust: compile, then run. What was compiled is kept, so that the same source runs at once the next time."""

from __future__ import annotations

import os

from . import files, outcome
from .changes import cache_of_programs
from .fields import RequestError
from .limits import AsUser
from .programs import Program
from .spawned import find_program
from .trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .agent import Agent

FLAGS = ["--edition", "2021", "-A", "warnings", "-C", "debuginfo=0", "-C", "strip=symbols", "--color", "never"]
CACHED_PROGRAMS = 8
ERROR_TEXT_LIMIT = 60_000


class RustJob:
    """One `run_code` of Rust."""

    def __init__(
        self,
        code: bytes,
        stdin: bytes,
        cwd: str | None,
        env: Dict[str, str],
        args: List[str],
        timeout: float | None,
        limits: List[int],
        *,
        tracked: bool,
    ) -> None:
        self.tracked = tracked
        self.code = code
        self.stdin = stdin
        self.cwd = cwd
        self.env = env
        self.args = args
        self.timeout = timeout
        self.limits = limits


class RustRun:
    """Compiles where it must, runs, and reports both as one execution."""

    def __init__(self, agent: Agent, ident: int, job: RustJob) -> None:
        self._agent = agent
        self._ident = ident
        self._job = job
        import hashlib  # not for agents that never see Rust: it loads OpenSSL

        settings = agent.settings
        compiler = find_program("rustc", settings.env)
        if compiler is None:
            raise RequestError("unsupported", "this machine has no rustc (Debian package rustc)")
        info = os.stat(compiler)
        # The file's identity stands for the compiler's version.
        version = f"{os.path.realpath(compiler)} {info.st_size} {info.st_mtime_ns}"
        key = hashlib.sha256("\0".join([version, *FLAGS, ""]).encode() + job.code).hexdigest()
        self._cache = cache_of_programs(settings)
        self._kept = os.path.join(self._cache, key)
        self._private = f"{self._kept}.{ident}"
        self._compiling: _Stage | None = None

    def start(self) -> None:
        """Begin with what there is to do first."""
        agent = self._agent
        with AsUser(agent.settings):
            kept = os.path.exists(os.path.join(self._kept, "main"))
            if kept:
                os.utime(self._kept)
            else:
                os.makedirs(self._private, 0o700)
                files.write(os.path.join(self._private, "main.rs"), "source", 0, self._job.code, final=True, mode=None)
        agent.send({"id": self._ident, "ev": "started", "context": None})
        if kept:
            self._run(self._job.timeout)
        else:
            self._compile()

    def _compile(self) -> None:
        settings = self._agent.settings
        stage = _Stage(
            self._agent,
            self._ident,
            ["rustc", *FLAGS, "-o", "main", "main.rs"],
            self._private,
            {**settings.env, **self._job.env, "TMPDIR": self._private},
            stdin=False,
            stdout_limit=self._job.limits[0],
            stderr_limit=self._job.limits[1],
        )
        self._compiling = stage
        stage.on_exit = self._compiled
        self._begin(stage, self._job.timeout)

    def _compiled(self, ending: outcome.ExitInfo) -> None:
        stage = self._compiling
        if stage is None:
            return
        if ending.exit_code:
            self._discard()
            error = None
            if ending.exit_code == 1 and not (ending.timed_out or ending.killed):
                error = _compile_error(stage.text)
            self._report(stage, ending, error)
            return
        left = None
        if self._job.timeout is not None:
            left = max(0.001, self._job.timeout - stage.seconds())
        with AsUser(self._agent.settings):
            self._keep()
        self._run(left)

    def _keep(self) -> None:
        os.unlink(os.path.join(self._private, "main.rs"))
        try:
            os.rename(self._private, self._kept)
        except OSError:
            # Another execution of the same source was faster.
            self._discard()
        programs = [os.path.join(self._cache, name) for name in os.listdir(self._cache) if "." not in name]
        programs.sort(key=lambda path: os.stat(path).st_mtime)
        for path in programs[:-CACHED_PROGRAMS]:
            self._remove(path)

    def _discard(self) -> None:
        self._remove(self._private)

    def _remove(self, path: str) -> None:
        self._agent.workers.run(self._agent.settings, lambda: remove_tree(path), lambda *_: None)

    def _run(self, timeout: float | None) -> None:
        settings = self._agent.settings
        stage = _Stage(
            self._agent,
            self._ident,
            [os.path.join(self._kept, "main"), *self._job.args],
            self._job.cwd or settings.workdir,
            {**settings.env, **self._job.env},
            stdin=True,
            stdout_limit=self._job.limits[0],
            stderr_limit=self._job.limits[1],
        )
        stage.on_exit = lambda ending: self._report(stage, ending, None)
        if self._compiling is not None:
            stage.began = self._compiling.began
        self._begin(stage, timeout)
        stage.write_stdin(self._job.stdin, eof=True, answer=lambda _: None)

    def _begin(self, stage: _Stage, timeout: float | None) -> None:
        stage.is_code = True
        self._agent.remember(self._ident, stage)
        stage.set_timeout(timeout)

    def _report(self, stage: _Stage, ending: outcome.ExitInfo, error: Dict[str, str] | None) -> None:
        stage.tracked = self._job.tracked
        stage.done(
            exit_code=ending.exit_code,
            reason=outcome.reason(ending),
            context=None,
            context_survived=True,
            execution_count=1,
            error=error,
            results_truncated=False,
        )


class _Stage(Program):
    """One of the two programs of a Rust execution."""

    text = b""

    def on_started(self) -> None:
        """The execution has been announced already."""

    def emit(self, event: str, payload: bytes = b"", **fields: Any) -> None:
        """Send an event of this request, and remember what a compiler says."""
        if event == "stderr" and len(self.text) < ERROR_TEXT_LIMIT:
            self.text += payload
        super().emit(event, payload, **fields)


def _compile_error(text: bytes) -> Dict[str, str]:
    message = text[:ERROR_TEXT_LIMIT].decode("utf-8", "replace")
    lines = message.splitlines()
    first = next((line for line in lines if line.startswith("error")), lines[0] if lines else "compilation failed")
    return {"name": "CompileError", "value": first, "traceback": message}
