"""Idempotency keys: a request that is sent again with its key runs once, across a restart of the server too.

A key is written down before its work begins (`running`), and again with the answer (`done`). A key that a dead server
left `running` is answered with a conflict: nobody knows how far it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from emberbox.errors import Conflict, HistoryError, ValidationFailed, VmExecutionError

HEADER = "Idempotency-Key"
_LONGEST_KEY = 200
_MOST_KEYS = 100_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    caller TEXT NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL, server TEXT NOT NULL,
    began REAL NOT NULL, answer BLOB, PRIMARY KEY (caller, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (began);
"""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """What the request was answered with the first time: JSON."""

    body: bytes


class IdempotencyStore:
    """The keys of one server.

    Args:
        path: a SQLite file.
        server: a name of this process, another one after each start.
        keep_seconds: how long a key is remembered.
    """

    def __init__(self, path: Path, server: str, keep_seconds: float) -> None:
        self._path = path
        self._server = server
        self._keep = keep_seconds
        self._connection: sqlite3.Connection | None = None
        self._lock = asyncio.Lock()
        self._running: dict[tuple[str, str], tuple[str, asyncio.Future[bytes]]] = {}

    async def once(self, caller: str, key: str | None, request: bytes, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """Do the work and return its answer, unless this key has done it: then that one's answer.

        Args:
            caller: keys of different callers are different.
            key: None: do it in any case.
            request: all that makes the request what it is.
            work: its answer is JSON.

        Raises:
            Conflict: the key was used for another request, or the server died while its work ran.
            HistoryError: the key cannot be written down; nothing ran.
        """
        if key is None:
            return await work()
        _check(key)
        digest = hashlib.sha256(request).hexdigest()
        place = (caller, key)
        if (under_way := self._running.get(place)) is not None:
            _same((under_way[0], None), digest, key)
            return await asyncio.shield(under_way[1])
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_retrieved)
        self._running[place] = (digest, outcome)
        try:
            body = await self._first(place, digest, work)
        except BaseException as exc:
            known = exc if isinstance(exc, VmExecutionError) else Conflict(f"The work of key {key!r} was cut short.")
            outcome.set_exception(known)
            raise
        else:
            outcome.set_result(body)
            return body
        finally:
            del self._running[place]

    async def _first(self, place: tuple[str, str], digest: str, work: Callable[[], Awaitable[bytes]]) -> bytes:
        known = await self._call(lambda db: _begin(db, place, digest, self._server, self._keep))
        if known is not None:
            _same(known, digest, place[1])
            if known[1] is not None:
                return bytes(known[1])
            raise Conflict(
                f"The server stopped while the work of {HEADER} {place[1]!r} ran; nobody knows how far it came.",
                remediation="Look at the history, then ask again with a new key.",
                retryable=False,
            )
        try:
            body = await work()
        except BaseException as exc:
            if isinstance(exc, VmExecutionError) and exc.retryable:  # it did not run: the key is free again
                await asyncio.shield(asyncio.ensure_future(self._call(lambda db: _forget(db, place))))
            raise
        await asyncio.shield(asyncio.ensure_future(self._call(lambda db: _done(db, place, body))))
        return body

    async def _call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(self._do, work)
            except (sqlite3.Error, OSError) as exc:
                raise HistoryError(f"Idempotency keys cannot be kept in {self._path}: {exc}.") from exc

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.touch(mode=0o600)
            connection = sqlite3.connect(self._path, check_same_thread=False, timeout=10)
            connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
            self._connection = connection
        with self._connection:
            return work(self._connection)

    async def close(self) -> None:
        """Let go of the file."""
        async with self._lock:
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    await asyncio.to_thread(self._connection.close)
                self._connection = None


Row = tuple[str, bytes | None]


def _row(db: sqlite3.Connection, place: tuple[str, str]) -> Row | None:
    found: Row | None = db.execute("SELECT request, answer FROM keys WHERE caller = ? AND key = ?", place).fetchone()
    return found


def _begin(db: sqlite3.Connection, place: tuple[str, str], digest: str, server: str, keep: float) -> Row | None:
    """What is known of a key; None: nothing was, and now it is written down."""
    now = time.time()
    db.execute("DELETE FROM keys WHERE began < ?", (now - keep,))
    if (known := _row(db, place)) is not None:
        return known
    extra = "DELETE FROM keys WHERE began <= (SELECT began FROM keys ORDER BY began DESC LIMIT 1 OFFSET ?)"
    db.execute(extra, (_MOST_KEYS,))
    db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)", (*place, digest, server, now))
    return None


def _done(db: sqlite3.Connection, place: tuple[str, str], body: bytes) -> None:
    db.execute("UPDATE keys SET answer = ? WHERE caller = ? AND key = ?", (body, *place))


def _forget(db: sqlite3.Connection, place: tuple[str, str]) -> None:
    db.execute("DELETE FROM keys WHERE caller = ? AND key = ?", place)


def _same(known: Row | None, digest: str, key: str) -> None:
    if known is not None and known[0] != digest:
        raise Conflict(
            f"{HEADER} {key!r} was used for another request.", remediation="Use a new key for each new request."
        )


def _check(key: str) -> None:
    if not 0 < len(key) <= _LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise ValidationFailed(
            f"{HEADER} must be 1 to {_LONGEST_KEY} printable ASCII characters.", remediation="A UUID is a good one."
        )


def _retrieved(future: asyncio.Future[bytes]) -> None:
    """Somebody may ask for the outcome, or nobody."""
    if not future.cancelled():
        future.exception()
