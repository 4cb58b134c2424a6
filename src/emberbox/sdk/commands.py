"""Programs of a sandbox, wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Literal, Protocol, overload, runtime_checkable

from emberbox import models
from emberbox.errors import ValidationFailed
from emberbox.sandbox.listeners import Listeners, OnText

DEFAULT_COMMAND_TIMEOUT = 60.0
_LONGEST_SECONDS = 1e9


@runtime_checkable
class AsyncCommandHandle(Protocol):
    """A command that runs in the background."""

    pid: int

    async def wait(self) -> models.CommandResult:
        """Wait for its end. Being cancelled here leaves the command running."""

    async def kill(self) -> bool:
        """Kill it and its children; False if it had ended."""

    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""


class AsyncCommands(ABC):
    """Programs in a sandbox, run as its user. A string is run by `bash -c`, a list as it is."""

    @overload
    async def run(
        self, cmd: str | Sequence[str], *, background: Literal[False] = False, cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = DEFAULT_COMMAND_TIMEOUT,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> models.CommandResult: ...  # fmt: skip
    @overload
    async def run(
        self, cmd: str | Sequence[str], *, background: Literal[True], cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = None,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> AsyncCommandHandle: ...  # fmt: skip

    async def run(
        self,
        cmd: str | Sequence[str],
        *,
        background: bool = False,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        timeout: float | EllipsisType | None = ...,
        on_stdout: OnText | None = None,
        on_stderr: OnText | None = None,
    ) -> models.CommandResult | AsyncCommandHandle:
        """Run a command. A failing one does not raise: look at `exit_code`.

        Args:
            cmd: for bash, or a list of arguments.
            background: return a handle at once; only then can it be sent standard input.
            timeout: seconds; None: none (the sandbox's own time bounds it). If it is left out: 60, and none in the
                background.
            on_stdout, on_stderr: called as output arrives; those of a command in the background in the event loop's
                thread.

        Raises:
            VmNotAvailable: the sandbox is gone.
            ExecutionFailed: no such program or working directory.
        """
        if timeout is ...:
            timeout = None if background else DEFAULT_COMMAND_TIMEOUT
        if timeout is not None and not 0 < timeout <= _LONGEST_SECONDS:
            raise ValidationFailed(f"A timeout of {timeout:g} s is not possible.", remediation="Use None for no limit.")
        argv = ["/bin/bash", "-c", cmd] if isinstance(cmd, str) else list(cmd)
        listeners = Listeners(on_stdout, on_stderr)
        if not background:
            return await self._run(argv, cwd, envs or {}, timeout, listeners)
        return await self._start(argv, cwd, envs or {}, timeout, listeners)

    @abstractmethod
    async def _run(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> models.CommandResult: ...

    @abstractmethod
    async def _start(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> AsyncCommandHandle: ...

    @abstractmethod
    async def list(self) -> list[models.ProcessInfo]:
        """List the commands under way."""

    @abstractmethod
    async def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""

    @abstractmethod
    async def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
