"""Sandboxes of emulated back ends that contract tests share: each test finds one as new, gone back to a snapshot.

To start a machine and its first interpreters takes seconds on an emulated processor; to go back, a fraction of one.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends import LIFE_SECONDS, environment_of, warmed
from emberbox import MachineLimits, Sandbox, load_settings
from emberbox.errors import VmExecutionError
from emberbox.host.rundir import processes_of
from emberbox.models import SnapshotInfo


@dataclass
class _Shared:
    """One sandbox, with an engine of its own."""

    sandbox: Sandbox
    clean: SnapshotInfo
    run_dir: Path
    spawners: set[int]
    user: str = ""
    """The test that has it."""

    def is_as_new(self) -> bool:
        """Go back to how it was; False: a test has ended it."""
        try:
            self.sandbox.rollback(self.clean)
            for point in self.sandbox.list_snapshots():
                if point.snapshot_id != self.clean.snapshot_id:
                    self.sandbox.delete_snapshot(point)
        except VmExecutionError:
            return False
        return True


class SharedMachines:
    """The sandboxes of one process of the tests: one for each back end, template and limits.

    Args:
        servers: processes that outlive a test; those of its engines are put into it.
    """

    def __init__(self, servers: set[int]) -> None:
        self._servers = servers
        self._shared: dict[str, _Shared] = {}

    def of(self, request: pytest.FixtureRequest) -> Sandbox:
        """The sandbox of a contract test; asked again by the same test, the same one as it is by then."""
        backend: str = request.node.callspec.params["sandbox"]
        template: str = getattr(request.module, "TEMPLATE", "default")
        limits: MachineLimits | None = getattr(request.module, "LIMITS", None)
        key = f"{backend} {template} {limits}"
        shared = self._shared.get(key)
        if shared is not None and shared.user != request.node.nodeid and not shared.is_as_new():
            self._end(key)
            shared = None
        if shared is None:
            shared = self._shared[key] = self._make(backend, template, limits)
        shared.user = request.node.nodeid
        return shared.sandbox

    def _make(self, backend: str, template: str, limits: MachineLimits | None) -> _Shared:
        run_dir = Path(tempfile.mkdtemp(prefix="ebt-", dir="/tmp"))
        wanted = environment_of(backend) | {"EMBERBOX_RUN_DIR": str(run_dir), "EMBERBOX_STATE_DIR": f"{run_dir}.state"}
        with pytest.MonkeyPatch.context() as environment:
            for name, value in (wanted | {"EMBERBOX_VM_EXECUTION__VM_POOL_SIZE": "0"}).items():
                environment.setenv(name, value)
            settings = load_settings()
        sandbox = Sandbox.create(warmed(template), settings=settings, limits=limits, timeout=LIFE_SECONDS)
        try:
            spawners = set(processes_of(f"{run_dir}/"))
            self._servers.update(spawners)
            return _Shared(sandbox, sandbox.snapshot("as new"), run_dir, spawners)
        except BaseException:
            sandbox.kill()
            raise

    def _end(self, key: str) -> None:
        shared = self._shared.pop(key)
        try:
            shared.sandbox.kill()
            assert processes_of(f"{shared.run_dir}/") == [], "processes are left"
            left = [] if not shared.run_dir.exists() else list(shared.run_dir.iterdir())
            assert left == [], "files are left in the run directory"
        finally:
            self._servers.difference_update(shared.spawners)
            shutil.rmtree(shared.run_dir, ignore_errors=True)
            shutil.rmtree(f"{shared.run_dir}.state", ignore_errors=True)

    def end(self) -> None:
        """End all of them, and look whether anything is left."""
        with contextlib.ExitStack() as ending:
            for key in list(self._shared):
                ending.callback(self._end, key)
