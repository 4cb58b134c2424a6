"""What code in a sandbox cannot see or do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberbox import Sandbox

SECRET = Path("/tmp/emberbox-host-secret")


@pytest.fixture
def sandbox(nothing_left: None):  # type: ignore[no-untyped-def]
    with Sandbox.create("minimal") as sandbox:
        yield sandbox


def output(sandbox: Sandbox, command: str) -> str:
    done = sandbox.commands.run(command)
    return done.stdout + done.stderr


def test_no_network(sandbox: Sandbox) -> None:
    code = (
        "import socket\n"
        "for address in [('1.1.1.1', 53), ('169.254.169.254', 80), ('10.0.0.1', 80)]:\n"
        "    try: socket.create_connection(address, timeout=3); print('reached', address)\n"
        "    except OSError as e: print('no', e.errno)\n"
    )
    run = sandbox.run_code(code)
    assert "reached" not in run.stdout
    assert run.stdout.count("no") == 3
    assert "lo" in output(sandbox, "ls /sys/class/net; cat /proc/net/dev")


def test_no_host_files(sandbox: Sandbox) -> None:
    SECRET.write_text("secret")
    try:
        assert not sandbox.files.exists(str(SECRET))
        assert "secret" not in output(sandbox, "grep -rs secret /tmp /root /home /run /mnt /media /srv")
    finally:
        SECRET.unlink()
    assert "root:*:" in sandbox.files.read("/etc/passwd") or "root:x:" in sandbox.files.read("/etc/passwd")
    assert os.uname().nodename not in output(sandbox, "hostname; cat /etc/hostname")


def test_no_host_processes_or_environment(sandbox: Sandbox) -> None:
    listed = output(sandbox, "ps -eo pid,args --no-headers")
    assert len(listed.splitlines()) < 15
    assert "pytest" not in listed
    assert "HOME=/home/user" in output(sandbox, "env")
    assert "EMBERBOX" not in output(sandbox, "env")


def test_root_file_system_is_read_only(sandbox: Sandbox) -> None:
    for path in ("/x", "/etc/x", "/usr/bin/x", "/opt/emberbox/x", "/opt/emberbox/guest/x"):
        done = sandbox.commands.run(["touch", path])
        assert done.exit_code != 0, path


def test_user_code_is_nobody_special(sandbox: Sandbox) -> None:
    assert output(sandbox, "id -u; id -g; id -G") == "1000\n1000\n1000\n"
    status = output(sandbox, "grep -E 'Cap(Eff|Prm|Inh|Amb)' /proc/self/status")
    assert set(status.split()[1::2]) == {"0000000000000000"}
    assert sandbox.commands.run("su -c id root </dev/null").exit_code != 0
    assert output(sandbox, "find / -xdev -perm /6000 -type f 2>/dev/null") == ""


def test_the_agent_is_out_of_reach(sandbox: Sandbox) -> None:
    """User code neither signals, reads nor traces the agent, and does not get its descriptors."""
    code = (
        "import os\n"
        "def tries(what):\n"
        "    try: what(); return 'POSSIBLE'\n"
        "    except OSError as e: return 'no'\n"
        "print(tries(lambda: os.kill(1, 9)), tries(lambda: open('/proc/1/mem', 'rb').read(1)))\n"
        "for fd in os.listdir('/proc/1/fd'):\n"  # gVisor lets one list them, not open the channel
        "    if os.readlink(f'/proc/1/fd/{fd}').startswith('host:'):\n"
        "        print(*[tries(lambda: os.open(f'/proc/1/fd/{fd}', mode)) for mode in (0, 1, 2)])\n"
    )
    assert sandbox.run_code(code).stdout == "no no\nno no no\nno no no\n"
    names = {line.partition("=")[0] for line in sandbox.files.read("/proc/1/environ").split("\0")}
    assert names <= {"PATH", "LANG", "HOME", ""}, "the agent's environment can be read, so nothing of worth is in it"
    assert sandbox.run_code("1").text == "1"


def test_killing_everything_that_can_be_killed_harms_only_the_user(sandbox: Sandbox) -> None:
    sandbox.commands.run("kill -9 -1")
    first = sandbox.run_code("40 + 2")
    # the interpreter that waited for it may be dead without anybody having noticed: that is said, and it is replaced
    assert first.text == "42" or first.termination_reason in ("crashed", "killed")
    assert sandbox.run_code("40 + 2").text == "42"


def test_descriptors_of_the_channel_do_not_reach_user_code(sandbox: Sandbox) -> None:
    listed = output(sandbox, "ls -l /proc/self/fd")
    assert "pipe" in listed or "0 ->" in listed
    code = "import os\nprint(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    descriptors = sandbox.run_code(f"import sys\n{code}").stdout
    # the streams, copies of them in case that code closes them, the kernel's own channel, and the folder that is listed
    assert len(eval(descriptors)) <= 8, descriptors  # noqa: S307 (a list of numbers that this test printed)


def test_garbage_on_every_descriptor_only_loses_the_context(sandbox: Sandbox) -> None:
    code = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 100)\n    except OSError: pass\n"
    run = sandbox.run_code(code)
    assert run.termination_reason in ("completed", "crashed", "killed")
    assert sandbox.run_code("40 + 2").text == "42"
