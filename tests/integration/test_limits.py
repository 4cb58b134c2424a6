"""Every limit has its own reason in the result, and the sandbox (or at least the host) survives it."""

from __future__ import annotations

import pytest

from emberbox import MachineLimits, Sandbox, TerminationReason
from emberbox.errors import SessionNotFound, VmNotAvailable
from emberbox.models import Language

CONTRACT = True
"""On gVisor, here and on a server; what is marked so on every back end (conftest.py)."""
TEMPLATE = "minimal"
LIMITS = MachineLimits(memory_mb=512, disk_mb=16, tmp_mb=16, processes=32, output_bytes=2048)


@pytest.mark.every_backend
def test_memory_of_one_program(sandbox: Sandbox) -> None:
    run = sandbox.run_code("data = bytearray(1 << 30)")
    assert run.termination_reason is TerminationReason.MEMORY
    assert run.error is not None
    assert run.error.name == "MemoryError"
    assert sandbox.run_code("1").text == "1"


@pytest.mark.own_machine
@pytest.mark.every_backend(heavy=True)
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "data = [bytes([n % 250]) * (50 << 20) for n in range(40)]"),
        ("bash", "python3 -c 'data = [bytes([n % 250]) * (50 << 20) for n in range(40)]'"),
    ],
)
def test_what_takes_too_much_memory_ends_and_the_sandbox_goes_on(
    sandbox: Sandbox, language: Language, code: str
) -> None:
    sandbox.run_code("kept = 1")
    run = sandbox.run_code(code, language)
    assert run.termination_reason is TerminationReason.MEMORY
    assert not run.succeeded
    if not sandbox.is_running():
        return  # a microVM whose cap on the host was faster
    if language == "python":
        assert run.error is not None
        assert run.error.name == "MemoryError"
    else:
        assert run.context_survived, "the shell did not take it"
        assert sandbox.run_code("kept").text == "1"
    assert sandbox.run_code("1").text == "1"


def test_memory_that_is_only_reserved_does_not_count(sandbox: Sandbox) -> None:
    code = "import mmap\nmaps = [mmap.mmap(-1, 1 << 28, mmap.MAP_PRIVATE, mmap.PROT_READ) for _ in range(8)]\nlen(maps)"
    assert sandbox.run_code(code).text == "8"


@pytest.mark.own_machine
@pytest.mark.every_backend(heavy=True)
def test_memory_of_the_whole_machine(sandbox: Sandbox) -> None:
    """Many processes, each within its own limit, together above the machine's. If it dies of that, it says so."""
    code = (
        "import os, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        data = bytearray(os.urandom(1 << 20) * 100)\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "time.sleep(60)\n"
    )
    run = sandbox.run_code(code, timeout=50)
    assert run.termination_reason is TerminationReason.MEMORY
    assert not run.succeeded
    if not sandbox.is_running():
        with pytest.raises((VmNotAvailable, SessionNotFound)) as error:
            sandbox.run_code("1")
        # a server keeps no dead ones: there, the execution that ended it has said why
        assert "memory" in error.value.message or isinstance(error.value, SessionNotFound)


@pytest.mark.every_backend(heavy=True)
def test_processes(sandbox: Sandbox) -> None:
    code = "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(100)\n        os._exit(0)\n"
    run = sandbox.run_code(code, timeout=20)
    assert run.termination_reason is TerminationReason.PROCESSES
    assert run.error is not None
    assert run.error.name == "BlockingIOError"


@pytest.mark.every_backend(heavy=True)
def test_fork_bomb_is_stopped(sandbox: Sandbox) -> None:
    run = sandbox.commands.run("bomb() { bomb | bomb & }\nbomb\nwhile :; do sleep 1; done", timeout=5)
    assert run.termination_reason in (TerminationReason.PROCESSES, TerminationReason.TIMEOUT)
    assert sandbox.run_code("1").text == "1", "the sandbox goes on"


@pytest.mark.every_backend(heavy=True)
@pytest.mark.parametrize("place", ["/home/user/f", "/tmp/f"])
def test_disk(sandbox: Sandbox, place: str) -> None:
    run = sandbox.run_code(f"with open({place!r}, 'wb') as f:\n    f.write(bytes(64 << 20))")
    assert run.termination_reason is TerminationReason.DISK
    assert run.error is not None
    assert "No space left" in run.error.value
    sandbox.files.remove(place)
    assert sandbox.run_code(f"open({place!r}, 'w').write('x')").text == "1"


def test_disk_in_bash(sandbox: Sandbox) -> None:
    run = sandbox.run_code("head -c 64000000 /dev/zero > f", "bash")
    assert run.termination_reason is TerminationReason.DISK


@pytest.mark.own_machine
@pytest.mark.every_backend
def test_kill_while_running(sandbox: Sandbox) -> None:
    run = sandbox.run_code(
        "print('up', flush=True)\nwhile True: pass", on_stdout=lambda _: sandbox._portal.call(sandbox._original.kill)
    )
    assert run.termination_reason is TerminationReason.KILLED
    assert run.exit_code == 137
    assert run.stdout == "up\n"
    assert not run.context_survived


def test_output_cap_follows_the_limits(sandbox: Sandbox) -> None:
    run = sandbox.run_code("import sys\nprint('x' * 5000); print('y' * 5000, file=sys.stderr)")
    assert (len(run.stdout), len(run.stderr)) == (2048, 2048)
    assert (run.stdout_truncated, run.stderr_truncated) == (True, True)


@pytest.mark.every_backend(heavy=True)
def test_peak_memory_is_reported(sandbox: Sandbox) -> None:
    low = sandbox.run_code("1").memory_peak_mb
    high = sandbox.run_code("x = bytearray(200 << 20); x[::4096] = bytes(len(x) // 4096)").memory_peak_mb
    assert low is not None
    assert high is not None
    assert high > low + 150


LEAVES_SOMETHING = {
    "python-session": ("python", "subprocess.Popen(['sleep', '4001'], start_new_session=True)\ntime.sleep(99)"),
    "python-orphan": ("python", "subprocess.run(['bash', '-c', 'setsid sleep 4001 & exit'])\ntime.sleep(99)"),
    "bash-session": ("bash", "setsid sleep 4001 &\nsleep 99"),
    "bash-job": ("bash", "set -m\nsleep 4001 &\nsleep 99"),
    "bash-nohup": ("bash", "nohup sleep 4001 >/dev/null 2>&1 & disown\nsleep 99"),
}
"""Code that a time-out ends, and what it leaves. A tick of the clock, by which processes are told apart, lies between
what an execution starts and what the next one does."""
DAEMON = {
    "python": "import subprocess, time\nsubprocess.Popen(['sleep', '4000'], start_new_session=True)\ntime.sleep(0.05)",
    "bash": "setsid sleep 4000 & sleep 0.05",
}
TICK = {"python": "time.sleep(0.05)\n", "bash": "sleep 0.05\n"}


@pytest.mark.parametrize("name", LEAVES_SOMETHING)
def test_what_timed_out_code_started_ends_with_it_and_what_was_there_before_stays(
    own_sandbox: Sandbox, name: str
) -> None:
    language, code = LEAVES_SOMETHING[name]
    own_sandbox.run_code(DAEMON[language], language)
    own_sandbox.commands.run("sleep 4002", background=True)
    done = own_sandbox.run_code(TICK[language] + code, language, timeout=3)
    assert done.termination_reason is TerminationReason.TIMEOUT
    left = own_sandbox.commands.run(["pgrep", "-a", "sleep"]).stdout.splitlines()
    stay = ["sleep 4000", "sleep 4002"] if done.context_survived else ["sleep 4002"]
    assert sorted(line.partition(" ")[2] for line in left if "defunct" not in line) == stay
    assert done.context_survived or name == "bash-job"
