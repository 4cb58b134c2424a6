"""Files with holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator


def written_parts(fd: int) -> Iterator[tuple[int, int]]:
    """Start and end of each part of a file that is no hole."""
    size, end = os.fstat(fd).st_size, 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
