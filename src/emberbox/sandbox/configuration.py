"""What an agent is told before its first request: who the user is, what there is, and how much of it."""

from __future__ import annotations

from typing import Any

from emberbox.images.store import Image
from emberbox.models import MachineLimits

GUEST_HOME = "/home/user"
GUEST_PATH = "/home/user/.local/bin:/usr/local/bin:/usr/bin:/bin"
_UID = 1000
_MEMORY_SHARE = 0.85
"""Of the machine's memory that user code may use: the agent ends the program that takes more, before the machine's cap
has to kill all of them."""


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
        "memory": int((limits.memory_mb << 20) * _MEMORY_SHARE),
        "python_path": [],
    }
