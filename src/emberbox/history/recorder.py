"""The history of one engine: opened when it is first needed, so that nothing is imported before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from emberbox.errors import HistoryError
from emberbox.models import (
    CommandHistoryEntry,
    HistoryConfig,
    HistoryQueryRequest,
    HistoryQueryResponse,
    HistoryVerification,
)

if TYPE_CHECKING:
    from emberbox.history.store import HistoryStore

_CLOSE_SECONDS = 10.0
"""How long `close` waits for executions whose sandbox was just killed."""


class HistoryRecorder:
    """Records executions and answers questions about them.

    Args:
        config: the settings of the history.
        url: SQLAlchemy URL; None: `history.db` in `state_dir`.
        state_dir: folder of what outlives a run.
    """

    def __init__(self, config: HistoryConfig, url: str | None, state_dir: Path) -> None:
        self._config = config
        self._url = url
        self._state_dir = state_dir
        self._opening: asyncio.Task[HistoryStore] | None = None
        self._closed = False
        self._under_way: set[str] = set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    def prepare(self) -> None:
        """Begin to open it, beside something else that takes time."""
        self._closed = False
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(_retrieved)

    async def _open(self) -> HistoryStore:
        open_store = await asyncio.to_thread(_load)
        return await open_store(self._config, self._url, self._state_dir)

    async def record(self, entry: CommandHistoryEntry) -> None:
        """Write a state of an execution; committed when this returns.

        Raises:
            HistoryError: the history cannot be opened or written.
        """
        begins = entry.state == "started"
        if begins:
            self._under_way.add(entry.execution_id)
            self._quiet.clear()
        try:
            async with self._store() as store:
                await store.record(entry)
        except HistoryError:
            begins = False  # it will not run
            raise
        finally:
            if not begins:
                self._under_way.discard(entry.execution_id)
                if not self._under_way:
                    self._quiet.set()

    async def query(self, wanted: HistoryQueryRequest, most_bytes: int | None = None) -> HistoryQueryResponse:
        """Entries that match, newest first; raises HistoryError. The answer ends early where their texts have more than
        `most_bytes`."""
        async with self._store() as store:
            return await store.query(wanted, most_bytes)

    async def get(self, execution_id: str) -> CommandHistoryEntry | None:
        """One entry; raises HistoryError."""
        async with self._store() as store:
            return await store.get(execution_id)

    async def verify(self, noted: str | None = None) -> HistoryVerification:
        """Whether nothing was changed since it was written; raises HistoryError."""
        async with self._store() as store:
            return await store.verify(noted)

    @contextlib.asynccontextmanager
    async def _store(self) -> AsyncIterator[HistoryStore]:
        if self._closed:  # a question after the end: open it for this one
            store = await self._open()
            try:
                yield store
            finally:
                await store.close()
            return
        self.prepare()
        opening = self._opening
        assert opening is not None  # noqa: S101 (prepare made it)
        try:
            store = await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                self._opening = None  # the next execution tries again
            raise
        yield store

    async def close(self) -> None:
        """Let executions end that are under way, write them, and close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._quiet.wait()
        self._closed = True
        opening, self._opening = self._opening, None
        if opening is not None:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()


def _retrieved(task: asyncio.Task[HistoryStore]) -> None:
    """Somebody may ask for the outcome later, or nobody."""
    if not task.cancelled():
        task.exception()


def _load() -> Callable[[HistoryConfig, str | None, Path], Coroutine[object, object, HistoryStore]]:
    """The slow import, in a thread."""
    from emberbox.history.store import open_store

    return open_store
