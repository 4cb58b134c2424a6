"""All files of the user, and the removal of folders, however deep they are: one descriptor at a time, no link followed.

A folder is left by its `..`, which must be the folder that it was entered from: who moves folders meanwhile gets an
error, and nothing else is touched.
"""

from __future__ import annotations

import errno
import os
import stat as modes

from .changes import MOST_FILES, OPEN_FOLDER
from .files import json_size, mark

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, Tuple

    Row = Tuple[str, str, int, int, str, str | None]

DEEPEST_TREE = 200
"""Folders in a path, where folders are told as well. What is in deeper ones is not looked at, and they are said to be
closed."""
DEEPEST_FILES = 1000
"""The same where only files are told, which are read by their paths: these have 4095 bytes at most (PATH_MAX)."""
MOST_ROW_BYTES = 6_000_000
"""Of all rows, which travel in one frame."""
ROW_OVERHEAD = 80
NAME_BYTES = 20
"""That a name adds to the size of a folder."""
CLOSED = "closed"
"""In the place of a folder's mark: what is in it cannot be seen."""
OWN = "own"
"""There as well: the agent keeps something in it."""
_ATTEMPTS = 5
"""Of removing a folder into which something is put meanwhile."""


class _Folder:
    """A folder on the way from the root to where the walk is."""

    __slots__ = ("ident", "path", "pending")

    def __init__(self, path: str, ident: Tuple[int, int], pending: List[str]) -> None:
        self.path = path
        self.ident = ident
        self.pending = pending
        """Names of its folders that have not been entered."""


def _ident(fd: int) -> Tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def _opened(name: str, fd: int) -> int | None:
    """A descriptor of a folder, if the user may see what is in it, and what that is."""
    try:
        inner = os.open(name, OPEN_FOLDER, dir_fd=fd)
    except OSError:
        return None
    try:
        os.stat(".", dir_fd=inner)  # who may list it may yet be kept from what is in it, and from its `..`
    except OSError:
        os.close(inner)
        return None
    return inner


def _leave(fd: int, above: Tuple[int, int], path: str) -> int:
    """A descriptor of the folder above the one of `fd`, which is closed.

    Raises:
        OSError: it is another one than it was.
    """
    try:
        parent = os.open("..", OPEN_FOLDER, dir_fd=fd)
    finally:
        os.close(fd)
    if _ident(parent) != above:
        os.close(parent)
        raise OSError(errno.EBUSY, "Something moves folders meanwhile", path)
    return parent


class Tree:
    """Rows about all that the user can write.

    Args:
        skipped: folders that are not looked at.
        uid: of the user. Folders of others that are closed to it are its concern no more than /etc.
        deepest: folders in a path.
    """

    def __init__(self, skipped: str, uid: int, deepest: int = DEEPEST_TREE) -> None:
        self.rows: List[Row] = []
        self._skipped = skipped
        self._own = _upwards(skipped)
        self._uid = uid
        self._deepest = deepest
        self._files = self._folders = 0
        self._room = MOST_ROW_BYTES

    def add_root(self, root: str) -> None:
        """Look at all below a folder.

        Raises:
            OSError: there is too much, or something moves folders meanwhile.
        """
        try:
            info = os.lstat(root)
        except OSError:
            return
        if not modes.S_ISDIR(info.st_mode):
            return
        at = self._add_folder(root, info)
        try:
            fd = os.open(root, OPEN_FOLDER)
        except OSError:
            self._close(at)
            return
        self._walk(fd, root.rstrip("/"), at)

    def _walk(self, fd: int, root: str, at: int) -> None:
        stack = [_Folder(root, _ident(fd), self._read(fd, root, at))]
        try:
            while True:
                folder = stack[-1]
                if folder.pending:
                    name = folder.pending.pop()
                    entered = self._enter(fd, f"{folder.path}/{name}", name, len(stack))
                    if entered is not None:
                        os.close(fd)
                        fd, below = entered
                        stack.append(below)
                    continue
                stack.pop()
                if not stack:
                    return
                left, fd = fd, -1
                fd = _leave(left, stack[-1].ident, folder.path)
        finally:
            if fd >= 0:
                os.close(fd)

    def _enter(self, fd: int, path: str, name: str, depth: int) -> Tuple[int, _Folder] | None:
        """Open a folder and read it; None where that cannot be."""
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            return None
        if path == self._skipped or not modes.S_ISDIR(info.st_mode):
            return None  # what is no folder was one a moment ago
        at = self._add_folder(path, info)
        inner = None if depth > self._deepest else _opened(name, fd)
        if inner is None:
            if depth > self._deepest or info.st_uid == self._uid:
                self._close(at)
            return None
        try:
            return inner, _Folder(path, _ident(inner), self._read(inner, path, at))
        except OSError:
            os.close(inner)
            raise

    def _read(self, fd: int, path: str, at: int) -> List[str]:
        """Add what is in a folder; the names of the folders in it."""
        folders: List[str] = []
        with os.scandir(fd) as items:
            for item in items:
                try:
                    if item.is_dir(follow_symlinks=False):
                        folders.append(item.name)
                    else:
                        self._add_file(f"{path}/{item.name}", item.stat(follow_symlinks=False), item.name, fd)
                except OSError as exc:
                    if exc.errno == errno.EACCES:
                        self._close(at)
                        return []
                    if exc.errno == errno.E2BIG:
                        raise
                    continue  # gone meanwhile
                if len(folders) > MOST_FILES:
                    raise _too_many()
        folders.sort(reverse=True)
        return folders

    def _add_file(self, path: str, info: os.stat_result, name: str, fd: int) -> None:
        kind, target = "other", None
        if modes.S_ISREG(info.st_mode):
            kind = "file"
        elif modes.S_ISLNK(info.st_mode):
            kind, target = "symlink", os.readlink(name, dir_fd=fd)
        self._files += 1
        if self._files > MOST_FILES:
            raise _too_many()
        self._add((path, kind, info.st_size, modes.S_IMODE(info.st_mode), mark(info), target))

    def _add_folder(self, path: str, info: os.stat_result) -> int:
        self._folders += 1
        if self._folders > MOST_FILES:
            raise _too_many()
        self._add((path, "dir", 0, modes.S_IMODE(info.st_mode), OWN if path in self._own else "", None))
        return len(self.rows) - 1

    def _add(self, row: Row) -> None:
        self._room -= json_size(row[0]) + json_size(row[5] or "") + ROW_OVERHEAD
        if self._room < 0:
            raise _too_many()
        self.rows.append(row)

    def _close(self, at: int) -> None:
        path, kind, size, mode, _, target = self.rows[at]
        self.rows[at] = (path, kind, size, mode, CLOSED, target)


def _too_many() -> OSError:
    return OSError(errno.E2BIG, f"more than {MOST_FILES} files or folders, or 6 MB of their names")


def tree(roots: List[str], skipped: str, uid: int, *, folders: bool = False) -> List[Row]:
    """All files of the user, sorted: path, kind, size, mode, a mark that changes with the file, target of a link.

    `folders`: directories as well, the roots included, but not what is skipped; the mark of one whose content cannot be
    seen is `closed`, of one above what is skipped `own`.

    Raises:
        OSError: there are too many, or (without `folders`) some are too deep.
    """
    found = Tree(skipped, uid, DEEPEST_TREE if folders else DEEPEST_FILES)
    for root in roots:
        found.add_root(root)
    if folders:
        return sorted(found.rows)
    for row in found.rows:
        if row[4] == CLOSED and row[0].count("/") > DEEPEST_FILES:
            raise OSError(errno.ENAMETOOLONG, f"folders more than {DEEPEST_FILES} deep, below {row[0][:100]}")
    return sorted(row for row in found.rows if row[1] != "dir")


def _upwards(path: str) -> List[str]:
    """A path and the folders that it is in."""
    found = []
    while len(path) > 1:
        found.append(path)
        path = os.path.dirname(path)
    return found


def how_many(roots: List[str]) -> int:
    """How many files and folders there are below `roots`, as far as folders say it of themselves (those of memory file
    systems of gVisor do: 20 bytes for each name, and two of their own)."""
    count, looks = 0, MOST_FILES
    pending = list(roots)
    while pending and looks > 0:
        path = pending.pop()
        looks -= 1
        try:
            info = os.lstat(path)
            if not modes.S_ISDIR(info.st_mode):
                continue
            count += max(0, info.st_size // NAME_BYTES - 2)
            if info.st_nlink > 2:
                with os.scandir(path) as items:
                    pending += [item.path for item in items if item.is_dir(follow_symlinks=False)]
        except OSError:
            continue
    return count


def remove_tree(path: str) -> None:
    """Remove a directory with all it holds, however deep it is.

    Raises:
        OSError: something in it cannot be removed, or is moved meanwhile.
    """
    fd = os.open(path, OPEN_FOLDER)
    stack = [_Folder(path, _ident(fd), _emptied(fd))]
    attempts: Dict[Tuple[int, int], int] = {}
    try:
        while True:
            folder = stack[-1]
            if folder.pending:
                name = folder.pending.pop()
                if _removed(name, fd):
                    continue
                inner = os.open(name, OPEN_FOLDER, dir_fd=fd)
                os.close(fd)
                fd = inner
                stack.append(_Folder(name, _ident(fd), _emptied(fd)))
                continue
            stack.pop()
            if not stack:
                break
            left, fd = fd, -1
            fd = _leave(left, stack[-1].ident, folder.path)
            _remove_folder(fd, folder, stack[-1], attempts)
    finally:
        if fd >= 0:
            os.close(fd)
    os.rmdir(path)


def _removed(name: str, fd: int) -> bool:
    """Whether a folder was empty, and is gone: even one that is closed."""
    try:
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        return True
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _remove_folder(fd: int, folder: _Folder, above: _Folder, attempts: Dict[Tuple[int, int], int]) -> None:
    try:
        os.rmdir(folder.path, dir_fd=fd)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return
        tried = attempts[folder.ident] = attempts.get(folder.ident, 0) + 1
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST) or tried >= _ATTEMPTS:
            raise
        above.pending.append(folder.path)


def _emptied(fd: int) -> List[str]:
    """Remove all of a folder but its folders, whose names are the answer."""
    folders: List[str] = []
    with os.scandir(fd) as items:
        found = [(item.name, item.is_dir(follow_symlinks=False)) for item in items]
    for name, is_folder in found:
        if is_folder:
            folders.append(name)
            continue
        try:
            os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
    return folders
