"""Run what is asynchronous for synchronous twins: the thread of the event loop, and callbacks out of it."""

from __future__ import annotations

import os
import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from emberbox.errors import VmNotAvailable

if TYPE_CHECKING:
    from concurrent.futures import Future

    from anyio.from_thread import BlockingPortal

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]


class PortalThread:
    """Calls of one sandbox or client into the loop's thread.

    Args:
        what: whose calls, as messages name it.
        ended: what became of it when it is used after its end.
    """

    def __init__(self, what: str = "sandbox", ended: str = "killed") -> None:
        self.ended = False
        """Its end was asked for."""
        self._what = what
        self._how = ended
        self._stack = ExitStack()
        self._pid = os.getpid()
        self._closed = False
        from emberbox.sdk.loop_thread import PROVIDER  # with asyncio: at the first call, not at the import

        self._portal: BlockingPortal = self._stack.enter_context(PROVIDER)

    def call(self, work: Work[T], relay: CallbackRelay | None = None) -> T:
        """Run a coroutine function there and return what it returned; relay its callbacks meanwhile."""
        self._check()
        future: Future[T] = self._portal.start_task_soon(work)
        try:
            if relay is not None:
                future.add_done_callback(lambda _: relay.end())
                relay.serve()
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def first(self, work: Work[T]) -> T:
        """Run what makes the original; let go of the thread where it fails."""
        try:
            return self.call(work)
        except BaseException:
            self.close()
            raise

    def finish(self, work: Work[None]) -> None:
        """Run what ends the original, and let go of the thread. Harmless when that was done."""
        if self.ended:
            return
        self.ended = True
        try:
            self.call(work)
        finally:
            self.close()

    def call_anew(self, work: Work[T]) -> T:
        """Run what is possible after the end as well."""
        if not self.ended:
            return self.call(work)
        other = PortalThread()
        try:
            return other.call(work)
        finally:
            other.close()

    def pieces(self, source: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an asynchronous iterator there yields."""
        end = object()

        async def next_piece() -> T | object:
            return await anext(source, end)

        while (piece := self.call(next_piece)) is not end:
            yield piece  # type: ignore[misc]

    def close(self) -> None:
        """Let go of the thread; it ends with the last."""
        self._closed = True
        self._stack.close()

    def _check(self) -> None:
        if self._closed:
            raise VmNotAvailable(f"The {self._what} was {self._how}.", remediation="Create a new one.")
        if os.getpid() != self._pid:
            raise VmNotAvailable(
                f"This {self._what} belongs to the process that forked this one.",
                remediation="Create one in this process.",
            )


class CallbackRelay:
    """Carries callbacks from the loop's thread to the caller's.

    Args:
        direct: leave them in the loop's thread, for a call that returns before they come.
    """

    def __init__(self, *, direct: bool = False) -> None:
        self._direct = direct
        self._queue: queue.SimpleQueue[tuple[Callable[[Any], object], Any] | None] = queue.SimpleQueue()

    def wrap(self, listener: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        """Return a callback for the loop's thread that has `listener` called in the caller's."""
        if listener is None or self._direct:
            return listener
        return lambda value: self._queue.put((listener, value))

    def serve(self) -> None:
        """Call what comes, until `end`."""
        while (item := self._queue.get()) is not None:
            listener, value = item
            listener(value)

    def end(self) -> None:
        """Nothing more comes."""
        self._queue.put(None)


A = TypeVar("A")


class Twin(Generic[A]):
    """The synchronous form of something asynchronous.

    Args:
        portal: where that lives.
        original: it.
    """

    def __init__(self, portal: PortalThread, original: A) -> None:
        self._portal = portal
        self._original = original
