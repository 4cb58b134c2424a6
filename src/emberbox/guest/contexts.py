"""Contexts: named, lasting states of a language, each with a kernel that is started at first use."""

from __future__ import annotations

from .fields import RequestError, bad_request
from .kernel_process import KernelProcess
from .processes import processes_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

    from .executions import CodeRun
    from .limits import Settings
    from .loop import Loop
    from .zygote import Zygote

CONTEXT_LIMIT = 32
"""Each has an interpreter of its own, which takes some ten (Python, Bash) to fifty MiB (Node)."""


class PythonKernel(KernelProcess):
    """Forked by the zygote."""

    def __init__(self, loop: Loop, settings: Settings, zygote: Zygote) -> None:
        self._zygote = zygote
        super().__init__(loop, settings)

    def start(self, fds: List[int]) -> None:
        """Start the process with these descriptors: control, stdin, stdout, stderr."""
        self._zygote.fork(fds, self.born, self.died)


class Context:
    """One context. Its kernel may die; the context stays and gets another one at its next use."""

    def __init__(self, ident: str, language: str, cwd: str | None, env: Dict[str, str]) -> None:
        self.ident = ident
        self.language = language
        self.cwd = cwd
        self.env = env
        self.kernel: KernelProcess | None = None
        self.run: CodeRun | None = None
        self.count = 0


class Contexts:
    """All contexts of the machine, and the spare kernels that `configure` asked for."""

    def __init__(self, pids: Callable[[], List[int]]) -> None:
        self._pids = pids
        self._makers: Dict[str, Callable[[], KernelProcess]] = {}
        self._contexts: Dict[str, Context] = {}
        self._spares: Dict[str, KernelProcess] = {}
        self._next = 0
        self.base_env: Dict[str, str] = {}
        """Given to the machine after its interpreters were warmed; each gets it when it takes its context."""

    def __len__(self) -> int:
        return len(self._contexts)

    def offer(self, language: str, make: Callable[[], KernelProcess]) -> None:
        """Make a language available."""
        self._makers[language] = make

    def has(self, language: str) -> bool:
        """Whether there are contexts of that language."""
        return language in self._makers

    def warm(self, language: str, ready: Callable[[], None]) -> None:
        """Start a kernel ahead of its first use."""
        kernel = self._spares[language] = self._makers[language]()
        kernel.warm_up(ready)

    def spares(self) -> List[KernelProcess]:
        """Kernels that wait for their first execution."""
        return [kernel for kernel in self._spares.values() if kernel.usable]

    def rehearsal(self, language: str) -> Context:
        """A spare kernel in a context that nobody will ever see."""
        kernel = self._spares.get(language)
        if kernel is None or not kernel.usable:
            raise RequestError("not_found", f"no spare interpreter of {language!r}")
        context = Context("", language, None, {})
        context.kernel = kernel
        return context

    def idle(self, uid: int) -> bool:
        """Whether all processes of the user are interpreters that wait for code and can do nothing meanwhile."""
        spares = {kernel.pid for kernel in self.spares()}
        waiting = set(self.pids())
        for process in processes_of(uid).values():
            at_rest = process.pid in waiting and process.threads == 1 and process.state == b"S"
            if process.pid not in spares and not at_rest:
                return False
        return True

    def find(self, ident: str) -> Context:
        """The context of that name; RequestError (not_found) when there is none."""
        context = self._contexts.get(ident)
        if context is None:
            raise RequestError("not_found", f"no context {ident!r}")
        return context

    def for_run(self, ident: str | None, language: str) -> Context:
        """The context that an execution goes to: the named one, or the language's default."""
        if ident is None:
            self._check_language(language)
            context = self._contexts.get(language)
            if context is None:
                context = self._add(language, language, None, {})
            return context
        context = self.find(ident)
        if context.language != language:
            raise bad_request(f"context {ident!r} is one of {context.language}, not of {language}")
        return context

    def create(self, language: str, cwd: str | None, env: Dict[str, str]) -> Context:
        """A new context beside the others."""
        self._check_language(language)
        self._next += 1
        return self._add(f"{language}-{self._next}", language, cwd, env)

    def kernel_of(self, context: Context) -> KernelProcess:
        """The context's kernel, started where there is none alive."""
        previous = context.kernel
        if previous is not None and previous.usable:
            return previous
        kernel = self._spares.pop(context.language, None)
        if kernel is None or not kernel.usable:
            kernel = self._makers[context.language]()
        kernel.others = lambda: [pid for pid in self._pids() if pid != kernel.pid]
        context.kernel = kernel
        if previous is not None and previous.legacy:
            kernel.inherit(previous.legacy)
            return kernel
        context.count = 0
        env = {**self.base_env, **context.env}
        if context.cwd is not None or env:
            kernel.setup(context.cwd, env)
        return kernel

    def stop(self, context: Context) -> None:
        """Kill the context's kernel; what it runs ends as killed."""
        if context.run is not None:
            context.run.killed = True
            context.run = None  # the next execution need not wait until this one has died
        if context.kernel is not None:
            context.kernel.kill()
            context.kernel = None

    def remove(self, context: Context) -> None:
        """Kill the context's kernel and forget the context."""
        self.stop(context)
        del self._contexts[context.ident]

    def pids(self) -> List[int]:
        """The processes of all kernels."""
        return [kernel.pid for kernel in self.kernels() if kernel.pid is not None]

    def kernels(self) -> List[KernelProcess]:
        """All kernels alive."""
        kernels = [context.kernel for context in self._contexts.values() if context.kernel is not None]
        return [kernel for kernel in [*kernels, *self._spares.values()] if not kernel.dead]

    def describe(self) -> List[Dict[str, Any]]:
        """What `context_list` tells."""
        return [
            {
                "context": context.ident,
                "language": context.language,
                "cwd": context.cwd,
                "busy": context.run is not None,
                "pid": None if context.kernel is None or context.kernel.dead else context.kernel.pid,
            }
            for context in self._contexts.values()
        ]

    def _check_language(self, language: str) -> None:
        if not self.has(language):
            raise RequestError("unsupported", f"this machine does not run {language!r}")

    def _add(self, ident: str, language: str, cwd: str | None, env: Dict[str, str]) -> Context:
        if len(self._contexts) >= CONTEXT_LIMIT:
            raise RequestError(
                "busy",
                f"a new context of {language} was refused: the sandbox has {CONTEXT_LIMIT} contexts, the most that it "
                "can have; remove one that is not needed any more (remove_code_context), or use one that is there",
            )
        context = self._contexts[ident] = Context(ident, language, cwd, env)
        return context
