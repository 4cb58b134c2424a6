"""Commands that run in the background of a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from emberbox._text import encoded
from emberbox.errors import ExecutionFailed, SessionNotFound
from emberbox.models import CommandResult
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sandbox.listeners import Listeners


class BackgroundCommands:
    """The commands that one client has started in a sandbox and not waited for.

    Args:
        instance: the sandbox.
    """

    def __init__(self, instance: SandboxInstance) -> None:
        self._session = instance
        self._running: dict[int, BackgroundCommand] = {}

    async def start(
        self, argv: Sequence[str], cwd: str | None, envs: Mapping[str, str], timeout: float | None, listeners: Listeners
    ) -> BackgroundCommand:
        """Start a program and leave it running; raises ExecutionFailed where it does not start."""
        started: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        work = self._session.runner.exec(
            argv, cwd=cwd, env=envs, timeout=timeout, listeners=listeners, stdin=True,
            on_start=lambda request, pid: None if started.done() else started.set_result((request, pid)),
        )  # fmt: skip
        task = asyncio.ensure_future(work)
        both: list[asyncio.Future[Any]] = [started, task]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            task.cancel()  # which kills the command
            raise
        if not started.done():
            started.cancel()
            done = await task  # raises why it did not start
            raise ExecutionFailed(f"{argv[0]} ended with {done.exit_code} before it began: {done.error or ''}")
        request, pid = started.result()
        command = BackgroundCommand(self._session, task, request, pid)
        self._running[pid] = command
        task.add_done_callback(lambda _: self._running.pop(pid, None))
        return command

    async def send_stdin(self, pid: int, data: str | bytes, *, eof: bool = False) -> None:
        """Write to a command's standard input; raises SessionNotFound where none of them has this pid."""
        command = self._running.get(pid)
        if command is None:
            raise SessionNotFound(f"There is no background command {pid}.", remediation="commands.list() shows them.")
        await command.send_stdin(data, eof=eof)


class BackgroundCommand:
    """A command that runs in the background of a sandbox."""

    def __init__(self, instance: SandboxInstance, task: asyncio.Task[CommandResult], request: int, pid: int) -> None:
        self._session = instance
        self._task = task
        self._request = request
        self.pid = pid

    async def wait(self) -> CommandResult:
        """Wait for its end. Being cancelled here leaves the command running."""
        return await asyncio.shield(self._task)

    async def kill(self) -> bool:
        """Kill it and its children; False if it had ended."""
        return not self._task.done() and await self._session.processes.kill(self.pid)

    async def send_stdin(self, data: str | bytes, *, eof: bool = False) -> None:
        """Write to its standard input; `eof` closes it afterwards."""
        sent = encoded("data", data) if isinstance(data, str) else data
        await self._session.runner.send_stdin(self._request, sent, eof=eof)
