"""Where one machine's Firecracker lives, in a jail or without one: its folder, its files, its command line.

Firecracker sees every file by the same relative name either way, because a snapshot remembers the names of the disk
and of the vsock socket: its working directory is `root`, which in a jail is also its root directory. What it only reads
is linked there: by a symbolic link, or, in a jail, by a hard link (or a copy, where the file system is another one).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emberbox.errors import VmNotAvailable
from emberbox.host.rundir import processes_of
from emberbox.machines.firecracker.options import FirecrackerOptions

API = "api.sock"
WRITABLE = "w"
"""The one folder in which Firecracker may make files."""
VSOCK = f"{WRITABLE}/v.sock"
KERNEL, INITRD, DISK = "kernel", "initrd", "root.ext4"
STATE, MEMORY = "state", "memory"
PROGRAM = "firecracker"
"""Name of the program below a run directory (the jailer insists on it), and of the folder that the jailer makes."""
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_OPEN_FILES = 1024
_KILL_SECONDS = 10.0
_READABLE = 0o444


@dataclass(frozen=True, slots=True)
class JailLayout:
    """The place of one machine."""

    machine_id: str
    directory: Path
    """Removed with the machine."""
    uid: int | None
    """In a jail: Firecracker's uid and gid."""

    @classmethod
    def of(cls, run_dir: Path, machine_id: str, uid: int | None) -> JailLayout:
        """A place that is not made yet, below a run directory."""
        folder = run_dir / machine_id if uid is None else run_dir / PROGRAM / machine_id
        return cls(machine_id, folder, uid)

    @property
    def root(self) -> Path:
        """Firecracker's working directory."""
        return self.directory if self.uid is None else self.directory / "root"

    @property
    def api(self) -> Path:
        return self.root / API

    @property
    def vsock(self) -> Path:
        return self.root / VSOCK

    @property
    def pid_file(self) -> Path:
        """Written by the jailer: Firecracker's pid in the host's namespace."""
        return self.root / f"{PROGRAM}.pid"

    def make(self) -> None:
        """Make its folders; raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True)
        if self.uid is not None:
            self.root.mkdir(mode=0o700)
        (self.root / WRITABLE).mkdir(mode=0o700)
        if self.uid is not None:
            os.chown(self.root / WRITABLE, self.uid, self.uid)

    def close_root(self) -> None:
        """The jailer gives the whole root directory to Firecracker, which then has made its socket there. From now on
        it may not put anything in the place of that, or of the files that it reads. Raises OSError."""
        if self.uid is not None:
            os.chown(self.root, 0, 0)
            self.root.chmod(0o755)

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def offer(self, file: Path, name: str) -> None:
        """Let Firecracker read a file under a name; raises OSError."""
        target = self.root / name
        target.unlink(missing_ok=True)
        if self.uid is None:
            target.symlink_to(file)
            return
        with contextlib.suppress(OSError):
            if file.stat().st_mode & _READABLE == _READABLE:
                os.link(file, target)
                return
        shutil.copyfile(file, target)
        os.chown(target, self.uid, self.uid)

    def written(self, name: str) -> str:
        """What Firecracker is to call a file that it writes for `take`."""
        return f"{WRITABLE}/{name}"

    def take(self, name: str, target: Path) -> None:
        """Get a file that Firecracker has written, as one that nobody changes any more. A Firecracker that a guest has
        taken over may have put a link there.

        Raises:
            OSError: the disk refused, or it is no plain file.
        """
        written = self.root / WRITABLE / name
        fd = os.open(written, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(fd)
            _check_plain(info)
            try:
                written.rename(target)
                _check_same(target.lstat(), info)
                if self.uid is not None:
                    os.fchown(fd, os.getuid(), os.getgid())
                os.fchmod(fd, _READABLE)
            except OSError as exc:
                if exc.errno != errno.EXDEV:
                    raise
                with open(fd, "rb", closefd=False) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                target.chmod(_READABLE)
                written.unlink()
        finally:
            os.close(fd)

    def command(self, options: FirecrackerOptions, run_dir: Path) -> Sequence[str]:
        """Starts Firecracker, waiting for calls of its API."""
        if self.uid is None:
            return [str(options.firecracker), "--id", self.machine_id, "--api-sock", str(self.api), "--level", "Warn"]
        return [
            str(options.jailer), "--id", self.machine_id, "--exec-file", str(run_dir / PROGRAM / PROGRAM),
            "--uid", str(self.uid), "--gid", str(self.uid), "--chroot-base-dir", str(run_dir), "--new-pid-ns",
            "--resource-limit", f"no-file={_OPEN_FILES}", "--", "--api-sock", f"/{API}", "--level", "Warn",
        ]  # fmt: skip


def kill_processes(machine_id: str) -> None:
    """Kill whatever names this machine in its command line. Its id is random, so that these are the machine's own; in a
    jail there is nothing else that tells them, because the jailer has changed what they see as their root. Returns when
    they are dead, not when they have begun to die: files and cgroups that they use cannot be removed before."""
    end = time.monotonic() + _KILL_SECONDS
    while (pids := processes_of(machine_id)) and time.monotonic() < end:
        for pid in pids:
            # a second look: between finding and killing, the pid may have become a stranger's
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(pid)
                try:
                    if pid in processes_of(machine_id):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        _wait_for_end(pidfd, end)
                finally:
                    os.close(pidfd)
        time.sleep(0.01)


def _wait_for_end(pidfd: int, end: float) -> None:
    """Until the process is dead; one that dies has no command line any more, long before its last thread has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll(max(0.0, end - time.monotonic()) * 1000)


def machines_below(run_dir: Path) -> Iterator[Path]:
    """The folders of machines below a run directory, in jails and without."""
    with contextlib.suppress(OSError):
        for path in list(run_dir.iterdir()):
            if path.is_dir() and path.name != PROGRAM:
                yield path
            elif path.is_dir():
                yield from (machine for machine in list(path.iterdir()) if machine.is_dir())


def _check_plain(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        raise OSError(errno.EINVAL, "Firecracker wrote something that is no plain file")


def _check_same(moved: os.stat_result, opened: os.stat_result) -> None:
    if (moved.st_dev, moved.st_ino) != (opened.st_dev, opened.st_ino):
        raise OSError(errno.EINVAL, "Firecracker changed a file that it had finished")


def install_program(options: FirecrackerOptions, run_dir: Path) -> None:
    """Put Firecracker's program where `JailLayout.command` names it: the name of the file becomes that of a folder.

    Raises:
        VmNotAvailable: the disk refused.
    """
    folder = run_dir / PROGRAM
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not (folder / PROGRAM).exists():
            shutil.copyfile(options.firecracker, folder / PROGRAM)
            (folder / PROGRAM).chmod(0o755)
    except OSError as exc:
        raise VmNotAvailable(f"Cannot copy Firecracker to {folder}: {exc.strerror}.") from exc
