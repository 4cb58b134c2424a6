"""Run by test_firecracker.py as an ordinary user: forks a microVM from a snapshot and prints what it found, as JSON.

First as root in a mount namespace of its own (`prepare`), where the user finds Python, this source and a /dev/kvm that
it may open; then, after setpriv(1), as that user (`look`).
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

MODE = 0o666


def prepare(facts: dict[str, Any]) -> None:
    """Lay out the namespace below the folder, and become the user."""
    folder = Path(facts["folder"])
    sources = {"python": sys.base_prefix, "site": facts["site"], "src": facts["src"], "programs": facts["programs"]}
    for name, source in sources.items():
        (folder / name).mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", source, folder / name], check=True, timeout=30)
    if facts["kvm"]:
        devices = folder / "devices"
        devices.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "devices", devices], check=True, timeout=30)
        info = Path("/dev/kvm").stat()
        os.mknod(devices / "kvm", stat.S_IFCHR | MODE, info.st_rdev)
        (devices / "kvm").chmod(MODE)
        subprocess.run(["mount", "--bind", devices / "kvm", "/dev/kvm"], check=True, timeout=30)
    python = folder / "python/bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "LD_LIBRARY_PATH": str(folder / "python/lib"),
        "PYTHONPATH": f"{folder / 'src'}:{folder / 'site'}",
    }
    user = ["setpriv", "--reuid", str(facts["uid"]), "--regid", str(facts["uid"]), "--clear-groups", "--no-new-privs"]
    os.execvpe("setpriv", [*user, str(python), __file__, "look", json.dumps(facts)], env)  # noqa: S606


async def look(facts: dict[str, Any]) -> dict[str, Any]:
    """Fork the machine, talk to it, end it."""
    from emberbox import MachineLimits, load_settings
    from emberbox.images.store import ImageStore
    from emberbox.images.template import load_template
    from emberbox.machines.contract import Snapshot
    from emberbox.machines.firecracker import FirecrackerFactory, FirecrackerOptions
    from emberbox.machines.firecracker.machine import FirecrackerMachine

    home = Path(facts["folder"]) / "home"
    settings = load_settings(cache_dir=home / "cache", run_dir=home / "r", state_dir=home / "state")
    programs = Path(facts["folder"]) / "programs"
    options = FirecrackerOptions(
        programs / "firecracker", programs / "jailer", Path(facts["kernel"]), accept_emulated=True
    )
    factory = FirecrackerFactory(settings, options)
    found: dict[str, Any] = {"uid": os.getuid()}
    capabilities = factory.capabilities()
    found |= {"usable": capabilities.usable, "why": capabilities.why, "remedy": capabilities.remedy}
    found["limitations"] = list(capabilities.limitations)
    if capabilities.usable:
        image = ImageStore(settings).find(load_template("minimal", settings))
        assert image is not None
        limits = MachineLimits.model_validate(facts["limits"])
        machine = await factory.fork(Snapshot(home / "snapshot", image, limits, facts["last_request"], 0))
        try:
            await machine.channel.call("wake", fork=True, env={})
            await machine.channel.call("ping")
            assert isinstance(machine, FirecrackerMachine)
            assert machine._process is not None
            status = Path(f"/proc/{machine._process.pid}/status").read_text()
            found["uids"] = status.partition("Uid:")[2].split()[:4]
        finally:
            await factory.close()
        found["left"] = [str(path) for path in settings.run_dir.iterdir()]
    return found


if __name__ == "__main__":
    words: dict[str, Any] = json.loads(sys.argv[2])
    if sys.argv[1] == "prepare":
        prepare(words)
    print(json.dumps(asyncio.run(look(words))))
