"""The filters of several hooks as one, failing closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from emberbox.hooks.contract import OutputFilter, Stream
from emberbox.models import Result

T = TypeVar("T")


class FilterChain:
    """Output goes through every filter in turn. When one raises, nothing more comes out; `failed` then says why."""

    def __init__(self) -> None:
        self._filters: list[tuple[str, OutputFilter]] = []
        self.failed: tuple[str, str] | None = None
        """The name of the hook whose filter failed, and how."""

    def __bool__(self) -> bool:
        return bool(self._filters) or self.failed is not None

    def add(self, name: str, make: Callable[[], OutputFilter | None]) -> None:
        """Add the filter that `make` gives, if it gives one."""
        made = self._guarded(name, make, None)
        if made is not None:
            self._filters.append((name, made))

    def feed(self, stream: Stream, text: str) -> str:
        """The next piece of a stream in, what may be shown now out."""
        return self._through(text, lambda one, piece: one.feed(stream, piece))

    def idle(self, stream: Stream) -> str:
        """Nothing came for a moment: what may be shown of what is held back."""
        return self._through("", lambda one, piece: (one.feed(stream, piece) if piece else "") + one.idle(stream))

    def finish(self, stream: Stream) -> str:
        """The rest of a stream."""
        return self._through("", lambda one, piece: (one.feed(stream, piece) if piece else "") + one.finish(stream))

    def result(self, result: Result) -> Result | None:
        """A rich result as it may be shown; None where a filter failed."""
        shown: Result | None = result
        for name, one in self._filters:
            if shown is not None:
                shown = self._guarded(name, lambda one=one, shown=shown: one.result(shown), None)  # type: ignore[misc]
        return shown if self.failed is None else None

    def _through(self, text: str, step: Callable[[OutputFilter, str], str]) -> str:
        for name, one in self._filters:
            text = self._guarded(name, lambda one=one, text=text: step(one, text), "")  # type: ignore[misc]
        return text if self.failed is None else ""

    def _guarded(self, name: str, call: Callable[[], T], otherwise: T) -> T:
        if self.failed is not None:
            return otherwise
        try:
            return call()
        except Exception as exc:  # noqa: BLE001 - a filter is foreign code, and what it did not filter must not pass
            self.failed = (name, f"raised {type(exc).__name__}: {exc}"[:500])
            return otherwise
