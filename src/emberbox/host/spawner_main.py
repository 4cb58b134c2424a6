"""The spawner: a small process between Emberbox and the programs that make up its machines. Standard library only.

Started as `python -I -S spawner_main.py CONTROL_FD LOCK_FD RUN_DIR [CGROUP_DIR …]`. It exists because
- a sandbox outlives the command that created it and becomes an orphan. The spawner is a "child subreaper"
  (prctl(2)), so orphans become its children: it reaps them, even where the host's PID 1 does not, and a pid that it
  still owns cannot be reused by a stranger, so that a kill never hits the wrong process;
- a program can join its cgroups between fork and exec only in a process without threads;
- when Emberbox dies, however, the control socket ends and the spawner kills every machine and removes what they left:
  the run directory, and in each CGROUP_DIR the groups that begin with the run directory's name;
- machines that are to outlive Emberbox (`keep`) are spared then for a while. Their descriptors are held here, so that
  nothing in them breaks, until another Emberbox connects to the socket ADOPT in the run directory and takes over.

Messages are JSON objects over a SOCK_SEQPACKET socket, descriptors travel beside them (SCM_RIGHTS):

    {"id", "op": "spawn", "argv", "env", "cwd", "join": [files], "confine"} + 3 to 10 fds -> {"id", "pid"}
                                     the descriptors become 0, 1, 2, ..; `confine` as of confinement.py, or null
    {"id", "op": "own", "pid"}       report the end of this orphan, too    -> {"id", "owned": pid} + 1 fd: its pidfd,
                                     which is left out where there is none
    {"id", "op": "signal", "pid", "signal"}                                -> {"id"}
    {"id", "op": "keep", "name", "pids", "info", "seconds"} + some fds     -> {"id"}
    {"id", "op": "drop", "name"}     undo `keep`; "name" null: all of them -> {"id"}
    {"id", "op": "kept"}             names of them                         -> {"id", "kept", "version"} + 1 fd: LOCK_FD
    {"id", "op": "take", "name"}     what `keep` was told                  -> {"id", "pids", "info"} + fds
    {"ready": true}                  once, when it is up
    {"exit": pid, "status": code}    of a spawned or owned process; code is negative for a signal
    a request that fails                                                   -> {"id", "error", "errno"}
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from typing import Any

if __name__ == "__main__":  # a Python without packages; this one's own are three folders up
    sys.path.append(os.path.abspath(__file__ + "/../../.."))  # noqa: PTH100

from emberbox.host.confinement import confine, fork

PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
MEMBARRIER = {"x86_64": (0xC000003E, 324), "aarch64": (0xC00000B7, 283)}
"""Architecture (AUDIT_ARCH_…) and number of the system call."""
MAX_MESSAGE = 1 << 17
MAX_FDS = 10
VERSION = 1
"""Of what `kept` and `take` say."""
ADOPT = "adopt"
REMEMBERED_EXITS = 4096
"""Ends of orphans are remembered, because an orphan can die before it is announced as owned."""


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def refuse_membarrier() -> None:
    """What starts below this process finds no membarrier(2). runsc registers for it whenever it starts, and waits 11 ms
    for all processors each time, three times in a row to create a sandbox: 90 ms with it, 60 without. Its one use is
    to offer the call inside the sandbox, where programs find it missing then, as they do on old kernels."""
    arch, number = MEMBARRIER.get(os.uname().machine, (0, 0))
    program = (
        (0x20, 0, 0, 4),  # load seccomp_data.arch
        (0x15, 0, 3, arch),  # other than this: allow
        (0x20, 0, 0, 0),  # load seccomp_data.nr
        (0x15, 0, 1, number),  # other than this: allow
        (0x06, 0, 0, 0x00050000 | errno.ENOSYS),  # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    if number:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter_program, 0, 0)  # a kernel without it is slower, no more


class Spawner:
    """One control socket, any number of children."""

    def __init__(self, control: socket.socket, lock_fd: int, run_dir: str) -> None:
        self.control = control
        self.lock_fd = lock_fd
        self.run_dir = run_dir
        self.listener: socket.socket | None = None
        self.kept: dict[str, Kept] = {}
        self.reported: set[int] = set()
        self.ended: dict[int, int] = {}

    def run(self) -> None:
        """Serve until the control socket ends."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            self.serve_all(wake_read)
        finally:
            signal.set_wakeup_fd(-1)
            os.close(wake_read)
            os.close(wake_write)

    def serve_all(self, wake_read: int) -> None:
        self.reap()  # what ended while nobody was told
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ, "control")
            selector.register(wake_read, selectors.EVENT_READ, "child")
            while True:
                for key, _ in selector.select():
                    if key.data == "control":
                        if not self.serve():
                            return
                    else:
                        with contextlib.suppress(BlockingIOError):
                            os.read(wake_read, 4096)
                self.reap()

    def serve(self) -> bool:
        """One request; False at the end of the socket."""
        try:
            data, fds, flags, _ = socket.recv_fds(self.control, MAX_MESSAGE, MAX_FDS)
        except ConnectionError:  # Emberbox died with something of ours unread
            return False
        if not data:
            return False
        request = json.loads(data)
        try:
            refuse_lost(flags)
            reply = self.handle(request, fds)
        except OSError as exc:
            reply = {"error": str(exc), "errno": errno.errorcode.get(exc.errno or 0, "")}
        finally:
            for fd in fds:
                os.close(fd)
        pidfd = reply.pop("pidfd", -1)
        sent = self.send({"id": request["id"], **reply}, reply.pop("fds", [pidfd] if pidfd >= 0 else []))
        if pidfd >= 0:
            os.close(pidfd)
        return sent

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> bool:
        message.pop("fds", None)
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], fds or [])
        except OSError:
            return False
        return True

    def handle(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        op = request["op"]
        if op == "spawn":
            pid = spawn(request, fds)
            self.reported.add(pid)
            return {"pid": pid}
        if op == "own":
            return self.own(request["pid"])
        if op == "signal":
            pid = request["pid"]
            if pid not in self.reported:
                raise ProcessLookupError(errno.ESRCH, "not a child of the spawner")
            os.kill(pid, request["signal"])
            return {}
        return self.handle_kept(op, request, fds)

    def handle_kept(self, op: str, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if op == "keep":
            self.listen()
            self.drop(request["name"])
            self.kept[request["name"]] = Kept([os.dup(fd) for fd in fds], request)
            return {}
        if op == "drop":
            for name in [request["name"]] if request["name"] is not None else list(self.kept):
                self.drop(name)
            return {}
        if op == "kept":
            return {"kept": sorted(self.kept), "version": VERSION, "fds": [self.lock_fd]}
        if op == "take" and request["name"] in self.kept:
            kept = self.kept[request["name"]]
            return {"pids": kept.pids, "info": kept.info, "fds": kept.fds}
        raise OSError(errno.EINVAL, "unknown operation")

    def drop(self, name: str) -> None:
        kept = self.kept.pop(name, None)
        if kept is not None:
            kept.close()

    def listen(self) -> None:
        """Make the socket of the next Emberbox. Nobody is listened to before this one is gone."""
        if self.listener is None:
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.listener.bind(self.run_dir + "/" + ADOPT)

    def wait_for_another(self) -> bool:
        """Emberbox is gone: end what is not to outlive it, and wait for the next one. False: nobody came in time."""
        if not self.kept or self.listener is None:
            return False
        end = time.monotonic() + max(kept.seconds for kept in self.kept.values())
        self.control.close()
        self.listener.listen(1)
        while self.kept and (left := end - time.monotonic()) > 0:
            self.kill_others()
            self.reap()
            for name in [name for name, kept in self.kept.items() if not self.reported.issuperset(kept.pids)]:
                self.drop(name)
            self.listener.settimeout(min(left, 0.5))
            try:
                self.control, _ = self.listener.accept()
            except OSError:
                continue
            self.control.settimeout(None)
            if self.send({"ready": True}):  # else it has died already
                return True
        return False

    def own(self, pid: int) -> dict[str, Any]:
        if pid in self.ended:
            self.send({"exit": pid, "status": self.ended.pop(pid)})
            return {}
        # WNOWAIT: ask without reaping; ECHILD says that it is not ours
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self.reported.add(pid)
        # it is not reaped yet, so that the pid is surely its own
        return {"owned": pid, "pidfd": open_pidfd(pid)}

    def kill_others(self) -> None:
        """Kill all that is not kept."""
        spared = {pid for kept in self.kept.values() for pid in kept.pids}
        for pid in children():
            if pid not in spared:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid in self.reported:
                self.reported.discard(pid)
                if self.send({"exit": pid, "status": code}):
                    continue
            self.ended[pid] = code
            while len(self.ended) > REMEMBERED_EXITS:
                del self.ended[next(iter(self.ended))]

    def finish(self, run_dir: str, cgroups: list[str]) -> None:
        """Kill every descendant, then remove the cgroups and the run directory."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for pid in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                break
            time.sleep(0.005)
        owner = os.path.basename(run_dir)  # noqa: PTH119
        for base in cgroups:
            with contextlib.suppress(OSError):
                for name in os.listdir(base):  # noqa: PTH208
                    if name.startswith(owner + "-"):
                        remove_cgroup(base + "/" + name)
                os.rmdir(base)  # noqa: PTH106 (only if nobody else has a group in it)
        shutil.rmtree(run_dir, ignore_errors=True)


class Kept:
    """A machine that is to outlive Emberbox: its descriptors and processes."""

    def __init__(self, fds: list[int], request: dict[str, Any]) -> None:
        self.fds = fds
        self.pids: list[int] = request["pids"]
        self.info: dict[str, int] = request["info"]
        self.seconds: float = request["seconds"]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


def refuse_lost(flags: int) -> None:
    """Raises OSError: not all descriptors came, and those that did would be taken for others."""
    if flags & socket.MSG_CTRUNC:
        raise OSError(errno.EMFILE, "descriptors were lost on the way")


def open_pidfd(pid: int) -> int:
    """A descriptor of a process (pidfd_open(2)), -1 where there is none: kernels before 5.3, or one too many."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def spawn(request: dict[str, Any], fds: list[int]) -> int:
    """Fork, join the cgroups, exec. An exec that fails is reported through a close-on-exec pipe."""
    argv, env, cwd, join = request["argv"], request["env"], request["cwd"], request["join"]
    if len(fds) < 3:
        raise OSError(errno.EINVAL, "spawn wants three descriptors or more")
    failed_read, failed_write = os.pipe()
    try:
        pid = fork(request.get("confine"))
    except OSError:
        os.close(failed_read)
        os.close(failed_write)
        raise
    if pid == 0:
        step = ""
        try:
            signal.set_wakeup_fd(-1)
            for path in join:
                step = "join " + path
                with open(path, "w") as file:  # noqa: PTH123
                    file.write("0")
            step = "exec"
            os.setsid()
            os.chdir(cwd)
            failed_write = place_fds(fds, failed_write)
            if request.get("confine") is not None:
                step = "confine"
                confine(request["confine"])
                step = "exec"
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # the last two are ignored by Python itself
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(signum, signal.SIG_DFL)
            os.execvpe(argv[0], argv, env)  # noqa: S606
        except (OSError, ValueError, TypeError) as exc:  # the latter: a NUL in an argument, a field of another type
            code = (exc.errno if isinstance(exc, OSError) else None) or errno.EINVAL
            os.write(failed_write, f"{code} {step}: {exc}".encode()[:1000])
        finally:
            os._exit(127)
    os.close(failed_write)
    message = os.read(failed_read, 2000)
    os.close(failed_read)
    if message:
        os.waitpid(pid, 0)
        number, _, text = message.decode().partition(" ")
        raise OSError(int(number), text)
    return pid


def place_fds(fds: list[int], failed_write: int) -> int:
    """Make `fds` the descriptors 0, 1, 2, .. and close all others but one, which is returned under its new number."""
    high = MAX_FDS + 1
    failed = fcntl.fcntl(failed_write, fcntl.F_DUPFD_CLOEXEC, high)  # must stay till the exec
    for target, source in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, high) for fd in fds]):
        os.dup2(source, target)
    # descriptors that arrive by SCM_RIGHTS are inheritable
    os.closerange(len(fds), failed)
    os.closerange(failed + 1, 1 << 16)
    return failed


def children() -> list[int]:
    """Pids of our children, by /proc (a kernel without CONFIG_PROC_CHILDREN still has `stat`)."""
    me, found = os.getpid(), []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                    parent = int(file.read().rsplit(b")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if parent == me:
                found.append(int(name))
    return found


def remove_cgroup(path: str) -> None:
    for _ in range(200):
        try:
            os.rmdir(path)  # noqa: PTH106
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.005)  # the kernel empties a cgroup a moment after the last process was reaped
        else:
            return


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(control.fileno(), False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    refuse_membarrier()
    os.umask(0o022)
    run_dir = sys.argv[3]
    spawner = Spawner(control, int(sys.argv[2]), run_dir)
    spawner.send({"ready": True})
    try:
        spawner.run()
        while spawner.wait_for_another():
            spawner.run()
    finally:
        spawner.finish(run_dir, sys.argv[4:])


if __name__ == "__main__":
    main()
