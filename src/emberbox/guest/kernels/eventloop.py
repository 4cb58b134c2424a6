"""One asyncio event loop that lasts as long as the context: for a top-level `await`, and for who asks for a loop."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


class LastingLoop:
    """The context's event loop, made when it is first needed.

    It runs during executions that await. In between, as in a script that has not started its loop yet, tasks can be
    made on it, and `asyncio.run` runs another one beside it.
    """

    def __init__(self) -> None:
        self._asyncio: Any = None
        self._loop: Any = None
        self._current: Any = None
        """What was given to `set_event_loop` last."""
        self._fresh_tasks = False

    def patch(self, asyncio: Any) -> None:
        """asyncio has been loaded: let it know the lasting loop."""
        self._asyncio = asyncio
        events, runners = asyncio.events, asyncio.runners
        running_loop = events._get_running_loop  # noqa: SLF001 - the public one raises
        get_event_loop, set_event_loop, create_task = (
            asyncio.get_event_loop,
            asyncio.set_event_loop,
            asyncio.create_task,
        )

        def remember(loop: Any) -> None:
            set_event_loop(loop)
            if _in_main_thread():
                self._current = loop

        def current() -> Any:
            if running_loop() is not None or not _in_main_thread():
                return get_event_loop()
            if self._current is None or self._current.is_closed():
                asyncio.set_event_loop(self.get())
            return self._current

        def task(coroutine: Any, **options: Any) -> Any:
            if running_loop() is not None or not _in_main_thread():
                return create_task(coroutine, **options)
            self._fresh_tasks = True
            return current().create_task(coroutine, **options)

        for module in (asyncio, events):
            module.set_event_loop = _named(remember, set_event_loop)
            module.get_event_loop = _named(current, get_event_loop)
        for module in (asyncio, asyncio.tasks):
            module.create_task = _named(task, create_task)
        for module in (asyncio, runners):
            module.run = _named(self._beside(runners.run), runners.run)
        if hasattr(runners, "Runner"):
            runners.Runner.run = _named(self._beside(runners.Runner.run), runners.Runner.run)

    def get(self) -> Any:
        """The loop."""
        if self._asyncio is None:
            import asyncio

            if self._asyncio is None:  # else the import has called `patch`
                self.patch(asyncio)
        if self._loop is None or self._loop.is_closed():
            self._loop = self._asyncio.new_event_loop()
        return self._loop

    def run(self, coroutine: Any) -> Any:
        """Run a cell that awaits, and what else is on the loop, until the cell has ended."""
        loop = self.get()
        if self._current is not loop:
            self._asyncio.set_event_loop(loop)
        self._fresh_tasks = False
        task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except KeyboardInterrupt as interrupt:
            if task.done():
                raise
            task.cancel()
            try:
                loop.run_until_complete(task)
            except self._asyncio.CancelledError as cancelled:
                # Where the loop was waiting says nothing; where the code was waiting does.
                raise interrupt.with_traceback(cancelled.__traceback__) from None
            raise

    def advance(self) -> None:
        """Let tasks that a cell without `await` has made begin."""
        if self._fresh_tasks:
            self._fresh_tasks = False
            loop = self._current
            if loop is not None and not loop.is_closed() and not loop.is_running():
                loop.run_until_complete(self._asyncio.sleep(0))

    def _beside(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """`asyncio.run` that also works where a cell with a top-level `await` calls it."""

        def beside(*values: Any, **options: Any) -> Any:
            events, tasks, loop = self._asyncio.events, self._asyncio.tasks, self._loop
            if loop is None or events._get_running_loop() is not loop or tasks.current_task() is None:  # noqa: SLF001
                return run(*values, **options)
            swap = getattr(tasks, "_swap_current_task", lambda _loop, _task: None)
            task = swap(loop, None)
            events._set_running_loop(None)  # noqa: SLF001 - so that it may run another one
            try:
                return run(*values, **options)
            finally:
                events._set_running_loop(loop)  # noqa: SLF001
                swap(loop, task)

        return beside


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _named(function: Any, original: Any) -> Any:
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(function, name, getattr(original, name, None))
    return function
