"""Files that are there whole or not at all, whoever reads them meanwhile and whatever is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Write a file in place of what is there.

    Args:
        path: of the file; its folder is there.
        content: text is written as UTF-8.
        mode: its permissions.
        durable: it is on the disk, name included, when this returns.

    Raises:
        OSError: the disk refused; what was there before still is.
    """
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600, durable: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` at the end, or not where that fails. As `write_whole`."""
    # a name that nobody can guess, and so not put a link there before us
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    building = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            os.fchmod(file.fileno(), mode)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        building.replace(path)
    except BaseException:
        building.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk; raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
