"""Pipes to a machine that is being made: all of them, or none."""

from __future__ import annotations

import os


def pipes(count: int) -> list[tuple[int, int]]:
    """So many pipes, each as its end to read from and its end to write to.

    Raises:
        OSError: no more files may be open; those that were opened are closed.
    """
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe())  # noqa: PERF401 (closed below even if one fails)
    except OSError:
        for ends in made:
            close_all(ends)
        raise
    return made


def close_all(descriptors: tuple[int, ...]) -> None:
    """Close each."""
    for descriptor in descriptors:
        os.close(descriptor)
