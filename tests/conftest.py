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
from _pytest.terminal import TerminalReporter

import microvms
import qemus
import together
from backends import ALL_ON_FIRECRACKER, LIFE_SECONDS, environment_of, newest_runsc, warmed
from backends_table import COLUMNS, ran_on, write_table
from categories import write_categories
from emberbox import Engine, MachineLimits, Sandbox, Settings, load_settings
from emberbox.host.cgroups import find_cgroup_root
from emberbox.host.rundir import processes_of
from emberbox.machines.microvm.processor import emulated
from served import Served
from shared_machines import SharedMachines
from together import pytest_xdist_make_scheduler

__all__ = ["pytest_xdist_make_scheduler"]
"""A hook, which pytest finds here."""


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Called by pytest when everything has run."""
    write_table(terminalreporter)
    write_categories(terminalreporter)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of the person who runs the tests do not reach them (the caches are shared on purpose). Each test has a
    history of its own."""
    for name in list(os.environ):
        if name.startswith("EMBERBOX_") and name != "EMBERBOX_CACHE_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("EMBERBOX_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def gvisor_release(_own_environment: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which runsc the test runs with: `default`, or `newest` as well in modules that say `BOTH_GVISORS = True`."""
    release: str = getattr(request, "param", "default")
    if release == "newest":
        monkeypatch.setenv("EMBERBOX_RUNSC", str(newest_runsc()))
    return release


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
    shared = _is_shared(request)
    if shared:
        ran_on(request.node, params["sandbox"])
        _need(params["sandbox"], request)
        request.getfixturevalue("shared_machines").of(request)  # likewise
    before, groups, children = _descriptors(), _groups(0), _children()
    yield
    gc.collect()
    assert processes_of(f"{run_dir}/") == [], "processes are left"
    assert sorted(line for pid, line in _children().items() if pid not in children) == [], "children are left"
    assert list(run_dir.iterdir()) == [], "files are left in the run directory"
    assert sorted(_groups(15, groups)) == [], "cgroups are left"
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
"""Processes that outlive a test: servers, and the spawners of `shared_machines`."""


def _groups(seconds: float, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Groups without members, others than those `known` before, that are still there after `seconds`. (Groups with
    members belong to sandboxes of somebody else on this host: ours have no processes any more when this is asked. One
    that is just being made or removed is not there for long.)"""
    root = find_cgroup_root()
    if root is None:
        return frozenset()
    empty = {name for name in root.names("") if not root.group(name).pids()} - known
    deadline = time.monotonic() + seconds
    while empty and time.monotonic() < deadline:
        time.sleep(0.02)
        empty &= {name for name in root.names("") if not root.group(name).pids()}
    return frozenset(empty)


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
    together.sort(items)
    for item in items:
        if together.group_of(item.nodeid) in ("qemu", "firecracker"):
            item.add_marker(pytest.mark.timeout(LIFE_SECONDS / 4))  # an emulated processor makes them slow, not red


def pytest_collection_finish() -> None:
    """Thousands of tests stay as they are until the end: `nothing_left` need not look through them every time."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that say `CONTRACT = True` test what the SDK promises: on gVisor, here and on a server, and what each
    back end decides for itself (`every_backend`) on all of them."""
    if "sandbox" in metafunc.fixturenames and getattr(metafunc.module, "CONTRACT", False):
        everywhere = any(metafunc.definition.iter_markers("every_backend")) or ALL_ON_FIRECRACKER
        metafunc.parametrize("sandbox", list(COLUMNS) if everywhere else ["local", "remote"], indirect=True)
    if getattr(metafunc.module, "BOTH_GVISORS", False):
        metafunc.parametrize("gvisor_release", ["default", "newest"], indirect=True)


@pytest.fixture
def sandbox(nothing_left: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox as new, of the module's `TEMPLATE` and `LIMITS` or the default ones."""
    if _is_shared(request):
        yield request.getfixturevalue("shared_machines").of(request)
        return
    where: str = getattr(request, "param", "local")
    ran_on(request.node, where)
    template: str | None = getattr(request.module, "TEMPLATE", None)
    limits: MachineLimits | None = getattr(request.module, "LIMITS", None)
    if where == "remote":
        served: Served = request.getfixturevalue("served")
        with Sandbox.create(template, base_url=served.url, limits=limits, timeout=LIFE_SECONDS) as sandbox:
            yield sandbox
        return
    if where != "local":
        _need(where, request)
        for name, value in environment_of(where).items():
            monkeypatch.setenv(name, value)
        template = warmed(template or "default")
    with Sandbox.create(template, limits=limits, timeout=LIFE_SECONDS) as sandbox:
        yield sandbox


def _need(backend: str, request: pytest.FixtureRequest) -> None:
    """Skips what takes minutes on emulated KVM, where the first touch of a page of memory takes some milliseconds."""
    marker = request.node.get_closest_marker("every_backend")
    with_node = not hasattr(request.module, "TEMPLATE")
    heavy = with_node or (marker is not None and marker.kwargs.get("heavy", False))
    if backend == "firecracker" and heavy and emulated() and not ALL_ON_FIRECRACKER:
        pytest.skip("minutes where KVM is emulated: EMBERBOX_TEST_FIRECRACKER=1 runs it")


def _is_shared(request: pytest.FixtureRequest) -> bool:
    """Whether a test has a sandbox of `shared_machines`."""
    callspec = getattr(request.node, "callspec", None)
    on = None if callspec is None else callspec.params.get("sandbox")
    return on in ("newest", "qemu", "firecracker") and request.node.get_closest_marker("own_machine") is None


@pytest.fixture
def where(request: pytest.FixtureRequest) -> str | None:
    """Address of the server that the sandbox is on, if it is on one."""
    if request.node.callspec.params["sandbox"] != "remote":
        return None
    served: Served = request.getfixturevalue("served")
    return served.url


@pytest.fixture(scope="session")
def shared_machines() -> Iterator[SharedMachines]:
    """The sandboxes of emulated back ends that tests share."""
    machines = SharedMachines(_servers)
    try:
        yield machines
    finally:
        machines.end()


@pytest.fixture(scope="session")
def firecracker_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[microvms.World]:
    """What the tests of Firecracker's machines share, in all their modules."""
    with microvms.making_of_world(tmp_path_factory.mktemp("firecracker")) as world:
        yield world


@pytest.fixture(scope="session")
def qemu_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[qemus.World]:
    """What the tests of QEMU's machines share, in all their modules."""
    with qemus.making_of_world(tmp_path_factory.mktemp("qemu")) as world:
        yield world


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
