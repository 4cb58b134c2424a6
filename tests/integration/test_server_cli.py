"""The command line against a server, and `emberbox shell`, as a user types it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from commandline import PROGRAM, emberbox
from emberbox import load_settings
from served import Served

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


def cli(server: Served, *args: str, code: int = 0) -> str:
    """What a command prints; it has to end with this exit code."""
    done = server.cli(*args, EMBERBOX_SERVER=server.url)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


@pytest.fixture
def api(served: Served) -> Iterator[httpx.Client]:
    served.end_machines()  # of files of tests that came before
    with served.client() as client:
        yield client
    served.end_machines()


@pytest.fixture
def vm(api: httpx.Client) -> str:
    return str(api.post("/api/vms", json={"vm_type": "minimal", "agent_id": "ada", "vm_name": "mine"}).json()["id"])


def run(api: httpx.Client, vm: str, code: str) -> Any:
    return api.post("/api/llm/execute", json={"vm_id": vm, "language": "python", "code": code}).json()


def test_machines_are_made_listed_and_ended(served: Served, api: httpx.Client) -> None:
    assert "no machines" in cli(served, "vms", "list")
    made = json.loads(cli(served, "vms", "create", "-t", "minimal", "--name", "mine", "--agent", "ada", "--json"))
    table = cli(served, "vms", "list")
    assert made["id"] in table
    assert "mine" in table
    assert "ready" in table
    assert json.loads(cli(served, "vms", "list", "--json"))["total"] == 1
    assert made["id"] in cli(served, "vms", "kill", made["id"])
    assert "no sandbox" in cli(served, "vms", "kill", made["id"], code=2)
    assert "template" in cli(served, "vms", "create", "-t", "nothing", code=2)


def test_history_logs_and_undo(served: Served, api: httpx.Client, vm: str) -> None:
    run(api, vm, "x = 1; open('a', 'w').write('1')")
    point = json.loads(cli(served, "snapshot", "create", vm, "--name", "one", "--json"))["snapshot_id"]
    assert point in cli(served, "snapshot", "list", "--vm", vm)
    failed = run(api, vm, "x = 2; print('two'); open('a', 'w').write('2'); 1 / 0")["execution_id"]
    listed = cli(served, "history", "list", "--sandbox", vm)
    assert failed in listed
    assert json.loads(cli(served, "history", "list", "--sandbox", vm, "--failures", "--json"))["total"] == 1
    assert "ZeroDivisionError" in cli(served, "history", "show", failed)
    assert "no execution" in cli(served, "history", "show", "ex-nothing", code=2)
    assert "intact" in cli(served, "history", "verify")
    text = cli(served, "logs", vm)
    assert text.index("x = 1") < text.index("x = 2")
    assert "two" in text
    assert "ZeroDivisionError" in text
    child = json.loads(cli(served, "branch", vm, point, "--json"))["id"]
    assert run(api, child, "x")["results"][0]["text"] == "1"
    assert "a" in cli(served, "rollback", vm, point, "--path", "a")
    assert run(api, vm, "x, open('a').read()")["results"][0]["text"] == "(2, '1')"
    answer = json.loads(cli(served, "rollback", vm, "--keep-current", "--json"))
    assert answer["snapshot_id"] == point
    assert answer["pre_rollback_snapshot_id"]
    assert "sn-nothing" in cli(served, "rollback", vm, "sn-nothing", code=2)


def test_sessions(served: Served, api: httpx.Client) -> None:
    api.post("/sessions", json={"name": "build", "vm_type": "minimal"})
    assert "build" in cli(served, "sessions", "list")
    done = served.cli("sessions", "run", "build", "cd /tmp; pwd; echo bad >&2; exit 3", "--server", served.url)
    assert (done.stdout, done.stderr, done.returncode) == ("/tmp\n", "bad\n", 3)
    assert "build" in cli(served, "sessions", "close", "build")
    assert "no session" in cli(served, "sessions", "close", "build", code=2)


def test_a_terminal_gets_no_control_codes_of_a_session(served: Served, api: httpx.Client) -> None:
    api.post("/sessions", json={"name": "build", "vm_type": "minimal"})
    command = r"printf 'a\033]0;t\007b\n'; printf 'c\033[2Jd\n' >&2"
    words = ["sessions", "run", "build", command, "--server", served.url]
    piped = emberbox(*words)
    assert (piped.stdout, piped.stderr) == ("a\x1b]0;t\x07b\n", "c\x1b[2Jd\n"), "a program gets what was written"
    here, there = pty.openpty()
    try:
        done = subprocess.run([*PROGRAM, *words], stdout=there, stderr=there, timeout=60, check=False)
        os.close(there)
        shown = os.read(here, 1 << 16)
    finally:
        os.close(here)
    assert done.returncode == 0
    assert b"a\xef\xbf\xbd]0;t\xef\xbf\xbdb" in shown
    assert b"c\xef\xbf\xbd[2Jd" in shown
    assert b"\x1b" not in shown
    assert b"\x07" not in shown
    cli(served, "sessions", "close", "build")


def test_a_server_that_is_not_there(served: Served) -> None:
    done = served.cli("vms", "list", "--server", "http://127.0.0.1:9")
    assert done.returncode == 5
    assert "http://127.0.0.1:9" in done.stderr
    assert "emberbox serve" in done.stderr
    wrong = served.cli("vms", "list", "--server", "nonsense", "--json")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["error"]["code"] == "config_error"


def test_attach_shows_what_is_executed(served: Served, api: httpx.Client, vm: str) -> None:
    argv = [*PROGRAM, "attach", vm, "--server", served.url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert vm in process.stderr.readline()
        run(api, vm, "print('hello'); 6 * 7")
        seen = [process.stdout.readline() for _ in range(4)]
        assert [line.strip() for line in seen[1:3]] == ["hello", "⇒ 42"]
        assert "exit 0" in seen[3]
        api.delete(f"/api/vms/{vm}")
        assert "ended" in process.stdout.readline()
        assert process.wait(30) == 0


def test_questions_are_answered(tmp_path: Path) -> None:
    server = Served()
    server.config.write_text('[vm_execution.policy]\nask = ["python.subprocess"]\n')
    server.start()
    try:
        code = "import subprocess; print(subprocess.run(['echo', 'ran'], capture_output=True, text=True).stdout)"
        answers: list[Any] = []
        edited = tmp_path / "edited.py"
        edited.write_text("print('edited')")

        def ask() -> None:
            with server.client() as client:
                answers.append(client.post("/api/llm/execute", json={"language": "python", "code": code}).json())

        for args in (["--yes"], ["--no", "--reason", "never"], ["--yes", "--code", str(edited)]):
            thread = threading.Thread(target=ask)
            thread.start()
            waiting: list[Any] = []
            deadline = time.monotonic() + 30
            while not waiting and time.monotonic() < deadline:
                waiting = json.loads(cli(server, "approve", "--json"))["approvals"]
            assert waiting[0]["code"] == code
            assert waiting[0]["approval_id"] in cli(server, "approve")
            cli(server, "approve", waiting[0]["approval_id"], *args)
            thread.join(30)
        assert answers[0]["stdout"] == "ran\n\n"
        assert "never" in answers[1]["error"]["message"]
        assert answers[2]["stdout"] == "edited\n"
        assert "Nothing waits" in cli(server, "approve")
        assert "ap-x" in cli(server, "approve", "ap-x", "--yes", code=2)
    finally:
        server.finish()


# --- shell ------------------------------------------------------------------------------------------------------------

TYPED = """x = 1
x + 1
for i in range(2):
    print('line', i)

open('f.txt', 'w').write('hello')
%files
x = 5
%undo
x
%bash
echo $((6 * 7))
%python
%branch
x = 9
%history 2
%nonsense
1 / 0
%info
%quit
"""


@pytest.mark.parametrize("where", ["here", "server"])
def test_the_shell(where: str, served: Served, api: httpx.Client) -> None:
    args = ["--server", served.url] if where == "server" else []
    done = emberbox("shell", "-t", "minimal", *args, stdin=TYPED)
    told = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    out = re.sub(r"(python|bash)> |\.\.\. ", "", done.stdout)
    lines = [line.strip() for line in out.splitlines()]
    assert "2" in lines, told
    assert "line 0" in lines, told
    assert "line 1" in lines, told
    assert any(line.startswith("5") and line.endswith("f.txt") for line in lines), told
    undone = next(at for at, line in enumerate(lines) if "took back 1" in line)
    assert "1" in lines[undone : undone + 2], told
    assert "42" in lines, told
    assert "stays as it was" in out, told
    assert "There is no command %nonsense" in out, told
    assert "ZeroDivisionError" in out, told
    assert "gvisor" in out, told
    assert api.get("/api/vms").json()["total"] == 0


def test_a_shell_on_a_machine_of_a_server_leaves_it(served: Served, api: httpx.Client, vm: str) -> None:
    run(api, vm, "x = 41")
    done = emberbox("shell", vm, "--server", served.url, stdin="x + 1\nx = 7\n")
    assert done.returncode == 0, done.stderr
    assert "42" in done.stdout
    assert run(api, vm, "x")["results"][0]["text"] == "7"
    assert api.get(f"/api/vms/{vm}/snapshots").json()["snapshots"] == []


def test_ctrl_c_interrupts_what_runs_and_keeps_the_variables(served: Served, api: httpx.Client, vm: str) -> None:
    argv = [*PROGRAM, "shell", vm, "--server", served.url]
    main, side = pty.openpty()
    process = subprocess.Popen(argv, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    seen = ""

    def until(text: str) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(main, 4096).decode("utf-8", "replace")
        seen = seen.partition(text)[2]

    def typed(text: str) -> None:
        os.write(main, text.encode())

    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        until("python> ")
        typed("x = 41; import time; print('be' + 'gun', flush=True); time.sleep(60)\n")
        until("begun")
        os.kill(process.pid, signal.SIGINT)
        until("KeyboardInterrupt")
        until("python> ")
        typed("x + 1\n")
        until("42")
        until("python> ")
        typed("%quit\n")
        assert process.wait(30) == 0
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        os.close(main)


PYTHON = """#!/bin/sh
case "$*" in
    "-VV") echo stand-in ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip "*) ;;
    *sysconfig*) dirname "$0" ;;
    *) exec {python} "$@" ;;
esac
"""


def test_a_signal_to_the_launcher_drains_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`./ember serve`, as a service manager starts and stops it; `python3` is that of these tests, in a cache of its
    own, which shares the images."""
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    cache = tmp_path / "cache"
    cache.mkdir()
    for folder in load_settings().cache_dir.iterdir():
        if folder.name != "venv":
            (cache / folder.name).symlink_to(folder)
    monkeypatch.setenv("PATH", f"{python.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("EMBERBOX_CACHE_DIR", str(cache))
    server = Served()
    server.program = [str(Path(__file__).parents[2] / "ember")]
    try:
        server.start()
        with server.client() as client:
            vm = client.post("/api/vms", json={"vm_type": "default", "agent_id": "ada"}).json()["id"]
            assert run(client, vm, "6 * 7")["results"][0]["text"] == "42"
        assert server.stop(signal.SIGTERM) == 0
        with pytest.raises(httpx.ConnectError), server.client() as client:
            client.get("/health")
    finally:
        server.finish()
