"""Work in a thread whose result somebody must take: a descriptor, a memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


async def claimed(work: Callable[[], _T], unwanted: Callable[[_T], object]) -> _T:
    """What `work`, in a thread, returns. Where the caller is cancelled meanwhile, `unwanted` gets it: in that thread,
    which does not depend on an event loop that may be about to end."""
    lock = threading.Lock()
    left = False
    results: list[_T] = []

    def run() -> None:
        result = work()
        with lock:
            if not left:
                results.append(result)
                return
        unwanted(result)

    try:
        await asyncio.to_thread(run)
    except BaseException:
        with lock:
            left = True
        for result in results:
            unwanted(result)
        raise
    return results[0]
