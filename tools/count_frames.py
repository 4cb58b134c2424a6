"""Prints the way of one `run_code`, from the SDK to the pipe: `python tools/count_frames.py`.

Counts the frames of Emberbox on the stack of the caller's thread and on that of the event loop, at the moment when the
first request of an execution is written to the machine's channel.
"""

from __future__ import annotations

import sys
import threading
import types
from pathlib import Path

import emberbox
from emberbox import Sandbox
from emberbox.machines.channel import Channel

_HOME = str(Path(emberbox.__file__).parent)
_MOST = 18
"""Frames that there may be: the way is not to grow."""


def _frames(frame: types.FrameType | None) -> list[str]:
    found = []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_HOME):
            found.append(f"{file.removeprefix(_HOME + '/')}:{frame.f_lineno} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return found[::-1]


def main() -> int:
    """Run it; 1 if the way is too long."""
    ways: list[list[str]] = []
    main_thread = threading.main_thread().ident
    send = Channel._send  # noqa: SLF001

    def noted(self: Channel, *args: object, **options: object) -> object:
        own = sys._getframe().f_back  # noqa: SLF001
        caller = sys._current_frames().get(main_thread or 0)  # noqa: SLF001
        ways.append([*_frames(caller), *_frames(own), "machines/channel.py Channel._send"])
        return send(self, *args, **options)  # type: ignore[arg-type]

    with Sandbox.create("minimal") as sandbox:
        sandbox.run_code("1")
        ways.clear()
        Channel._send = noted  # type: ignore[assignment, method-assign]  # noqa: SLF001
        try:
            sandbox.run_code("1 + 1")
        finally:
            Channel._send = send  # type: ignore[method-assign]  # noqa: SLF001
    way = max(ways, key=len)
    print("\n".join(f"{number:3} {line}" for number, line in enumerate(way, 1)))
    return int(len(way) > _MOST)


if __name__ == "__main__":
    sys.exit(main())
