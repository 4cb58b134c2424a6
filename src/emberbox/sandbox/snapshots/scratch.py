"""Where snapshots are that end with this process: `<base>/<owner>/`, a directory that this process holds a lock on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from emberbox.host.rundir import RunDir, dead_owners, make_run_dir


class SnapshotScratch:
    """The directory of one manager.

    Args:
        base: folder in which each process has one of its own.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._directory: RunDir | None = None

    def path(self) -> Path:
        """Name the directory, which is made when it is first asked for.

        Raises:
            ConfigError: it cannot be made here.
            VmNotAvailable: the disk is full.
        """
        if self._directory is None:
            self._directory = make_run_dir(self._base, socket_paths=False)
        return self._directory.path

    def release(self) -> None:
        """Remove the directory; harmless when there is none. Blocks."""
        directory, self._directory = self._directory, None
        if directory is not None:
            directory.release()

    def sweep(self) -> None:
        """Remove what processes that are gone have left. Blocks."""
        for path, fd in dead_owners(self._base):
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)
