"""The spawner: a small process between Emberbox and the programs that make up its machines. Standard library only.

Started as `python -I -S spawner_main.py CONTROL_FD RUN_DIR [CGROUP_DIR …]`. It exists because
- a sandbox outlives the command that created it and becomes an orphan. The spawner is a "child subreaper"
  (prctl(2)), so orphans become its children: it reaps them, even where the host's PID 1 does not, and a pid that it
  still owns cannot be reused by a stranger, so that a kill never hits the wrong process;
- a program can join its cgroups between fork and exec only in a process without threads;
- when Emberbox dies, however, the control socket ends and the spawner kills every machine and removes what they left:
  the run directory, and in each CGROUP_DIR the groups that begin with the run directory's name.

Messages are JSON objects over a SOCK_SEQPACKET socket, descriptors travel beside them (SCM_RIGHTS):

    {"id", "op": "spawn", "argv", "env", "cwd", "join": [files]} + 3 fds  -> {"id", "pid"}
    {"id", "op": "own", "pid"}       report the end of this orphan, too    -> {"id"}
    {"id", "op": "signal", "pid", "signal"}                                -> {"id"}
    {"ready": true}                  once, when it is up
    {"exit": pid, "status": code}    of a spawned or owned process; code is negative for a signal
    a request that fails                                                   -> {"id", "error", "errno"}
"""

import contextlib
import ctypes
import errno
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
MAX_MESSAGE = 1 << 17
REMEMBERED_EXITS = 4096
"""Ends of orphans are remembered, because an orphan can die before it is announced as owned."""


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Spawner:
    """One control socket, any number of children."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.reported: set[int] = set()
        self.ended: dict[int, int] = {}

    def run(self) -> None:
        """Serve until the control socket ends."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
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
        data, fds, _, _ = socket.recv_fds(self.control, MAX_MESSAGE, 3)
        if not data:
            return False
        request = json.loads(data)
        try:
            reply = self.handle(request, fds)
        except OSError as exc:
            reply = {"error": str(exc), "errno": errno.errorcode.get(exc.errno or 0, "")}
        finally:
            for fd in fds:
                os.close(fd)
        return self.send({"id": request["id"], **reply})

    def send(self, message: dict[str, Any]) -> bool:
        try:
            self.control.send(json.dumps(message).encode())
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
        raise OSError(errno.EINVAL, "unknown operation")

    def own(self, pid: int) -> dict[str, Any]:
        if pid in self.ended:
            self.send({"exit": pid, "status": self.ended.pop(pid)})
            return {}
        # WNOWAIT: ask without reaping; ECHILD says that it is not ours
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        self.reported.add(pid)
        return {}

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
                self.send({"exit": pid, "status": code})
            else:
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


def spawn(request: dict[str, Any], fds: list[int]) -> int:
    """Fork, join the cgroups, exec. An exec that fails is reported through a close-on-exec pipe."""
    argv, env, cwd, join = request["argv"], request["env"], request["cwd"], request["join"]
    if len(fds) != 3:
        raise OSError(errno.EINVAL, "spawn wants three descriptors")
    failed_read, failed_write = os.pipe()
    pid = os.fork()
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
            for target, source in enumerate([os.dup(f) for f in fds]):
                os.dup2(source, target)
            # descriptors that arrive by SCM_RIGHTS are inheritable; failed_write is not, and must stay till the exec
            os.closerange(3, failed_write)
            os.closerange(failed_write + 1, 1 << 16)
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
    os.umask(0o022)
    spawner = Spawner(control)
    spawner.send({"ready": True})
    try:
        spawner.run()
    finally:
        spawner.finish(sys.argv[2], sys.argv[3:])


if __name__ == "__main__":
    main()
