"""Starting programs as the user, reading the process table, and killing whole process trees."""

from __future__ import annotations

import os
import signal

from .limits import default_signals, restrict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Iterable, List, NoReturn, Set

    from .limits import Settings

KILL_ROUNDS = 40
HOLD_ROUNDS = 20
NEARLY_ALL = 0.9
"""Of the processes that a user may have: with so many there is no room for more."""
CROWD = 24
"""With so many processes in the machine, looking at them one by one takes longer than they need to multiply."""
EXEC_FAILED = 127
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
DEADLY_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGKILL}
)


def spawn(
    settings: Settings,
    argv: List[str],
    *,
    cwd: str,
    env: Dict[str, str],
    stdio: List[int],
) -> tuple[int, int]:
    """Start `argv` as the user with `stdio` as its descriptors 0, 1, 2, ... and no other.

    Answers the pid and a descriptor that ends when the program runs, or gives the errno and the step that failed.
    """
    report, child_report = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        _become(settings, argv, cwd, env, stdio, child_report)
    os.close(child_report)
    os.set_blocking(report, False)
    return pid, report


def _become(
    settings: Settings,
    argv: List[str],
    cwd: str,
    env: Dict[str, str],
    stdio: List[int],
    report: int,
) -> NoReturn:
    step = "start"
    try:
        import fcntl

        # First out of the way of the targets, whose numbers are below that of any of these copies.
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, len(stdio) + 3)
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(stdio) + 3) for fd in stdio]
        for target, fd in enumerate(copies):
            os.dup2(fd, target, inheritable=True)
        restrict(settings)
        default_signals()
        step = "cwd"
        os.chdir(cwd)
        step = "exec"
        os.execvpe(argv[0], argv, env)  # noqa: S606 - running the caller's programs is what the agent is for
    except BaseException as exc:  # noqa: BLE001 - this process must not return into the agent's loop
        number = exc.errno if isinstance(exc, OSError) and exc.errno else 5
        os.write(report, b"%d %s" % (number, step.encode()))
    finally:
        os._exit(EXEC_FAILED)


def exit_code(status: int) -> int:
    """The shell's exit code for a wait status: 128 + signal for a process that died of one."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Process:
    """One line of the process table."""

    __slots__ = ("group", "parent", "pid", "session", "started", "state", "threads")

    def __init__(self, pid: int, fields: List[bytes]) -> None:
        self.pid = pid
        self.state = fields[0]
        self.parent = int(fields[1])
        self.group = int(fields[2])
        self.session = int(fields[3])
        self.threads = max(1, int(fields[17]))
        self.started = int(fields[19])


def processes_of(uid: int) -> Dict[int, Process]:
    """The user's processes by pid, without zombies."""
    table: Dict[int, Process] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        process = _read_process(name, uid)
        if process is not None and process.state not in (b"Z", b"X"):
            table[process.pid] = process
    return table


def _read_process(name: str, uid: int) -> Process | None:
    try:
        return _read_stat(name) if os.stat("/proc/" + name).st_uid == uid else None
    except OSError:
        return None


def _read_stat(name: str) -> Process | None:
    try:
        fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
        # The program's name is in parentheses and may hold anything, so what follows its last one counts.
        return Process(int(name.rpartition("/")[2]), text[text.rindex(b")") + 2 :].split())
    except (OSError, ValueError, IndexError):
        return None


def command_line(pid: int) -> bytes:
    """What a process was started with, each word with a zero byte behind it; nothing where it is about to end."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def thread_goes_on(pid: int, since: float) -> bool:
    """Whether a thread of this process, other than its first, computes just now and was started after `since`."""
    ticks = int(since * CLOCK_TICKS)
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    found = (_read_stat(f"{pid}/task/{name}") for name in threads if name != str(pid))
    return any(thread is not None and thread.state == b"R" and thread.started >= ticks for thread in found)


def thread_count(uid: int) -> int:
    """Processes and threads of the user: what RLIMIT_NPROC counts."""
    return sum(process.threads for process in processes_of(uid).values())


_machines: List[int] = []


def begin_to_count() -> None:
    """The user has no processes yet: those of now are the machine's, the kernel's own threads among them."""
    _machines[:] = [_count()]


def _count() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


def crowded() -> bool:
    """Whether there are so many processes that they are to be held before anybody looks at them."""
    return own_machine() and _count() - sum(_machines) >= CROWD


class Held:
    """`with Held(uid, when):` keeps every process of the machine but the agent stopped, by one system call.

    A fork bomb takes the processors from the agent as well: whoever first reads the process table and then acts comes
    too late. What somebody had stopped before goes on afterwards. Outside of a machine of its own, it does nothing.

    Args:
        uid: the user's.
        when: whether to do that at all.
    """

    __slots__ = ("_holds", "_uid")
    times = 0
    """How often that was done. A shell whose jobs are stopped may be sent SIGHUP by it (setpgid(2))."""

    def __init__(self, uid: int, when: bool) -> None:
        self._uid = uid
        self._holds = when and own_machine()

    def __enter__(self) -> Held:  # noqa: PYI034 - Python 3.9 has no Self
        if self._holds:
            Held.times += 1
            for _ in range(HOLD_ROUNDS):
                send_signal(-1, signal.SIGSTOP)
                # Who was in the middle of a fork stops when the child is there, which has heard of nothing.
                if all(process.state == b"T" for process in processes_of(self._uid).values()):
                    break
        return self

    def __exit__(self, *_: object) -> None:
        if self._holds:
            send_signal(-1, signal.SIGCONT)


def kill_started(uid: int, root: int, *, since: float, others: Iterable[int]) -> None:
    """Kill what `kill_tree` would, but for `root` itself and for what was there before `since`."""
    foreign, ticks = set(others), int(since * CLOCK_TICKS)

    def young() -> Set[int]:
        table = processes_of(uid)
        return {pid for pid in family(table, root, since, foreign) if pid != root and table[pid].started >= ticks}

    _kill_all(uid, young)


def kill_tree(uid: int, root: int, *, since: float | None, others: Iterable[int]) -> None:
    """Kill `root`, its group and session, all that descends from it, and what it has orphaned.

    An orphan that made its own session bears no trace of who started it. It counts as ours when it was born after
    `since` (seconds as of `Loop.time`; None: never) and belongs to none of `others`, the roots of what else runs.
    """
    foreign = set(others)
    _kill_all(uid, lambda: family(processes_of(uid), root, since, foreign))
    try:
        os.killpg(root, signal.SIGKILL)
    except OSError:
        pass


def own_machine() -> bool:
    """Whether all processes that this one sees belong to its machine. Elsewhere the user has others as well."""
    return os.getpid() == 1


def kill_leftovers(uid: int, roots: Iterable[int]) -> None:
    """Kill all processes of the user but `roots`, in a machine of its own."""
    spared = set(roots)
    if own_machine():
        _kill_all(uid, lambda: set(processes_of(uid)) - spared)


def _kill_all(uid: int, find: Callable[[], Set[int]]) -> None:
    """Kill what `find` finds. Everything is stopped before anything is killed, again and again until nothing new turns
    up, so that a fork bomb cannot outrun this."""
    stopped: Set[int] = set()
    with Held(uid, crowded()):
        for _ in range(KILL_ROUNDS):
            found = find() - stopped
            if not found:
                break
            for pid in found:
                send_signal(pid, signal.SIGSTOP)
            stopped |= found
        for pid in stopped:
            send_signal(pid, signal.SIGKILL)


def family(table: Dict[int, Process], root: int, since: float | None, others: Set[int]) -> Set[int]:
    """What `kill_tree` means by these arguments, of a process table."""
    ticks = None if since is None else int(since * CLOCK_TICKS)
    family = {root} if root in table else set()
    for process in table.values():
        ours = root in (process.group, process.session)
        if process.pid in others or process.session in others or process.group in others:
            continue
        orphan = ticks is not None and own_machine() and process.parent == 1 and process.started >= ticks
        if ours or orphan:
            family.add(process.pid)
    grown = True
    while grown:
        grown = False
        for process in table.values():
            if process.parent in family and process.pid not in family and process.pid not in others:
                family.add(process.pid)
                grown = True
    return family


def send_signal(pid: int, number: int) -> bool:
    """Signal one process; False when it has gone."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def interrupt_group(pid: int) -> None:
    """What Ctrl-C does: SIGINT to the whole process group."""
    try:
        os.killpg(pid, signal.SIGINT)
    except OSError:
        # A child that is still on its way to its own group.
        send_signal(pid, signal.SIGINT)


def out_of_memory_kills() -> int | None:
    """How many processes the kernel has killed for want of memory; None where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return None
