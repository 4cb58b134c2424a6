"""`emberbox agent` as a user runs it: real sandboxes, a scripted model."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from chat_server import ChatServer, Reply, Request, calls, refuses, says
from commandline import PROGRAM, ROOT, Done, emberbox

VM = {"enabled": True, "default_vm_type": "minimal", "history": {"integration_mode": "direct"}}

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A role without a model."""
    return role_file(tmp_path, {"name": "alone", "vm_execution": VM})


def role_file(tmp_path: Path, role: dict[str, Any]) -> Path:
    path = tmp_path / "role.json"
    path.write_text(json.dumps(role))
    return path


def asking(tmp_path: Path, server: ChatServer, **keys: Any) -> Path:
    """A role that asks a server."""
    return role_file(tmp_path, server.role(vm_execution=VM, **keys))


def words(role: Path, text: str | None = None, *options: str) -> list[str]:
    return ["agent", "--role", str(role), *options, *([] if text is None else [text])]


def agent(role: Path, text: str | None = None, *options: str, stdin: str = "") -> Done:
    return emberbox(*words(role, text, *options), stdin=stdin)


def test_one_question(tmp_path: Path) -> None:
    with ChatServer([calls(("python", "print(6 * 7)"), text="Let me compute it."), says("It is **42**.")]) as server:
        done = agent(asking(tmp_path, server), "What is 6 * 7?")
    assert done.returncode == 0, done.stderr
    for expected in (
        "Let me compute it.",
        "block 1 · python",
        "print(6 * 7)",
        "\n42\n",
        "exit 0",
        "It is **42**.",
        "completed · 1 ran · 30 tokens",
    ):
        assert expected in done.stdout
    assert done.stdout.index("print(6 * 7)") < done.stdout.index("\n42\n") < done.stdout.index("It is **42**.")


def test_json_is_a_command_output(tmp_path: Path) -> None:
    with ChatServer([calls(("python", "print(6 * 7)")), says("It is 42.")]) as server:
        done = agent(asking(tmp_path, server), "What is 6 * 7?", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["status"], answer["text"]) == (0, "completed", "It is 42.")
    assert answer["execution_results"][0]["stdout"] == "42\n"
    assert answer["usage"]["total_tokens"] == 30


def test_without_a_model_the_code_of_a_text_runs(alone: Path) -> None:
    done = agent(alone, "-", stdin="Run this:\n\n```python\nprint(6 * 7)\n```\n")
    assert (done.returncode, "\n42\n" in done.stdout) == (0, True), done.stderr
    nothing = agent(alone, "Do not run this:\n\n```python\nprint(6 * 7)\n```\n")
    assert (nothing.returncode, "nothing-run" in nothing.stdout, "42" in nothing.stdout) == (6, True, False)


@pytest.mark.parametrize(
    ("code", "language", "exit_code", "shown"),
    [
        ("1 / 0", "python", 1, "ZeroDivisionError"),
        ("rm -rf /", "bash", 3, "bash.rm-rf"),
        ("while True:\n    pass", "python", 4, "timeout"),
    ],
)
def test_exit_codes(code: str, language: str, exit_code: int, shown: str, tmp_path: Path) -> None:
    role = role_file(tmp_path, {"name": "r", "vm_execution": {**VM, "execution_timeout_ms": 500}})
    done = agent(role, f"Run this:\n\n```{language}\n{code}\n```\n")
    assert (done.returncode, shown in done.stdout) == (exit_code, True), done.stdout + done.stderr


def test_an_answer_is_executed_where_that_is_wanted(tmp_path: Path) -> None:
    with ChatServer([says("Fine.")]) as server:
        done = agent(asking(tmp_path, server), "Run this:\n\n```python\nprint(7)\n```\n", "--execute")
    assert (done.returncode, "\n7\n" in done.stdout, "Fine." in done.stdout) == (0, True, True)


def test_repairs_and_what_was_taken_back_are_shown(tmp_path: Path) -> None:
    with ChatServer([calls(("python", "1 / 0")), calls(("python", "1")), says("done")]) as server:
        done = agent(asking(tmp_path, server, rollback_between_tries=True), "go")
    assert done.returncode == 0
    assert done.stdout.index("ZeroDivisionError") < done.stdout.index("back to before the failed code")
    assert "1 repair" in done.stdout


@pytest.mark.parametrize("options", [["--json"], []])
def test_errors_say_what_to_do(options: list[str], tmp_path: Path) -> None:
    with ChatServer([refuses(401, "who are you")]) as server:
        done = agent(asking(tmp_path, server), "hello", *options)
    assert done.returncode == 2
    said = done.stdout if options else done.stderr
    assert "who are you" in said
    assert "VLLM_API_KEY" in said
    assert "Traceback" not in done.stderr
    wrong = agent(role_file(tmp_path, {"name": "r", "modle": "x"}), "hello", *options)
    assert wrong.returncode == 2
    assert "modle: unknown key" in (wrong.stdout if options else wrong.stderr).replace("\n", "")
    assert agent(tmp_path / "nowhere.json", None, *options).returncode == 2
    assert agent(asking(tmp_path, server), "  ", *options).returncode == 2


# --- a conversation -------------------------------------------------------------------------------------------------


def test_a_conversation_through_a_pipe(tmp_path: Path) -> None:
    answer = tmp_path / "answer.md"
    answer.write_text("Run this:\n\n```python\nprint('file', x)\n```\n")
    script = [calls(("python", "x = 6 * 7\nprint('made', x)")), says("First answer."), says("Ran it."), says("Fresh.")]
    lines = [
        "/help",
        "make x",
        "",
        "/history",
        f"/run {answer}",
        "/run /nowhere",
        "/what",
        "/reset",
        "again",
        "/quit",
        "no",
    ]
    with ChatServer(script) as server:
        done = agent(asking(tmp_path, server), stdin="\n".join(lines))
    assert done.returncode == 0, done.stderr
    for expected in (
        "/reset      forget it", "made 42", "First answer.", "user\nmake x", "file 42", "Ran it.",
        "Cannot read /nowhere", "there is no /what", "forgotten", "Fresh.",
    ):  # fmt: skip
        assert expected in done.stdout, expected
    assert [message["content"] for message in server.requests[-1].messages[1:]] == ["again"]
    assert len(server.requests) == 4


def test_a_conversation_as_json_lines(tmp_path: Path) -> None:
    with ChatServer([says("one"), refuses(401, "expired"), says("three")]) as server:
        done = agent(asking(tmp_path, server), None, "--json", stdin="1\n2\n3\n")
    one, two, three = [json.loads(line) for line in done.stdout.splitlines()]
    assert (one["text"], two["error"]["code"], three["text"]) == ("one", "unauthorized", "three")
    assert done.returncode == 0


def test_the_exit_code_of_a_conversation_is_that_of_its_last_command(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("Run this:\n\n```python\n1 / 0\n```\n")
    assert agent(alone, stdin=f"/run {tmp_path / 'bad.md'}\n").returncode == 1
    assert agent(alone, stdin="").returncode == 0


class Terminal:
    """A process at a terminal."""

    def __init__(self, *command: str) -> None:
        self._main, terminal = pty.openpty()
        self.child = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, env={**os.environ, "TERM": "dumb"},
            start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        self.screen = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._main)

    def expect(self, words: str) -> None:
        """Wait until it shows something that it has not shown before the last `expect`."""
        while (found := self.screen.find(words, self._seen)) < 0:
            assert self._read(), f"{words!r} is not in {self.screen!r}"
        self._seen = found + len(words)

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def end(self) -> int:
        """Wait for its end; the exit code."""
        while self._read():
            pass
        return self.child.wait(60)

    def _read(self) -> bool:
        try:
            data = os.read(self._main, 4096)
        except OSError:  # EIO: the last holder of the other end has gone
            return False
        self.screen += data.decode("utf-8", "replace")
        return bool(data)


def test_at_a_terminal_the_person_is_asked(alone: Path) -> None:
    text = "Here is a script:\n\n```python\nprint(6 * 7)\n```\n"
    for typed, exit_code, shown in (("y", 0, "42"), ("n", 3, "refused it")):
        with Terminal(*PROGRAM, *words(alone, text)) as terminal:
            terminal.expect("does not clearly ask")
            terminal.expect("[e]dit: ")
            terminal.type(f"{typed}\n")
            assert terminal.end() == exit_code, terminal.screen
        assert shown in " ".join(terminal.screen.split())
    done = agent(alone, text, "--yes")
    assert (done.returncode, "\n42\n" in done.stdout) == (0, True)


def test_ctrl_c_stops_what_is_under_way_and_the_conversation_goes_on(tmp_path: Path) -> None:
    endless = "print('started', flush=True)\nimport time\ntime.sleep(1000)"

    def model(request: Request) -> Reply:
        return calls(("python", endless)) if request.last == "wait" else says("still here")

    with ChatServer(model) as server, Terminal(*PROGRAM, *words(asking(tmp_path, server), None)) as terminal:
        terminal.expect("tester · scripted (vllm)")
        terminal.expect("> ")
        terminal.type("wait\n")
        terminal.expect("┄┄┄")
        terminal.expect("started")
        terminal.child.send_signal(signal.SIGINT)
        terminal.expect("interrupted")
        terminal.expect("> ")
        terminal.type("hello\n")
        terminal.expect("still here")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.end() == 0, terminal.screen


def test_the_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, "examples/agent.py"], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "10 7\n100 115\n1000 1366\n"), done.stderr
