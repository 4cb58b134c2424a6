"""The store: entries and links, written together, in one transaction per batch.

One task writes for all executions of this process, so that many at once share a transaction. The number of a link is
its primary key: when another process was faster, the insert fails, and the batch is written again under a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from emberbox.errors import HistoryError, ValidationFailed
from emberbox.history import entries as changes
from emberbox.history.chain import PRUNED, Head, Link, Verifier, digest
from emberbox.history.database import OPEN_SECONDS, Database, database_of
from emberbox.history.db_threads import Work, lock_links
from emberbox.history.process_locks import FileOwners, Owners
from emberbox.history.schema import ENTRIES, LINKS, entry_of, row_of, timestamp
from emberbox.history.wal import Journal
from emberbox.models import (
    CommandHistoryEntry,
    HistoryConfig,
    HistoryQueryRequest,
    HistoryQueryResponse,
    HistoryVerification,
)

T = TypeVar("T")

_BATCH = 64
_PATIENCE_SECONDS = 0.02
"""How long what began may be in the journal only."""
_ROWS = 500
_FEW_ROWS = 4
"""That are read at once where each may have megabytes."""
_ROW_BYTES = 1000
"""Of an entry, beside its texts."""
_COUNTED = 1024
"""Sandboxes whose number of entries is remembered."""
_NEW_ROWS = insert(ENTRIES)
_NEW_LINKS = insert(LINKS)
_CHANGE = update(ENTRIES).where(ENTRIES.c.id == bindparam("entry"))
_DROP = delete(ENTRIES).where(ENTRIES.c.id == bindparam("entry"))
_OLDEST = (
    select(ENTRIES.c.id)
    .where(ENTRIES.c.vm_id == bindparam("vm"), ENTRIES.c.state != "started")
    .order_by(ENTRIES.c.number)
    .limit(bindparam("count"))
)
_FAILURES = (ConnectionError, OSError, SQLAlchemyError, TimeoutError)


class HistoryStore:
    """An open history. Make one with `await HistoryStore.open(database, …)`, and `close()` it."""

    def __init__(self, database: Database, owners: Owners, most: int) -> None:
        self._database = database
        self._runner = database.runner
        self._owners = owners
        self._most = most
        self._owner = ""
        self._closed = False
        self._head: Head | None = None
        self._open_rows: dict[str, tuple[int, str]] = {}
        """Of entries that are not finished: number and owner, which every hash of theirs includes."""
        self._counts: dict[str, int] = {}
        self._waiting: list[tuple[CommandHistoryEntry, asyncio.Future[None] | None]] = []
        """Entries that go to the database next; nobody waits for those without a future, which are in the journal."""
        self._writer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._journal: Journal | None = None
        self._owed: list[CommandHistoryEntry] = []
        """Entries of the journal that the database refused so far."""

    # --- open, close ----------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, database: Database, state_dir: Path, max_entries: int) -> Self:
        """Open it, make or migrate its tables, and mark what a dead process left unfinished.

        Raises:
            HistoryError: it cannot be opened; the message says why.
        """
        store = cls(database, database.owners(state_dir), max_entries)
        try:
            async with asyncio.timeout(2 * OPEN_SECONDS):
                await asyncio.to_thread(database.make_file)
                await database.runner.write(store._open)
        except _FAILURES as exc:
            await store.close()
            raise database.error("opened", exc) from exc
        except BaseException:
            await store.close()
            raise
        return store

    def _open(self, connection: Connection) -> None:
        if isinstance(self._owners, FileOwners):
            with self._owners.opening(OPEN_SECONDS):
                self._open_alone(connection)
                self._owners.sweep()
        else:
            self._open_alone(connection)

    def _open_alone(self, connection: Connection) -> None:
        self._database.migrate(connection)
        left = self._owners.left()
        self._owner = self._owners.claim(connection)
        self._journal = self._owners.journal()
        if missing := _missing(connection, left):
            self._transaction(connection, [*missing, *map(changes.unknown, missing)], None)
        unfinished = select(ENTRIES).where(ENTRIES.c.state == "started").order_by(ENTRIES.c.number)
        rows = connection.execute(unfinished).mappings().all()
        connection.rollback()
        dead = {owner for owner in {row["owner"] for row in rows} if self._owners.dead(connection, owner)}
        lost = [changes.unknown(entry_of(dict(row))) for row in rows if row["owner"] in dead]
        if lost:
            self._transaction(connection, lost, None)

    async def close(self) -> None:
        """Write what is waiting, and let go of everything."""
        await self._flushed()
        if not self._closed:
            self._closed = True
            try:
                await self._runner.close()
            finally:
                self._owners.release()

    # --- write ----------------------------------------------------------------------------------------------------

    async def record(self, entry: CommandHistoryEntry) -> None:
        """Write a new state of an entry. When this returns, it is committed; what begins may be in the journal only, as
        long as the database takes what comes. A caller who is cancelled is not waited for, but the write is done.

        Raises:
            HistoryError: it was not written.
        """
        if entry.state == "started" and self._journal is not None and not (self._owed or self._closed):
            try:
                self._journal.append(entry)
            except OSError as exc:
                raise self._database.error("written", exc) from exc
            self._queue(entry, None)
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hurry.set()
        self._queue(entry, written)
        await written

    def _queue(self, entry: CommandHistoryEntry, written: asyncio.Future[None] | None) -> None:
        self._waiting.append((entry, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())

    async def _flushed(self) -> None:
        """Wait until the database has what is in the journal."""
        self._hurry.set()
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while self._waiting:
            if all(written is None for _, written in self._waiting):
                # most executions end soon: their beginning and their end are one transaction then
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE_SECONDS):
                        await self._hurry.wait()
            self._hurry.clear()
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            try:
                await self._commit([entry for entry, _ in batch])
            except Exception as exc:  # noqa: BLE001 (whatever it is, those who wait are told)
                for entry, written in batch:
                    await self._alone(entry, written, exc if len(batch) == 1 else None)
                continue
            for _, written in batch:
                if written is not None and not written.done():
                    written.set_result(None)

    async def _alone(
        self, entry: CommandHistoryEntry, written: asyncio.Future[None] | None, error: Exception | None
    ) -> None:
        """Write one of a batch that failed: the fault may be another's."""
        if error is None:
            try:
                await self._commit([entry])
            except Exception as exc:  # noqa: BLE001
                error = exc
        if written is None:
            if error is not None and not isinstance(error, IntegrityError):
                self._owed.append(entry)  # the journal has it, and the next one who waits is told
            return
        if written.done():
            return
        if error is None:
            written.set_result(None)
        else:
            known = error if isinstance(error, HistoryError) else self._database.error("written", error)
            known.__cause__ = None if known is error else error
            written.set_exception(known)

    async def _commit(self, entries: Sequence[CommandHistoryEntry]) -> None:
        self._check_open()
        owed = self._owed
        await self._runner.write(partial(self._append, entries=[*owed, *entries]))
        self._owed = self._owed[len(owed) :]
        if self._journal is not None and not self._owed and all(written is not None for _, written in self._waiting):
            self._journal.settled()

    def _check_open(self) -> None:
        if self._closed:
            raise HistoryError("The history is closed.", remediation="Use a new engine.")

    def _append(self, connection: Connection, entries: Sequence[CommandHistoryEntry]) -> None:
        try:
            try:
                self._transaction(connection, entries, self._head)
            except IntegrityError:
                if self._head is None:
                    raise
                connection.rollback()  # another process was faster
                self._transaction(connection, entries, None)
        except BaseException:
            self._head = None
            raise

    def _transaction(self, connection: Connection, entries: Sequence[CommandHistoryEntry], head: Head | None) -> None:
        """Write a batch after `head`; None: after the last link that there is, which is locked meanwhile."""
        if head is None:
            lock_links(connection)
            head = _read_head(connection)
        chain = _Chain(head)
        new: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        known = dict(self._open_rows)
        for entry in entries:
            if entry.state in ("started", "refused"):
                known[entry.execution_id] = (chain.head.sequence + 1, self._owner)
            number, owner = known.get(entry.execution_id) or _number_and_owner(connection, entry.execution_id)
            row = row_of(entry, number=number, owner=owner)
            chain.add(entry.execution_id, entry.state, digest(row))
            (new if entry.state in ("started", "refused") else changed).append(row)
            if entry.state != "started":
                known.pop(entry.execution_id, None)
        if new:
            connection.execute(_NEW_ROWS, new)
        for row in changed:
            connection.execute(_CHANGE, {"entry": row["id"], **row})
        counts = self._prune(connection, [row["vm_id"] for row in new if row["vm_id"] is not None], chain)
        connection.execute(_NEW_LINKS, chain.rows)
        connection.commit()
        self._head, self._open_rows = chain.head, known
        self._counts.update(counts)

    def _prune(self, connection: Connection, vm_ids: Sequence[str], chain: _Chain) -> dict[str, int]:
        """Drop the oldest entries of sandboxes that have too many now; how many each has then."""
        if len(self._counts) > _COUNTED:
            self._counts.clear()
        counts = {}
        for vm_id in set(vm_ids):
            count = self._counts.get(vm_id)
            if count is None:
                mine = select(func.count()).select_from(ENTRIES).where(ENTRIES.c.vm_id == vm_id)
                count = (connection.execute(mine)).scalar_one()
            else:
                count += vm_ids.count(vm_id)
            if count > self._most:
                count -= _drop_oldest(connection, vm_id, count - self._most, chain)
            counts[vm_id] = count
        return counts

    # --- read -----------------------------------------------------------------------------------------------------

    async def query(self, wanted: HistoryQueryRequest, most_bytes: int | None = None) -> HistoryQueryResponse:
        """Entries that match, newest first.

        Args:
            wanted: which ones.
            most_bytes: of their texts; the answer ends early then, but with one entry at least.

        Raises:
            ValidationFailed: there is no execution `before` which they shall be.
            HistoryError: it cannot be read.
        """
        return await self._read(partial(_found, wanted=wanted, most_bytes=most_bytes))

    async def get(self, execution_id: str) -> CommandHistoryEntry | None:
        """One entry; None if there is none (any more)."""
        mine = select(ENTRIES).where(ENTRIES.c.id == execution_id)

        def work(connection: Connection) -> CommandHistoryEntry | None:
            row = connection.execute(mine).mappings().one_or_none()
            return None if row is None else entry_of(dict(row))

        return await self._read(work)

    async def verify(self, noted: str | None = None) -> HistoryVerification:
        """Whether the history is as it was written. `noted`: the head of an earlier check; it must still be there."""
        return await self._read(partial(_verify, noted=noted))

    async def _read(self, work: Work[T]) -> T:
        self._check_open()
        await self._flushed()
        try:
            return await self._runner.read(work)
        except _FAILURES as exc:
            raise self._database.error("read", exc) from exc


def _found(connection: Connection, wanted: HistoryQueryRequest, most_bytes: int | None) -> HistoryQueryResponse:
    where = _conditions(wanted)
    total = connection.execute(select(func.count()).select_from(ENTRIES).where(*where)).scalar_one()
    if wanted.before is not None:
        where.append(ENTRIES.c.number < _number_before(connection, wanted))
    rows = select(ENTRIES).where(*where).order_by(ENTRIES.c.number.desc()).limit(wanted.limit + 1)
    answer = HistoryQueryResponse(total=total)
    left = sys.maxsize if most_bytes is None else most_bytes
    with connection.execute(rows.execution_options(yield_per=_FEW_ROWS)) as found:
        for row in found.mappings():
            left -= _ROW_BYTES + sum(len(value) for value in row.values() if isinstance(value, str))
            if answer.history and (left < 0 or len(answer.history) == wanted.limit):
                answer.next = answer.history[-1].execution_id
                break
            answer.history.append(entry_of(dict(row)))
    return answer


def _number_before(connection: Connection, wanted: HistoryQueryRequest) -> int:
    """Where to go on; an execution that the caller may not see is none."""
    own = _conditions(HistoryQueryRequest(agent_ids=wanted.agent_ids))
    number: int | None = connection.execute(
        select(ENTRIES.c.number).where(ENTRIES.c.id == wanted.before, *own)
    ).scalar_one_or_none()
    if number is None:
        raise ValidationFailed(
            f"before: the history has no execution {wanted.before!r:.80} (any more).",
            remediation="Begin again without it.",
        )
    return number


def _verify(connection: Connection, noted: str | None) -> HistoryVerification:
    verifier = Verifier(noted)
    links = connection.execute(select(LINKS).order_by(LINKS.c.sequence).execution_options(yield_per=_ROWS))
    verifier.take_links(Link(**row) for row in links.mappings())
    rows = connection.execute(select(ENTRIES).order_by(ENTRIES.c.number).execution_options(yield_per=_ROWS))
    for row in rows.mappings():
        verifier.take_entry(row["id"], digest(dict(row)))
    bad = verifier.finish()
    return HistoryVerification(
        intact=bad is None,
        links=verifier.links,
        entries=verifier.entries,
        head=verifier.head.hash,
        first_bad=bad,
    )


class _Chain:
    """Links that are being added."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.rows: list[dict[str, Any]] = []
        self._now = timestamp(datetime.now(UTC))

    def add(self, entry_id: str, event: str, content: str) -> None:
        link = Link.after(self.head, entry_id, event, self._now, content)
        self.head = Head(link.sequence, link.hash)
        self.rows.append(asdict(link))


def _read_head(connection: Connection) -> Head:
    last = select(LINKS.c.sequence, LINKS.c.hash).order_by(LINKS.c.sequence.desc()).limit(1)
    row = (connection.execute(last)).one_or_none()
    return Head() if row is None else Head(row.sequence, row.hash)


def _missing(connection: Connection, left: Sequence[CommandHistoryEntry]) -> list[CommandHistoryEntry]:
    """Those of a journal that the database has never heard of, in their order."""
    missing = []
    for entry in sorted(left, key=lambda entry: entry.executed_at):
        known = select(LINKS.c.sequence).where(LINKS.c.entry_id == entry.execution_id).limit(1)
        if connection.execute(known).first() is None:
            missing.append(entry)
    connection.rollback()
    return missing


def _number_and_owner(connection: Connection, execution_id: str) -> tuple[int, str]:
    mine = select(ENTRIES.c.number, ENTRIES.c.owner).where(ENTRIES.c.id == execution_id)
    row = (connection.execute(mine)).one_or_none()
    if row is None:
        raise HistoryError(
            f"The history has no entry {execution_id} any more: somebody removed it.",
            remediation="Run `emberbox history verify`. The code did run.",
        )
    return row.number, row.owner


def _drop_oldest(connection: Connection, vm_id: str, count: int, chain: _Chain) -> int:
    dropped = connection.execute(_OLDEST, {"vm": vm_id, "count": count}).scalars().all()
    if dropped:
        connection.execute(_DROP, [{"entry": execution_id} for execution_id in dropped])
    for execution_id in dropped:
        chain.add(execution_id, PRUNED, "")
    return len(dropped)


def _conditions(wanted: HistoryQueryRequest) -> list[ColumnElement[bool]]:
    columns = ENTRIES.c
    where: list[ColumnElement[bool]] = []
    if wanted.vm_id is not None:
        where.append(columns.vm_id == wanted.vm_id)
    if wanted.agent_id is not None:
        where.append(columns.agent_id == wanted.agent_id)
    if wanted.agent_ids is not None:
        where.append(columns.agent_id.in_(wanted.agent_ids))
    if wanted.failures_only:
        where += [columns.success.is_(False), columns.state != "started"]
    if wanted.start_date is not None:
        where.append(columns.executed_at >= timestamp(wanted.start_date))
    if wanted.end_date is not None:
        where.append(columns.executed_at <= timestamp(wanted.end_date))
    return where


async def open_store(config: HistoryConfig, url: str | None, state_dir: Path) -> HistoryStore:
    """The history that the settings name.

    Raises:
        HistoryError: it cannot be opened; the message says why.
    """
    database = await asyncio.to_thread(database_of, url, state_dir, persist=config.persist_history)
    return await HistoryStore.open(database, state_dir, config.max_history_entries)
