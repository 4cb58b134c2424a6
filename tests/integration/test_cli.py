"""The command line as a user runs it: real sandboxes, real exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from commandline import emberbox, process

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


def test_run_shows_blocks_output_exit_code_and_back_end() -> None:
    done = process("run", "examples/fibonacci.md")
    assert done.returncode == 0, done.stderr
    for expected in (
        "python",
        "1.00",
        "[0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377]",
        "⇒ (5,",
        "exit 0",
        "gvisor",
    ):
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("javascript", "[ 'the', 3 ]"),
        ("bash", "sum of the first: 5050"),
        ("plot", "figure: PNG"),
    ],
)
def test_examples_run(name: str, expected: str) -> None:
    done = emberbox("run", f"examples/{name}.md")
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout


@pytest.mark.rust
@pytest.mark.parametrize(
    ("name", "expected"),
    [("rust", "15 primes below 50"), ("all-languages", "hello from Rust, the book has 2 lines")],
)
def test_examples_with_rust_run(name: str, expected: str) -> None:
    done = emberbox("run", f"examples/{name}.md")
    assert done.returncode == 0, done.stdout + done.stderr
    assert expected in done.stdout


def test_what_must_not_be_run_is_not_run() -> None:
    done = emberbox("run", "examples/do-not-run.md")
    assert done.returncode == 6
    assert "Nothing was run" in done.stdout
    assert "the text says not to run it" in done.stdout
    assert "--all" in done.stdout
    as_json = emberbox("run", "--json", "examples/do-not-run.md")
    assert as_json.returncode == 6
    answer = json.loads(as_json.stdout)
    assert answer["execution_results"] == []
    assert answer["intent"]["suggested_action"] == "none"


def test_a_file_that_the_answer_names_is_there_when_its_code_runs(tmp_path: Path) -> None:
    answer = tmp_path / "answer.md"
    answer.write_text(
        "Save this as `shapes/area.py`:\n\n```python\ndef area(w, h):\n    return w * h\n```\n\n"
        "**numbers.json**\n\n```json\n[6, 7]\n```\n\n"
        "Now run it:\n\n```python\nimport json\nfrom shapes.area import area\n"
        "print('area', area(*json.load(open('numbers.json'))))\n```\n\n"
        "And in the shell:\n\n```bash\nls shapes numbers.json\n```\n"
    )
    done = emberbox("run", str(answer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "area 42" in done.stdout
    assert "area.py" in done.stdout


def test_a_refusal_by_policy_is_exit_code_3_and_says_how_to_allow_it() -> None:
    done = emberbox("run", "examples/blocked.md")
    assert done.returncode == 3
    assert "bash.rm-rf" in done.stdout
    assert "vm_execution.policy.disabled" in done.stdout
    allowed = emberbox("run", "examples/blocked.md", EMBERBOX_VM_EXECUTION__POLICY__DISABLED='["bash.rm-rf"]')
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr


def test_json_is_a_parse_execute_response() -> None:
    done = emberbox("run", "--json", "-", stdin="Run this:\n\n```python\nprint('out')\n1 + 1\n```\n")
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert set(answer) == {"code_blocks", "intent", "execution_results", "errors"}
    (run,) = answer["execution_results"]
    assert (run["stdout"], run["exit_code"], run["backend"]) == ("out\n", 0, "gvisor")
    assert run["results"][0]["text"] == "2"


def test_dry_run_needs_no_back_end() -> None:
    done = emberbox("run", "--dry-run", "examples/fibonacci.md", EMBERBOX_RUNSC="/nowhere/runsc")
    assert done.returncode == 0
    assert "2 code blocks" in done.stdout


def test_threshold_and_all() -> None:
    text = "```python\nprint('one')\n```\n"
    assert (
        "one"
        not in emberbox("run", "--threshold", "1", "-", stdin=f"For reference only:\n\n{text}").stdout.split("──")[-1]
    )
    done = emberbox("run", "--all", "-", stdin=f"For reference only:\n\n{text}")
    assert done.returncode == 0
    assert "\none\n" in done.stdout
    assert emberbox("run", "--all", "--threshold", "0.5", "-", stdin=text).returncode == 2


def test_a_failing_block_is_exit_code_1_and_the_others_still_run() -> None:
    text = "Run these:\n\n```python\n1 / 0\n```\n\nthen\n\n```python\nprint('still here')\n```\n"
    done = emberbox("run", "-", stdin=text)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
    assert "still here" in done.stdout


def test_a_time_out_is_exit_code_4() -> None:
    done = emberbox("run", "--timeout", "0.5", "-", stdin="Run this:\n\n```python\nwhile True:\n    pass\n```\n")
    assert done.returncode == 4
    assert "timeout" in done.stdout
    assert emberbox("exec", "-l", "bash", "-c", "sleep 50", "--timeout", "0.5").returncode == 4


def test_no_back_end_is_exit_code_5_with_a_remedy() -> None:
    done = emberbox("run", "examples/fibonacci.md", EMBERBOX_RUNSC="/nowhere/runsc")
    assert done.returncode == 5
    assert "/nowhere/runsc: not there" in done.stdout + done.stderr
    assert "emberbox setup" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["run", "no-such-file.md"], b"", "Cannot read no-such-file.md: No such file or directory"),
        (["run", "-"], b"", "standard input is empty"),
        (["run", "-"], b"  \n", "standard input is empty"),
        (["run", "-"], b"caf\xe9 ```python", "not UTF-8"),
        (["run", "examples"], b"", "Cannot read examples: Is a directory"),
        (["run", "examples/fibonacci.md", "--template", "nope"], b"", "no template 'nope'"),
        (["exec", "-l", "cobol", "-c", "x"], b"", "cobol"),
        (["exec", "-c", "print(1)"], b"", "language"),
        (["exec", "-l", "python"], b"", "Give either"),
        (["exec", "-l", "python", "-c", "1", "--timeout", "9999"], b"", "at most 60 s"),
    ],
)
def test_bad_input_is_exit_code_2_and_names_the_input(arguments: list[str], stdin: bytes, message: str) -> None:
    done = emberbox(*arguments, stdin=stdin)
    assert done.returncode == 2, done.stdout
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_wrong_settings_are_named() -> None:
    done = emberbox("exec", "-l", "python", "-c", "1", EMBERBOX_VM_EXECUTION__MAX_CODE_LENGTH="many")
    assert done.returncode == 2
    assert "vm_execution.max_code_length" in done.stderr


def test_an_answer_of_5_mb_works() -> None:
    text = "Some words of explanation.\n\n" * 180_000 + "Run this:\n\n```python\nprint('found')\n```\n"
    assert len(text) > 5_000_000
    done = emberbox("run", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "\nfound\n" in done.stdout


def test_an_answer_that_is_too_long_is_refused() -> None:
    done = emberbox("run", "-", stdin="x" * 5000, EMBERBOX_MAX_INPUT_BYTES="4096")
    assert done.returncode == 2
    assert "longer than 4096 bytes" in done.stderr


def test_exec_behaves_like_the_program_itself(tmp_path: Path) -> None:
    source = tmp_path / "program.py"
    source.write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(0)\n")
    done = process("exec", str(source))
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)
    assert emberbox("exec", "-l", "js", "-", stdin="6 * 7").stdout == "42\n"
    failing = emberbox("exec", "-l", "python", "-c", "raise SystemError('no')")
    assert failing.returncode == 1
    assert "SystemError: no" in failing.stderr


def test_terminal_codes_of_untrusted_output_are_defused() -> None:
    done = emberbox("run", "-", stdin='Run this:\n\n```python\nprint("a\\x1b]0;title\\x07b")\n```\n')
    assert "\x1b]0;" not in done.stdout
    assert "\x07" not in done.stdout


def test_results_are_saved(tmp_path: Path) -> None:
    done = emberbox("run", "examples/plot.md", "--save", str(tmp_path / "out"))
    assert done.returncode == 0
    assert (tmp_path / "out/execution-1-result-1.png").read_bytes().startswith(b"\x89PNG")
    assert "<table" in (tmp_path / "out/execution-2-result-1.html").read_text()


def test_doctor_proves_that_it_works() -> None:
    answer = json.loads(emberbox("doctor", "--json").stdout)
    assert answer["works"] is True
    assert [found["backend"] for found in answer["backends"]] == ["firecracker", "qemu", "gvisor"]
    table = emberbox("doctor")
    assert table.returncode == 0
    assert "computed in a gvisor sandbox" in table.stdout


def test_doctor_tells_of_the_guest_kernel(tmp_path: Path) -> None:
    def row(**environment: str) -> dict[str, str]:
        checks = json.loads(emberbox("doctor", "--json", **environment).stdout)["checks"]
        return next(check for check in checks if check["name"] == "guest kernel")

    (tmp_path / "text").write_text("no kernel at all")
    wrong = row(EMBERBOX_KERNEL=str(tmp_path / "text"))
    assert wrong["state"] == "missing"
    assert str(tmp_path / "text") in wrong["found"]
    none = row(EMBERBOX_CACHE_DIR=str(tmp_path))
    assert none["state"] == "note"
    assert "build-kernel" in none["remedy"]


def test_doctor_names_what_is_missing_and_the_remedy(tmp_path: Path) -> None:
    done = emberbox("doctor", EMBERBOX_RUNSC="/nowhere/runsc", EMBERBOX_CACHE_DIR=str(tmp_path))
    assert done.returncode == 5
    text = " ".join(done.stdout.split())
    assert "/nowhere/runsc: not there" in text
    assert "emberbox setup" in text
    assert "not built" in text


def test_setup_again_changes_nothing_and_proves() -> None:
    done = emberbox("setup")
    assert done.returncode == 0, done.stderr
    assert "sandbox started and answered" in done.stderr
    assert "Emberbox will" not in done.stderr


def test_setup_says_what_it_will_do_and_needs_a_yes(tmp_path: Path) -> None:
    done = emberbox("setup", EMBERBOX_CACHE_DIR=str(tmp_path / "cache"), PATH=_path_without("runsc"))
    assert done.returncode == 5
    assert "fetch runsc" in done.stderr
    assert "build the image 'default'" in " ".join(done.stderr.split())
    assert "--yes" in done.stderr
    assert not (tmp_path / "cache").exists()


def _path_without(program: str) -> str:
    folders = os.environ["PATH"].split(":")
    return ":".join(f for f in folders if not (Path(f) / program).exists())


def test_image_commands(tmp_path: Path) -> None:
    rows = json.loads(emberbox("image", "list", "--json").stdout)
    assert "ready" in {row["state"] for row in rows if row["name"] == "default"}, "beside others, which may be stale"
    shown = json.loads(emberbox("image", "show", "--json").stdout)
    assert shown["python_packages"]["numpy"]
    assert "acorn" in shown["npm_packages"]
    assert emberbox("image", "rm", "nope").returncode == 5
    assert "not built" in emberbox("image", "list", EMBERBOX_CACHE_DIR=str(tmp_path)).stdout


def test_version_and_help() -> None:
    assert emberbox("--version").stdout.startswith("emberbox 0.")
    assert "Find the code in a model's answer" in emberbox("--help").stdout
    assert "5 no back end" in emberbox("run", "--help").stdout


def test_exec_gives_the_program_arguments_and_what_is_piped_in(tmp_path: Path) -> None:
    ask = tmp_path / "ask.py"
    ask.write_text("import sys\nprint('hello', input(), sys.argv[1:])")
    done = process("exec", str(ask), "one", "two words", "--", "--yes", "-l", stdin="Ann\n")
    assert (done.returncode, done.stdout) == (0, "hello Ann ['one', 'two words', '--yes', '-l']\n"), done.stderr
    done = emberbox("exec", "-l", "bash", "-c", 'read -r x; echo "$x-$1-$2"', "a", "b", stdin="from bash\n")
    assert (done.returncode, done.stdout) == (0, "from bash-a-b\n"), done.stderr
    done = emberbox("exec", "-", "a", "-l", "python", stdin="import sys; print(sys.argv[1:], sys.stdin.read())")
    assert (done.returncode, done.stdout) == (0, "['a'] \n"), done.stderr
    done = emberbox("exec", str(ask), stdin=b"x" * 2000, EMBERBOX_MAX_INPUT_BYTES="1024")
    assert done.returncode == 2
    assert "Standard input is longer than 1024 bytes" in done.stderr


def test_a_yes_answers_what_a_hook_asks(tmp_path: Path) -> None:
    config = tmp_path / "emberbox.toml"
    config.write_text('[vm_execution.policy]\nask = ["python.os-system"]\n')
    asking = {"EMBERBOX_CONFIG": str(config)}
    answer = tmp_path / "answer.md"
    answer.write_text("Run this:\n\n```python\nimport os; os.system('echo ran')\n```\n")
    for command in (("run", str(answer)), ("exec", "-l", "python", "-c", "import os; os.system('echo ran')")):
        refused = emberbox(*command, **asking)
        assert "ran\n" not in refused.stdout
        done = emberbox(*command, "--yes", **asking)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ran" in done.stdout
