"""The real spawner process, with real small programs."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emberbox.errors import Internal, VmNotAvailable
from emberbox.host.rundir import dead_owners, make_run_dir
from emberbox.host.spawner import Process, Spawner
from emberbox.host.spawner_main import MEMBARRIER

from .conftest import ENV, PATIENCE, Workshop, alive, ended, read_all

SLEEP = "sleep 1000"


async def start_sleeper(workshop: Workshop) -> Process:
    return await workshop.start(["sleep", "1000"])


async def start_orphan(workshop: Workshop) -> int:
    """A program that leaves a child behind and ends; the pid of the child, which runs."""
    code, text = await workshop.output(["sh", "-c", f"setsid {SLEEP} >/dev/null 2>&1 & echo $!"])
    assert code == 0
    pid = int(text)
    assert alive(pid)
    return pid


async def wait_gone(pid: int) -> None:
    """Wait for the end of a process that is not our child, and for its parent to reap it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await asyncio.to_thread(select.select, [fd], [], [], PATIENCE)
    finally:
        os.close(fd)
    assert not alive(pid)


# --- exit codes and signals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 42, 127, 255])
async def test_the_exit_code_of_a_program(workshop: Workshop, code: int) -> None:
    assert await ended(await workshop.start(["sh", "-c", f"exit {code}"])) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE])
async def test_a_program_that_dies_of_a_signal_has_a_negative_code(workshop: Workshop, number: signal.Signals) -> None:
    assert await ended(await workshop.start(["sh", "-c", f"kill -{int(number)} $$"])) == -number


async def test_a_signal_reaches_the_program(workshop: Workshop) -> None:
    process = await start_sleeper(workshop)
    await workshop.spawner.signal(process, signal.SIGTERM)
    assert await ended(process) == -signal.SIGTERM


async def test_a_stopped_program_goes_on(workshop: Workshop) -> None:
    process = await start_sleeper(workshop)
    await workshop.spawner.signal(process, signal.SIGSTOP)
    await workshop.spawner.signal(process, signal.SIGCONT)
    await workshop.spawner.signal(process, signal.SIGTERM)
    assert await ended(process) == -signal.SIGTERM


async def test_a_signal_to_a_program_that_has_ended_is_harmless(workshop: Workshop) -> None:
    process = await workshop.start(["true"])
    await ended(process)
    await workshop.spawner.signal(process, signal.SIGKILL)


async def test_strangers_are_not_signalled(workshop: Workshop) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    try:
        process = Process(stranger.pid, asyncio.get_running_loop().create_future())
        await workshop.spawner.signal(process, signal.SIGKILL)
        assert await workshop.output(["echo", "later"]) == (0, "later\n")
        assert alive(stranger.pid)
    finally:
        stranger.kill()
        await stranger.wait()


async def test_many_programs_at_once(workshop: Workshop) -> None:
    """More than the socket to the spawner holds."""
    argv = ["sh", "-c", 'exit "$0"']
    padding = {**ENV, "PADDING": "x" * 4000}
    processes = await asyncio.gather(*(workshop.start([*argv, str(n)], env=padding) for n in range(150)))
    assert await asyncio.gather(*(ended(process) for process in processes)) == list(range(150))


# --- what a program gets ----------------------------------------------------------------------------------------------


async def test_a_program_gets_its_descriptors_and_no_others(workshop: Workshop) -> None:
    code, text = await workshop.python("import os; print(sorted(os.listdir('/proc/self/fd')))")
    assert code == 0
    assert text == "['0', '1', '2', '3']\n"  # 3 is that of the listing


@pytest.mark.skipif(os.uname().machine not in MEMBARRIER, reason="not known on this architecture")
async def test_a_program_finds_no_membarrier_and_all_else(workshop: Workshop) -> None:
    number = MEMBARRIER[os.uname().machine][1]
    ask = f"c = ctypes.CDLL(None, use_errno=True); print(c.syscall({number}, 0, 0, 0), ctypes.get_errno())"
    code, text = await workshop.output([sys.executable, "-c", f"import ctypes, os; {ask}; os.fork() or os._exit(0)"])
    assert (code, text.split()) == (0, ["-1", str(errno.ENOSYS)])


async def test_input_output_and_errors_each_go_their_own_way(workshop: Workshop) -> None:
    pipes = [workshop.pipe() for _ in range(3)]
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = pipes
    process = await workshop.start(
        ["sh", "-c", "cat; echo problem >&2"], stdin=in_read, stdout=out_write, stderr=err_write
    )
    for fd in (in_read, out_write, err_write):
        workshop.close_fd(fd)
    os.write(in_write, b"hello")
    workshop.close_fd(in_write)
    assert await ended(process) == 0
    assert (read_all(out_read), read_all(err_read)) == ("hello", "problem\n")


async def test_a_program_gets_exactly_this_environment_and_directory(workshop: Workshop, tmp_path: Path) -> None:
    environment = {"PATH": "/bin", "NAME": "wert \udcff"}
    code, text = await workshop.output(
        [sys.executable, "-I", "-S", "-c", "import os; print(dict(os.environb), os.getcwd())"],
        env=environment,
        cwd=str(tmp_path),
    )
    seen, _, cwd = text.rpartition(" ")
    assert (code, cwd) == (0, f"{tmp_path}\n")
    wanted = {os.fsencode(k): os.fsencode(v) for k, v in environment.items()}
    assert wanted.items() <= eval(seen).items()  # noqa: S307 (a repr of our own)
    assert len(eval(seen)) <= len(wanted) + 1  # noqa: S307 (LC_CTYPE is Python's own)


async def test_a_program_leads_a_session_of_its_own_and_gains_no_rights(workshop: Workshop) -> None:
    code, text = await workshop.python(
        "import os; print(os.getsid(0) == os.getpid()); print(open('/proc/self/status').read())"
    )
    assert code == 0
    assert text.startswith("True\n")
    assert "NoNewPrivs:\t1\n" in text


async def test_a_program_has_the_usual_signals(workshop: Workshop) -> None:
    code, text = await workshop.python(
        "import signal\nfor s in ('INT', 'TERM', 'HUP', 'CHLD'): print(signal.getsignal(getattr(signal, 'SIG' + s)))"
    )
    assert code == 0
    assert "SIG_IGN" not in text


# --- what cannot be started -------------------------------------------------------------------------------------------


async def test_a_program_that_is_not_there_is_named(workshop: Workshop) -> None:
    with pytest.raises(VmNotAvailable, match=r"spawn a helper process.*no-such-program") as info:
        await workshop.start(["/no-such-program"])
    assert info.value.details["errno"] == "ENOENT"


async def test_a_program_that_may_not_be_executed_is_named(workshop: Workshop, tmp_path: Path) -> None:
    program = tmp_path / "data.txt"
    program.write_text("no program")
    with pytest.raises(VmNotAvailable, match=r"data\.txt") as info:
        await workshop.start([str(program)])
    assert info.value.details["errno"] == "EACCES"


async def test_a_directory_that_is_not_there_is_named(workshop: Workshop) -> None:
    with pytest.raises(VmNotAvailable, match="/no/such/directory"):
        await workshop.start(["true"], cwd="/no/such/directory")


async def test_a_cgroup_that_is_not_there_is_named(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(VmNotAvailable, match=r"join .*/gone/cgroup\.procs"):
        await workshop.start(["true"], join=[tmp_path / "gone" / "cgroup.procs"])


async def test_a_program_joins_before_it_begins(workshop: Workshop, tmp_path: Path) -> None:
    """A plain file stands for the cgroup's: what matters is who writes what, and when."""
    files = [tmp_path / "one", tmp_path / "two"]
    for file in files:
        file.touch()
    process = await workshop.start(
        ["sh", "-c", f"test $(cat {files[0]}) = 0 && test $(cat {files[1]}) = 0"], join=files
    )
    assert await ended(process) == 0


async def test_the_spawner_works_on_after_a_failure(workshop: Workshop) -> None:
    for _ in range(3):
        with pytest.raises(VmNotAvailable):
            await workshop.start(["/no-such-program"])
    assert await workshop.output(["echo", "fine"]) == (0, "fine\n")


async def test_a_request_that_is_too_long_is_refused_at_once(workshop: Workshop) -> None:
    with pytest.raises(Internal, match="too long"):
        await workshop.start(["true", "x" * 200_000])
    assert await ended(await workshop.start(["true"])) == 0


# --- orphans ----------------------------------------------------------------------------------------------------------


async def test_orphans_become_children_of_the_spawner_and_are_reaped(workshop: Workshop) -> None:
    pid = await start_orphan(workshop)
    parent = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    assert int(parent) == workshop.spawner.pid
    os.kill(pid, signal.SIGKILL)
    await wait_gone(pid)
    # the spawner answers after it has reaped, and a process that is reaped is in no list
    await ended(await workshop.start(["true"]))
    assert not Path(f"/proc/{pid}").exists()


async def test_an_owned_orphan_can_be_signalled_and_its_end_is_reported(workshop: Workshop) -> None:
    process = await workshop.spawner.own(await start_orphan(workshop))
    assert not process.ended.done()
    await workshop.spawner.signal(process, signal.SIGTERM)
    assert await ended(process) == -signal.SIGTERM


async def test_signals_to_what_is_owned_need_no_answer_of_the_spawner(workshop: Workshop) -> None:
    process = await workshop.spawner.own(await start_orphan(workshop))
    assert process.pidfd >= 0
    link = Path(f"/proc/self/fd/{process.pidfd}")
    assert "pidfd" in str(link.readlink())
    os.kill(workshop.spawner.pid, signal.SIGSTOP)
    try:
        await workshop.spawner.signal(process, signal.SIGKILL)
    finally:
        os.kill(workshop.spawner.pid, signal.SIGCONT)
    assert await ended(process) == -signal.SIGKILL
    assert process.pidfd < 0
    assert not link.is_symlink()


async def test_without_a_pidfd_the_spawner_signals(workshop: Workshop) -> None:
    process = await workshop.spawner.own(await start_orphan(workshop))
    process.close()
    await workshop.spawner.signal(process, signal.SIGTERM)
    assert await ended(process) == -signal.SIGTERM


async def test_an_orphan_that_ended_before_it_was_owned_is_reported_too(workshop: Workshop) -> None:
    pid = await start_orphan(workshop)
    os.kill(pid, signal.SIGKILL)
    await wait_gone(pid)
    await ended(await workshop.start(["true"]))  # the spawner reaps all that ended before it reports this one
    assert not Path(f"/proc/{pid}").exists()
    assert await ended(await workshop.spawner.own(pid)) == -signal.SIGKILL


async def test_a_stranger_cannot_be_owned(workshop: Workshop) -> None:
    with pytest.raises(VmNotAvailable, match="own a helper process"):
        await workshop.spawner.own(os.getpid())


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_close_kills_everything_and_removes_the_run_directory(workshop: Workshop) -> None:
    process = await start_sleeper(workshop)
    orphan = await start_orphan(workshop)
    # a double fork in a session of its own, of which nobody was told
    code = (
        "import os\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True); os.close(1); os.execvp('sleep', ['sleep', '1000'])"
    )
    status, text = await workshop.python(code)
    (workshop.run_dir.path / "deep" / "er").mkdir(parents=True)
    assert status == 0
    assert alive(int(text))
    await workshop.spawner.close()
    assert not any(alive(pid) for pid in (process.pid, orphan, int(text)))
    assert not workshop.run_dir.path.exists()
    assert await ended(process) == -signal.SIGKILL


async def test_close_kills_a_program_that_ignores_signals_and_one_that_is_stopped(workshop: Workshop) -> None:
    stubborn = await workshop.start(["sh", "-c", "trap '' TERM INT HUP; sleep 1000"])
    stopped = await start_sleeper(workshop)
    await workshop.spawner.signal(stopped, signal.SIGSTOP)
    await workshop.spawner.close()
    assert not alive(stubborn.pid)
    assert not alive(stopped.pid)


async def test_after_close_nothing_can_be_started_and_close_is_harmless(workshop: Workshop) -> None:
    await workshop.spawner.close()
    await workshop.spawner.close()
    assert workshop.spawner.gone
    with pytest.raises(VmNotAvailable, match="spawner does not answer"):
        await workshop.start(["true"])


async def test_a_spawner_that_is_killed_fails_what_waits_for_it(workshop: Workshop) -> None:
    process = await start_sleeper(workshop)
    os.kill(workshop.spawner.pid, signal.SIGKILL)
    assert await ended(process) == -signal.SIGKILL
    assert workshop.spawner.gone
    with pytest.raises(VmNotAvailable, match="spawner does not answer"):
        await workshop.start(["true"])
    os.kill(process.pid, signal.SIGKILL)  # with its spawner dead, nobody else ends it


async def test_requests_that_wait_for_a_spawner_that_dies_fail(workshop: Workshop) -> None:
    """Some are in the socket, some wait for room in it."""
    os.kill(workshop.spawner.pid, signal.SIGSTOP)
    starts = [asyncio.ensure_future(workshop.start(["true", "x" * 4000])) for _ in range(150)]
    for _ in range(200):  # the loop runs each of them up to where it waits
        await asyncio.sleep(0)
    assert workshop.spawner._room is not None
    os.kill(workshop.spawner.pid, signal.SIGKILL)
    outcomes = await asyncio.gather(*starts, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {VmNotAvailable}


async def test_a_program_whose_start_was_cancelled_is_ended(workshop: Workshop) -> None:
    os.kill(workshop.spawner.pid, signal.SIGSTOP)
    read, write = workshop.pipe()
    start = asyncio.ensure_future(workshop.start(["sleep", "1000"], stdout=write))
    for _ in range(10):  # the loop sends the request
        await asyncio.sleep(0)
    assert workshop.spawner._replies
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    workshop.close_fd(write)
    os.kill(workshop.spawner.pid, signal.SIGCONT)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.to_thread(read_all, read) == ""  # its end closes the last writing end


async def test_cgroups_of_this_owner_are_removed_at_the_end(nothing_left: None, run_dir: Path, tmp_path: Path) -> None:
    """Plain directories stand for cgroups: they are removed by the same call, and only when they are empty."""
    place = make_run_dir(run_dir)
    for name in (f"one/{place.owner}-gv1", f"one/{place.owner}-gv2", f"two/{place.owner}-gv1", "two/other-gv1"):
        (tmp_path / name).mkdir(parents=True)
    bases = [tmp_path / "one", tmp_path / "two", tmp_path / "gone"]
    spawner = await Spawner.start(place.path, place.lock_fd, cgroups=bases, user_namespace=False)
    await spawner.close()
    place.release()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["other-gv1", "two"]


OWNER = """
import asyncio, os, sys
from pathlib import Path
from emberbox.host.rundir import make_run_dir
from emberbox.host.spawner import Spawner

async def main():
    place = make_run_dir(Path(sys.argv[1]))
    spawner = await Spawner.start(place.path, place.lock_fd, user_namespace=False)
    null = os.open(os.devnull, os.O_RDWR)
    argv = ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $! ; exec sleep 1000"]
    read, write = os.pipe()
    process = await spawner.spawn(argv, stdin=null, stdout=write, stderr=null, env=dict(os.environ))
    print(spawner.pid, process.pid, os.read(read, 100).decode().strip(), place.path, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_when_emberbox_is_killed_its_spawner_cleans_up(nothing_left: None, run_dir: Path) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(run_dir), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    *numbers, place = (await owner.stdout.readline()).decode().split()
    pids = [int(number) for number in numbers]
    assert all(alive(pid) for pid in pids)
    assert list(dead_owners(run_dir)) == []  # the owner lives, so that nobody may clear it
    spawner = os.pidfd_open(pids[0])
    owner.kill()
    await owner.wait()
    try:
        await asyncio.to_thread(select.select, [spawner], [], [], PATIENCE)
    finally:
        os.close(spawner)
    assert not any(alive(pid) for pid in pids)
    assert not Path(place).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_ctrl_c_of_the_terminal_does_not_end_the_spawner(workshop: Workshop, number: signal.Signals) -> None:
    await ended(await workshop.start(["true"]))  # it is past its own start
    os.kill(workshop.spawner.pid, number)
    assert await workshop.output(["echo", "alive"]) == (0, "alive\n")


# --- user namespaces --------------------------------------------------------------------------------------------------


def has_user_namespaces() -> bool:
    argv = ["unshare", "--user", "--map-root-user", sys.executable, "-c", ""]
    return (
        shutil.which("unshare") is not None and subprocess.run(argv, check=False, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not has_user_namespaces(), reason="no user namespaces here")
async def test_in_a_user_namespace_programs_are_root_and_the_clean_up_works(nothing_left: None, run_dir: Path) -> None:
    place = make_run_dir(run_dir)
    spawner = await Spawner.start(place.path, place.lock_fd, user_namespace=True)
    workshop = Workshop(spawner, place)
    try:
        code, text = await workshop.output(["sh", "-c", "id -u; readlink /proc/self/ns/user"])
        pid = await start_orphan(workshop)
    finally:
        await spawner.close()
        for fd in workshop.fds:
            os.close(fd)
    assert (code, text.split()[0]) == (0, "0")
    assert text.split()[1] != str(Path("/proc/self/ns/user").readlink())
    assert not alive(pid)
    assert not place.path.exists()
    place.release()


async def test_without_unshare_an_ordinary_user_is_told_what_to_install(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    place = make_run_dir(run_dir)
    try:
        with pytest.raises(VmNotAvailable) as info:
            await Spawner.start(place.path, place.lock_fd, user_namespace=True)
    finally:
        place.release()
    assert "util-linux" in info.value.remediation


async def test_messages_are_those_of_the_documentation(workshop: Workshop) -> None:
    """The spawner answers nonsense with an error, not with its death."""
    with pytest.raises(VmNotAvailable, match="unknown operation"):
        await workshop.spawner._request(json.loads('{"op": "dance"}'))
    with pytest.raises(VmNotAvailable, match="three descriptors"):
        await workshop.spawner._request({"op": "spawn", "argv": ["true"], "env": {}, "cwd": "/", "join": []})
    assert await ended(await workshop.start(["true"])) == 0
