"""The Bash kernel, as its users see it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import Client


@pytest.fixture
def shell(agent: Client) -> str:
    return str(agent.call("context_create", language="bash").final["context"])


def out(agent: Client, shell: str, code: str) -> str:
    return agent.code(code, "bash", context=shell).stdout


def test_variables_functions_and_directory_stay(agent: Client, shell: str, tmp_path: Path) -> None:
    agent.code(f"x='a  b'; export Y=z; f() {{ echo \"f $1\"; }}; cd {tmp_path}; arr=(1 '2 3')", "bash", context=shell)
    assert out(agent, shell, 'echo "$x"; f 1; pwd; echo "${arr[1]}"; env | grep ^Y=') == (
        f"a  b\nf 1\n{tmp_path}\n2 3\nY=z\n"
    )


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("true", 0), ("false", 1), ("(exit 7)", 7), ("exit 4", 4), ("set -e; false; true", 1), ("no-such-command", 127)],
)
def test_exit_codes(agent: Client, shell: str, code: str, exit_code: int) -> None:
    outcome = agent.code(f"kept=1; {code}", "bash", context=shell)
    assert (outcome.final["exit_code"], outcome.reason) == (exit_code, "completed")
    assert outcome.final["context_survived"]
    assert out(agent, shell, "echo $kept") == "1\n"


def test_state_survives_exit(agent: Client, shell: str, tmp_path: Path) -> None:
    code = f"declare -A m=([k]=v); f() {{ echo f; }}; cd {tmp_path}; q=$'a\\'b\\n'; shopt -s extglob; exit 3"
    agent.code(code, "bash", context=shell)
    outcome = agent.code('f; echo "${m[k]}$q"; pwd; shopt -q extglob; echo $?', "bash", context=shell)
    assert outcome.stdout == f"f\nva'b\n\n{tmp_path}\n0\n"
    assert (outcome.stderr, outcome.final["execution_count"]) == ("", 2)


def test_options_do_not_leak(agent: Client, shell: str) -> None:
    before = out(agent, shell, "echo $-; set -o | grep pipefail")
    agent.code("set -eux -o pipefail", "bash", context=shell)
    outcome = agent.code("echo $-; set -o | grep pipefail", "bash", context=shell)
    assert (outcome.stdout, outcome.stderr) == (before, "")


def test_an_exit_trap_runs_at_the_end_of_its_execution(agent: Client, shell: str) -> None:
    assert out(agent, shell, "trap 'echo bye $?' EXIT; (exit 3)") == "bye 3\n"
    assert out(agent, shell, "echo next") == "next\n"
    assert out(agent, shell, "trap 'echo bye' EXIT; exit 1") == "bye\n"
    assert out(agent, shell, "(trap 'echo inner' EXIT); echo outer") == "inner\nouter\n"
    assert out(agent, shell, "echo next") == "next\n"


def test_errors_name_the_users_lines(agent: Client, shell: str) -> None:
    outcome = agent.code("echo a\n\nno-such-command", "bash", context=shell)
    assert outcome.stderr == "bash: line 3: no-such-command: command not found\n"
    assert "line 2: syntax error" in agent.code("echo a\nif then", "bash", context=shell).stderr
    assert out(agent, shell, "echo\necho $LINENO $0") == "\n2 bash\n"


@pytest.mark.parametrize("code", ["break", "continue", "return", "exec >/dev/null 2>&1", "exec </dev/null"])
def test_nothing_confuses_the_kernel(agent: Client, shell: str, code: str) -> None:
    agent.code(code, "bash", context=shell)
    assert agent.code("read x; echo $x; echo err >&2", "bash", b"in\n", context=shell).stdout == "in\n"


def test_input_arguments_environment_directory(agent: Client, shell: str, tmp_path: Path) -> None:
    code = 'read a; echo "$a|$(cat)|$#|$2|$A|$PWD"'
    outcome = agent.code(
        code, "bash", b"1\n2\n", context=shell, args=["x", "y 'z"], env={"A": "q'$x\n."}, cwd=str(tmp_path)
    )
    assert outcome.stdout == f"1|2|2|y 'z|q'$x\n.|{tmp_path}\n"
    assert out(agent, shell, 'echo "$#$A"; [[ -v A ]] || echo unset').startswith("0\nunset\n")


def test_a_timeout_interrupts_and_the_state_survives(agent: Client, shell: str) -> None:
    outcome = agent.code("kept=1; sleep 1000; echo never", "bash", context=shell, timeout=0.3)
    assert (outcome.reason, outcome.final["exit_code"], outcome.stdout) == ("timeout", 130, "")
    assert outcome.final["context_survived"]
    assert out(agent, shell, "echo $kept") == "1\n"
    outcome = agent.code("trap '' INT; while :; do :; done", "bash", context=shell, timeout=0.1)
    assert (outcome.reason, outcome.final["context_survived"]) == ("timeout", False)


def test_exec_replaces_the_shell(agent: Client, shell: str) -> None:
    outcome = agent.code("exec echo replaced", "bash", context=shell)
    assert (outcome.stdout, outcome.final["exit_code"], outcome.final["context_survived"]) == ("replaced\n", 0, False)
    assert out(agent, shell, "echo fresh") == "fresh\n"


def test_a_killed_shell_is_reported(agent: Client, shell: str) -> None:
    outcome = agent.code("kill -9 $$", "bash", context=shell)
    assert (outcome.reason, outcome.final["context_survived"]) == ("crashed", False)


def test_dev_stderr_and_no_descriptors_of_the_agent(agent: Client, shell: str) -> None:
    assert agent.code("echo x > /dev/stderr", "bash", context=shell).stderr == "x\n"
    assert out(agent, shell, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]


def test_a_background_process_does_not_hold_the_execution(agent: Client, shell: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    assert out(agent, shell, f"(cat {go}; echo late) & echo started") == "started\n"
    go.write_text("")
    assert out(agent, shell, "wait; echo next").endswith("next\n")
