"""`emberbox extract`, `emberbox policy`, hooks and questions on the command line, as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from commandline import PROGRAM, ROOT, emberbox

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


def test_extract_explains_every_block() -> None:
    done = emberbox("extract", "examples/blocked.md")
    assert done.returncode == 0
    for expected in ("intent auto-execute", "block 1 · bash · line 3", "+0.60", "tagged", "block line 3, column 1"):
        assert expected in done.stdout
    answer = json.loads(emberbox("extract", "--json", "examples/blocked.md").stdout)
    (block,) = answer["blocks"]
    assert block["execution_confidence"] == 1.0
    assert [finding["rule"] for finding in block["findings"]] == ["bash.rm-rf"]
    assert answer["intent"]["suggested_action"] == "auto-execute"


def test_extract_of_what_cannot_be_read() -> None:
    assert emberbox("extract", "nowhere.md").returncode == 2
    assert "nowhere.md" in emberbox("extract", "nowhere.md").stderr
    assert emberbox("extract", "-", stdin="no code at all").stdout.startswith("-: 0 blocks")


def test_policy_list_shows_what_is_in_force_for_whom(tmp_path: Path) -> None:
    config = tmp_path / "emberbox.toml"
    config.write_text(
        '[vm_execution.policy]\ndisabled = ["bash.*"]\n[vm_execution.policy.agents."ops-*"]\nask = ["bash.power"]\n'
        '[[vm_execution.policy.rules]]\nid = "acme.no-curl"\nlanguage = "bash"\nmessage = "is curl"\nuses = ["curl"]\n'
    )
    rules = {
        rule["id"]: rule
        for rule in json.loads(emberbox("--config", str(config), "policy", "list", "--json", "-l", "sh").stdout)
    }
    assert {rule["language"] for rule in rules.values()} == {"bash"}
    assert (rules["bash.power"]["action"], rules["acme.no-curl"]["action"]) == ("off", "block")
    for_agent = emberbox("--config", str(config), "policy", "list", "--agent", "ops-1")
    assert "bash.power" in for_agent.stdout
    assert "ask" in for_agent.stdout
    wrong = emberbox("policy", "list", EMBERBOX_VM_EXECUTION__POLICY__DISABLED='["bash.powr"]')
    assert wrong.returncode == 2
    assert "Did you mean bash.power?" in wrong.stderr


def test_policy_check_is_like_a_compiler(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text("import os\nx = 1; os.system('ls')\n")
    done = emberbox("policy", "check", str(source))
    assert done.returncode == 3
    assert f"{source}:2:8: starts other programs through `os`" in done.stdout
    assert "  2 | x = 1; os.system('ls')\n    |        ^\n" in done.stdout
    source.write_text("x = (\n")
    assert emberbox("policy", "check", str(source)).returncode == 2
    source.write_text("x = 1\n")
    assert emberbox("policy", "check", str(source)).returncode == 0
    report = json.loads(emberbox("policy", "check", "-l", "bash", "--json", "-", stdin="curl x | sh").stdout)
    assert [finding["rule"] for finding in report["findings"]] == ["bash.network-shell"]
    assert emberbox("policy", "check", "-", stdin="x").returncode == 2


def test_hooks_are_added_for_one_run() -> None:
    code = "print('ada' + '@example.com')"
    done = emberbox("exec", "-l", "python", "-c", code, "--hook", "output-sanitizer")
    assert (done.returncode, done.stdout) == (0, "[REDACTED:email]\n")
    assert "redacted 1 email" in done.stderr
    wrong = emberbox("exec", "-l", "python", "-c", code, "--hook", "nonsense")
    assert wrong.returncode == 2
    assert "there is no hook 'nonsense'; known are dangerous-pattern" in wrong.stderr


def test_without_a_terminal_nobody_is_asked() -> None:
    done = emberbox("exec", "-l", "python", "-c", "eval('1')", EMBERBOX_VM_EXECUTION__POLICY__ASK='["python.eval"]')
    assert done.returncode == 3
    assert "nobody approved it" in done.stderr


@pytest.mark.parametrize(("typed", "code", "shown"), [("y\n", 0, "42"), ("n\n", 3, "refused it")])
def test_at_a_terminal_the_person_is_asked(typed: str, code: int, shown: str) -> None:
    main, terminal = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, "exec", "-l", "python", "-c", "eval('6 * 7')"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env={**os.environ, "EMBERBOX_VM_EXECUTION__POLICY__ASK": '["python.eval"]', "TERM": "dumb"},
    )
    os.close(terminal)
    screen, answered = "", False
    try:
        while True:
            try:
                data = os.read(main, 4096)
            except OSError:  # EIO: the last holder of the other end has gone
                break
            if not data:
                break
            screen += data.decode("utf-8", "replace")
            if not answered and "[e]dit: " in screen:
                os.write(main, typed.encode())
                answered = True
        assert child.wait(60) == code, screen
    finally:
        child.kill()
        child.wait()
        os.close(main)
    assert "policy asks" in screen
    assert shown in " ".join(screen.split())


def test_the_history_shows_who_decided_what() -> None:
    refused = emberbox("exec", "-l", "python", "-c", "eval('1')", EMBERBOX_VM_EXECUTION__POLICY__ASK='["python.eval"]')
    assert refused.returncode == 3
    (entry,) = json.loads(emberbox("history", "list", "--json").stdout)["history"]
    assert entry["decisions"][0]["decision"] == "ask_user"
    shown = emberbox("history", "show", entry["execution_id"]).stdout
    assert "pre_tool policy: asked: nobody answered" in shown
