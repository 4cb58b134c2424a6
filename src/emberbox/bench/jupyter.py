"""A Jupyter kernel (ipykernel through jupyter_client): a live Python as notebooks use it, without isolation."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import secrets
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from emberbox.bench.alternatives import DEADLINE, HELLO, Unavailable
from emberbox.bench.facts import with_descendants
from emberbox.bench.measure import Clock
from emberbox.bench.results import JUPYTER

T = TypeVar("T")


class Kernel:
    """One kernel with its client. Blocking; all calls from one thread."""

    def __init__(self, folder: Path) -> None:
        """Start it; raises Unavailable."""
        try:
            from jupyter_client.manager import KernelManager
        except ImportError:
            raise _not_installed() from None
        self._folder = folder / secrets.token_hex(3)
        self._folder.mkdir(parents=True)
        self._manager: Any = KernelManager(connection_file=str(self._folder / "kernel.json"))
        self._client: Any = None
        try:
            self._manager.start_kernel(
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=str(self._folder), env=_env(self._folder)
            )
            self._client = self._manager.client()
            self._client.start_channels()
            self._client.wait_for_ready(timeout=DEADLINE)
        except BaseException as exc:
            self.close()
            if isinstance(exc, Exception):
                raise Unavailable(f"the kernel did not start: {exc!r:.200}") from exc
            raise

    def run(self, code: str, expected: str) -> None:
        """Execute; returns when the kernel is idle again. Raises Unavailable for another output."""
        output: list[str] = []

        def heard(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                output.append(content["text"])
            elif message["msg_type"] == "execute_result":
                output.append(content["data"]["text/plain"])

        self._client.execute_interactive(code, timeout=DEADLINE, output_hook=heard)
        if "".join(output) != expected:
            raise Unavailable(f"{code} gave {output!r:.100}")

    @property
    def pids(self) -> set[int]:
        return with_descendants([self._manager.provisioner.pid])

    def close(self) -> None:
        """Kill it and remove its files."""
        with contextlib.suppress(Exception):
            if self._client is not None:
                self._client.stop_channels()
        with contextlib.suppress(Exception):
            self._manager.shutdown_kernel(now=True)
            self._manager.context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)


def _env(folder: Path) -> dict[str, str]:
    """Nothing of the kernel's is kept in the home directory."""
    import os

    own = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_RUNTIME_DIR": str(folder)}
    return {**os.environ, **own, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def _not_installed() -> Unavailable:
    return Unavailable("not installed", 'pip install "emberbox[bench]"')


class _Threaded:
    """Runs a kernel's calls in one thread of its own, which ZeroMQ's sockets want."""

    name = JUPYTER

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jupyter")

    async def _do(self, work: Callable[[], T]) -> T:
        task = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    def _check(self) -> None:
        if any(importlib.util.find_spec(name) is None for name in ("jupyter_client", "ipykernel")):
            self._thread.shutdown()
            raise _not_installed()


class KernelStart(_Threaded):
    """A kernel from nothing to its first hello. `starts` has the milliseconds until each was ready."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.starts: list[float] = []

    async def __aenter__(self) -> Self:
        self._check()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._thread.shutdown()

    async def once(self) -> float:
        return await self._do(self._once)

    def _once(self) -> float:
        clock = Clock()
        kernel = Kernel(self._folder)
        try:
            ready = clock.ms()
            kernel.run(HELLO, "hello\n")
            taken = clock.ms()
        finally:
            kernel.close()
        self.starts.append(ready)
        return taken


class LiveKernel(_Threaded):
    """A kernel that runs; `once` executes 1+1 in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._kernel: Kernel | None = None

    async def __aenter__(self) -> Self:
        self._check()
        try:
            await self._do(self._start)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._do(self._stop)
        self._thread.shutdown()

    def _start(self) -> None:
        self._kernel = Kernel(self._folder)
        self._kernel.run(HELLO, "hello\n")

    def _stop(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    @property
    def pids(self) -> set[int]:
        return self._kernel.pids if self._kernel else set()

    async def once(self) -> float:
        return await self._do(self._once)

    def _once(self) -> float:
        if self._kernel is None:
            raise Unavailable("the kernel is gone")
        clock = Clock()
        self._kernel.run("1+1", "2")
        return clock.ms()
