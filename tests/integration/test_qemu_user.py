"""QEMU machines of an ordinary user without rights, groups or even a name: everything works, less is kept apart."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import emberbox
from backends import BOOT_SECONDS, need_qemu, need_root_disks, qemu_kernel
from emberbox import load_settings
from emberbox.host.rundir import processes_of
from emberbox.images.builder import ensure_image
from emberbox.images.kernel import find_kernel
from emberbox.images.template import load_template
from other_user import become, share

UID = 54322
"""Of nobody: without an entry in the passwd file."""
_LOOK = """
import json, os
from pathlib import Path
from emberbox import MachineLimits, Sandbox
from emberbox.host.rundir import processes_of

limits = MachineLimits(memory_mb=256, disk_mb=64, tmp_mb=32)
found = {}
with Sandbox.create("minimal", limits=limits) as sandbox:
    sandbox.run_code("x = 41")
    point = sandbox.snapshot()
    sandbox.run_code("x = 0")
    sandbox.rollback(point)
    found["rolled back"] = sandbox.run_code("x + 1").text
    (child,) = sandbox.fork(1)
    child.files.write("f", "of the fork")
    found["fork"] = child.files.read("f")
    found["parent"] = sandbox.files.exists("f")
    child.kill()
    (pid,) = [
        pid for pid in processes_of("emberbox.agent") if Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    ]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    found["process"] = {name: status[name] for name in ("Uid", "Gid", "CapEff", "CapPrm", "NoNewPrivs", "Seccomp")}
    run = sandbox.run_code("while True: pass", timeout=1)
    found["timeout"] = [str(run.termination_reason), sandbox.run_code("1").text]
    found["memory"] = str(sandbox.run_code("x = bytearray(1 << 30)").termination_reason)
found["left"] = [str(path) for path in Path(os.environ["EMBERBOX_RUN_DIR"]).iterdir()]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class User:
    """Somebody who has a home, an image, a guest kernel, and nothing else."""

    folder: Path
    python: str
    environment: Mapping[str, str]

    def runs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*become(UID), self.python, *arguments],
            env=self.environment, cwd="/", capture_output=True, text=True, timeout=220, check=False,
        )  # fmt: skip


def _lay_out(folder: Path, image: Path, kernel: Path) -> dict[str, str]:
    """What the user finds; the environment."""
    for name in ("home", "run", "state", "cache/images", "lib"):
        (folder / name).mkdir(parents=True)
    for path in (folder, *(folder / name for name in ("home", "run", "state", "cache", "cache/images"))):
        os.chown(path, UID, UID)
    share(image, folder / "cache/images" / image.name)
    shutil.copyfile(kernel, folder / "vmlinux")
    (folder / "vmlinux").chmod(0o444)
    share(Path(emberbox.__file__).parent, folder / "lib/emberbox")
    libraries = [path for path in map(Path, sys.path) if path.name == "site-packages"]
    for number, path in enumerate(libraries):
        share(path, folder / f"lib/{number}")
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder / "home"),
        "PYTHONPATH": ":".join([f"{folder}/lib", *(f"{folder}/lib/{n}" for n in range(len(libraries)))]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "EMBERBOX_BACKEND": "qemu",
        "EMBERBOX_QEMU_ACCEL": "tcg",
        "EMBERBOX_KERNEL": str(folder / "vmlinux"),
        "EMBERBOX_BOOT_TIMEOUT_SECONDS": str(BOOT_SECONDS),
        "EMBERBOX_CACHE_DIR": str(folder / "cache"),
        "EMBERBOX_RUN_DIR": str(folder / "run"),
        "EMBERBOX_STATE_DIR": str(folder / "state"),
        "EMBERBOX_VM_EXECUTION__VM_POOL_SIZE": "0",
        "COLUMNS": "200",
    }


@pytest.fixture
def somebody() -> Iterator[User]:
    """The user, who can read copies of this package, its dependencies, a guest kernel and the minimal image."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user; the other tests show an ordinary user already")
    need_root_disks()
    need_qemu()
    settings = load_settings()
    found = find_kernel(settings)
    kernel = qemu_kernel() or (found.vmlinux if found is not None and found.initrd is None else None)
    if kernel is None:
        pytest.skip("no guest kernel of one file")
    image = asyncio.run(ensure_image(load_template("minimal", settings), settings)).directory
    folder = Path(tempfile.mkdtemp(prefix="ebu-", dir="/tmp"))
    try:
        environment = _lay_out(folder, image, kernel)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
            user = User(folder, python, environment)
            if user.runs("-c", "import emberbox.cli.app, emberbox.cli.doctor").returncode == 0:
                break
        else:
            pytest.skip(f"no Python {version} here that another user may run")
        yield user
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_machines_of_an_ordinary_user(somebody: User) -> None:
    done = somebody.runs("-c", _LOOK)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (found["rolled back"], found["fork"], found["parent"]) == ("42", "of the fork", False)
    assert found["timeout"] == ["timeout", "1"]
    assert found["memory"] == "memory"
    process = found["process"]
    assert set(process["Uid"]) | set(process["Gid"]) == {str(UID)}
    assert process["CapEff"] == process["CapPrm"] == ["0" * 16]
    assert (process["NoNewPrivs"], process["Seccomp"]) == (["1"], ["2"])
    assert found["left"] == []
    assert processes_of(f"{somebody.folder}/run/") == []
    report = json.loads(somebody.runs("-m", "emberbox.cli.entry", "doctor", "--json").stdout)
    assert any("own rights" in text for text in _texts(report))


def _texts(value: object) -> list[str]:
    """All texts in it."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []
