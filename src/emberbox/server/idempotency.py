"""Idempotency keys: a request that is sent again with its key runs once, across a restart of the server too.

A key is written down before its work begins (`running`), and again with the answer (`done`). A key that a dead server
left `running` is answered with a conflict: nobody knows how far it came.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from emberbox.errors import Conflict, HistoryError, ValidationFailed, VmExecutionError
from emberbox.sdk.transport import error_of
from emberbox.server.error_handlers import plain

HEADER = "Idempotency-Key"
_LONGEST_KEY = 200
_MOST_KEYS = 100_000
"""Of one caller."""
_MOST_BYTES = 256 << 20
"""Of the answers of one caller; of more the oldest answers are forgotten, but not that they were given."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    caller TEXT NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL, server TEXT NOT NULL,
    began REAL NOT NULL, answer BLOB, failed INTEGER NOT NULL, PRIMARY KEY (caller, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS keys_by_age ON keys (began);
CREATE INDEX IF NOT EXISTS keys_by_caller ON keys (caller, began);
CREATE TABLE IF NOT EXISTS sizes (caller TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS answered AFTER UPDATE OF answer ON keys BEGIN
    INSERT INTO sizes VALUES (new.caller, LENGTH(new.answer)) ON CONFLICT (caller)
    DO UPDATE SET bytes = bytes + LENGTH(new.answer) - COALESCE(LENGTH(old.answer), 0);
END;
CREATE TRIGGER IF NOT EXISTS forgotten AFTER DELETE ON keys WHEN old.answer IS NOT NULL BEGIN
    UPDATE sizes SET bytes = bytes - LENGTH(old.answer) WHERE caller = old.caller;
END;
"""
T = TypeVar("T")


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

    async def once(
        self,
        caller: str,
        key: str | None,
        request: bytes,
        work: Callable[[], Awaitable[bytes]],
        ran: Callable[[], bool] = lambda: True,
    ) -> bytes:
        """Do the work and return its answer, unless this key has done it: then that one's answer, or its error.

        Args:
            caller: keys of different callers are different.
            key: None: do it in any case.
            request: all that makes the request what it is.
            work: its answer is JSON.
            ran: whether the work, which has failed, has done anything by then; if not, the key is free again.

        Raises:
            Conflict: the key was used for another request, or the server died while its work ran.
            HistoryError: the key cannot be written down.
            VmExecutionError: as of the work.
        """
        if key is None:
            return await work()
        _check(key)
        digest = hashlib.sha256(request).hexdigest()
        place = (caller, key)
        if (under_way := self._running.get(place)) is not None:
            _same(under_way[0], digest, key)
            return await asyncio.shield(under_way[1])
        outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(_retrieved)
        self._running[place] = (digest, outcome)
        try:
            body = await self._first(place, digest, work, ran)
        except BaseException as exc:
            cut = Conflict(f"The work of {HEADER} {key!r} was cut short.", retryable=False)
            outcome.set_exception(exc if isinstance(exc, VmExecutionError) else cut)
            raise
        else:
            outcome.set_result(body)
            return body
        finally:
            del self._running[place]

    async def _first(
        self, place: tuple[str, str], digest: str, work: Callable[[], Awaitable[bytes]], ran: Callable[[], bool]
    ) -> bytes:
        known = await self._call(lambda db: _begin(db, place, digest, self._server, self._keep))
        if known is not None:
            return _again(known, digest, place[1])
        try:
            body = await work()
        except VmExecutionError as exc:
            if ran():
                await self._kept(place, json.dumps({"error": plain(exc)}).encode(), failed=True)
            else:
                await asyncio.shield(asyncio.ensure_future(self._call(lambda db: _forget(db, place))))
            raise
        await self._kept(place, body, failed=False)
        return body

    async def _kept(self, place: tuple[str, str], body: bytes, *, failed: bool) -> None:
        """Write the outcome down; without it, a client that asks again is told that nobody knows."""
        writing = asyncio.ensure_future(self._call(lambda db: _done(db, place, body, failed=failed)))
        try:
            await asyncio.shield(writing)
        except HistoryError as exc:
            raise HistoryError(
                f"It ran, but its answer cannot be kept: {exc.message}",
                remediation="Look at the history for what came of it.",
                retryable=False,
            ) from exc

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
            try:
                connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
            except BaseException:
                connection.close()
                raise
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


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known of a key."""

    request: str
    answer: bytes | None
    failed: bool


def _row(db: sqlite3.Connection, place: tuple[str, str]) -> _Row | None:
    query = "SELECT request, answer, failed FROM keys WHERE caller = ? AND key = ?"
    found = db.execute(query, place).fetchone()
    return None if found is None else _Row(found[0], found[1], bool(found[2]))


def _begin(db: sqlite3.Connection, place: tuple[str, str], digest: str, server: str, keep: float) -> _Row | None:
    """What is known of a key; None: nothing was, and now it is written down."""
    now = time.time()
    db.execute("DELETE FROM keys WHERE began < ?", (now - keep,))
    if (known := _row(db, place)) is not None:
        return known
    db.execute(_PRUNE, (place[0], place[0], _MOST_KEYS))
    db.execute("INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL, 0)", (*place, digest, server, now))
    return None


_PRUNE = """
DELETE FROM keys WHERE caller = ? AND began <=
    (SELECT began FROM keys WHERE caller = ? ORDER BY began DESC LIMIT 1 OFFSET ?)
"""


_TOO_MUCH = """
SELECT keys.key FROM keys JOIN sizes USING (caller)
    WHERE keys.caller = ? AND sizes.bytes > ? AND LENGTH(keys.answer) > 0 ORDER BY keys.began LIMIT 1
"""


def _done(db: sqlite3.Connection, place: tuple[str, str], body: bytes, *, failed: bool) -> None:
    db.execute("UPDATE keys SET answer = ?, failed = ? WHERE caller = ? AND key = ?", (body, failed, *place))
    while (more := db.execute(_TOO_MUCH, (place[0], _MOST_BYTES)).fetchone()) is not None:
        db.execute("UPDATE keys SET answer = X'' WHERE caller = ? AND key = ?", (place[0], more[0]))


def _forget(db: sqlite3.Connection, place: tuple[str, str]) -> None:
    db.execute("DELETE FROM keys WHERE caller = ? AND key = ?", place)


def _again(known: _Row, digest: str, key: str) -> bytes:
    """The answer of the first time; raises what was raised then."""
    _same(known.request, digest, key)
    if known.answer is None:
        raise Conflict(
            f"The server stopped while the work of {HEADER} {key!r} ran; nobody knows how far it came.",
            remediation="Look at the history, then ask again with a new key.",
            retryable=False,
        )
    if not known.answer:
        raise Conflict(
            f"The work of {HEADER} {key!r} is done, but its answer is no longer kept.",
            remediation="Look at the history for what came of it.",
            retryable=False,
        )
    if known.failed:
        raise error_of(None, known.answer, {})
    return bytes(known.answer)


def _same(request: str, digest: str, key: str) -> None:
    if request != digest:
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
