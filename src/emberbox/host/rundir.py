"""Run directories: `<run_dir>/<owner>/` holds everything that one factory's machines keep on the host.

The owner (and its spawner, which shares the descriptor) holds a lock on `<owner>/lock` for life. A directory whose lock
can be taken belongs to the dead, and `sweep` may clear it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from emberbox.errors import ConfigError, VmNotAvailable
from emberbox.host.cgroups import CgroupRoot

LOCK = "lock"
_ABANDONED_SECONDS = 60
CGROUPS = "cgroups.json"
"""In the directory of an owner: where its cgroups are."""
_KILL_SECONDS = 10.0
_LONGEST = 52
"""107 bytes (unix(7)) less owner, machine id and the name of runsc's control socket."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """The directory of this owner. `lock_fd` keeps it."""

    path: Path
    lock_fd: int

    @property
    def owner(self) -> str:
        return self.path.name

    def release(self) -> None:
        """Let go of the lock and remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock_fd)


def make_run_dir(base: Path, *, socket_paths: bool = True) -> RunDir:
    """Make a locked directory of our own below `base`, private to this user.

    `socket_paths`: Unix sockets will live in it, so that its path must be short.

    Raises:
        ConfigError: `base` cannot be made, or belongs to somebody else.
        VmNotAvailable: its file system is full.
    """
    _check_base(base, socket_paths=socket_paths)
    owner = secrets.token_hex(4)
    building = base / f".{owner}"
    lock_fd = -1
    try:
        building.mkdir(mode=0o700)
        lock_fd = os.open(building / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        building.rename(base / owner)
    except OSError as exc:
        shutil.rmtree(building, ignore_errors=True)
        if lock_fd >= 0:
            os.close(lock_fd)
        message = f"Cannot make a directory in {base}: {exc.strerror}."
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VmNotAvailable(message, remediation="Make space on that file system.") from exc
        raise ConfigError(message, remediation=_REMEDY) from exc
    return RunDir(base / owner, lock_fd)


_REMEDY = "Set `run_dir` (EMBERBOX_RUN_DIR) to a short path on a local file system that you own."


def _check_base(base: Path, *, socket_paths: bool) -> None:
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = base.lstat()
    except OSError as exc:
        raise ConfigError(f"Cannot make the run directory {base}: {exc.strerror}.", remediation=_REMEDY) from exc
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise ConfigError(f"The run directory {base} is not a private directory of this user.", remediation=_REMEDY)
    if socket_paths and len(os.fsencode(base)) > _LONGEST:
        raise ConfigError(f"The run directory {base} is too long for Unix sockets in it.", remediation=_REMEDY)


def dead_owners(base: Path) -> Iterator[tuple[Path, int]]:
    """Directories below `base` whose owner is gone, each with its lock taken (the caller closes the descriptor)."""
    try:
        paths = sorted(base.iterdir())
    except OSError:
        return  # not there, or another user's
    for path in paths:
        if path.name.startswith("."):
            # `make_run_dir` is at it, for some milliseconds; what is older was cut short
            with contextlib.suppress(OSError):
                if path.is_dir() and time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            fd = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            continue
        yield path, fd


def processes_of(marker: str) -> list[int]:
    """Pids whose command line names `marker` (a machine's id or an owner's directory)."""
    needle, found = os.fsencode(marker), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if needle in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
    return found


def clear_owner(path: Path) -> int:
    """Kill what a dead owner's machines still run, remove their cgroups and files; the number of processes killed."""
    cgroups = CgroupRoot.load(path / CGROUPS)
    groups = [cgroups.group(name) for name in cgroups.names(f"{path.name}-")] if cgroups else []

    def ours() -> set[int]:
        return set(processes_of(f"{path}/")).union(*(group.pids() for group in groups))

    killed = _kill(ours)
    for group in groups:
        group.remove()
    if cgroups is not None:
        cgroups.remove_if_empty()
    shutil.rmtree(path, ignore_errors=True)
    return killed


def kill_processes_in(folder: Path) -> None:
    """Kill what works in a folder: names it in its command line or environment, or has it as directory or root."""
    end = time.monotonic() + _KILL_SECONDS
    while _kill(lambda: _processes_in(folder)) and time.monotonic() < end:
        time.sleep(0.01)


def _processes_in(folder: Path) -> set[int]:
    needle, found = os.fsencode(folder) + b"/", set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                places = [os.fsencode((entry / link).readlink()) + b"/" for link in ("cwd", "root")]
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if needle in words or any(place.startswith(needle) for place in places):
                    found.add(int(entry.name))
    return found


def _kill(find: Callable[[], set[int]]) -> int:
    """Kill what `find` finds; how many."""
    pids = find()
    for pid in pids:
        # pidfd_open + a second look: between finding and killing, the pid may have become a stranger's
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if pid in find():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
    return len(pids)
