"""Every limit has its own reason in the result, and the sandbox (or at least the host) survives it."""

from __future__ import annotations

import pytest

from emberbox import MachineLimits, Sandbox, TerminationReason
from emberbox.errors import ValidationFailed, VmNotAvailable

SMALL = MachineLimits(memory_mb=512, disk_mb=16, tmp_mb=16, processes=32)


@pytest.fixture
def small(nothing_left: None) -> Sandbox:  # type: ignore[misc]
    with Sandbox.create("minimal", limits=SMALL) as sandbox:
        yield sandbox


def test_memory_of_one_program(small: Sandbox) -> None:
    run = small.run_code("data = bytearray(1 << 30)")
    assert run.termination_reason is TerminationReason.MEMORY
    assert run.error is not None
    assert run.error.name == "MemoryError"
    assert small.run_code("1").text == "1"


def test_memory_of_the_whole_machine(small: Sandbox) -> None:
    """Many processes, each within its own limit, together above the machine's."""
    code = (
        "import os, time\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        data = bytearray(os.urandom(1 << 20) * 100)\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "time.sleep(60)\n"
    )
    run = small.run_code(code, timeout=50)
    assert run.termination_reason is TerminationReason.MEMORY
    assert not run.succeeded


def test_a_dead_machine_says_why(small: Sandbox) -> None:
    test_memory_of_the_whole_machine(small)
    if not small.is_running():
        with pytest.raises(VmNotAvailable, match="memory"):
            small.run_code("1")


def test_processes(small: Sandbox) -> None:
    code = "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(100)\n        os._exit(0)\n"
    run = small.run_code(code, timeout=20)
    assert run.termination_reason is TerminationReason.PROCESSES
    assert run.error is not None
    assert run.error.name == "BlockingIOError"


def test_fork_bomb_is_stopped(small: Sandbox) -> None:
    run = small.commands.run("bomb() { bomb | bomb & }\nbomb\nwhile :; do sleep 1; done", timeout=5)
    assert run.termination_reason in (TerminationReason.PROCESSES, TerminationReason.TIMEOUT)
    assert small.run_code("1").text == "1", "the sandbox goes on"


@pytest.mark.parametrize("place", ["/home/user/f", "/tmp/f"])
def test_disk(small: Sandbox, place: str) -> None:
    run = small.run_code(f"with open({place!r}, 'wb') as f:\n    f.write(bytes(64 << 20))")
    assert run.termination_reason is TerminationReason.DISK
    assert run.error is not None
    assert "No space left" in run.error.value
    small.files.remove(place)
    assert small.run_code(f"open({place!r}, 'w').write('x')").text == "1"


def test_disk_in_bash(small: Sandbox) -> None:
    run = small.run_code("head -c 64000000 /dev/zero > f", "bash")
    assert run.termination_reason is TerminationReason.DISK


def test_kill_while_running(nothing_left: None) -> None:
    with Sandbox.create("minimal") as sandbox:
        run = sandbox.run_code(
            "print('up', flush=True)\nwhile True: pass", on_stdout=lambda _: sandbox._loop.call(sandbox._sandbox.kill)
        )
    assert run.termination_reason is TerminationReason.KILLED
    assert run.exit_code == 137
    assert run.stdout == "up\n"
    assert not run.context_survived


def test_output_cap_follows_the_limits(nothing_left: None) -> None:
    limits = MachineLimits(memory_mb=256, output_bytes=2048)
    with Sandbox.create("minimal", limits=limits) as sandbox:
        run = sandbox.run_code("import sys\nprint('x' * 5000); print('y' * 5000, file=sys.stderr)")
    assert (len(run.stdout), len(run.stderr)) == (2048, 2048)
    assert (run.stdout_truncated, run.stderr_truncated) == (True, True)


def test_more_memory_than_allowed_is_refused_before_anything_starts(nothing_left: None) -> None:
    with pytest.raises(ValidationFailed, match="memory_mb 4096"):
        Sandbox.create(limits=MachineLimits(memory_mb=4096))


@pytest.mark.parametrize("timeout", [0, -1, 61])
def test_impossible_time_outs_are_refused(small: Sandbox, timeout: float) -> None:
    with pytest.raises(ValidationFailed, match="timeout"):
        small.run_code("1", timeout=timeout)


def test_requirements_that_the_image_lacks(small: Sandbox) -> None:
    with pytest.raises(ValidationFailed, match="requests is not in the image") as error:
        small.run_code("1", requirements=["requests>=2"])
    assert "no network" in error.value.remediation


def test_peak_memory_is_reported(sandbox: Sandbox) -> None:
    low = sandbox.run_code("1").memory_peak_mb
    high = sandbox.run_code("x = bytearray(b'x' * (200 << 20))").memory_peak_mb
    assert low is not None
    assert high is not None
    assert high > low + 150
