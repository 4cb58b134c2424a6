"""What is inside a sandbox besides files: interpreters (contexts) and the commands under way."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from emberbox._text import check_environment
from emberbox.errors import SessionNotFound
from emberbox.guest.protocol import Header
from emberbox.models import ContextInfo, Language, ProcessInfo
from emberbox.sandbox.work import nonsense, rows_of


class Host(Protocol):
    """What these need of their sandbox."""

    async def call(self, op: str, **fields: Any) -> Header: ...
    def touched(self) -> None: ...


class GuestContexts:
    """`contexts` of a sandbox: interpreters with variables of their own."""

    def __init__(self, owner: Host, workdir: str) -> None:
        self._owner = owner
        self._workdir = workdir

    async def create(self, language: Language, cwd: str | None, env: Mapping[str, str]) -> ContextInfo:
        """Start one; raises ExecutionFailed where the language has none."""
        check_environment(env)
        self._owner.touched()
        header = await self._owner.call("context_create", language=language, cwd=cwd, env=dict(env))
        return ContextInfo(id=str(header.get("context")), language=language, cwd=cwd or self._workdir)

    async def list(self) -> list[ContextInfo]:
        """All of them."""
        rows = rows_of(await self._owner.call("context_list"), "contexts")
        with nonsense():
            return [
                ContextInfo(id=row["context"], language=row["language"], cwd=row.get("cwd") or "", busy=row["busy"])
                for row in rows
            ]

    async def restart(self, context: str) -> None:
        """Begin anew; raises SessionNotFound."""
        self._owner.touched()
        await self._owner.call("context_restart", context=context)

    async def remove(self, context: str) -> None:
        """End one; raises SessionNotFound."""
        self._owner.touched()
        await self._owner.call("context_remove", context=context)


class GuestProcesses:
    """`processes` of a sandbox: the commands under way."""

    def __init__(self, owner: Host, signal_request: Callable[[int, int], Awaitable[None]]) -> None:
        self._owner = owner
        self._signal = signal_request

    async def list(self) -> list[ProcessInfo]:
        """Commands under way."""
        rows = rows_of(await self._owner.call("processes"), "processes")
        with nonsense():
            return [
                ProcessInfo(
                    pid=row["pid"], argv=row["argv"], cwd=row.get("cwd") or "", running_ms=row["started_ms_ago"]
                )
                for row in rows
            ]

    async def kill(self, pid: int) -> bool:
        """Kill a command by its pid; False if it is not (any more) one of ours."""
        rows = rows_of(await self._owner.call("processes"), "processes")
        with nonsense():
            targets = [int(row["target"]) for row in rows if row["pid"] == pid]
        for target in targets:
            with contextlib.suppress(SessionNotFound):
                await self._signal(target, signal.SIGKILL)
                return True
        return False
