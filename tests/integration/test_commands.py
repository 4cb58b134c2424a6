"""`commands` of a real sandbox."""

from __future__ import annotations

import pytest

from emberbox import Sandbox, TerminationReason
from emberbox.errors import ExecutionFailed, SessionNotFound

CONTRACT = True
"""On gVisor, here and on a server; what is marked so on every back end (conftest.py)."""
TEMPLATE = "minimal"


@pytest.mark.every_backend
def test_run_gives_output_and_exit_code(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
    assert done.termination_reason is TerminationReason.COMPLETED


def test_a_list_is_run_without_a_shell(sandbox: Sandbox) -> None:
    assert sandbox.commands.run(["echo", "$HOME", "; ls"]).stdout == "$HOME ; ls\n"


@pytest.mark.every_backend(heavy=True)
def test_directory_environment_and_user(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("inner")
    done = sandbox.commands.run("pwd; echo $WORD; id -u; echo $HOME", cwd="inner", envs={"WORD": "hi"})
    assert done.stdout == "/home/user/inner\nhi\n1000\n/home/user\n"


@pytest.mark.every_backend
def test_output_streams(sandbox: Sandbox) -> None:
    pieces: list[str] = []
    sandbox.commands.run("echo a; echo b >&2", on_stdout=pieces.append, on_stderr=pieces.append)
    assert sorted(pieces) == ["a\n", "b\n"]


def test_a_program_that_is_not_there_is_a_clear_error(sandbox: Sandbox) -> None:
    with pytest.raises(ExecutionFailed, match="no-such-program"):
        sandbox.commands.run(["no-such-program"])


def test_a_directory_that_is_not_there_is_a_clear_error(sandbox: Sandbox) -> None:
    with pytest.raises(ExecutionFailed, match="nowhere"):
        sandbox.commands.run("true", cwd="nowhere")


def test_only_a_command_that_is_waited_for_has_a_time_by_itself(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emberbox.sdk.commands.DEFAULT_COMMAND_TIMEOUT", 0.5)
    server = sandbox.commands.run("sleep 2; echo served", background=True)
    assert sandbox.commands.run("sleep 1000").termination_reason is TerminationReason.TIMEOUT
    assert server.wait().stdout == "served\n"


@pytest.mark.every_backend
def test_time_out_kills_the_whole_tree(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("sleep 1000 & (setsid sleep 1000 &) ; sleep 1000", timeout=1)
    assert done.termination_reason is TerminationReason.TIMEOUT
    assert done.exit_code != 0
    assert sandbox.commands.run("pgrep sleep").stdout == ""


@pytest.mark.every_backend
def test_background_command_is_fed_listed_and_waited_for(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read a; read b; echo $a-$b", background=True)
    (process,) = sandbox.commands.list()
    assert process.pid == handle.pid
    assert process.argv[-1] == "read a; read b; echo $a-$b"
    handle.send_stdin("one\n")
    sandbox.commands.send_stdin(handle.pid, "two\n", eof=True)
    assert handle.wait().stdout == "one-two\n"
    assert sandbox.commands.list() == []


@pytest.mark.every_backend(heavy=True)
def test_stdin_larger_than_a_pipe_goes_through(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("wc -c", background=True)
    handle.send_stdin(b"x" * 3_000_000, eof=True)
    assert handle.wait().stdout.strip() == "3000000"


def test_background_command_can_be_killed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 1000", background=True)
    assert handle.kill()
    done = handle.wait()
    assert done.termination_reason is TerminationReason.KILLED
    assert done.exit_code == 137
    assert not handle.kill()
    assert not sandbox.commands.kill(handle.pid)


def test_stdin_of_an_unknown_command(sandbox: Sandbox) -> None:
    with pytest.raises(SessionNotFound, match="4242"):
        sandbox.commands.send_stdin(4242, "x")


def test_big_output_is_capped(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("yes | head -c 5000000")
    assert len(done.stdout) == 1 << 20
    assert done.stdout_truncated
