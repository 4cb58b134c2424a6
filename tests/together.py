"""Which tests run one after the other in one process, and in what order the processes of a run take them.

Tests that share something dear (an emulated machine, a server of its own) are one group, which one process runs; what
takes longest is begun first, and the short files fill the gaps, so that all processes end together.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

_LONGEST_FIRST = (
    "firecracker",
    "qemu",
    "test_images.py",
    "test_docs.py",
    "test_growth.py",
    "test_server_schema.py",
    "test_server_hostile.py",
    "test_languages.py",
    "test_cli.py",
    "test_durable.py",
    "test_copies_share_nothing.py",
    "test_bench.py",
)
"""Groups, by the time that they take. Those that are not named take less than that of the last one."""


def group_of(nodeid: str) -> str:
    """The group of a test: an emulated back end, or the file that it is in."""
    file, _, test = nodeid.partition("::")
    name = file.rpartition("/")[2]
    parameters = test.partition("[")[2].rstrip("]").split("-")
    for backend in ("firecracker", "qemu"):
        if file.startswith("tests/integration/") and (backend in parameters or name.startswith(f"test_{backend}")):
            return backend
    return file


def _place(nodeid: str) -> int:
    group = group_of(nodeid).rpartition("/")[2]
    return _LONGEST_FIRST.index(group) if group in _LONGEST_FIRST else len(_LONGEST_FIRST)


def sort(items: list[pytest.Item]) -> None:
    """Groups in the order in which they are to begin, and each in one piece."""
    order: dict[str, int] = {}
    for item in items:
        order.setdefault(group_of(item.nodeid), len(order))
    items.sort(key=lambda item: (_place(item.nodeid), order[group_of(item.nodeid)]))


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Gives whole groups to processes, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Called by pytest-xdist."""
    config.option.loadscopereorder = False
    return Together(config, log)
