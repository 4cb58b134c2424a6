"""Files and commands of an `AsyncSandbox`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from types import EllipsisType
from typing import Literal, overload

from emberbox._text import encoded
from emberbox.errors import ValidationFailed
from emberbox.models import CommandResult, EntryInfo, ProcessInfo
from emberbox.sandbox.listeners import Listeners, OnText
from emberbox.sandbox.uploads import Data
from emberbox.sdk.backends.base import CommandsHandle, FilesHandle, RunningCommand

DEFAULT_COMMAND_TIMEOUT = 60.0
_LONGEST_SECONDS = 1e9


class AsyncFiles:
    """Files of a sandbox. Relative paths start in the work directory; errors are GuestFileError."""

    def __init__(self, files: FilesHandle) -> None:
        self._files = files

    @overload
    async def read(self, path: str) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["text"]) -> str: ...
    @overload
    async def read(self, path: str, format: Literal["bytes"]) -> bytes: ...
    @overload
    async def read(self, path: str, format: Literal["stream"]) -> AsyncIterator[bytes]: ...

    async def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",  # noqa: A002 (the field's name for it)
    ) -> str | bytes | AsyncIterator[bytes]:
        """Read a file as `text` (UTF-8, nonsense replaced), `bytes`, or a `stream` of pieces of at most 256 KiB."""
        if format == "stream":
            return self._files.read_stream(path)
        data = await self._files.read_bytes(path)
        return data if format == "bytes" else data.decode("utf-8", "replace")

    async def write(self, path: str, data: Data, *, mode: int | None = None) -> EntryInfo:
        """Write text, bytes, an open file or an iterable of bytes. The file appears when it is whole."""
        return await self._files.write(path, data, mode=mode)

    async def list(self, path: str = ".", *, depth: int = 1) -> list[EntryInfo]:
        """Entries of a directory, `depth` levels deep."""
        return await self._files.list(path, depth=depth)

    async def exists(self, path: str) -> bool:
        return await self._files.exists(path)

    async def get_info(self, path: str) -> EntryInfo:
        return await self._files.get_info(path)

    async def make_dir(self, path: str) -> bool:
        """Make a directory and its parents; False if it was there already."""
        return await self._files.make_dir(path)

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all it holds."""
        await self._files.remove(path)

    async def rename(self, path: str, new_path: str) -> EntryInfo:
        return await self._files.rename(path, new_path)


class AsyncCommandHandle:
    """A command that runs in the background."""

    def __init__(self, command: RunningCommand) -> None:
        self._command = command
        self.pid = command.pid

    async def wait(self) -> CommandResult:
        """Wait for its end. Being cancelled here leaves the command running."""
        return await self._command.wait()

    async def kill(self) -> bool:
        """Kill it and its children; False if it had ended."""
        return await self._command.kill()

    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""
        await self._command.send_stdin(_bytes(data), eof=eof)


class AsyncCommands:
    """Programs in a sandbox, run as its user. A string is run by `bash -c`, a list as it is."""

    def __init__(self, commands: CommandsHandle) -> None:
        self._commands = commands

    @overload
    async def run(
        self, cmd: str | Sequence[str], *, background: Literal[False] = False, cwd: str | None = None,
        envs: Mapping[str, str] | None = None, timeout: float | None = DEFAULT_COMMAND_TIMEOUT,
        on_stdout: OnText | None = None, on_stderr: OnText | None = None,
    ) -> CommandResult: ...  # fmt: skip
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
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command. A failing one does not raise: look at `exit_code`.

        Args:
            cmd: for bash, or a list of arguments.
            background: return a handle at once; only then can it be sent standard input.
            timeout: seconds; None: none (the sandbox's own time bounds it). If it is left out: 60, and none in the
                background.

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
            return await self._commands.run(argv, cwd, envs or {}, timeout, listeners)
        return AsyncCommandHandle(await self._commands.start(argv, cwd, envs or {}, timeout, listeners))

    async def list(self) -> list[ProcessInfo]:
        """Commands under way."""
        return await self._commands.list()

    async def kill(self, pid: int) -> bool:
        """Kill a command; False if there is none of this pid."""
        return await self._commands.kill(pid)

    async def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a background command's standard input."""
        await self._commands.send_stdin(pid, _bytes(data), eof=eof)


def _bytes(data: str | bytes) -> bytes:
    return encoded("data", data) if isinstance(data, str) else data
