"""Work that may take long, done in a forked child as the user, so that the agent goes on serving."""

from __future__ import annotations

import errno
import json
import os
import signal

from .limits import become_user
from .loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, List, NoReturn, Set

    from .limits import Settings
    from .loop import Loop

ANSWER_LIMIT = 8 << 20
DEADLINE = 60.0


class Workers:
    """The children that work for the host. They are nobody's leftovers: no execution is theirs."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._pids: Set[int] = set()

    def pids(self) -> List[int]:
        """Those under way."""
        return list(self._pids)

    def run(self, settings: Settings, work: Callable[[], Any], answer: Callable[[Any, str | None], None]) -> None:
        """Run `work` in a child; `answer(result, None)` or `answer(message, errno name)` follows from the loop."""
        out, child_out = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            _work(settings, work, child_out)
        os.close(child_out)
        os.set_blocking(out, False)
        self._pids.add(pid)

        def ended(result: Any, failure: str | None) -> None:
            self._pids.discard(pid)
            answer(result, failure)

        _Worker(self._loop, pid, out, ended)


def _work(settings: Settings, work: Callable[[], Any], out: int) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        os.dup2(out, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        become_user(settings)
        try:
            answer = [work(), None]
        except OSError as exc:
            answer = [exc.strerror or str(exc), errno.errorcode.get(exc.errno or 0, "EIO")]
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(3, data) :]
        code = 0
    finally:
        os._exit(code)


class _Worker:
    def __init__(self, loop: Loop, pid: int, out: int, answer: Callable[[Any, str | None], None]) -> None:
        self._loop = loop
        self._pid = pid
        self._out = out
        self._answer = answer
        self._data = b""
        self._timer = loop.later(DEADLINE, self._kill)
        loop.on_death(pid, self._on_death)
        loop.watch(out, READ, self._on_ready)

    def _kill(self) -> None:
        # It has not been reaped, so the pid is still its own.
        os.kill(self._pid, signal.SIGKILL)

    def _on_ready(self, _events: int) -> None:
        try:
            data = os.read(self._out, 1 << 16)
        except BlockingIOError:
            return
        self._data += data
        if not data or len(self._data) > ANSWER_LIMIT:
            self._loop.pause(self._out)

    def _on_death(self, _status: int) -> None:
        self._loop.cancel(self._timer)
        self._loop.pause(self._out)
        try:
            while len(self._data) <= ANSWER_LIMIT:
                data = os.read(self._out, 1 << 16)
                if not data:
                    break
                self._data += data
        except BlockingIOError:
            pass
        os.close(self._out)
        try:
            result, failure = json.loads(self._data)
        except ValueError:
            result, failure = "the operation took too long or was killed", "ETIMEDOUT"
        self._answer(result, failure)
