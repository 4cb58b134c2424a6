"""Kernels that are programs of their own: node and bash."""

from __future__ import annotations

import os

from . import registers
from .fields import RequestError
from .kernel_process import KernelProcess
from .loop import READ
from .processes import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List

    from .limits import Settings

KERNELS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kernels")
MEBIBYTE = 1 << 20
HEAP_SHARE = 0.75
SMALLEST_HEAP = 64
ACORN = "acorn/package.json"


def find_program(name: str, env: Dict[str, str]) -> str | None:
    """The program of that name on the user's PATH."""
    for folder in env.get("PATH", "").split(":"):
        path = os.path.join(folder, name)
        if folder and os.access(path, os.X_OK):
            return path
    return None


class SpawnedKernel(KernelProcess):
    """A kernel that the agent starts itself; its control channel is descriptor 3."""

    def start(self, fds: List[int]) -> None:
        """Start the process with these descriptors: control, stdin, stdout, stderr."""
        try:
            pid, self._report = spawn(
                self._settings,
                self.command(),
                cwd=self._settings.workdir,
                env=self._settings.env,
                stdio=self.descriptors(fds),
            )
        except OSError:
            self._loop.later(0, lambda: self.born(None))
            return
        self._loop.watch(self._report, READ, lambda _: self._on_report())
        self._loop.on_death(pid, self.died)
        self.born(pid)

    def descriptors(self, fds: List[int]) -> List[int]:
        """What the process has as 0, 1, 2 and so on, of control, stdin, stdout, stderr."""
        return [*fds[1:], fds[0]]

    def command(self) -> List[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def program(self) -> bytes:
        """The command line of the interpreter."""
        return b"".join(os.fsencode(word) + b"\0" for word in self.command())

    def _on_report(self) -> None:
        # It runs, or it is about to die, which is heard of in any case.
        self._loop.pause(self._report)
        os.close(self._report)


class JavaScriptKernel(SpawnedKernel):
    """A node process."""

    def command(self) -> List[str]:
        """The program and its arguments."""
        options = registers.node_options()
        if self._settings.memory > 0:
            heap = max(SMALLEST_HEAP, int(self._settings.memory * HEAP_SHARE) // MEBIBYTE)
            options.append(f"--max-old-space-size={heap}")
        return ["node", *options, os.path.join(KERNELS, "javascript.js")]


def check_javascript(settings: Settings) -> None:
    """RequestError (unsupported) where node or acorn is missing."""
    if find_program("node", settings.env) is None:
        raise RequestError("unsupported", "this machine has no node (Debian package nodejs)")
    folders = ["/node_modules", "/usr/share/nodejs", "/usr/lib/nodejs", "/usr/local/lib/node_modules"]
    folders += [folder for folder in settings.env.get("NODE_PATH", "").split(":") if folder]
    if not any(os.path.exists(os.path.join(folder, ACORN)) for folder in folders):
        raise RequestError(
            "unsupported", "this machine has no acorn (Debian package node-acorn), which JavaScript needs"
        )
