"""Runs the store's work on its connections. The work is plain functions of a SQLAlchemy connection.

SQLite gets threads of ours, one for writing and one for reading: a transaction is one step to the writer's thread and
back. (An asyncio driver takes such a step for every statement, which is several times slower.) Everything else goes
through an asyncio driver.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from sqlalchemy import Connection, Engine, text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

T = TypeVar("T")
Work = Callable[[Connection], T]


class Runner(Protocol):
    """Where work is done."""

    async def write(self, work: Work[T]) -> T: ...
    async def read(self, work: Work[T]) -> T: ...
    async def close(self) -> None: ...


class ThreadRunner:
    """For SQLite.

    Args:
        engine: of a synchronous driver.
        shared: reading uses the writer's connection, because the database is in memory.
    """

    def __init__(self, engine: Engine, *, shared: bool) -> None:
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, "emberbox-history")
        self._reader = None if shared else ThreadPoolExecutor(1, "emberbox-history-reader")
        self._connection: Connection | None = None

    async def write(self, work: Work[T]) -> T:
        """Do it on the connection that writes; what it did not commit is undone."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._on_writer, work)

    def _on_writer(self, work: Work[T]) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        try:
            return work(self._connection)
        finally:
            self._connection.rollback()

    async def read(self, work: Work[T]) -> T:
        """Do it on a connection that sees one moment."""
        if self._reader is None:
            return await self.write(work)
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._on_reader, work)

    def _on_reader(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            return work(connection)

    async def close(self) -> None:
        """Wait for what is under way, and close the connections."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._close)
        self._writer.shutdown()
        if self._reader is not None:
            await asyncio.to_thread(self._reader.shutdown)
        self._engine.dispose()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._reader is None:
            self._engine.dispose()


class AsyncRunner:
    """For drivers of asyncio."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._busy = asyncio.Lock()

    async def write(self, work: Work[T]) -> T:
        """Do it on the connection that writes, which stays open; what it did not commit is undone."""
        async with self._busy:
            if self._connection is None:
                self._connection = await self._engine.connect()
            try:
                return await self._connection.run_sync(work)
            finally:
                await self._connection.rollback()

    async def read(self, work: Work[T]) -> T:
        """Do it on a connection that sees one moment."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Close all connections."""
        async with self._busy:
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    await self._connection.close()
                self._connection = None
            await self._engine.dispose()


def lock_links(connection: Connection) -> None:
    """A transaction in which nobody else adds a link."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE history_links IN EXCLUSIVE MODE"))
