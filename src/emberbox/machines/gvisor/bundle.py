"""The OCI bundle of a gVisor sandbox: what the container may see, be and use.

Format: config.json of the OCI runtime specification 1.0.2; what of it runsc honours: https://gvisor.dev/docs/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emberbox.images.store import Image
from emberbox.models import MachineLimits

AGENT_HOME = "/opt/emberbox"
AGENT_ARGV = ("/usr/bin/python3", "-E", "-S", "-s", "-m", "guest")
GUEST_HOME = "/home/user"
GUEST_UID = GUEST_GID = 1000

_CAPABILITIES = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
    "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE",
]  # fmt: skip
"""Of the agent, inside the sandbox: drop to the user's uid, signal its processes, write its files. CAP_SYS_ADMIN is
the sandbox's own (it sets the host name) and means nothing on the host."""

_RUN_MB = 16


def write_bundle(directory: Path, image: Image, limits: MachineLimits, hostname: str) -> None:
    """Make `directory` and write `config.json` into it."""
    directory.mkdir(mode=0o700)
    text = json.dumps(_config(image, limits, hostname))
    (directory / "config.json").write_text(text, encoding="utf-8")


def _config(image: Image, limits: MachineLimits, hostname: str) -> dict[str, Any]:
    open_files = {"type": "RLIMIT_NOFILE", "soft": 4096, "hard": max(4096, limits.open_files)}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(AGENT_ARGV),
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
            "cwd": AGENT_HOME,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [open_files],
            "noNewPrivileges": True,
        },
        "root": {"path": str(image.rootfs), "readonly": True},
        "hostname": hostname,
        "mounts": _mounts(image, limits),
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _mounts(image: Image, limits: MachineLimits) -> list[dict[str, Any]]:
    owner = f"uid={GUEST_UID},gid={GUEST_GID}"

    def tmpfs(destination: str, size_mb: int, *options: str) -> dict[str, Any]:
        return {
            "destination": destination,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": [f"size={size_mb}m", "nosuid", "nodev", *options],
        }

    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        tmpfs("/dev/shm", limits.tmp_mb, "mode=1777"),  # noqa: S108
        tmpfs("/run", _RUN_MB, "mode=0755"),
        tmpfs("/tmp", limits.tmp_mb, "mode=1777"),  # noqa: S108
        tmpfs(GUEST_HOME, limits.disk_mb, "mode=0755", *owner.split(",")),
        *(tmpfs(path, limits.disk_mb, "mode=0755", *owner.split(",")) for path in image.template.writable),
        {
            "destination": f"{AGENT_HOME}/guest",
            "type": "bind",
            "source": str(image.guest_dir),
            "options": ["ro", "rbind", "nosuid", "nodev"],
        },
    ]
