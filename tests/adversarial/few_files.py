"""An engine that may open few files: `python few_files.py start|engine`.

It does the same again and again, each time with one more descriptor that it may have, until it succeeds; and says each
time, one JSON document a line, what came of it and which descriptors were left open.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from emberbox import Engine, load_settings
from emberbox.errors import VmExecutionError

SETTLED_SECONDS = 10.0
MOST = 40
"""Free descriptors with which it surely succeeds."""


def descriptors() -> dict[int, str]:
    """What is open now."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except OSError:
            continue  # the one that lists them
    return found


def allow(room: int, taken: set[int]) -> None:
    """Let this process open so many more files."""
    limit = 3
    while limit - len([number for number in taken if number < limit]) < room:
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


async def left(before: dict[int, str]) -> list[str]:
    """What is still open, if something is."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while len(now := descriptors()) > len(before) and time.monotonic() < deadline:
        gc.collect()
        await asyncio.sleep(0.05)
    return [what for number, what in now.items() if number not in before] if len(now) > len(before) else []


async def tried(work: Callable[[], Awaitable[None]]) -> None:
    await work()
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    for room in range(MOST):
        allow(room, set(before))
        said = "done"
        try:
            await work()
        except VmExecutionError as exc:
            said = f"{type(exc).__name__}: {exc.message} {exc.remediation}"
        except Exception as exc:  # noqa: BLE001 (the test looks at it)
            said = f"unexpected {exc!r}"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        print(json.dumps({"room": room, "said": said, "left": await left(before)}), flush=True)
        if said == "done":
            break
    await work()
    print(json.dumps({"room": None, "said": "as before", "left": await left(before)}), flush=True)


async def main(what: str) -> None:
    settings = load_settings()

    async def start(engine: Engine) -> None:
        sandbox = await engine.create_sandbox("minimal")
        await sandbox.kill()

    async def whole() -> None:
        async with Engine(settings) as engine:
            await start(engine)

    if what == "engine":
        await tried(whole)
        return
    async with Engine(settings) as engine:
        await tried(lambda: start(engine))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
