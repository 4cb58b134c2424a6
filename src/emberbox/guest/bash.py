"""The agent's side of the Bash kernel, which cannot read frames: it gets its executions through a file."""

from __future__ import annotations

import os

from .limits import AsUser
from .processes import exit_code
from .spawned import KERNELS, SpawnedKernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List

    from .kernel_process import Run
    from .limits import Settings
    from .loop import Loop
    from .protocol import Header

# All of it in the first line, so that the line numbers in Bash's messages are those of the user's code.
# Bash reads it as a script, from its standard input: given by -c, it would end with 127 where a script ends with 1
# (an unbound variable under `set -u`). The true one comes as 6.
# While a group has another 3, Bash keeps the true one as 10, with close-on-exec, and what is copied from there has that
# too: no program that user code starts gets the kernel's descriptors, and the shell has them whatever ends it.
# What the user has set for errors or for every command ends here, outside of functions: in one it would come back.
LOOP = (
    "{ exec 200<&10 201>&11 202<&12 203<&13; } 3>&- 4>&- 5>&- 6>&-; { exec 204>&10 205>&11; } 1>&- 2>&-; "
    "exec 0<&203 3>&- 4>&- 5<&- 6<&-; IFS= read -r -d '' __kernel_code <%s; eval \"$__kernel_code\"; "
    "while { __kernel_status=$?; builtin trap - DEBUG ERR RETURN; builtin set +exuET; } >/dev/null 2>&1; "
    "__kernel_end && __kernel_next; do "
    'eval "$__kernel_prelude"; eval "$__kernel_code"; done\n'
)
COMPLETE = b"# complete\n"
STATE_LIMIT = 16 << 20


def quote(text: str) -> bytes:
    """`text` as one word of shell code."""
    return b"'" + os.fsencode(text).replace(b"'", b"'\\''") + b"'"


def exports(env: Dict[str, str]) -> bytes:
    """Shell code that sets environment variables; names that Bash cannot hold are left out."""
    lines = [b"export %s=%s\n" % (name.encode(), quote(value)) for name, value in env.items() if _is_name(name)]
    return b"".join(lines)


def prelude(cwd: str | None, env: Dict[str, str], args: List[str]) -> bytes:
    """Shell code that makes an execution's own surroundings, and notes how to undo that."""
    lines = [b"__kernel_restore=\n"]
    # Written with the value that the variable has by then: ${x@Q} is quoted for reading in again.
    lines += [
        b'if [[ ! -v %(n)s ]]; then __kernel_restore+="unset %(n)s;"; '
        b'elif [[ ${%(n)s@a} == *x* ]]; then __kernel_restore+="export %(n)s=${%(n)s@Q};"; '
        b'else __kernel_restore+="%(n)s=${%(n)s@Q}; export -n %(n)s;"; fi\n' % {b"n": name.encode()}
        for name in filter(_is_name, env)
    ]
    lines.append(exports(env))
    if cwd is not None:
        lines.append(b'__kernel_restore+="builtin cd -- ${PWD@Q};"\nbuiltin cd -- %s\n' % quote(cwd))
    lines.append(b"set -- %s\n" % b" ".join(quote(arg) for arg in args))
    return b"".join(lines)


def _is_name(name: str) -> bool:
    return name.isidentifier() and name.isascii()


class BashKernel(SpawnedKernel):
    """A bash process. When user code ends it with `exit`, the next one takes its state over."""

    grace = 0.5

    def __init__(self, loop: Loop, settings: Settings) -> None:
        with AsUser(settings):
            self._state = os.memfd_create("state", os.MFD_CLOEXEC)
            self._code = os.memfd_create("code", os.MFD_CLOEXEC)
            self._loop_code = os.memfd_create("loop", os.MFD_CLOEXEC)
        os.write(self._loop_code, LOOP.encode() % quote(os.path.join(KERNELS, "bash.sh")))
        os.lseek(self._loop_code, 0, os.SEEK_SET)
        self._prologue = b""
        super().__init__(loop, settings)

    def descriptors(self, fds: List[int]) -> List[int]:
        """What the process has as 0, 1, 2 and so on, of control, stdin, stdout, stderr."""
        control, stdin, stdout, stderr = fds
        return [self._loop_code, stdout, stderr, control, self._state, self._code, stdin]

    def command(self) -> List[str]:
        """The program and its arguments."""
        return ["bash", "--noprofile", "--norc", "-s"]

    def warm_up(self, ready: Callable[[], None]) -> None:
        """A shell is warm as soon as it runs."""
        ready()

    def setup(self, cwd: str | None, env: Dict[str, str]) -> None:
        """Give the context its own directory and environment, before the first execution."""
        self._prologue = exports(env)
        if cwd is not None:
            self._prologue += b"builtin cd -- %s\n" % quote(cwd)

    def reseed(self) -> None:
        """RANDOM goes on from a number that is assigned to it."""
        self._prologue += b"RANDOM=%d\n" % int.from_bytes(os.urandom(4), "big")

    def inherit(self, legacy: bytes) -> None:
        """Take over the state of a kernel that has ended."""
        # Read-only variables cannot be set again; Bash says so, and goes on.
        self._prologue = b"{\n%s} 2>/dev/null\n" % legacy

    def transmit(self, header: Header, code: bytes) -> None:
        """Send an execution to the process."""
        before = self._prologue + prelude(header["cwd"], header["env"], header["args"])
        self._prologue = b""
        data = before + b"\0" + code.replace(b"\0", b"") + b"\0"
        os.ftruncate(self._code, 0)
        offset = 0
        while offset < len(data):
            offset += os.pwrite(self._code, data[offset:], offset)
        os.lseek(self._code, 0, os.SEEK_SET)
        self._channel.send_raw(b"%d\n" % header["id"])

    def bury(self, pid: int, status: int | None) -> None:
        """Kill what the dead process has left; what a script that has ended by itself leaves behind may live on."""
        if self._final_state(status) is None:
            super().bury(pid, status)

    def _final_state(self, status: int | None) -> bytes | None:
        """What the shell left to the next one, if it ended by itself and had the time to."""
        if status is None or not os.WIFEXITED(status):
            return None
        state = os.pread(self._state, STATE_LIMIT, 0)
        return state if state.endswith(COMPLETE) else None

    def _on_channel_end(self) -> None:
        # The shell has become another program by `exec`; that one may run to its end.
        self._stopping = True
        if self._run is None:
            self.kill()

    def end_run(self, run: Run, status: int | None) -> None:
        """The shell has ended while it was executing something, in most cases because it was told to."""
        state = self._final_state(status)
        if status is not None and state is not None:
            self.legacy = state
            run.on_done({"id": self._sequence, "exit_code": exit_code(status)})
        elif status is not None and os.WIFEXITED(status):
            # It became another program by `exec`, or could not say what it knew.
            run.on_done({"id": self._sequence, "exit_code": exit_code(status), "survived": False})
        else:
            run.on_lost(status)

    def _close(self) -> None:
        os.close(self._state)
        os.close(self._code)
        os.close(self._loop_code)
        super()._close()
