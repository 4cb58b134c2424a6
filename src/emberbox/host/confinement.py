"""What a program is not to have: the spawner does this between fork and exec. Standard library only.

Run as `python -I -S confinement.py PLACE`, it tries out whether this kernel gives a program a root directory and a pid
namespace of its own; PLACE is an empty folder. It says on standard error why not.
"""

import ctypes
import errno
import os
import resource
import struct
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
CLONE_NEWPID = 0x20000000
MOUNT_SETATTR = 442
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 2, 4, 8, 4096
MS_PRIVATE_ALL = 1 << 18 | 1 << 14
"""MS_PRIVATE | MS_REC of mount(2)."""
MNT_DETACH = 2


def check(what: str, failed: int) -> None:
    """Raises OSError after a call that failed."""
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def fork(wishes: dict[str, Any] | None) -> int:
    """As os.fork; the child is the first process of a pid namespace of its own, where it gets a root of its own."""
    if wishes is None or wishes["root"] is None:
        return os.fork()
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    pid = -1
    try:
        check("unshare", libc.unshare(CLONE_NEWPID))  # of the children to come, not of this process
        try:
            pid = os.fork()
        finally:
            if pid:
                check("setns", libc.setns(own, CLONE_NEWPID))
    finally:
        os.close(own)
    return pid


def confine(wishes: dict[str, Any]) -> None:
    """Give away what the program need not have. All but the limits is for root only.

    limits: of resource.setrlimit, by number.
    network: no network but one of its own, in which nothing is.
    namespaces: that, and no file system that can be written to.
    root: no files but some of the host's: {"at": an empty folder, "files": [paths]}, or None; for a child of `fork`.
    uid: which is its gid as well; -1: it stays. `groups` besides.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if wishes["network"] or wishes["namespaces"]:
        check("unshare", libc.unshare(CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET))
    if wishes["namespaces"]:
        check("unshare", libc.unshare(CLONE_NEWNS))
        check("mount", libc.mount(None, b"/", None, MS_PRIVATE_ALL, None))
        if wishes["root"] is not None:
            enter_root(libc, wishes["root"]["at"], wishes["root"]["files"])
        attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
        if libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes)):
            code = ctypes.get_errno()
            if code != errno.ENOSYS:  # before Linux 5.12; the limit of file sizes stands there alone
                raise OSError(code, "mount_setattr: " + os.strerror(code))
    for number, value in wishes["limits"]:
        resource.setrlimit(number, (value, value))
    if wishes["uid"] >= 0:
        os.setgroups(wishes["groups"])
        os.setresgid(wishes["uid"], wishes["uid"], wishes["uid"])
        os.setresuid(wishes["uid"], wishes["uid"], wishes["uid"])


def enter_root(libc: ctypes.CDLL, at: str, files: list[str]) -> None:
    """Make a root directory of a small memory file system, in which there are these files and folders of the host and
    the processes of this pid namespace, and let go of the old one."""
    place = os.fsencode(at)
    check("mount tmpfs", libc.mount(b"emberbox", place, b"tmpfs", MS_NOSUID | MS_NODEV, b"size=256k,mode=755"))
    for path in map(os.fsencode, files):
        target = place + path
        if os.path.lexists(target):
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        if os.path.islink(path):  # noqa: PTH114
            os.symlink(os.readlink(path), target)  # noqa: PTH115, PTH211
            continue
        if os.path.isdir(path):  # noqa: PTH112
            os.mkdir(target)  # noqa: PTH102
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        check(f"mount {os.fsdecode(path)}", libc.mount(path, target, None, MS_BIND, None))
    os.mkdir(place + b"/proc")  # noqa: PTH102
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    if libc.mount(b"proc", place + b"/proc", b"proc", flags, b"subset=pid"):  # before Linux 5.8 there is all or nothing
        check("mount proc", libc.mount(b"proc", place + b"/proc", b"proc", flags, None))
    os.chdir(place)
    check("pivot_root", libc.pivot_root(b".", b"."))
    check("umount", libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def main() -> None:
    root = {"at": sys.argv[1], "files": []}
    wishes = {"network": True, "namespaces": True, "limits": [], "uid": -1, "groups": [], "root": root}
    try:
        pid = fork(wishes)
    except OSError as exc:
        sys.exit(str(exc))
    if pid == 0:
        status = 1
        try:
            confine(wishes)
            status = 0
        except OSError as exc:
            sys.stderr.write(f"{exc}\n")
            sys.stderr.flush()
        finally:
            os._exit(status)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0)


if __name__ == "__main__":
    main()
