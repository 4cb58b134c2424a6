"""The agent: takes requests from the host's channel and carries them out, one thread, never blocking."""

from __future__ import annotations

import _socket
import errno
import os
import zlib
from collections import deque

from . import files
from .bash import BashKernel
from .changes import Changes, roots_of
from .channel import BACKLOG_LIMIT, Channel
from .contexts import Contexts, PythonKernel
from .executions import CodeRun, Execution
from .fields import RequestError, RequestFields, bad_request
from .file_operations import FileOperations
from .kernels.freshness import SIGNAL as COPIED
from .limits import AsUser, Settings, is_privileged
from .loop import Loop
from .memory import MemoryWatch, used
from .processes import begin_to_count, kill_tree, out_of_memory_kills, processes_of, send_signal, thread_count
from .programs import Program
from .protocol import PROTOCOL_VERSION, ProtocolError
from .rust import RustJob, RustRun
from .spawned import JavaScriptKernel, check_javascript
from .trees import how_many
from .workers import Workers
from .zygote import Zygote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List

    from .kernel_process import KernelProcess
    from .protocol import Header
    from .streams import Pipe

LINGERING_PIPES = 256
PAST_PROGRAMS = 64
TYPESCRIPT = "typescript"
"""Runs in the contexts of JavaScript, once its types are taken away."""
CODE_LANGUAGES = ("python", "javascript", "bash", "rust", TYPESCRIPT)


class Agent:
    """One machine's agent."""

    def __init__(self, fd_in: int, fd_out: int) -> None:
        self.loop = Loop()
        self.executions: Dict[int, Execution] = {}
        self.memory_kills = out_of_memory_kills()
        self.contexts = Contexts(self.pids)
        self.workers = Workers(self.loop)
        self.past: Deque[int] = deque(maxlen=PAST_PROGRAMS)
        """The roots of programs that have ended: what they have left is not of whoever runs now."""
        self._settings: Settings | None = None
        self._changes: Changes | None = None
        self._zygote: Zygote | None = None
        self._watch: MemoryWatch | None = None
        self._lingering: List[Pipe] = []
        self._held = False
        self._quiet = False
        self._muted = 0
        self._channel = Channel(self.loop, fd_in, fd_out, self._on_frame, self.loop.stop, padded=True)
        self.loop.before_sleep.append(self._flush)
        self._operations: Dict[str, Callable[[int, RequestFields, bytes], None]] = {
            name[4:]: getattr(holder, name)
            for holder in (self, FileOperations(self))
            for name in dir(type(holder))
            if name.startswith("_op_")
        }

    @property
    def settings(self) -> Settings:
        """What `configure` said."""
        if self._settings is None:
            raise bad_request("the machine has not been configured yet")
        return self._settings

    @property
    def changes(self) -> Changes:
        """What executions do to the user's files."""
        if self._changes is None:
            self._changes = Changes(self.settings)
        return self._changes

    def run(self) -> None:
        """Serve until the host closes the channel, then kill everything."""
        self.send({"id": 0, "ev": "hello", "protocol": PROTOCOL_VERSION})
        try:
            self.loop.run()
        finally:
            if self._settings is not None:
                for pid in self._roots():
                    kill_tree(self._settings.uid, pid, since=0, others=())

    def send(self, header: Header, payload: bytes = b"", *, lazily: bool = False) -> None:
        """Queue an event for the host; `lazily`: it may wait for the next one."""
        if 0 < header["id"] <= self._muted:
            return
        if lazily:
            self._channel.send_lazily(header, payload)
        else:
            self._channel.send(header, payload)

    def pids(self) -> List[int]:
        """The roots of all that runs on behalf of the host, or has run."""
        return [*self._roots(), *self.past]

    def _roots(self) -> List[int]:
        roots = [pid for execution in self.executions.values() for pid in execution.pids()]
        return [*roots, *self._lasting()]

    def _lasting(self) -> List[int]:
        """The roots of what is no execution's."""
        return [*self.contexts.pids(), *self.workers.pids()]

    def linger(self, pipe: Pipe) -> None:
        """Go on draining the pipe of a program that has ended, for what it has left in the background."""
        if pipe.closed:
            return
        pipe.capture = None
        self._lingering = [other for other in self._lingering if not other.closed]
        if len(self._lingering) >= LINGERING_PIPES:
            self._lingering.pop(0).close()
        self._lingering.append(pipe)

    def program_failed(self, program: Program, number: int, step: str) -> None:
        """An `exec` came to nothing."""
        if number == errno.EAGAIN:
            program.done(exit_code=126, reason="processes")
            return
        self.forget(program.ident)
        name = program.cwd if step == "cwd" else program.argv[0]
        self.fail(program.ident, files.os_error(OSError(number, os.strerror(number), name)))

    def _flush(self) -> None:
        for kernel in self.contexts.kernels():
            kernel.flush()
        self._channel.flush()
        backlog = self._channel.backlog
        if self._quiet:
            self._hold_output(held=True)
        elif backlog > BACKLOG_LIMIT or (self._held and backlog < BACKLOG_LIMIT // 2):
            self._hold_output(held=backlog > BACKLOG_LIMIT)

    def _hold_output(self, *, held: bool) -> None:
        if held == self._held:
            return
        self._held = held
        for kernel in self.contexts.kernels():
            kernel.hold(reading=not held)
        for execution in self.executions.values():
            if isinstance(execution, Program):
                execution.hold(reading=not held)

    def _on_frame(self, header: Header, payload: bytes) -> None:
        ident = header["id"]
        operation = self._operations.get(header["op"]) if isinstance(header.get("op"), str) else None
        try:
            if "crc" in header and header["crc"] != zlib.crc32(payload):
                raise bad_request("the payload is not what was sent")
            if ident == 0 or operation is None or ident in self.executions:
                raise bad_request("no such operation, or an id that is not free: {!r}".format(header.get("op")))
            operation(ident, RequestFields(header), payload)
        except RequestError as exc:
            self.fail(ident, exc)
        except OSError as exc:
            self.fail(ident, files.os_error(exc))
        except (ProtocolError, MemoryError, RecursionError, ValueError) as exc:
            self.fail(ident, RequestError("internal", f"{type(exc).__name__}: {exc}"))

    def remember(self, ident: int, execution: Execution) -> None:
        """Something is under way."""
        self.executions[ident] = execution
        if self._watch is not None:
            self._watch.begin()

    def forget(self, ident: int) -> None:
        """It has ended, or come to nothing."""
        self.executions.pop(ident, None)
        if self._watch is not None and not self.executions:
            self._watch.end()

    def fail(self, ident: int, exc: RequestError) -> None:
        """Answer a request with an error."""
        self.forget(ident)
        header: Header = {"id": ident, "ev": "error", "kind": exc.kind, "message": exc.message}
        if exc.errno is not None:
            header["errno"] = exc.errno
        self.send(header)

    def done(self, ident: int, **fields: Any) -> None:
        """Answer a request."""
        self.send({"id": ident, "ev": "done", **fields})

    # -- the machine ------------------------------------------------------------------------------------------------

    def _op_ping(self, ident: int, _fields: RequestFields, _payload: bytes) -> None:
        self.done(ident)

    def _op_sync(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        self.done(ident, nonce=fields.header.get("nonce"))

    def _op_configure(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        if self._settings is not None:
            raise bad_request("the machine has been configured already")
        settings = Settings(fields)
        unknown = sorted({*settings.languages, *settings.warm}.difference(CODE_LANGUAGES))
        if unknown:
            raise RequestError("unsupported", "unknown languages: " + ", ".join(unknown))
        _prepare_machine(settings)
        self._settings = settings
        begin_to_count()
        self._watch = MemoryWatch(self.loop, settings, self.executions.values, self._lasting, self.past)
        self._offer_programs(settings)
        if "python" not in settings.languages:
            self._warm_languages(ident, None)
            return
        zygote = self._zygote = Zygote(self.loop, settings, lambda problem: self._warm_languages(ident, problem))
        self.contexts.offer("python", lambda: PythonKernel(self.loop, settings, zygote))

    def _offer_programs(self, settings: Settings) -> None:
        if "javascript" in settings.languages:

            def javascript() -> JavaScriptKernel:
                check_javascript(settings)
                return JavaScriptKernel(self.loop, settings)

            self.contexts.offer("javascript", javascript)

        if "bash" in settings.languages:
            self.contexts.offer("bash", lambda: BashKernel(self.loop, settings))

    def _warm_languages(self, ident: int, problem: str | None) -> None:
        if problem is not None:
            self.fail(ident, RequestError("internal", "the warm-up code failed: " + problem))
            return
        languages = [language for language in self.settings.warm if self.contexts.has(language)]
        if not languages:
            self.done(ident)
            return
        waiting = set(languages)

        def ready(language: str) -> None:
            waiting.discard(language)
            if not waiting:
                self.done(ident)

        for language in languages:
            self.contexts.warm(language, lambda language=language: ready(language))  # type: ignore[misc]

    def _op_touch(self, ident: int, _fields: RequestFields, _payload: bytes) -> None:
        waiting = self.contexts.spares()
        if not waiting:
            self.done(ident)

        def ready(kernel: KernelProcess) -> None:
            waiting.remove(kernel)
            if not waiting:
                self.done(ident)

        for kernel in list(waiting):
            kernel.warm_up(lambda kernel=kernel: ready(kernel))  # type: ignore[misc]

    def _op_quiesce(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        if any(isinstance(execution, CodeRun) for execution in self.executions.values()):
            raise RequestError("busy", "code is running; a snapshot is taken between executions")
        self._hold_output(held=True)
        files = how_many(roots_of(self.settings)) if fields.flag("count") else None
        self.done(ident, idle=fields.flag("look") and self.contexts.idle(self.settings.uid), files=files)
        self._quiet = True
        self._channel.quiet(quiet=True)

    def _op_wake(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        self._quiet = False
        env = fields.environment("env")
        self.settings.env.update(env)
        self.contexts.base_env.update(env)
        if fields.flag("fork"):
            # What they had queued since is for a host that this copy has never met.
            self._channel.forget()
            self._muted = ident - 1
            for kernel in self.contexts.kernels():
                kernel.reseed()
            if os.getpid() == 1:  # else the user's processes are not all this machine's
                for pid in processes_of(self.settings.uid):
                    send_signal(pid, COPIED)
        self._channel.quiet(quiet=False)
        self._hold_output(held=False)
        self.done(ident)

    def _op_idle(self, ident: int, _fields: RequestFields, _payload: bytes) -> None:
        self.done(ident, idle=not self.executions and self.contexts.idle(self.settings.uid))

    def _op_metrics(self, ident: int, _fields: RequestFields, _payload: bytes) -> None:
        disk = os.statvfs(self.settings.workdir)
        self.done(
            ident,
            processes=thread_count(self.settings.uid),
            memory_used=used(),
            disk_used=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
            disk_total=disk.f_blocks * disk.f_frsize,
            contexts=len(self.contexts),
        )

    # -- code and programs ------------------------------------------------------------------------------------------

    def _folder(self, fields: RequestFields) -> str | None:
        """The `cwd` of the request, which must be there for the user."""
        if fields.header.get("cwd") is None:
            return None
        path = files.full_path(fields, "cwd", self.settings.workdir)
        with AsUser(self.settings):
            os.scandir(path).close()
        return path

    def _op_run_code(self, ident: int, fields: RequestFields, payload: bytes) -> None:
        size = fields.integer("stdin_size", 0, high=len(payload))
        code, stdin = payload[: len(payload) - size], payload[len(payload) - size :]
        cwd = self._folder(fields)
        env, args, timeout = fields.environment("env"), fields.texts("args"), fields.seconds("timeout")
        limits = [fields.integer(name) for name in ("stdout_limit", "stderr_limit", "results_limit")]
        language, tracked = fields.text("language"), fields.flag("track")
        if tracked:
            self.changes.begin()
        else:
            self.changes.stale = True
        if language == "rust" and language in self.settings.languages:
            if fields.optional_text("context") is not None:
                raise bad_request("Rust has no contexts")
            rust = RustRun(self, ident, RustJob(code, stdin, cwd, env, args, timeout, limits, tracked=tracked))
            rust.start()
            return
        typed = language == TYPESCRIPT
        language = "javascript" if typed else language
        rehearsal = fields.flag("rehearsal")
        if rehearsal:
            context = self.contexts.rehearsal(language)
        else:
            context = self.contexts.for_run(fields.optional_text("context"), language)
        if context.run is not None:
            raise RequestError("busy", f"context {context.ident!r} is running something already")
        kernel = self.contexts.kernel_of(context)
        run = context.run = CodeRun(self, ident, context, *limits)
        run.kernel, run.tracked = kernel, tracked
        self.remember(ident, run)
        run.started()
        request = {"cwd": cwd, "env": env, "args": args, "results_limit": limits[2], "typed": typed}
        run.set_timeout(timeout)
        kernel.execute(run, request, code, stdin)
        if rehearsal:
            kernel.forget()

    def _op_context_create(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        language = fields.text("language")
        language = "javascript" if language == TYPESCRIPT else language
        context = self.contexts.create(language, self._folder(fields), fields.environment("env"))
        self.done(ident, context=context.ident)

    def _op_context_list(self, ident: int, _fields: RequestFields, _payload: bytes) -> None:
        self.done(ident, contexts=self.contexts.describe())

    def _op_context_restart(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        self.contexts.stop(self.contexts.find(fields.text("context")))
        self.done(ident)

    def _op_context_remove(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        self.contexts.remove(self.contexts.find(fields.text("context")))
        self.done(ident)

    def _op_exec(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        argv = fields.texts("argv")
        if not argv or not argv[0]:
            raise bad_request("'argv' must name a program")
        settings = self.settings
        self.changes.stale = True
        program = Program(
            self,
            ident,
            argv,
            self._folder(fields) or settings.workdir,
            {**settings.env, **fields.environment("env")},
            stdin=fields.flag("stdin"),
            stdout_limit=fields.integer("stdout_limit"),
            stderr_limit=fields.integer("stderr_limit"),
        )
        self.remember(ident, program)
        program.set_timeout(fields.seconds("timeout"))

    def _program(self, fields: RequestFields) -> Program:
        program = self.executions.get(fields.integer("target"))
        if not isinstance(program, Program):
            raise RequestError("not_found", "no such program is under way")
        return program

    def _op_signal(self, ident: int, fields: RequestFields, _payload: bytes) -> None:
        target, number = fields.integer("target"), fields.integer("signal", low=1, high=64)
        if target == 0:
            context = fields.optional_text("context")
            running = [e for e in self.executions.values() if e.is_code and context in (None, e.context_ident)]
            for execution in running:
                execution.signalled(number)
            self.done(ident, count=len(running))
            return
        if target not in self.executions:
            raise RequestError("not_found", "no such execution is under way")
        self.executions[target].signalled(number)
        self.done(ident)

    def _op_stdin(self, ident: int, fields: RequestFields, payload: bytes) -> None:
        def answer(failure: str | None) -> None:
            if failure is None:
                self.done(ident)
            else:
                self.fail(ident, RequestError("file", "the program does not read its input any more", failure))

        self._program(fields).write_stdin(payload, eof=fields.flag("eof"), answer=answer)

    def _op_processes(self, ident: int, _fields: RequestFields, _payload: bytes) -> None:
        programs = [execution for execution in self.executions.values() if isinstance(execution, Program)]
        self.done(ident, processes=[program.describe() for program in programs])


def _prepare_machine(settings: Settings) -> None:
    os.umask(0o022)
    if is_privileged():
        os.setgroups([])  # what is done as the user is not to have root's groups
    if os.getpid() == 1 and settings.hostname:
        try:
            _socket.sethostname(settings.hostname)
        except OSError:
            pass  # the machine's maker has named it, and has not given us the right to
    for path in (settings.home, settings.workdir):
        os.makedirs(path, exist_ok=True)
        if is_privileged() and os.stat(path).st_uid != settings.uid:
            os.chown(path, settings.uid, settings.gid)
