"""Emberbox for an ordinary user without rights, groups or even a name, and for root without cgroups."""

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
from typing import Any

import pytest

import emberbox
from emberbox import Engine, MachineLimits, Sandbox, Settings, TerminationReason, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.host.rundir import processes_of
from emberbox.images.builder import ensure_image
from emberbox.images.template import load_template
from emberbox.machines.gvisor.runsc import find_runsc
from other_user import become, link_or_copy, share

UID = 54321
"""Of nobody: without an entry in the passwd file, so without a name, groups or subordinate ids."""


@dataclass(frozen=True)
class User:
    """Somebody who has a home, an image, and nothing else."""

    folder: Path
    python: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def runs(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [*become(UID), *self.python, *arguments]
        return subprocess.run(
            argv, env=self.environment, cwd="/", capture_output=True, text=True, timeout=120, check=False
        )

    def emberbox(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.runs("-m", "emberbox.cli.entry", *arguments)


@pytest.fixture(scope="module")
def somebody() -> Iterator[User]:
    """The user, who can read copies of this package, its dependencies, runsc and the minimal image."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user; the other tests show an ordinary user already")
    settings = load_settings()
    image = _built("minimal", settings)
    runsc, problems = find_runsc(settings)
    assert runsc is not None, problems
    folder = Path(tempfile.mkdtemp(prefix="ebu-", dir="/tmp"))
    try:
        for name in ("home", "run", "cache/images", "cache/bin", "lib"):
            (folder / name).mkdir(parents=True)
        for path in (folder, folder / "home", folder / "run", folder / "cache", *folder.glob("cache/*")):
            os.chown(path, UID, UID)
        share(image, folder / "cache/images" / image.name)
        link_or_copy(str(runsc.program.resolve()), str(folder / "cache/bin/runsc"))
        share(Path(emberbox.__file__).parent, folder / "lib/emberbox")
        libraries = [path for path in map(Path, sys.path) if path.name == "site-packages"]
        for number, path in enumerate(libraries):
            share(path, folder / f"lib/{number}")
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder / "home"),
            "PYTHONPATH": ":".join([f"{folder}/lib", *(f"{folder}/lib/{n}" for n in range(len(libraries)))]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "error",
            "EMBERBOX_CACHE_DIR": str(folder / "cache"),
            "EMBERBOX_RUN_DIR": str(folder / "run"),
            "COLUMNS": "200",
        }
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
            user = User(folder, (python,), environment)
            if user.runs("-c", "import emberbox.cli.app, emberbox.cli.doctor").returncode == 0:
                break
        else:
            pytest.skip(f"no Python {version} here that another user may run")
        namespace = subprocess.run(
            [*become(UID), "unshare", "--user", "--map-root-user", "true"], capture_output=True, text=True, check=False
        )
        if namespace.returncode != 0:
            pytest.skip(f"user namespaces are not for ordinary users here: {namespace.stderr.strip()}")
        yield user
    finally:
        shutil.rmtree(folder)


def _built(name: str, settings: Settings) -> Path:
    import asyncio

    return asyncio.run(ensure_image(load_template(name, settings), settings)).directory


@pytest.fixture
def user(somebody: User, nothing_left: None) -> Iterator[User]:
    yield somebody
    assert processes_of(f"{somebody.run_dir}/") == [], "processes are left"
    assert list(somebody.run_dir.iterdir()) == [], "files are left"


def test_an_execution(user: User) -> None:
    done = user.emberbox("exec", "-t", "minimal", "-l", "python", "-c", "import os; print(os.getuid())\n6 * 7")
    assert (done.stdout, done.stderr, done.returncode) == ("1000\n42\n", "", 0)


def test_doctor_says_what_is_lost(user: User) -> None:
    done = user.emberbox("doctor", "--json", "-t", "minimal")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer["works"] is True
    said = {check["name"]: check["found"] for check in answer["checks"]}
    assert f"uid {UID}" in said["host"]
    lost = " ".join(check["found"] for check in answer["checks"] if check["state"] == "note")
    assert "none that can be written" in lost
    assert "memory is watched" in lost
    assert "CPU is not limited" in lost
    assert "user namespace" in lost
    table = user.emberbox("doctor", "-t", "minimal")
    assert "memory is watched" in table.stdout
    assert "delegated cgroup" in table.stdout


PROGRAM = """
from emberbox import MachineLimits, Sandbox, TerminationReason
from emberbox.errors import GuestFileError

with Sandbox.create("minimal", limits=MachineLimits(memory_mb=256, disk_mb=16, processes=32)) as sandbox:
    sandbox.run_code("x = 41")
    assert sandbox.run_code("x + 1").text == "42"

    sandbox.files.write("folder/data.bin", bytes(range(256)))
    assert sandbox.files.read("folder/data.bin", format="bytes") == bytes(range(256))
    assert sandbox.files.get_info("folder/data.bin").size == 256
    assert sandbox.commands.run("stat -c %u:%g folder/data.bin").stdout == "1000:1000\\n"
    try:
        sandbox.files.write("/etc/x", "x")
    except GuestFileError as error:
        assert error.details["errno"] in ("EROFS", "EACCES"), error.details
    else:
        raise AssertionError("wrote to /etc")

    assert sandbox.commands.run("head -c 64000000 /dev/zero > f").exit_code != 0
    sandbox.files.remove("f")

    run = sandbox.run_code("while True: pass", timeout=0.5)
    assert run.termination_reason is TerminationReason.TIMEOUT, run
    assert sandbox.run_code("1").text == "1"

    assert sandbox.get_metrics().memory_bytes > 0
    assert sandbox.commands.run("id -u; cat /proc/self/uid_map").stdout.split()[0] == "1000"

with Sandbox.create("minimal", limits=MachineLimits(memory_mb=256)) as sandbox:
    run = sandbox.run_code('''HOG''')
    assert run.termination_reason is TerminationReason.MEMORY, run
    assert not sandbox.is_running() or sandbox.run_code("1").text == "1"  # the agent may be faster than the host
print("all good")
"""

HOG = """
import os, time
for _ in range(8):
    if os.fork() == 0:
        data = os.urandom(1 << 20) * 60
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""


def test_state_files_time_outs_and_memory(user: User) -> None:
    done = user.runs("-c", PROGRAM.replace("HOG", HOG))
    assert done.stdout == "all good\n", done.stdout + done.stderr
    assert done.returncode == 0


def test_a_killed_owner_leaves_nothing(user: User) -> None:
    code = (
        "import os, signal\nfrom emberbox import Sandbox\nsandbox = Sandbox.create('minimal')\n"
        "assert sandbox.run_code('1').text == '1'\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert user.runs("-c", code).returncode == -9
    assert user.emberbox("exec", "-t", "minimal", "-l", "python", "-c", "1").returncode == 0


def test_without_user_namespaces_doctor_says_why(user: User) -> None:
    """A host that keeps them from ordinary users: `unshare` fails there with these words."""
    folder = user.folder / "bin"
    folder.mkdir()
    program = folder / "unshare"
    program.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    program.chmod(0o755)
    stranger = User(user.folder, user.python, {**user.environment, "PATH": f"{folder}:{user.environment['PATH']}"})
    done = stranger.emberbox("doctor", "-t", "minimal")
    assert done.returncode == 5
    assert "unshare failed: Operation not permitted" in done.stdout
    assert "max_user_namespaces" in " ".join(done.stdout.split())


def test_the_run_directory_of_somebody_else_is_refused(user: User, run_dir: Path) -> None:
    environment = {**user.environment, "EMBERBOX_RUN_DIR": str(run_dir)}
    stranger = User(user.folder, user.python, environment)
    done = stranger.emberbox("exec", "-t", "minimal", "-l", "python", "-c", "1")
    assert done.returncode == 2
    assert "not a private directory of this user" in " ".join(done.stderr.split())
    assert "EMBERBOX_RUN_DIR" in done.stderr


# --- root, but no cgroups -----------------------------------------------------------------------------------------


@pytest.fixture
def no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberbox.machines.process_factory.find_cgroup_root", lambda: None)


def test_without_cgroups_memory_is_watched(nothing_left: None, no_cgroups: None) -> None:
    with Sandbox.create("minimal", limits=MachineLimits(memory_mb=256)) as sandbox:
        assert sandbox.run_code("1 + 1").text == "2"
        run = sandbox.run_code(HOG)
        assert run.termination_reason is TerminationReason.MEMORY
        assert not sandbox.is_running() or sandbox.run_code("1").text == "1"  # the agent may be faster than the host


async def test_without_cgroups_the_host_ends_what_the_agent_lets_grow(
    nothing_left: None, no_cgroups: None, settings: Settings
) -> None:
    async with Engine(settings) as engine:
        sandbox = await engine.create_sandbox("minimal")
        machine: Any = sandbox.machine
        machine._memory_limit = 1 << 20  # as if it had grown: the agent keeps what is its own business below that
        async with asyncio.timeout(60):
            death = await machine.wait()
        assert death.reason is TerminationReason.MEMORY
        assert "1 MiB" in death.message


def test_without_cgroups_a_big_program_within_the_limit_lives(nothing_left: None, no_cgroups: None) -> None:
    with Sandbox.create("minimal", limits=MachineLimits(memory_mb=512)) as sandbox:
        run = sandbox.run_code("data = bytearray(b'x' * (150 << 20)); import time; time.sleep(1); len(data)")
        assert run.text == str(150 << 20)
        assert run.memory_peak_mb is not None
        assert run.memory_peak_mb > 150


async def test_without_cgroups_the_engine_says_so(nothing_left: None, no_cgroups: None, settings: Settings) -> None:
    async with Engine(settings) as engine:
        found = next(one for one in engine.capabilities() if one.backend == "gvisor")
        assert found.cgroup == "none"
        assert any("memory is watched" in text for text in found.limitations)
        sandbox = await engine.create_sandbox("minimal")
        assert (await engine.execute(ExecuteRequest(sandbox, "python", "1"))).text == "1"
