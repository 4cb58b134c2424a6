"""Fixtures for all tests. `nothing_left` watches that a test leaves nothing of ours on the host."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest

from backends import ALL_ON_FIRECRACKER, LIFE_SECONDS, environment_of
from backends_table import COLUMNS, pytest_terminal_summary, ran_on
from emberbox import Engine, MachineLimits, Sandbox, Settings, load_settings
from emberbox.host.cgroups import GROUP, find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.machines.processor import emulated
from served import Served

__all__ = ["pytest_terminal_summary"]
"""A hook, which pytest finds here."""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of the person who runs the tests do not reach them (the caches are shared on purpose). Each test has a
    history of its own."""
    for name in list(os.environ):
        if name.startswith("EMBERBOX_") and name != "EMBERBOX_CACHE_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("EMBERBOX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run directory of this test's own, with a short path (Unix sockets live in it)."""
    path = Path(tempfile.mkdtemp(prefix="ebt-", dir="/tmp"))
    monkeypatch.setenv("EMBERBOX_RUN_DIR", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def nothing_left(run_dir: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test no process, cgroup, mount, descriptor, socket or file of ours is left."""
    callspec = getattr(request.node, "callspec", None)
    params = {} if callspec is None else callspec.params
    on_server = params.get("sandbox") == "remote" or "127.0.0.1:8080" in str(params.get("code", ""))
    if "served" in request.fixturenames or on_server:
        request.getfixturevalue("served")  # it stays: it must be there before we count
    shared = params.get("sandbox") == "qemu" and hasattr(request.module, "SHARED")
    if shared:
        request.getfixturevalue("on_qemu")
    before, groups, children = _descriptors(), _groups(0), _children()
    yield
    gc.collect()
    assert processes_of(f"{run_dir}/") == [], "processes are left"
    assert sorted(line for pid, line in _children().items() if pid not in children) == [], "children are left"
    assert list(run_dir.iterdir()) == [], "files are left in the run directory"
    assert sorted(_groups(15) - groups) == [], "cgroups are left"
    assert str(run_dir) not in Path("/proc/self/mounts").read_text(), "mounts are left"
    left = {n: t for n, t in _descriptors().items() if n not in before}
    assert shared or left == {}, "descriptors are left"  # an engine that goes on opens what it needs


def _children() -> dict[int, str]:
    """Our own programs below this process, with their command lines. (What a test left that failed is not the fault of
    the next one.)"""
    found = {}
    for process in psutil.Process().children(recursive=True):
        if _ours(process):
            with contextlib.suppress(psutil.Error):
                found[process.pid] = " ".join(process.cmdline())
    return found


def _ours(process: psutil.Process) -> bool:
    try:
        if any(parent.pid in _servers for parent in [process, *process.parents()]):
            return False  # its own end is looked at
        return any("spawner_main" in part or "runsc" in part for part in process.cmdline())
    except psutil.Error:
        return False


_servers: set[int] = set()
"""Processes that outlive a test: servers, and the spawners of `on_qemu`."""


def _groups(seconds: float) -> set[str]:
    """Groups without members that are still there after `seconds`. (Groups with members belong to sandboxes of somebody
    else on this host: ours have no processes any more when this is asked. One that is just being made or removed is not
    there for long.)"""
    root = find_cgroup_root()
    if root is None:
        return set()
    empty = {name for name in root.names("") if not root.group(name).pids()}
    deadline = time.monotonic() + seconds
    while empty and time.monotonic() < deadline:
        time.sleep(0.02)
        empty &= {name for name in root.names("") if not root.group(name).pids()}
    return {f"{GROUP}/{name}" for name in empty}


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except OSError:
            continue
    return {n: t for n, t in found.items() if not t.startswith(("/proc/", "/dev/", "anon_inode:"))}


@pytest.fixture
def settings(run_dir: Path) -> Settings:
    """Settings of a test that does not start machines, or starts them through `engine`."""
    return load_settings()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes are begun first: files run beside each other, and nothing is to wait for the last one."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("sandbox") in ("qemu", "firecracker"):
            item.add_marker(pytest.mark.timeout(LIFE_SECONDS / 4))  # an emulated processor makes them slow, not red


_LONG = {"test_undo.py", "test_images.py", "test_firecracker.py", "test_firecracker_machines.py", "test_growth.py"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that say `CONTRACT = True` test what the SDK promises: on every back end, and against a server."""
    if "sandbox" in metafunc.fixturenames and getattr(metafunc.module, "CONTRACT", False):
        metafunc.parametrize("sandbox", list(COLUMNS), indirect=True)


@pytest.fixture
def sandbox(nothing_left: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A fresh sandbox, of the module's `TEMPLATE` and `LIMITS` or the default ones."""
    where: str = getattr(request, "param", "local")
    ran_on(request.node, where)
    template: str | None = getattr(request.module, "TEMPLATE", None)
    limits: MachineLimits | None = getattr(request.module, "LIMITS", None)
    if where == "remote":
        served: Served = request.getfixturevalue("served")
        with Sandbox.create(template, base_url=served.url, limits=limits, timeout=LIFE_SECONDS) as sandbox:
            yield sandbox
        return
    if where == "qemu" and hasattr(request.module, "SHARED"):
        yield request.getfixturevalue("on_qemu")
        return
    if where == "firecracker" and emulated() and not (hasattr(request.module, "QUICK") or ALL_ON_FIRECRACKER):
        pytest.skip("minutes where KVM is emulated: EMBERBOX_TEST_FIRECRACKER=1 runs it")
    if where != "local":
        for name, value in environment_of(where).items():
            monkeypatch.setenv(name, value)
    with Sandbox.create(template, limits=limits, timeout=LIFE_SECONDS) as sandbox:
        yield sandbox


@pytest.fixture
def where(request: pytest.FixtureRequest) -> str | None:
    """Address of the server that the sandbox is on, if it is on one."""
    if request.node.callspec.params["sandbox"] != "remote":
        return None
    served: Served = request.getfixturevalue("served")
    return served.url


@pytest.fixture(scope="module")
def on_qemu(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """One sandbox on QEMU for all tests of a module that says `SHARED = True`: an emulated processor takes seconds to
    start an interpreter for the first time."""
    run_dir = Path(tempfile.mkdtemp(prefix="ebt-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as environment:
        wanted = environment_of("qemu") | {"EMBERBOX_RUN_DIR": str(run_dir), "EMBERBOX_STATE_DIR": f"{run_dir}.state"}
        for name, value in (wanted | {"EMBERBOX_VM_EXECUTION__VM_POOL_SIZE": "0"}).items():
            environment.setenv(name, value)
        settings = load_settings()
    spawners: set[int] = set()
    try:
        template: str | None = getattr(request.module, "TEMPLATE", None)
        with Sandbox.create(template, settings=settings, timeout=LIFE_SECONDS) as sandbox:
            spawners.update(processes_of(f"{run_dir}/"))
            _servers.update(spawners)
            yield sandbox
        assert processes_of(f"{run_dir}/") == [], "processes are left"
        assert list(run_dir.iterdir()) == [], "files are left in the run directory"
    finally:
        _servers.difference_update(spawners)
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.rmtree(f"{run_dir}.state", ignore_errors=True)


@pytest.fixture
def own_sandbox(nothing_left: None) -> Iterator[Sandbox]:
    """A fresh sandbox of this process, whatever the module says."""
    with Sandbox.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """A server without tokens, for all tests that do not change it as a whole."""
    server = Served().start()
    _servers.add(server.pid)
    try:
        yield server
    finally:
        _servers.discard(server.pid)
        server.finish()


@pytest.fixture
async def engine(nothing_left: None, settings: Settings) -> AsyncIterator[Engine]:
    """A fresh engine."""
    async with Engine(settings) as engine:
        yield engine
