"""Calls foreign code with a deadline: coroutine functions on the loop, plain functions in a thread of their own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any

MAX_STUCK = 8
"""Threads of one caller that may still be busy beyond their deadline; a thread cannot be stopped from outside."""


class CallFailedError(Exception):
    """The call raised, or it took too long; the message says which."""


class Caller:
    """Calls the functions of one piece of foreign code and knows how many of them never came back."""

    def __init__(self) -> None:
        self._busy: set[threading.Thread] = set()

    async def call(self, function: Callable[[Any], Any], argument: object, seconds: float) -> Any:
        """The outcome of `function(argument)`, awaited where it is awaitable.

        Raises:
            CallFailedError: it raised, it took more than `seconds`, or too many calls before it never ended.
        """
        try:
            async with asyncio.timeout(seconds) as deadline:
                outcome = (
                    function(argument)
                    if inspect.iscoroutinefunction(function)
                    else await self._in_thread(function, argument)
                )
                return await outcome if inspect.isawaitable(outcome) else outcome
        except CallFailedError:
            raise
        except TimeoutError as exc:
            if deadline.expired():
                raise CallFailedError(f"took more than its {seconds:g} s") from exc
            raise CallFailedError(_words(exc)) from exc
        except (Exception, SystemExit) as exc:
            raise CallFailedError(_words(exc)) from exc

    async def _in_thread(self, function: Callable[[Any], Any], argument: object) -> Any:
        """In a daemon thread: one that never ends holds up neither the loop nor the end of the process."""
        self._busy = {thread for thread in self._busy if thread.is_alive()}
        if len(self._busy) >= MAX_STUCK:
            raise CallFailedError(f"{MAX_STUCK} earlier calls of it still run")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def deliver(outcome: object, error: str | None) -> None:
            if done.cancelled():
                return
            if error is None:
                done.set_result(outcome)
            else:
                done.set_exception(CallFailedError(error))

        def run() -> None:
            outcome, error = None, None
            try:
                outcome = function(argument)
            except BaseException as exc:  # noqa: BLE001 - whatever it is, the caller is to hear of it
                error = _words(exc)
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, outcome, error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="emberbox-hook", daemon=True)
        self._busy.add(thread)
        thread.start()
        return await done


def _words(error: BaseException) -> str:
    return f"raised {type(error).__name__}: {error}"[:500]
