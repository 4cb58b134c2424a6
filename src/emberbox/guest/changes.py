"""Which files the user's code has created, changed or deleted: a look at everything that it can write to.

A file is told apart by inode, size and the time of its last change of state (ctime, which no program can set): content
is not read. No link is followed.
"""

from __future__ import annotations

import os
import stat as modes

from .limits import AsUser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Tuple

    from .limits import Settings

ELSEWHERE = ("/tmp", "/dev/shm")  # noqa: S108 (the sandbox's own)
"""Where else than in its home, its work directory and the template's own folders the user can write."""
MOST_FILES = 20_000
"""Beyond this a look would take too long; nothing is told then."""
DEEPEST = 60
"""A descriptor is open for each level."""
MOST_NAMES = 1000
MOST_BYTES = 200_000
"""Of names in one answer, which travels in a frame's header."""
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = ("created", "changed", "deleted")


class TooMany(Exception):
    """More files, or deeper folders, than are looked at."""


class Folder:
    """A folder as it was at the last look."""

    __slots__ = ("files", "folders", "mark")

    def __init__(self, mark: Tuple[int, int]) -> None:
        self.mark = mark
        """Inode, and time of the last change of its entries."""
        self.files: Dict[str, int] = {}
        self.folders: List[str] = []


class Changes:
    """What happened to the user's files since the last look.

    Most executions change nothing, so that a look is fast then: a folder whose own times are the same has the same
    entries, and only these are asked for theirs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._skipped = {cache_of_programs(settings)}
        self._folders: Dict[str, Folder] | None = None
        self._count = 0
        self.stale = True
        """Something else than a tracked execution may have changed files since the last look."""

    def begin(self) -> None:
        """What is there now is not the doing of what begins now."""
        if self.stale:
            self.look()
            self.stale = False

    def look(self) -> Dict[str, Any] | None:
        """Names of the files created, changed and deleted since the last look; None when there are too many files."""
        before, self._count = self._folders, 0
        now: Dict[str, Folder] = {}
        found: Dict[str, List[str]] = {kind: [] for kind in _KINDS}
        try:
            for root in roots_of(self._settings):
                self._visit(root, before or {}, now, found, 0)
        except TooMany:
            self._folders = None
            return None
        for path in (before or {}).keys() - now.keys():
            found["deleted"] += [f"{path}/{name}" for name in (before or {})[path].files]
        self._folders = now
        return None if before is None else _named(found)

    def _visit(
        self, path: str, before: Dict[str, Folder], now: Dict[str, Folder], found: Dict[str, List[str]], depth: int
    ) -> None:
        if depth > DEEPEST:
            raise TooMany
        try:
            info = os.lstat(path)
        except OSError:
            return
        if not modes.S_ISDIR(info.st_mode) or path in self._skipped:
            return
        old, mark = before.get(path), (info.st_ino, info.st_mtime_ns)
        if old is not None and old.mark == mark:
            self._ask(path, old, found)
        else:
            new = self._read(path, mark)
            _compare(path, {} if old is None else old.files, new.files, found)
            old = new
        now[path] = old
        self._count += len(old.files)
        if self._count > MOST_FILES:
            raise TooMany
        for name in old.folders:
            self._visit(f"{path}/{name}", before, now, found, depth + 1)

    def _ask(self, path: str, folder: Folder, found: Dict[str, List[str]]) -> None:
        """The files of a folder whose entries are the same."""
        for name, mark in list(folder.files.items()):
            try:
                new = _mark(os.lstat(f"{path}/{name}"))
            except OSError:
                folder.mark = (0, 0)  # it changes just now: to be read at the next look
                continue
            if new != mark:
                folder.files[name] = new
                found["changed"].append(f"{path}/{name}")

    def _read(self, path: str, mark: Tuple[int, int]) -> Folder:
        """All of a folder."""
        folder = Folder(mark)
        try:
            with AsUser(self._settings):
                fd = os.open(path, OPEN_FOLDER)
        except OSError:
            return folder
        try:
            with os.scandir(fd) as items:
                for item in items:
                    try:
                        if item.is_dir(follow_symlinks=False):
                            folder.folders.append(item.name)
                        else:
                            folder.files[item.name] = _mark(item.stat(follow_symlinks=False))
                    except OSError:
                        continue  # gone meanwhile
                    if len(folder.files) > MOST_FILES:
                        raise TooMany
        finally:
            os.close(fd)
        return folder


def _mark(info: os.stat_result) -> int:
    return hash((info.st_ino, info.st_ctime_ns, info.st_size))


def _compare(path: str, before: Dict[str, int], now: Dict[str, int], found: Dict[str, List[str]]) -> None:
    found["created"] += [f"{path}/{name}" for name in now if name not in before]
    found["changed"] += [f"{path}/{name}" for name, mark in now.items() if before.get(name, mark) != mark]
    found["deleted"] += [f"{path}/{name}" for name in before if name not in now]


def roots_of(settings: Settings) -> List[str]:
    """The folders that the user can write to, none of them below another."""
    roots: List[str] = []
    for path in sorted({settings.home, settings.workdir, *ELSEWHERE, *settings.writable}):
        if not any(path.startswith(root.rstrip("/") + "/") for root in roots):
            roots.append(path)
    return roots


def cache_of_programs(settings: Settings) -> str:
    """Where the agent keeps compiled programs; these are no doing of the user's code."""
    return os.path.join(settings.home, ".cache", "rust-programs")


def _named(found: Dict[str, List[str]]) -> Dict[str, Any]:
    """The names, as many as there is room for, and the number of the others."""
    answer: Dict[str, Any] = {}
    room, left = MOST_BYTES, MOST_NAMES
    more = 0
    for kind in _KINDS:
        names: List[str] = []
        for path in sorted(found[kind]):
            room -= len(path) * 2
            left -= 1
            if room < 0 or left < 0:
                more += 1
            else:
                names.append(path)
        if names:
            answer[kind] = names
    if more:
        answer["more"] = more
    return answer
