"""PID 1 of a virtual machine: makes the place that the agent finds in a gVisor sandbox, then becomes the agent.

The kernel starts `python3 -ESs /opt/emberbox/guest/vm_init.py NAME=VALUE…` with the read-only root disk mounted and the
serial console as descriptors 0 to 2. What is left behind is one child, the relay: it listens on vsock and carries
bytes between the host's connection and two pipes, which are the agent's stdin and stdout. A copy of the machine finds
its connection dead and the listener alive (a snapshot keeps no connection), so the relay takes the next one; the agent
never notices. If the relay ends, the agent reads the end of its channel and ends too, and the kernel with it.

Where the host says `channel=ports` (QEMU), there is no vsock but two ports of a virtio serial device, one for the
stream and one for greetings: a copy of the machine keeps both, so that a greeting stands for a new connection.

A connection begins with a greeting of the host: MAGIC, the time in nanoseconds (u64, big endian) and 64 random bytes.
The relay sets the clock, stirs the bytes into the kernel's generator (two copies of a machine would draw the same
numbers else) and answers with one byte, ACCEPTED; on a port, with a digest of the greeting after it, so that the host
knows which one is answered. Then the stream of `protocol` begins. A connection by vsock that begins with ASKS_MEMORY
instead of MAGIC is told how much memory is free, and ends; the agent's goes on.

Arguments: home_mb, tmp_mb, run_mb (sizes in MiB), open_files, hostname, channel, writable (folders, with colons between
them). READY is written to the console when the listener is up.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, NoReturn, Protocol, Union

    class Pollable(Protocol):
        def fileno(self) -> int: ...

    Stream = Union[socket.socket, "Port"]

PORT = 52
"""Below 1024: user code cannot bind it (vsock(7))."""
HOST_CID = 2
MAGIC = b"EMBERVM1"
ASKS_MEMORY = b"EMBERMEM"
FREE_MEMORY = struct.Struct("!Q")
"""In KiB."""
ENTROPY_BYTES = 64
GREETING = struct.Struct("!8sQ64s")
ACCEPTED = b"K"
READY = b"emberbox-vm: ready\n"
AGENT_PORT, GREETING_PORT = "emberbox.agent", "emberbox.greeting"
PORTS_SECONDS = 10.0
CHUNK = 1 << 16
GREETING_SECONDS = 5.0

AGENT_HOME = "/opt/emberbox"
AGENT_ARGV = ("/usr/bin/python3", "-E", "-S", "-s", "-m", "guest")
USER = 1000

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
LAST_CAPABILITY = 40
CAPABILITIES = frozenset({0, 1, 2, 3, 5, 6, 7, 24})
"""Of the agent, by number (capabilities(7)): chown, dac_override, dac_read_search, fowner, kill, setgid, setuid,
sys_resource. Fewer than of root, so that what takes the agent over has the rest of the machine to get through."""
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def main() -> NoReturn:
    """Prepare the machine, leave the relay behind, become the agent."""
    options = dict(word.partition("=")[::2] for word in sys.argv[1:])
    prepare(options)
    ports = None
    if options.get("channel") == "ports":
        ports = Port.find(AGENT_PORT), Port.find(GREETING_PORT)
        held = [port.fileno() for port in ports]
    else:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, PORT))
        listener.listen(4)
        held = [listener.fileno()]
    agent_in, to_agent = os.pipe()
    from_agent, agent_out = os.pipe()
    if os.fork() == 0:
        try:
            for fd in (agent_in, agent_out):
                os.close(fd)
            protect_from_oom()
            if ports is not None:
                PortRelay(*ports, to_agent, from_agent).run()
            else:
                Relay(listener, to_agent, from_agent).run()
        finally:
            os._exit(1)
    for fd in [*held, to_agent, from_agent]:
        os.close(fd)
    os.write(1, READY)
    os.dup2(agent_in, 0)
    os.dup2(agent_out, 1)
    os.chdir(AGENT_HOME)
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
    if "GLIBC_TUNABLES" in os.environ:
        env["GLIBC_TUNABLES"] = os.environ["GLIBC_TUNABLES"]
    os.execve(AGENT_ARGV[0], list(AGENT_ARGV), env)  # noqa: S606


def prepare(options: Dict[str, str]) -> None:
    """Mounts, devices, name and limits."""
    import ctypes
    import resource

    libc = ctypes.CDLL(None, use_errno=True)

    def mount(kind: str, target: str, flags: int, data: str = "", *, optional: bool = False) -> None:
        if libc.mount(kind.encode(), target.encode(), kind.encode(), flags, data.encode()) and not optional:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    os.umask(0)
    mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    try:  # memory is limited by what is used: V8 reserves half a GiB of addresses, more than a small machine has
        with open("/proc/sys/vm/overcommit_memory", "wb") as file:
            file.write(b"1")
    except OSError:
        pass  # a kernel without sysctl(2)
    mount("sysfs", "/sys", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, optional=True)
    mount("tmpfs", "/dev", MS_NOSUID | MS_NOEXEC, "size=64k,mode=0755")
    for name, (major, minor) in DEVICES.items():
        os.mknod("/dev/" + name, 0o020666, os.makedev(major, minor))
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, "/dev/" + name)
    os.mkdir("/dev/pts", 0o755)
    mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620", optional=True)
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.mkdir("/dev/shm", 0o1777)  # noqa: S108 (of the guest, as those below)
    quiet = MS_NOSUID | MS_NODEV
    tmp = "size={}m,mode=1777".format(options["tmp_mb"])
    mount("tmpfs", "/dev/shm", quiet, tmp)  # noqa: S108
    mount("tmpfs", "/tmp", quiet, tmp)  # noqa: S108
    mount("tmpfs", "/run", quiet, "size={}m,mode=0755".format(options["run_mb"]))
    home = "size={}m,mode=0755,uid={},gid={}".format(options["home_mb"], USER, USER)
    for folder in ["/home/user", *filter(None, options.get("writable", "").split(":"))]:
        mount("tmpfs", folder, quiet, home)
    os.umask(0o022)
    socket.sethostname(options["hostname"])
    hard = max(4096, int(options["open_files"]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    for capability in range(LAST_CAPABILITY + 1):
        # the relay needs two more, and is a fork of this process: only what is executed from here on lacks them
        if capability not in CAPABILITIES:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def protect_from_oom() -> None:
    """User code that takes all memory must not cost the machine its channel."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def stir(entropy: bytes) -> None:
    """Feed random bytes to the kernel's generator and have it draw a new key (random(4))."""
    import fcntl

    fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(fd, RNDRESEEDCRNG, 0)
    finally:
        os.close(fd)


def heed(greeting: bytes) -> None:
    """Take the time and the random bytes of a greeting."""
    import time

    _, nanoseconds, entropy = GREETING.unpack(greeting)
    time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)
    stir(entropy)


def free_memory() -> int:
    """KiB that the kernel has no use for, not even as a cache; 0 where it does not say."""
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemFree:"):
                return int(line.split()[1])
    return 0


def accepted(greeting: bytes) -> bytes:
    """The answer to a greeting that came through a port."""
    import hashlib

    return ACCEPTED + hashlib.sha256(greeting).digest()


class Relay:
    """Carries bytes between the newest connection and the agent's pipes."""

    def __init__(self, listener: Pollable, to_agent: int, from_agent: int) -> None:
        import select

        self._listener = listener
        self._to_agent = to_agent
        self._from_agent = from_agent
        self._connection: Stream | None = None
        self._for_agent = b""
        """Read from the host and not written yet. Bounded: nothing more is read before it is gone."""
        self._for_host = b""
        self._poll = select.poll()
        self._watched: Dict[int, int] = {}
        self._in, self._out = select.POLLIN, select.POLLOUT
        for fd in (to_agent, from_agent, listener.fileno()):
            os.set_blocking(fd, False)

    def run(self) -> None:
        """Serve until the agent ends."""
        try:
            self._serve()
        finally:
            self._drop()

    def _serve(self) -> None:
        while True:
            self._watch()
            for fd, events in self._poll.poll():
                if fd == self._listener.fileno():
                    self._accept()
                    break  # the other events may be of a descriptor that has another meaning now
                if self._connection is not None and fd == self._connection.fileno():
                    self._serve_connection(events)
                elif fd == self._from_agent:
                    if not events & self._in or not self._read_agent():
                        return
                elif fd == self._to_agent:
                    if events & ~self._out:  # the reading end is gone
                        return
                    self._write_agent()

    def _watch(self) -> None:
        wanted = {self._listener.fileno(): self._in, self._from_agent: 0}  # 0: only its end is heard of
        if self._for_agent:
            wanted[self._to_agent] = self._out
        if self._connection is not None:
            wanted[self._connection.fileno()] = (0 if self._for_agent else self._in) | (
                self._out if self._for_host else 0
            )
            if not self._for_host:
                wanted[self._from_agent] = self._in
        if wanted != self._watched:
            for fd in self._watched:
                if fd not in wanted:
                    self._poll.unregister(fd)
            for fd, events in wanted.items():
                if self._watched.get(fd) != events:
                    self._poll.register(fd, events)
            self._watched = wanted

    def _accept(self) -> None:
        assert isinstance(self._listener, socket.socket)  # noqa: S101 (for the type checker)
        try:
            connection, (cid, _) = self._listener.accept()
        except OSError:
            return
        try:
            connection.settimeout(GREETING_SECONDS)
            self._greet(connection, cid)
            connection.setblocking(False)
        except OSError:
            connection.close()
            return
        self._drop()
        self._connection = connection

    @staticmethod
    def _greet(connection: socket.socket, cid: int) -> None:
        """Raises OSError: it is not the host, or it says something else, or it wants no more than to know something."""
        greeting = b""
        while cid == HOST_CID and len(greeting) < GREETING.size:
            data = connection.recv(GREETING.size - len(greeting))
            if not data:
                raise OSError
            greeting += data
        if greeting.startswith(ASKS_MEMORY):
            connection.sendall(FREE_MEMORY.pack(free_memory()))
        if not greeting.startswith(MAGIC):
            raise OSError
        heed(greeting)
        connection.sendall(ACCEPTED)

    def _drop(self) -> None:
        """Forget the connection, and what was on its way through it to the host: the next one begins anew. What came
        from the host stays in order: the agent has read the bytes before it."""
        if self._connection is not None:
            fd = self._connection.fileno()
            if self._watched.pop(fd, None) is not None:
                self._poll.unregister(fd)
            self._connection.close()
            self._connection = None
        self._for_host = b""

    def _serve_connection(self, events: int) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if events & self._out and self._for_host:
                self._for_host = self._for_host[connection.send(self._for_host) :]
            if events & ~self._out and not self._for_agent:
                self._for_agent = connection.recv(CHUNK)
                if not self._for_agent:
                    self._drop()
                    return
                self._write_agent()
            elif events & ~(self._in | self._out):
                self._drop()
        except BlockingIOError:
            pass
        except OSError:
            self._drop()

    def _write_agent(self) -> None:
        try:
            self._for_agent = self._for_agent[os.write(self._to_agent, self._for_agent) :]
        except BlockingIOError:
            pass

    def _read_agent(self) -> bool:
        try:
            data = os.read(self._from_agent, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        if self._connection is None:
            return True
        self._for_host = data
        try:
            self._for_host = data[self._connection.send(data) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
        return True


class Port:
    """A port of a virtio serial device, as much of a socket as the relay needs."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    @classmethod
    def find(cls, wanted: str) -> Port:
        """Open the port of that name. Its device gets no name that user code could open; raises OSError."""
        import time

        end = time.monotonic() + PORTS_SECONDS
        while time.monotonic() < end:
            for name in os.listdir("/sys/class/virtio-ports"):
                folder = "/sys/class/virtio-ports/" + name
                try:
                    with open(folder + "/name") as file:
                        found = file.read().strip()
                    with open(folder + "/dev") as file:
                        major, minor = map(int, file.read().split(":"))
                except OSError:  # the host has not named it yet
                    continue
                if found == wanted:
                    return cls._open("/dev/." + name, os.makedev(major, minor))
            time.sleep(0.01)
        raise OSError("the host gave no port " + wanted)

    @classmethod
    def _open(cls, path: str, device: int) -> Port:
        import stat

        os.mknod(path, 0o600 | stat.S_IFCHR, device)
        try:
            return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        finally:
            os.unlink(path)

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        """Nothing: there is no other connection than this one."""


class PortRelay(Relay):
    """Carries bytes between the host's port and the agent's pipes. There is one stream for ever, from the first
    greeting on; what is on its way when another one comes was meant for somebody else."""

    def __init__(self, stream: Port, greetings: Port, to_agent: int, from_agent: int) -> None:
        super().__init__(greetings, to_agent, from_agent)
        self._stream = stream
        self._greetings = greetings
        self._greeting = b""

    def _accept(self) -> None:
        try:
            data = self._greetings.recv(CHUNK)
        except OSError:
            return
        if not data:  # the host's end is closed, and nothing else will come
            raise SystemExit(1)
        self._greeting = (self._greeting + data)[-GREETING.size :]
        if len(self._greeting) == GREETING.size and self._greeting.startswith(MAGIC):
            greeting, self._greeting = self._greeting, b""
            heed(greeting)
            self._drop()
            self._connection = self._stream
            try:
                self._greetings.send(accepted(greeting))
            except OSError:
                pass  # it will greet again


if __name__ == "__main__":
    main()
