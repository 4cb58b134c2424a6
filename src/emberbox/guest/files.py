"""File operations for the host, carried out with the rights of the user. None of them follows a name blindly."""

from __future__ import annotations

import errno
import os
import stat as modes

from .fields import RequestError, bad_request
from .protocol import CHUNK_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .fields import RequestFields

LIST_LIMIT = 100_000
LIST_BYTES = 6_000_000
"""Entries travel in one frame, which is bounded; a list that would break the bound says `truncated`."""
ENTRY_OVERHEAD = 160
SAFE_OPEN = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
OPEN_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
TOKEN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
TOKEN_SIZE = 64
NEW_FILE_MODE = 0o644


def os_error(exc: OSError) -> RequestError:
    """The error event for a failed file operation."""
    message = exc.strerror or str(exc)
    if isinstance(exc.filename, str):
        message = f"{message}: {exc.filename}"
    return RequestError("file", message, errno.errorcode.get(exc.errno or 0, "EIO"))


def json_size(text: str) -> int:
    """Bytes that a text has at most as JSON."""
    return (2 if text.isascii() and text.isprintable() else 12) * len(text)


def full_path(fields: RequestFields, name: str, workdir: str) -> str:
    """A path of the request; relative ones start in the work directory."""
    path = fields.text(name)
    if not path:
        raise bad_request(f"{name!r} must not be empty")
    return os.path.normpath(os.path.join(workdir, path))


def _open_parent(path: str, roots: List[str]) -> tuple[int, str]:
    """A descriptor of the folder that holds `path`, reached without following a link, and the name in it.

    Raises:
        OSError: it is not below one of `roots`, or something on the way is missing, or is no folder.
    """
    root = next((root for root in roots if path.startswith(root.rstrip("/") + "/")), None)
    if root is None:
        raise OSError(errno.EACCES, "Not below the folders that the user can write to", path)
    reached, parts = root, path[len(root.rstrip("/")) + 1 :].split("/")
    fd = os.open(root, OPEN_FOLDER | os.O_NOFOLLOW)
    try:
        for part in parts[:-1]:
            reached = os.path.join(reached, part)
            inner = os.open(part, OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError as exc:
        os.close(fd)
        raise OSError(exc.errno, exc.strerror, reached) from None
    return fd, parts[-1]


class _Parent:
    """`with _Parent(path, roots) as (folder, name):` holds the folder of a path. Without `roots` links are followed."""

    __slots__ = ("_fd", "_path", "_roots")

    def __init__(self, path: str, roots: List[str] | None) -> None:
        self._path = path
        self._roots = roots

    def __enter__(self) -> tuple[int, str]:
        if self._roots is None:
            # Writing to a symbolic link writes to what it names, as open() does.
            folder, name = os.path.split(os.path.realpath(self._path))
            self._fd = os.open(folder, OPEN_FOLDER)
        else:
            self._fd, name = _open_parent(self._path, self._roots)
        return self._fd, name

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def read(
    path: str, offset: int, length: int, ident: str | None, roots: List[str] | None = None
) -> tuple[Dict[str, Any], bytes]:
    """A chunk of a regular file."""
    if roots is None:
        fd = os.open(path, os.O_RDONLY | SAFE_OPEN)
    else:
        with _Parent(path, roots) as (folder, name):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | SAFE_OPEN, dir_fd=folder)
    try:
        info = os.fstat(fd)
        if modes.S_ISDIR(info.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        _check_regular(fd, path)
        actual = f"{info.st_dev}:{info.st_ino}"
        if ident is not None and ident != actual:
            raise OSError(errno.ESTALE, "Another file has taken this name", path)
        data = os.pread(fd, min(length, CHUNK_SIZE), offset)
        # Files of /proc report no size, so only an empty read tells their end.
        eof = not data if info.st_size == 0 else offset + len(data) >= info.st_size
        return {"size": info.st_size, "ident": actual, "eof": eof}, data
    finally:
        os.close(fd)


def _check_regular(fd: int, path: str) -> None:
    if not modes.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)


def _temporary(token: str) -> str:
    """The name of what is being made, beside its target."""
    if not token or len(token) > TOKEN_SIZE or not TOKEN_CHARACTERS.issuperset(token):
        raise bad_request(f"'upload' must be 1 to {TOKEN_SIZE} letters, digits, '-' or '_'")
    return ".upload-" + token


def write(
    path: str, token: str, offset: int, data: bytes, *, final: bool, mode: int | None, roots: List[str] | None = None
) -> tuple[int, str]:
    """Add a chunk to an upload, beyond its end with zeros between; the final one moves it onto its target. Answers the
    size so far, and the file's mark."""
    temporary = _temporary(token)
    if roots is None and os.path.isdir(path):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    flags = os.O_WRONLY | os.O_NOFOLLOW | SAFE_OPEN
    if offset == 0:
        if roots is None:
            os.makedirs(os.path.dirname(os.path.realpath(path)), exist_ok=True)
        # A first chunk that is sent again replaces what the first attempt left.
        flags |= os.O_CREAT | os.O_TRUNC
    with _Parent(path, roots) as (folder, name):
        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            _check_regular(fd, temporary)
            end = offset + len(data)
            view = memoryview(data)
            while view:
                written = os.pwrite(fd, view, offset)
                offset += written
                view = view[written:]
            if final:
                os.ftruncate(fd, end)
                os.fchmod(fd, _final_mode(folder, name, mode))
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            return end, mark(os.fstat(fd))
        except OSError:
            if final:
                _forget(temporary, folder)
            raise
        finally:
            os.close(fd)


def _final_mode(folder: int, name: str, mode: int | None) -> int:
    if mode is not None:
        return mode & 0o7777
    try:
        return os.stat(name, dir_fd=folder).st_mode & 0o7777
    except FileNotFoundError:
        return NEW_FILE_MODE


def mark(info: os.stat_result) -> str:
    """What is another one whenever a file has been changed."""
    return f"{info.st_ino}:{info.st_ctime_ns}"


def _forget(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        pass


def write_abort(path: str, token: str, roots: List[str] | None = None) -> None:
    """Throw an unfinished upload away."""
    temporary = _temporary(token)
    try:
        with _Parent(path, roots) as (folder, _):
            _forget(temporary, folder)
    except OSError:
        pass  # its folder has gone


def entry(path: str) -> Dict[str, Any]:
    """What `stat` and `list` tell about a file; a symbolic link is not followed."""
    info = os.lstat(path)
    kind = "other"
    target = None
    if modes.S_ISREG(info.st_mode):
        kind = "file"
    elif modes.S_ISDIR(info.st_mode):
        kind = "dir"
    elif modes.S_ISLNK(info.st_mode):
        kind = "symlink"
        target = os.readlink(path)
    return {
        "path": path,
        "name": os.path.basename(path),
        "type": kind,
        "size": info.st_size,
        "mode": modes.S_IMODE(info.st_mode),
        "mtime": info.st_mtime,
        "uid": info.st_uid,
        "gid": info.st_gid,
        "target": target,
    }


def list_directory(path: str, depth: int, limit: int) -> Dict[str, Any]:
    """The entries below `path`, each directory's before those of its subdirectories, sorted by name."""
    entries: List[Dict[str, Any]] = []
    room = LIST_BYTES
    pending = [(path, 1)]
    while pending:
        folder, level = pending.pop(0)
        try:
            names, complete = _names(folder, limit - len(entries))
        except OSError as exc:
            if level == 1 or exc.errno == errno.ENAMETOOLONG:
                raise
            continue  # a subdirectory that has gone or is closed to the user
        for name in names:
            item = _entry_or_none(os.path.join(folder, name))
            if item is None:
                continue
            texts = (item["name"], item["path"], item["target"] or "")
            room -= ENTRY_OVERHEAD + sum(json_size(text) for text in texts)
            if room < 0:
                return {"entries": entries, "truncated": True}
            entries.append(item)
            if item["type"] == "dir" and level < depth:
                pending.append((item["path"], level + 1))
        if not complete:
            return {"entries": entries, "truncated": True}
    return {"entries": entries, "truncated": False}


def _names(folder: str, most: int) -> tuple[List[str], bool]:
    names: List[str] = []
    with os.scandir(folder) as items:
        for item in items:
            if len(names) >= most:
                return sorted(names), False
            names.append(item.name)
    return sorted(names), True


def _entry_or_none(path: str) -> Dict[str, Any] | None:
    try:
        return entry(path)
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            raise
        return None  # gone meanwhile


def make_directory(path: str, roots: List[str] | None = None) -> bool:
    """Make a directory, and its parents where no `roots` are given; False when it was there."""
    try:
        if roots is None:
            os.makedirs(path)
        else:
            with _Parent(path, roots) as (folder, name):
                os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        if not (os.path.isdir(path) if roots is None else modes.S_ISDIR(os.lstat(path).st_mode)):
            raise
        return False
    return True


def make_link(path: str, token: str, target: str, roots: List[str]) -> str:
    """Make a symbolic link; it replaces whatever has its name, but a directory, in one step. Answers its mark."""
    temporary = _temporary(token)
    with _Parent(path, roots) as (folder, name):
        os.symlink(target, temporary, dir_fd=folder)
        try:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            _forget(temporary, folder)
            raise
        return mark(os.stat(name, dir_fd=folder, follow_symlinks=False))


def change_folder_mode(path: str, mode: int, roots: List[str]) -> None:
    """Set the permissions of a directory, which may be one of `roots` itself."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if path in roots:
        fd = os.open(path, flags)
    else:
        with _Parent(path, roots) as (folder, name):
            fd = os.open(name, flags, dir_fd=folder)
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove(path: str, roots: List[str] | None = None) -> bool:
    """Remove anything but a directory with content; False when it is one, which is work for a worker. With `roots` that
    is an error, and no link on the way is followed."""
    if roots is not None:
        with _Parent(path, roots) as (folder, name):
            if modes.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        return True
    if not modes.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return True
    try:
        os.rmdir(path)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True
