"""The memory that copies share: one sealed file in memory for each template, loaded once."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from pathlib import Path

from emberbox.errors import VmNotAvailable
from emberbox.machines.microvm.sparse import written_parts
from emberbox.machines.qemu.memory import PagesFile, filled_runs, new_memory, seal, write_pages

_MOST_KEPT = 3


class SharedMemory:
    """A sealed memory. Its users `hold` and `release` it; it is closed with the last one.

    Args:
        fd: of the memory.
        digest: SHA-256 of the file that it was loaded from.
        file_fd: of that file, to link it once more; -1 where it is not at hand.
    """

    def __init__(self, fd: int, digest: str, file_fd: int = -1) -> None:
        self.fd = fd
        self.digest = digest
        self.size = os.fstat(fd).st_size
        self._file_fd = file_fd
        self._users = 1

    @classmethod
    def load(cls, path: Path, digest: str) -> SharedMemory:
        """Load a file; raises VmNotAvailable (it is not what it was), OSError."""
        with PagesFile(path) as pages:
            if pages.digest() != digest:
                raise VmNotAvailable(
                    f"The memory file {path} is damaged.", remediation="Take a new snapshot.", retryable=False
                )
            fd = new_memory(pages.size)
            try:
                pages.put_into(fd)
                seal(fd)
                return cls(fd, digest, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except BaseException:
                os.close(fd)
                raise

    @classmethod
    def empty(cls, size: int) -> SharedMemory:
        """All zero: for machines whose state brings their memory along; raises OSError."""
        fd = new_memory(size)
        seal(fd)
        return cls(fd, f"zero-{size}")

    def hold(self) -> SharedMemory:
        self._users += 1
        return self

    def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.close()

    def close(self) -> None:
        for fd in (self.fd, self._file_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._file_fd = -1

    def save(self, target: Path) -> str:
        """Put the file that this memory came from under another name as well, by a hard link where that can be done,
        else by a copy; its digest. Raises OSError."""
        if self._file_fd >= 0:
            try:
                _link(self._file_fd, target)
            except OSError:  # another file system, or the file has no name any more
                # an offset of its own: several snapshots may be written at once
                with Path(f"/proc/self/fd/{self._file_fd}").open("rb") as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                target.chmod(0o444)
            return self.digest
        return save_memory(self.fd, target)


def _link(fd: int, target: Path) -> None:
    """Give an open file one more name (linkat(2)); raises OSError."""
    folder = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(fd), target, src_dir_fd=folder, follow_symlinks=True)  # without the folder, Python does not follow
    finally:
        os.close(folder)


def save_memory(fd: int, target: Path) -> str:
    """Write a file in memory to a new one on the disk, all that is not zero; its SHA-256. Raises OSError."""

    def read(length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    runs = filled_runs(read, ((start, end - start) for start, end in written_parts(fd)))
    return write_pages(target, os.fstat(fd).st_size, runs, read)


class SharedMemoryCache:
    """Those that were used lately; the oldest are let go of."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, SharedMemory] = OrderedDict()

    def get(self, digest: str) -> SharedMemory | None:
        """One that is there, held for the caller."""
        base = self._kept.get(digest)
        if base is not None:
            self._kept.move_to_end(digest)
            return base.hold()
        return None

    def add(self, base: SharedMemory) -> None:
        """Keep one; the caller goes on holding it."""
        if base.digest not in self._kept:
            self._kept[base.digest] = base.hold()
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)[1].release()

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].release()
