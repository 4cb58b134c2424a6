"""The Python kernel: a process per context that executes cells in one lasting `__main__`."""

from __future__ import annotations

import _socket
import ast
import builtins
import errno
import fcntl
import io
import os
import signal
import sys
import types

from ..protocol import FrameDecoder, encode  # noqa: TID252 - the package has another name in a machine
from . import notebook, origins
from .added import MARKER, Added
from .cells import compiled, silenced
from .errors import Sources, cause_of, describe
from .eventloop import LastingLoop
from .freshness import freshen, listen
from .magic_lines import cell_magic
from .magics import Magics
from .modules import Watcher
from .plots import Plots
from .results import add, bundle, fit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, NoReturn

    from ..protocol import Header  # noqa: TID252

RECEIVE_SIZE = 1 << 16
"""Not so much that it would be mapped and unmapped for each execution."""
PACKAGE = __name__.split(".", maxsplit=1)[0]
FUTURE_FLAGS = 0
for _name in __import__("__future__").all_feature_names:
    FUTURE_FLAGS |= getattr(__import__("__future__"), _name).compiler_flag
INTERRUPTED = 130
CO_COROUTINE = 0x80
SAVED_FDS = 32
"""Where the kernel keeps its own stdin, stdout and stderr: above what user code opens."""
MAIN = "main.py"
"""The name of the code's own file, which is not there."""
RESULT_ROOM = 7 << 20
KEPT_MODULES: list[Any] = []


def _hide_package() -> None:
    # User code might otherwise meet it under a name of its own.
    names = [name for name in sys.modules if name == PACKAGE or name.startswith(PACKAGE + ".")]
    KEPT_MODULES.extend(sys.modules.pop(name) for name in names)


def main(control: int, workdir: str) -> NoReturn:
    """Serve executions until the agent closes the control channel."""
    try:
        os.chdir(workdir)
    except OSError:
        os.chdir("/")
    _prepare_interpreter()
    Kernel(control).serve()
    os._exit(0)


def _prepare_interpreter() -> None:
    signal.set_wakeup_fd(-1)
    sys.path.insert(0, "")
    site: Any = sys.modules["site"]
    user_packages = site.getusersitepackages()
    if os.path.isdir(user_packages):
        site.ENABLE_USER_SITE = True
        site.addsitedir(user_packages)
    sys.argv = [MAIN]
    sys.orig_argv = [sys.executable]
    freshen()  # all kernels are forks of one process
    listen()
    _hide_package()


def _stream(fd: int, mode: str) -> io.TextIOWrapper:
    errors = "surrogateescape" if mode == "r" else "backslashreplace"
    raw = open(fd, mode + "b", closefd=False)  # noqa: SIM115 - it lasts as long as the interpreter
    return io.TextIOWrapper(raw, "utf-8", errors, line_buffering=mode == "w", write_through=False)


class Kernel:
    """One context: its namespace, its streams and the conversation with the agent."""

    def __init__(self, control: int) -> None:
        self._pid = os.getpid()
        self._socket = _socket.socket(fileno=control)
        self._decoder = FrameDecoder()
        self._module = types.ModuleType("__main__")
        self._module.__dict__["__builtins__"] = builtins
        self._module.__dict__["__file__"] = os.path.join(os.getcwd(), MAIN)
        self._fresh = dict(self._module.__dict__)
        sys.modules["__main__"] = self._module
        self._count = 0
        self._flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._sources = Sources()
        modules = Watcher()
        self._event_loop = LastingLoop()
        modules.want("asyncio", self._event_loop.patch)
        origins.listen(modules, self._sources)
        notebook.listen(modules, self._display, self._show)
        self._running = False
        self._in_child = False
        self._request = 0
        self._result = b""
        """The last expression's value, which travels with the end: one wake-up instead of two."""
        self._room = 0
        self._truncated = False
        self._plots = Plots(self._show, modules)
        self._magics = Magics(self._run_text, self._module.__dict__, self._show)
        self._stdin: Any = None
        self._stdout: Any = None
        self._stderr: Any = None
        self._saved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SAVED_FDS) for fd in range(3)]
        self._open_streams()
        builtins.display = self._display  # type: ignore[attr-defined]
        os.register_at_fork(after_in_child=self._become_child)
        self._handler = self._on_interrupt
        signal.signal(signal.SIGINT, self._handler)

    def serve(self) -> None:
        """Execute what the agent sends until it closes the channel."""
        while True:
            frame = self._decoder.next()
            if frame is None:
                data = self._socket.recv(RECEIVE_SIZE)
                if not data:
                    return
                self._decoder.feed(data)
            elif frame[0]["op"] == "setup":
                os.environ.update(frame[0]["env"])
                os.chdir(frame[0]["cwd"] or ".")
                self._module.__dict__["__file__"] = os.path.join(os.getcwd(), MAIN)
            elif frame[0]["op"] == "warm":
                self._warm(frame[0])
            elif frame[0]["op"] == "forget":
                self._forget()
            elif frame[0]["op"] == "reseed":
                freshen()
            else:
                self._execute(*frame)

    def _warm(self, header: Header) -> None:
        # After a fork, the first touch of every page costs; this pays for those that each execution needs.
        execution = {"id": header["id"], "env": {}, "cwd": None, "args": [], "results_limit": 0, "stdin": False}
        for code in ("import sys\nprint(end='')\n[1]", "1/0"):
            self._begin(execution)
            self._run(execution, code)
        self._forget()
        self._socket.sendall(encode({"id": header["id"], "ev": "ready"}))

    def _forget(self) -> None:
        """Be as before the first execution."""
        self._module.__dict__.clear()
        self._module.__dict__.update(self._fresh)
        builtins.__dict__.pop("_", None)
        self._count = 0
        self._request = 0

    def _execute(self, header: Header, code: bytes) -> None:
        self._begin(header)
        try:
            try:
                self._running = True
                done = self._run(header, code.decode("utf-8", "replace"))
            finally:
                self._running = False
        except KeyboardInterrupt as exc:
            # It arrived between the user's code and the line above.
            self._running = False
            done = self._failure(exc)
        except BaseException as exc:  # noqa: BLE001 - nothing that user objects do may end the kernel
            done = self._failure(exc)
        if self._in_child:
            self._flush()
            os._exit(done["exit_code"] & 0xFF)
        self._flush()
        done.update(id=header["id"], ev="done", results_truncated=self._truncated)
        frames = self._main_result(last=True) + encode(done)
        self._request = 0
        self._socket.sendall(frames)

    def _begin(self, header: Header) -> None:
        self._count += 1
        self._request = header["id"]
        self._room = header["results_limit"]
        self._result = b""
        self._truncated = False
        self._plots.reset()
        if header["stdin"] or sys.stdin is not self._stdin or self._stdin.closed:
            self._stdin = sys.stdin = sys.__stdin__ = None  # type: ignore[misc]
            self._renew_descriptors()
            self._stdin = sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[misc]
        # No name may hold the user's stream: it closes its descriptor when it goes, which must be in `_open_streams`.
        replaced = sys.stdout is not self._stdout or sys.stderr is not self._stderr
        if replaced or self._stdout.closed or self._stderr.closed:
            self._flush()
            self._open_streams()
        if signal.getsignal(signal.SIGINT) is not self._handler:
            signal.signal(signal.SIGINT, self._handler)

    def _run(self, header: Header, source: str) -> Dict[str, Any]:
        env: Dict[str, str] = header["env"]
        before = {name: os.environ.get(name) for name in env}
        folder = os.getcwd() if header["cwd"] else None
        sys.argv[1:] = header["args"]
        try:
            os.environ.update(env)
            if header["cwd"]:
                os.chdir(header["cwd"])
                self._module.__dict__["__file__"] = os.path.join(os.getcwd(), MAIN)
            return self._run_cell(source)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            if folder is not None and not self._in_child:
                os.chdir(folder)
                self._module.__dict__["__file__"] = os.path.join(folder, MAIN)

    def _run_cell(self, source: str) -> Dict[str, Any]:
        cell = f"<cell {self._count}>"
        added = Added(source) if MARKER in source else None
        source = source.lstrip("\ufeff") if added is None else added.rest
        self._sources.add(cell, source)
        code = 0
        error: Dict[str, str] | None = None
        cause: str | None = None
        try:
            self._evaluate(source, cell, added)
        except SystemExit as exc:
            code = self._exit_code(exc)
        except BaseException as exc:  # noqa: BLE001 - the user's exceptions are data here
            failure = self._failure(exc, cell)
            code, error, cause = failure["exit_code"], failure["error"], failure["cause"]
        if not self._in_child:
            self._plots.show()
        return {"exit_code": code, "error": error, "cause": cause}

    def _evaluate(self, source: str, cell: str, added: Added | None) -> None:
        magic = cell_magic(source) if "%%" in source else None
        if magic is None:
            value = self._value(source, cell, added)
        else:
            value = self._magics.cell(magic, source.count("\n", 0, magic.start))
        if value is None or self._in_child:
            return
        builtins._ = value  # type: ignore[attr-defined]
        if self._plots.is_figure(value):
            self._publish(self._plots.figure_bundle(value), main=True)
        else:
            self._publish(bundle(value, strict=True), main=True)

    def _run_text(self, source: str) -> Any:
        """The value of code that a magic runs."""
        return self._value(source, f"<cell {self._count}>", None)

    def _value(self, source: str, cell: str, added: Added | None) -> Any:
        """Execute a cell; the value of its last expression, unless a semicolon follows it."""
        flags = self._flags | ast.PyCF_ONLY_AST
        if added is None:
            tree = compiled(source, cell, flags, self._magics.translate)
        else:
            compile(source, cell, "exec", flags, dont_inherit=True)  # errors have the lines that its author knows
            tree = added.parse(cell, flags, self._module.__dict__)
        last = tree.body[-1] if tree.body else None
        codes = []
        if isinstance(last, ast.Expr) and not silenced(source, last):
            tree.body.pop()
            codes = [compile(ast.Expression(last.value), cell, "eval", self._flags, dont_inherit=True)]
        if tree.body:
            code = compile(tree, cell, "exec", self._flags, dont_inherit=True)
            self._flags |= code.co_flags & FUTURE_FLAGS
            codes.insert(0, code)
        if any(code.co_flags & CO_COROUTINE for code in codes):
            return self._event_loop.run(self._awaiting(codes))
        value = None
        for code in codes:
            value = eval(code, self._module.__dict__)
        self._event_loop.advance()
        return value

    async def _awaiting(self, codes: list[types.CodeType]) -> Any:
        """A cell that awaits somewhere: all of it runs in the loop."""
        value = None
        for code in codes:
            value = eval(code, self._module.__dict__)
            if code.co_flags & CO_COROUTINE:
                value = await value
        return value

    def _failure(self, exc: BaseException, cell: str = "") -> Dict[str, Any]:
        code = INTERRUPTED if isinstance(exc, KeyboardInterrupt) else 1
        return {"exit_code": code, "error": describe(exc, cell), "cause": cause_of(exc)}

    def _exit_code(self, exc: SystemExit) -> int:
        if exc.code is None:
            return 0
        if isinstance(exc.code, int):
            return exc.code & 0xFF
        print(exc.code, file=sys.stderr)
        return 1

    def _display(self, *values: Any, **_options: Any) -> None:
        """Show values in the richest form they have. A dict whose keys are MIME types is shown as those."""
        for value in values:
            if self._in_child or not self._request:
                print(repr(value))
            elif self._plots.is_figure(value):
                self._publish(self._plots.figure_bundle(value), main=False)
            elif isinstance(value, dict) and value and all(isinstance(key, str) and "/" in key for key in value):
                data: Dict[str, Any] = {}
                add(data, value)
                self._publish(data, main=False)
            else:
                self._publish(bundle(value), main=False)

    def _show(self, data: Dict[str, Any]) -> None:
        self._publish(data, main=False)

    def _publish(self, data: Dict[str, Any], *, main: bool) -> None:
        if self._in_child or not self._request:
            return
        payload, cut = fit(data, min(self._room, RESULT_ROOM))
        self._truncated = self._truncated or cut
        self._room -= len(payload)
        if main:
            self._result = payload
        elif payload:
            self._flush()
            frame = encode({"id": self._request, "ev": "result", "main": False}, payload)
            self._socket.sendall(self._main_result(last=False) + frame)

    def _main_result(self, *, last: bool) -> bytes:
        """The frame that waits, if there is one. `last`: the end follows at once."""
        payload, self._result = self._result, b""
        header = {"id": self._request, "ev": "result", "main": True, "last": last}
        return encode(header, payload) if payload else b""

    def _renew_descriptors(self) -> None:
        """Give 0, 1 and 2 back what user code has closed, be it through a stream of its own."""
        for fd, saved in enumerate(self._saved):
            try:
                same = os.path.sameopenfile(fd, saved)
            except OSError:
                same = False
            if not same:
                os.dup2(saved, fd)

    def _open_streams(self) -> None:
        sys.stdout = sys.__stdout__ = sys.stderr = sys.__stderr__ = None  # type: ignore[misc]
        self._stdout = self._stderr = None  # what closes its descriptor when it goes, is to do so now
        self._renew_descriptors()
        self._stdin = sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[misc]
        self._stdout = sys.stdout = sys.__stdout__ = _stream(1, "w")  # type: ignore[misc]
        self._stderr = sys.stderr = sys.__stderr__ = _stream(2, "w")  # type: ignore[misc]

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr, self._stdout, self._stderr):
            try:
                stream.flush()
            except Exception as problem:  # noqa: BLE001 - the user may have closed or replaced it
                if isinstance(problem, OSError) and problem.errno == errno.EBADF and not self._in_child:
                    self._renew_descriptors()
                    self._flush_again(stream)

    @staticmethod
    def _flush_again(stream: Any) -> None:
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S110 - it is on another descriptor
            pass

    def _on_interrupt(self, _number: int, _frame: Any) -> None:
        if self._running or self._in_child:
            raise KeyboardInterrupt

    def _become_child(self) -> None:
        """A fork of this process is no kernel: it must neither read nor write the agent's channel."""
        self._in_child = True
        self._socket.close()
