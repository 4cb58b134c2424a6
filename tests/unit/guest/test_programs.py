"""`exec`: programs of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from .conftest import Client


def test_output_and_exit_code(agent: Client) -> None:
    outcome = agent.exec("sh", "-c", "echo out; echo err >&2; exit 3")
    assert (outcome.stdout, outcome.stderr) == ("out\n", "err\n")
    assert (outcome.final["exit_code"], outcome.reason) == (3, "completed")
    assert outcome.events[0][0]["pid"] > 0


def test_binary_output(agent: Client) -> None:
    assert agent.exec("printf", r"\000\377\200a").of("stdout") == b"\0\xff\x80a"


def test_stdin_arrives_in_pieces(agent: Client) -> None:
    ident = agent.begin_exec("cat", stdin=True)
    data = os.urandom(300_000)
    first = agent.begin("stdin", data, target=ident)
    second = agent.begin("stdin", b"end", target=ident, eof=True)
    assert agent.finish(first).final["ev"] == "done"
    assert agent.finish(second).final["ev"] == "done"
    assert agent.finish(ident).of("stdout") == data + b"end"


def test_without_stdin_there_is_nothing_to_read(agent: Client) -> None:
    assert agent.exec("cat").final["exit_code"] == 0


def test_input_for_a_program_that_reads_none_is_an_error(agent: Client) -> None:
    ident = agent.begin_exec("sh", "-c", "exec <&-; echo closed; sleep 1000", stdin=True)
    agent.wait(ident, "stdout")
    assert agent.call("stdin", b"x", target=ident).final["errno"] == "EPIPE"
    agent.call("signal", target=ident, signal=9)
    assert agent.finish(ident).reason == "killed"


def test_a_program_that_is_not_there(agent: Client) -> None:
    final = agent.exec("no-such-program").final
    assert (final["kind"], final["errno"]) == ("file", "ENOENT")


def test_a_directory_that_is_not_there(agent: Client) -> None:
    assert agent.exec("true", cwd="/no/such").final["errno"] == "ENOENT"


def test_environment_and_directory(agent: Client, tmp_path: Path) -> None:
    outcome = agent.exec("sh", "-c", "echo $A; pwd; env | grep -c EMBERBOX", cwd=str(tmp_path), env={"A": "é"})
    assert outcome.stdout == f"é\n{tmp_path}\n0\n"


def test_no_descriptors_of_the_agent(agent: Client) -> None:
    assert agent.exec("ls", "/proc/self/fd").stdout.split() == ["0", "1", "2", "3"]


def test_too_much_output_is_dropped_and_said_so(agent: Client) -> None:
    outcome = agent.exec("sh", "-c", "head -c 3000000 /dev/zero; echo err >&2", stdout_limit=1000)
    assert len(outcome.of("stdout")) == 1000
    assert (outcome.final["stdout_truncated"], outcome.final["stderr_truncated"]) == (True, False)
    assert (outcome.reason, outcome.stderr) == ("output-truncated", "err\n")


def test_a_timeout_kills_what_ignores_sigint_with_its_children(agent: Client) -> None:
    script = "trap '' INT; sleep 1000 & echo $!; wait"
    outcome = agent.exec("sh", "-c", script, timeout=0.2)
    assert (outcome.reason, outcome.final["exit_code"]) == ("timeout", 137)
    assert not Path(f"/proc/{int(outcome.stdout)}/exe").exists()


def test_signals(agent: Client) -> None:
    ident = agent.begin_exec("sleep", "1000")
    agent.wait(ident, "started")
    agent.call("signal", target=ident, signal=int(signal.SIGINT))
    outcome = agent.finish(ident)
    assert (outcome.reason, outcome.final["exit_code"]) == ("interrupted", 130)
    assert agent.call("signal", target=ident, signal=9).final["kind"] == "not_found"


def test_a_program_that_crashes(agent: Client) -> None:
    outcome = agent.exec("sh", "-c", "kill -SEGV $$")
    assert (outcome.reason, outcome.final["exit_code"]) == ("crashed", 139)


def test_what_runs_is_listed(agent: Client) -> None:
    ident = agent.begin_exec("sleep", "1000")
    pid = agent.wait(ident, "started").events[0][0]["pid"]
    listed = agent.call("processes").final["processes"]
    assert [(line["target"], line["pid"], line["argv"]) for line in listed] == [(ident, pid, ["sleep", "1000"])]
    agent.call("signal", target=ident, signal=9)
    agent.finish(ident)
    assert agent.call("processes").final["processes"] == []


def test_a_daemon_may_stay_and_go_on_writing(agent: Client, tmp_path: Path) -> None:
    go, done = tmp_path / "go", tmp_path / "done"
    os.mkfifo(go)
    os.mkfifo(done)
    script = f"(read x < {go}; head -c 300000 /dev/zero; echo $? > {done}) & exit 0"
    assert agent.exec("sh", "-c", script).reason == "completed"
    go.write_text("now\n")
    assert done.read_text() == "0\n"


def test_many_programs_leave_nothing_behind(agent: Client) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    agent.exec("true")
    before = descriptors()
    for ident in [agent.begin_exec("true") for _ in range(20)]:
        agent.finish(ident)
    assert descriptors() == before
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children").read_text().split()
    states = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in children]
    assert "Z" not in states
