"""Keys: once, for whom, and what is said where nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from emberbox.errors import Conflict, ExecutionFailed, HistoryError, NoCapacity, ValidationFailed
from emberbox.server import idempotency
from emberbox.server.idempotency import IdempotencyStore


class Work:
    """Counts how often it is done."""

    def __init__(self, answer: bytes = b"1", error: Exception | None = None) -> None:
        self.times = 0
        self._answer = answer
        self._error = error
        self.go = asyncio.Event()
        self.go.set()
        self.begun = asyncio.Event()

    async def __call__(self) -> bytes:
        self.times += 1
        self.begun.set()
        await self.go.wait()
        if self._error is not None:
            raise self._error
        return self._answer


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[IdempotencyStore]:
    store = IdempotencyStore(tmp_path / "server" / "keys.db", "one", 3600)
    yield store
    await store.close()


async def test_without_a_key_it_is_done_each_time(store: IdempotencyStore) -> None:
    work = Work()
    assert [await store.once("a", None, b"x", work) for _ in range(3)] == [b"1"] * 3
    assert work.times == 3
    assert not (store._path).exists()


async def test_with_a_key_it_is_done_once(store: IdempotencyStore) -> None:
    work = Work()
    assert [await store.once("a", "k", b"x", work) for _ in range(3)] == [b"1"] * 3
    assert work.times == 1
    with pytest.raises(Conflict, match="another request"):
        await store.once("a", "k", b"y", work)
    assert await store.once("b", "k", b"y", work) == b"1"
    assert await store.once("a", "K", b"y", work) == b"1"
    assert work.times == 3


async def test_who_asks_meanwhile_waits_for_the_same_answer(store: IdempotencyStore) -> None:
    work = Work()
    work.go.clear()
    asking = [asyncio.create_task(store.once("a", "k", b"x", work)) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(Conflict):
        await store.once("a", "k", b"y", work)
    asking[1].cancel()
    await asyncio.wait([asking[1]])
    work.go.set()
    assert await asking[0] == await asking[2] == b"1"
    assert work.times == 1


async def test_what_certainly_never_ran_leaves_the_key_free(store: IdempotencyStore) -> None:
    with pytest.raises(NoCapacity):
        await store.once("a", "k", b"x", Work(error=NoCapacity("full")), lambda: False)
    assert await store.once("a", "k", b"x", Work(b"2")) == b"2"


async def test_what_may_have_run_does_not_run_again(store: IdempotencyStore) -> None:
    again = Work()
    with pytest.raises(ExecutionFailed):
        await store.once("a", "k", b"x", Work(error=ExecutionFailed("broke")))
    with pytest.raises((Conflict, ExecutionFailed)) as told:
        await store.once("a", "k", b"x", again)
    assert again.times == 0
    assert told.value.retryable is False
    assert "server stopped" not in told.value.message, "it did not"


async def test_work_that_was_cut_short_is_not_said_to_have_never_run(store: IdempotencyStore) -> None:
    """Neither to who asked at the same time, nor later."""
    work = Work()
    work.go.clear()
    first = asyncio.create_task(store.once("a", "k", b"x", work))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(store.once("a", "k", b"x", work))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(Conflict) as told:
        await second
    assert told.value.retryable is False
    with pytest.raises(Conflict) as later:
        await store.once("a", "k", b"x", work)
    assert later.value.retryable is False
    assert work.times == 1


async def test_a_key_of_a_dead_server_is_a_conflict(store: IdempotencyStore) -> None:
    work = Work()
    work.go.clear()
    task = asyncio.create_task(store.once("a", "k", b"x", work))
    await asyncio.sleep(0.05)
    next_one = IdempotencyStore(store._path, "two", 3600)
    with pytest.raises(Conflict, match="server stopped") as told:
        await next_one.once("a", "k", b"x", work)
    assert told.value.retryable is False
    await next_one.close()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "a\0", "\u00e4", "\u200b", "a\x7f"])
async def test_keys_that_are_none(store: IdempotencyStore, key: str) -> None:
    work = Work()
    with pytest.raises(ValidationFailed):
        await store.once("a", key, b"x", work)
    assert work.times == 0


@pytest.mark.parametrize("key", ["'; DROP TABLE keys; --", "x" * 200, " ", "%", "../../etc"])
async def test_keys_that_only_look_odd(store: IdempotencyStore, key: str) -> None:
    work = Work()
    assert [await store.once("a", key, b"x", work) for _ in range(2)] == [b"1"] * 2
    assert work.times == 1


async def test_keys_are_forgotten_in_time(store: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    await store.once("a", "k", b"x", work)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    await store.once("a", "k", b"y", work)
    assert work.times == 2


async def test_one_caller_does_not_push_out_the_keys_of_others(
    store: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks most has least: a key that is promised for a day is not gone for the noise of somebody else."""
    monkeypatch.setattr(idempotency, "_MOST_KEYS", 20)
    work = Work()
    await store.once("quiet", "k", b"x", work)
    for number in range(60):
        await store.once("noisy", f"k{number}", b"x", Work())
    await store.once("quiet", "k", b"x", work)
    assert work.times == 1


async def test_answers_of_one_caller_have_a_bound(store: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers go; that the work was done is remembered, so that nothing runs twice."""
    monkeypatch.setattr(idempotency, "_MOST_BYTES", 3500)
    quiet, works = Work(b"q" * 1000), [Work(b"a" * 1000) for _ in range(6)]
    await store.once("quiet", "k", b"x", quiet)
    for number, work in enumerate(works):
        await store.once("noisy", f"k{number}", b"x", work)
    for number in (0, 1, 2):
        with pytest.raises(Conflict, match="no longer kept"):
            await store.once("noisy", f"k{number}", b"x", works[number])
    for number in (3, 4, 5):
        assert await store.once("noisy", f"k{number}", b"x", works[number]) == b"a" * 1000
    assert await store.once("quiet", "k", b"x", quiet) == b"q" * 1000
    assert [work.times for work in [quiet, *works]] == [1] * 7
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)  # all of them are forgotten, and their sizes with them
    for number in range(3):
        await store.once("noisy", f"n{number}", b"x", works[number])
    assert await store.once("noisy", "n0", b"x", works[0]) == b"a" * 1000


# --- a disk that is full, a file that is none -------------------------------------------------------------------------


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _directory(path: Path) -> None:
    path.mkdir(parents=True)


def _garbage(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database at all " * 1000)


def _no_folder(path: Path) -> None:
    path.parent.write_text("a file")


def _another_table(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE keys (x)")
        db.commit()


@pytest.mark.parametrize("spoil", [_directory, _garbage, _no_folder, _another_table], ids=lambda make: make.__name__)
async def test_what_cannot_be_written_down_is_not_done(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "server" / "keys.db"
    spoil(path)
    before, work = _descriptors(), Work()
    store = IdempotencyStore(path, "one", 3600)
    for _ in range(20):
        with pytest.raises(HistoryError, match="keys"):
            await store.once("a", "k", b"x", work)
    assert await store.once("a", None, b"x", work) == b"1"
    assert work.times == 1
    await store.close()
    gc.collect()
    assert _descriptors() <= before + 2


@contextlib.contextmanager
def no_more_space(size: int) -> Iterator[None]:
    """No file of this process may grow beyond this, as on a full disk."""
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


async def test_a_full_disk_before_the_work(store: IdempotencyStore) -> None:
    work = Work()
    await store.once("a", "k0", b"x", Work(b"x" * 100_000))
    with no_more_space(1000), pytest.raises(HistoryError):
        await store.once("a", "k", b"x", work)
    assert work.times == 0
    assert await store.once("a", "k", b"x", work) == b"1"


async def test_a_disk_that_is_full_when_the_work_is_done(store: IdempotencyStore) -> None:
    """The answer cannot be kept; nobody may be told that nothing ran, and it does not run again."""
    work = Work(b"x" * 1_000_000)
    work.go.clear()
    await store.once("a", "k0", b"x", Work())
    task = asyncio.create_task(store.once("a", "k", b"x", work))
    await asyncio.wait_for(work.begun.wait(), 5)
    with no_more_space(1000):
        work.go.set()
        outcome: bytes | Exception
        try:
            outcome = await task
        except HistoryError as error:
            outcome = error
    if isinstance(outcome, HistoryError):
        assert outcome.retryable is False
        assert "ran" in outcome.message, f"it ran, and what is told is: {outcome.message}"
    with contextlib.suppress(Conflict, HistoryError):
        await store.once("a", "k", b"x", work)
    assert work.times == 1
