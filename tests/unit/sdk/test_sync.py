"""The generated synchronous twins, and what they stand on."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from emberbox import AsyncSandbox, Sandbox, VmExecutionClient, VmExecutionClientSync
from emberbox.errors import VmNotAvailable
from emberbox.sdk.commands import AsyncCommandHandle, AsyncCommands
from emberbox.sdk.files import AsyncFiles
from emberbox.sdk.portal import CallbackRelay, PortalThread
from emberbox.sync import CommandHandle, Commands, Files

ROOT = Path(__file__).parents[3]
TWINS = [
    (AsyncSandbox, Sandbox),
    (AsyncFiles, Files),
    (AsyncCommands, Commands),
    (AsyncCommandHandle, CommandHandle),
    (VmExecutionClient, VmExecutionClientSync),
]


def test_what_is_generated_is_up_to_date() -> None:
    argv = [sys.executable, "tools/generate_sync.py", "--check"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("original", "twin"), TWINS)
def test_a_twin_has_every_method_with_the_same_parameters_and_documentation(original: type, twin: type) -> None:
    names = {name for name in vars(original) if not name.startswith("_")}
    assert {name for name in vars(twin) if not name.startswith("_")} == {
        name.replace("aclose", "close") for name in names
    }
    for name in names - {"pid"}:
        theirs, ours = getattr(original, name), getattr(twin, name.replace("aclose", "close"))
        assert bool(theirs.__doc__) == bool(ours.__doc__)
        if callable(theirs):
            given, taken = (inspect.signature(one).parameters for one in (theirs, ours))
            assert [str(one).split(":")[0] for one in given.values() if one.name != "engine"] == [
                str(one).split(":")[0] for one in taken.values()
            ]
            assert not inspect.iscoroutinefunction(ours)


@pytest.mark.parametrize(("original", "twin"), TWINS)
def test_no_word_of_a_twin_is_about_waiting_or_loops(original: type, twin: type) -> None:
    del original
    for one in [twin, *vars(twin).values()]:
        text = (getattr(one, "__doc__", None) or "").lower()
        assert "await" not in text
        assert "async" not in text
        assert "coroutine" not in text


def test_callbacks_come_to_the_thread_of_the_caller() -> None:
    heard: list[tuple[str, int]] = []
    portal, relay = PortalThread(), CallbackRelay()

    async def work() -> int:
        listener = relay.wrap(lambda text: heard.append((text, threading.get_ident())))
        assert listener is not None
        listener("a")
        await asyncio.sleep(0)
        listener("b")
        return threading.get_ident()

    there = portal.call(work, relay)
    portal.close()
    assert heard == [("a", threading.get_ident()), ("b", threading.get_ident())]
    assert there != threading.get_ident()


def test_callbacks_that_come_after_the_call_stay_in_the_thread_of_the_loop() -> None:
    portal, relay = PortalThread(), CallbackRelay(direct=True)
    heard: list[int] = []

    async def work() -> None:
        listener = relay.wrap(lambda _: heard.append(threading.get_ident()))
        assert listener is not None
        listener("a")

    portal.call(work, relay)
    portal.close()
    assert heard != [threading.get_ident()]


def test_a_callback_that_fails_cancels_the_call() -> None:
    portal, relay, cancelled = PortalThread(), CallbackRelay(), threading.Event()

    async def work() -> None:
        listener = relay.wrap(lambda _: 1 / 0)
        assert listener is not None
        listener("a")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ZeroDivisionError):
        portal.call(work, relay)
    assert cancelled.wait(10)
    portal.close()


def test_what_makes_the_original_lets_go_of_the_thread_where_it_fails() -> None:
    portal = PortalThread("client", "closed")

    async def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        portal.first(fail)
    with pytest.raises(VmNotAvailable, match="The client was closed"):
        portal.call(fail)


def test_the_end_comes_once_and_what_is_possible_afterwards_has_a_thread_of_its_own() -> None:
    portal, ends = PortalThread(), list[int]()

    async def end() -> None:
        ends.append(1)

    async def later() -> str:
        return "later"

    assert portal.call_anew(later) == "later"
    portal.finish(end)
    portal.finish(end)
    assert ends == [1]
    assert portal.ended
    assert portal.call_anew(later) == "later"
    with pytest.raises(VmNotAvailable, match="The sandbox was killed"):
        portal.call(later)


def test_pieces_come_one_by_one_none_included() -> None:
    portal, made = PortalThread(), list[int | None]()

    async def source() -> AsyncIterator[int | None]:
        for one in (1, None, 3):
            made.append(one)
            yield one

    pieces = portal.pieces(source())
    assert made == []
    assert next(pieces) == 1
    assert made == [1]
    assert list(pieces) == [None, 3]
    portal.close()
