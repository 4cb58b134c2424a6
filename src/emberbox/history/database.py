"""Opens the database of a history: URL, folder, connections, migrations."""

from __future__ import annotations

import os
import sqlite3
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from emberbox.errors import HistoryError
from emberbox.history.db_threads import AsyncRunner, Runner, ThreadRunner
from emberbox.history.process_locks import FileOwners, NoOwners, Owners, ServerOwners
from emberbox.history.schema import HEAD, metadata

MIGRATIONS = Path(__file__).parent / "migrations"
OPEN_SECONDS = 30.0
BUSY_SECONDS = 15.0
"""How long a writer waits for another process's write on SQLite."""
_MIGRATION_LOCK = 0x656D626572
_DRIVERS = {"sqlite+aiosqlite": "sqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


class Database:
    """Where a history is kept. Nothing is opened before `runner` is used."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.is_postgresql = url.get_backend_name() == "postgresql"
        named = url.database if self.is_sqlite else None
        self.file = Path(named) if named and named != ":memory:" else None
        self.in_memory = self.is_sqlite and self.file is None
        self.runner = self._runner()

    def _runner(self) -> Runner:
        if not self.is_sqlite:
            from sqlalchemy.ext.asyncio import create_async_engine

            return AsyncRunner(create_async_engine(self.url))
        # a transaction that begins with a write takes the lock at once, and waits for it
        arguments = {"isolation_level": "IMMEDIATE", "timeout": BUSY_SECONDS}
        engine = create_engine(self.url, connect_args=arguments)
        event.listen(engine, "connect", _configure_sqlite)
        return ThreadRunner(engine, shared=self.in_memory)

    def owners(self, state_dir: Path) -> Owners:
        """Who has it open."""
        if self.in_memory:
            return NoOwners()
        if self.is_postgresql:
            return ServerOwners()
        file = self.file or state_dir / "history"
        return FileOwners(file.with_name(f"{file.name}.owners"))

    def make_file(self) -> None:
        """The file of an SQLite database, private to this user; what it holds is code and output."""
        if self.file is not None:
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def migrate(self, connection: Connection) -> None:
        """Bring the tables to the version of this Emberbox. Any number of processes may do so at once."""
        found = _version(connection)
        connection.rollback()
        if found == HEAD:
            return
        if self.is_sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        elif self.is_postgresql:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        if self.in_memory:
            metadata.create_all(connection)
        else:
            _upgrade(connection, _version(connection))
        connection.commit()

    def error(self, doing: str, cause: BaseException) -> HistoryError:
        """What went wrong here, for people."""
        said = str(cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause).splitlines() or [repr(cause)]
        message = f"The history in {self.url.render_as_string()} cannot be {doing}: {said[0]}."
        if self.is_sqlite and isinstance(cause, DBAPIError) and _damaged(cause.orig):
            return HistoryError(message, remediation="Move the file away (keep it: it is evidence); a new one is made.")
        if not self.is_sqlite:
            return HistoryError(message, remediation="Is the server of `history_url` up, and may this user use it?")
        return HistoryError(message)


def database_of(url: str | None, state_dir: Path, *, persist: bool) -> Database:
    """The database that the settings name; one in memory if nothing is to be kept.

    Raises:
        HistoryError: a wrong URL, or its driver is not installed.
    """
    if not persist:
        return Database(make_url("sqlite://"))
    try:
        parsed = make_url(url) if url else URL.create("sqlite", database=str(state_dir / "history.db"))
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
        driver = parsed.get_driver_name()
        if driver == "asyncpg" and find_spec("asyncpg") is None:
            raise HistoryError(
                "history_url names PostgreSQL, but its driver asyncpg is not installed.",
                remediation="Install the extra: pip install 'emberbox[postgresql]'.",
            )
        return Database(parsed)
    except (ArgumentError, SQLAlchemyError, ImportError) as exc:
        raise HistoryError(
            f"history_url is not one that can be used: {str(exc).splitlines()[0]}.",
            remediation="Use sqlite:////absolute/path.db or postgresql+asyncpg://user@host/database.",
        ) from exc


def _configure_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _damaged(cause: BaseException | None) -> bool:
    code = getattr(cause, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection, version: str | None) -> None:
    if version == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as exc:
        raise HistoryError(
            f"The history has version {version}, which this Emberbox does not know.",
            remediation="A newer Emberbox wrote it: use that one, or set another state_dir.",
        ) from exc
