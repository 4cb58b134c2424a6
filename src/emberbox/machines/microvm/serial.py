"""The guest's console, and what the program that runs the guest has to say: one pipe."""

from __future__ import annotations

import asyncio

from emberbox.guest.vm_init import READY
from emberbox.machines.tail import OutputTail

_KEPT = 16_384
_SHOWN = 1500
_PANIC = b"Kernel panic"
_BEFORE = 700
"""Of what is shown; what led to a panic is told before it, and registers and the stack after it, which help nobody."""


class SerialLog(OutputTail):
    """Keeps the end of what comes on the pipe, and notices the word of the guest's first process."""

    def __init__(self, fd: int) -> None:
        self.ready = asyncio.Event()
        """The guest's first process has said that it listens."""
        super().__init__(fd, _KEPT)

    def _readable(self) -> None:
        super()._readable()
        if not self.ready.is_set() and READY.strip() in self._tail:
            self.ready.set()

    def text(self) -> str:
        """The last lines, or those about the end of the guest's kernel, for a message; control characters of the guest
        are left out."""
        super().text()
        panic = self._tail.find(_PANIC)
        start = max(0, len(self._tail) - _SHOWN if panic < 0 else min(panic - _BEFORE, len(self._tail) - _SHOWN))
        text = self._tail[start : start + _SHOWN].decode("utf-8", "replace")
        lines = ("".join(c for c in line if c.isprintable()).strip() for line in text.splitlines())
        return " / ".join(line for line in lines if line)
