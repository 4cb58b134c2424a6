"""Who user code runs as and under which limits, from the `configure` request; applied in a forked child."""

from __future__ import annotations

import os
import resource
import signal

from . import registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List

    from .fields import RequestFields

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_CORE_FILES = 0
UNLIMITED = resource.RLIM_INFINITY


class Settings:
    """The `configure` request, checked."""

    def __init__(self, fields: RequestFields) -> None:
        self.uid = fields.integer("uid", os.getuid(), high=(1 << 32) - 2)
        self.gid = fields.integer("gid", os.getgid(), high=(1 << 32) - 2)
        self.home = fields.text("home")
        self.workdir = fields.text("workdir")
        self.hostname = fields.optional_text("hostname")
        self.languages: List[str] = fields.texts("languages")
        self.warm: List[str] = fields.texts("warm")
        self.warmup = fields.optional_text("warmup")
        self.nproc = fields.integer("nproc", -1, low=-1)
        self.nofile = fields.integer("nofile", 1024, low=64)
        self.memory = fields.integer("memory", -1, low=-1)
        self.writable: List[str] = fields.texts("writable")
        self.python_path: List[str] = fields.texts("python_path")
        self.env: Dict[str, str] = {
            **registers.environment(),
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "MPLBACKEND": "Agg",
            **fields.environment("env"),
            "HOME": self.home,
            "USER": "user",
            "LOGNAME": "user",
        }


def is_privileged() -> bool:
    """Whether this process may become another user."""
    return os.geteuid() == 0


def lower(what: int, value: int) -> None:
    """Set a resource limit for good, never above what this process has."""
    hard = resource.getrlimit(what)[1]
    if hard != UNLIMITED and (value == UNLIMITED or value > hard):
        value = hard
    resource.setrlimit(what, (value, value))


def restrict(settings: Settings) -> None:
    """Turn this process, a fresh fork, into one of the user's: own session, limits, identity, umask. No way back."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    os.umask(0o022)
    lower(resource.RLIMIT_CORE, NO_CORE_FILES)
    lower(resource.RLIMIT_NOFILE, settings.nofile)
    if settings.nproc >= 0:
        lower(resource.RLIMIT_NPROC, settings.nproc)
    if settings.memory >= 0:
        # What a program may allocate, not what it may map: one absurd allocation fails with an error of its own, where
        # the kernel counts them. What all of them use is for the memory watch to limit.
        lower(resource.RLIMIT_DATA, settings.memory)
    become_user(settings)


def become_user(settings: Settings) -> None:
    """Give up every right of root for good. Without root this process is the user's already."""
    if os.getuid() == 0:
        os.seteuid(0)
        os.setgroups([])
        os.setresgid(settings.gid, settings.gid, settings.gid)
        os.setresuid(settings.uid, settings.uid, settings.uid)


def default_signals() -> None:
    """Undo what the interpreter ignores, before another program takes this process over."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)


class AsUser:
    """`with AsUser(settings):` touches files as the user would; the agent itself stays root."""

    __slots__ = ("_settings", "_switch")

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._switch = False

    def __enter__(self) -> None:
        if os.geteuid() == 0 and self._settings.uid != 0:
            self._switch = True
            os.setegid(self._settings.gid)
            os.seteuid(self._settings.uid)

    def __exit__(self, *_: object) -> None:
        if self._switch:
            os.seteuid(0)
            os.setegid(0)
