"""Synchronous twins of asynchronous things: their calls run on an event loop in a thread of its own."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, BlockingPortalProvider

from emberbox.errors import VmNotAvailable

T = TypeVar("T")

_provider = BlockingPortalProvider(backend="asyncio")
"""The loop's thread: it starts with the first sandbox or client and ends with the last."""


class Loop:
    """Calls of one sandbox or client into the loop's thread.

    Args:
        what: whose calls, as messages name it.
        ended: what became of it when it is used after its end.
    """

    def __init__(self, what: str = "sandbox", ended: str = "killed") -> None:
        self._what = what
        self._ended = ended
        self._stack = ExitStack()
        self._pid = os.getpid()
        self._closed = False
        self._portal: BlockingPortal = self._stack.enter_context(_provider)

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], listeners: Relay | None = None) -> T:
        """Run a coroutine function there and return what it returned; relay its callbacks meanwhile."""
        self._check()
        future: Future[T] = self._portal.start_task_soon(work)
        try:
            if listeners is not None:
                future.add_done_callback(lambda _: listeners.end())
                listeners.serve()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Let go of the thread; it ends with the last."""
        self._closed = True
        self._stack.close()

    def _check(self) -> None:
        if self._closed:
            raise VmNotAvailable(f"The {self._what} was {self._ended}.", remediation="Create a new one.")
        if os.getpid() != self._pid:
            raise VmNotAvailable(
                f"This {self._what} belongs to the process that forked this one.",
                remediation="Create one in this process.",
            )


class Relay:
    """Carries callbacks from the loop's thread to the caller's."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[Any], object], Any] | None] = queue.SimpleQueue()

    def wrap(self, listener: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        """A callback for the loop's thread that has `listener` called in the caller's."""
        return None if listener is None else lambda value: self._queue.put((listener, value))

    def serve(self) -> None:
        """Call what comes, until `end`."""
        while (item := self._queue.get()) is not None:
            listener, value = item
            listener(value)

    def end(self) -> None:
        """Nothing more comes."""
        self._queue.put(None)
