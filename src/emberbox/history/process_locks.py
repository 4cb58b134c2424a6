"""Whose unfinished entries are these? Every open history holds a lock for life, so that others can see that it lives.

On SQLite (and whatever is not PostgreSQL) it is the lock of a file beside the database, on PostgreSQL an advisory lock
of the session, which also works between hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, text

from emberbox.history.wal import Journal, read_journal
from emberbox.models import CommandHistoryEntry

_OPENING = "opening"
_POLL_SECONDS = 0.02


class Owners(Protocol):
    """Who has this history open."""

    def claim(self, connection: Connection) -> str: ...
    def dead(self, connection: Connection, owner: str) -> bool: ...
    def journal(self) -> Journal | None: ...
    def left(self) -> list[CommandHistoryEntry]: ...
    def release(self) -> None: ...


class _WithoutJournal:
    """Every entry goes to the database at once."""

    def journal(self) -> Journal | None:
        return None

    def left(self) -> list[CommandHistoryEntry]:
        return []


class NoOwners(_WithoutJournal):
    """Of a history in memory: nobody else sees it."""

    def claim(self, connection: Connection) -> str:
        del connection
        return _new()

    def dead(self, connection: Connection, owner: str) -> bool:
        del connection, owner
        return True

    def release(self) -> None:
        """Nothing is held."""


class FileOwners:
    """A locked file per owner in `folder`, which is its journal. `claim`, `dead` and `left` need `opening` held, which
    orders them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self._path: Path | None = None

    @contextlib.contextmanager
    def opening(self, seconds: float) -> Iterator[None]:
        """One at a time opens the history. Blocks; raises TimeoutError, OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._folder / _OPENING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = time.monotonic() + seconds
            while not _locked(fd):
                if time.monotonic() > end:
                    raise TimeoutError(f"another process has been opening it for {seconds:g} s")
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            os.close(fd)

    def claim(self, connection: Connection) -> str:
        del connection
        owner = _new()
        self._path = self._folder / owner
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return owner

    def dead(self, connection: Connection, owner: str) -> bool:
        del connection
        return self._dead(self._folder / owner)

    @staticmethod
    def _dead(path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            return _locked(fd)
        finally:
            os.close(fd)

    def journal(self) -> Journal | None:
        """In the file of this owner, after `claim`."""
        return Journal(self._fd)

    def left(self) -> list[CommandHistoryEntry]:
        """What the dead wrote down; the database has most of it."""
        paths = [path for path in self._folder.iterdir() if path.name != _OPENING and self._dead(path)]
        return [entry for path in paths for entry in read_journal(path)]

    def sweep(self) -> None:
        """Remove the files of the dead."""
        for path in self._folder.iterdir():
            if path.name != _OPENING and self._dead(path):
                path.unlink(missing_ok=True)

    def release(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._path = None


class ServerOwners(_WithoutJournal):
    """An advisory lock of the PostgreSQL session that writes."""

    def claim(self, connection: Connection) -> str:
        owner = _new()
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _key(owner)})
        connection.commit()
        return owner

    def dead(self, connection: Connection, owner: str) -> bool:
        free = (connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _key(owner)})).scalar()
        if free:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _key(owner)})
        connection.commit()
        return bool(free)

    def release(self) -> None:
        """The lock goes with the session."""


def _new() -> str:
    return secrets.token_hex(7)


def _key(owner: str) -> int:
    return int(owner, 16)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
