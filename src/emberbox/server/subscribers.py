"""Clients that watch a sandbox see what all executions in it print. A follower that reads too slowly misses something,
and is told how much; the execution does not wait for it."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable

from emberbox.errors import VmExecutionError
from emberbox.models import Execution, Result
from emberbox.models.service import FollowedEvent
from emberbox.sandbox.listeners import Listeners, OnResult, OnText

_KEPT = 1000
_KEPT_CHARS = 1 << 20
"""Events that wait for one follower, and their text."""


class OutputSubscriber:
    """One who watches."""

    def __init__(self) -> None:
        self._events: deque[FollowedEvent] = deque()
        self._missed = 0
        self._size = 0
        self._some = asyncio.Event()

    def tell(self, event: FollowedEvent) -> None:
        """Something happened."""
        full = len(self._events) >= _KEPT or self._size + len(event.content) > _KEPT_CHARS
        if full and event.kind != "closed":  # after which nothing comes
            self._missed += 1
            return
        self._events.append(event)
        self._size += len(event.content)
        self._some.set()

    async def next(self) -> FollowedEvent:
        """What happened next."""
        while not self._events:
            self._some.clear()
            await self._some.wait()
        event = self._events.popleft()
        self._size -= len(event.content)
        if self._missed and not self._events:
            self._events.append(FollowedEvent(kind="missed", content=str(self._missed)))
            self._missed = 0
        return event


class OutputSubscribers:
    """All who watch, by machine."""

    def __init__(self) -> None:
        self._watching: dict[str, set[OutputSubscriber]] = defaultdict(set)

    def watch(self, vm_id: str) -> OutputSubscriber:
        """Watch a machine from now on; `leave` must follow."""
        follower = OutputSubscriber()
        self._watching[vm_id].add(follower)
        return follower

    def leave(self, vm_id: str, follower: OutputSubscriber) -> None:
        """Watch no more."""
        self._watching[vm_id].discard(follower)
        if not self._watching[vm_id]:
            del self._watching[vm_id]

    def closed(self, vm_id: str) -> None:
        """The machine has ended."""
        self._tell(vm_id, FollowedEvent(kind="closed"))

    def close(self) -> None:
        """The server stops."""
        for vm_id in list(self._watching):
            self.closed(vm_id)

    def _tell(self, vm_id: str, event: FollowedEvent) -> None:
        for follower in self._watching.get(vm_id, ()):
            follower.tell(event)

    def begins(self, vm_id: str, execution_id: str) -> None:
        """An execution was asked for."""
        self._tell(vm_id, FollowedEvent(kind="started", execution_id=execution_id))

    def listeners(self, vm_id: str, wanted: Listeners) -> Listeners:
        """The listeners of an execution, and of those who watch its machine when it begins."""
        if vm_id not in self._watching:
            return wanted
        return Listeners(
            self._text(vm_id, "stdout", wanted.on_stdout),
            self._text(vm_id, "stderr", wanted.on_stderr),
            self._result(vm_id, wanted),
        )

    def _text(self, vm_id: str, stream: str, wanted: OnText | None) -> Callable[[str], object]:
        async def text(content: str) -> None:
            self._tell(vm_id, FollowedEvent(kind=stream, content=content))
            if wanted is not None:
                await Listeners(on_stdout=wanted).text("stdout", content)

        return text

    def _result(self, vm_id: str, wanted: Listeners) -> OnResult:
        async def result(found: Result) -> None:
            self._tell(vm_id, FollowedEvent(kind="result", content=found.text or ", ".join(found.formats())))
            await wanted.result(found)

        return result

    def ended(self, vm_id: str, execution_id: str | None, task: asyncio.Task[Execution]) -> None:
        """An execution has ended, or was refused."""
        if vm_id not in self._watching:
            return
        if not task.done() or task.cancelled():
            self._tell(vm_id, FollowedEvent(kind="ended", execution_id=execution_id, content="cancelled"))
            return
        error = task.exception()
        if error is not None:
            why = error.message if isinstance(error, VmExecutionError) else type(error).__name__
            self._tell(vm_id, FollowedEvent(kind="refused", execution_id=execution_id, content=why))
            return
        run = task.result()
        why = "" if run.error is None else f"{run.error.name}: {run.error.value}"
        self._tell(
            vm_id,
            FollowedEvent(
                kind="ended",
                execution_id=execution_id,
                content=why,
                exit_code=run.exit_code,
                duration_ms=run.duration_ms,
            ),
        )
