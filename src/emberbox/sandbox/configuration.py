"""What an agent is told before its first request: who the user is, what there is, and how much of it."""

from __future__ import annotations

from typing import Any

from emberbox.images.store import Image
from emberbox.models import MachineLimits

GUEST_HOME = "/home/user"
GUEST_PATH = "/home/user/.local/bin:/usr/local/bin:/usr/bin:/bin"
_UID = 1000
_ADDRESS_SPACE_SHARE = 0.85
"""Of the machine's memory that one process may map: a large allocation then fails in the program that made it, with an
error of its own, before the kernel has to kill the machine."""


def configuration(image: Image, limits: MachineLimits) -> dict[str, Any]:
    """The fields of `configure` (guest/protocol.py)."""
    template = image.template
    return {
        "uid": _UID,
        "gid": _UID,
        "home": GUEST_HOME,
        "workdir": template.workdir,
        "writable": template.writable,
        "hostname": "emberbox",
        "env": {"PATH": GUEST_PATH, "MPLBACKEND": "Agg", **template.env},
        "languages": template.languages,
        "warm": template.warm,
        "warmup": template.warmup,
        "nproc": limits.processes,
        "nofile": limits.open_files,
        "address_space": int((limits.memory_mb << 20) * _ADDRESS_SPACE_SHARE),
        "python_path": [],
    }
