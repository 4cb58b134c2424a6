"""How work in a sandbox is asked for, and who listens to it. Clients of a server import no more than this."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emberbox import models

OnText = Callable[[str], object]
OnResult = Callable[["models.Result"], object]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run one piece of code; see `Sandbox.run_code`."""

    context: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    args: Sequence[str] = ()
    stdin: bytes = b""
    timeout: float | None = None
    output_bytes: int | None = None
    execution_id: str | None = None
    track_files: bool = False


@dataclass(frozen=True, slots=True)
class Listeners:
    """Callbacks of a running execution; each may be a coroutine function."""

    on_stdout: OnText | None = None
    on_stderr: OnText | None = None
    on_result: OnResult | None = None

    async def text(self, stream: str, text: str) -> None:
        await _call(self.on_stdout if stream == "stdout" else self.on_stderr, text)

    async def result(self, result: models.Result) -> None:
        await _call(self.on_result, result)


async def _call(listener: Callable[[Any], object] | None, value: object) -> None:
    if listener is not None:
        outcome = listener(value)
        if inspect.isawaitable(outcome):
            await outcome
