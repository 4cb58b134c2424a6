"""The four languages in a real sandbox: each with success, error, time-out, output, input and state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from emberbox import Sandbox, TerminationReason

CONTRACT = True
"""On gVisor, here and on a server; what is marked so on every back end (conftest.py)."""


@dataclass(frozen=True)
class Speech:
    """The same deeds in one language."""

    language: str
    hello: str
    error: str
    error_name: str
    error_line: int
    exit_seven: str
    loop: str
    stdin: str
    arguments: str
    environment: str
    cwd: str
    big_output: str
    binary_output: str
    to_stderr: str


PYTHON = Speech(
    language="python",
    hello="print('héllo → 世界 🔥')",
    error="x = 1\n\nraise ValueError('deliberate')",
    error_name="ValueError",
    error_line=3,
    exit_seven="import sys; sys.exit(7)",
    loop="while True: pass",
    stdin="print(input()[::-1])",
    arguments="import sys; print(sys.argv[1:])",
    environment="import os; print(os.environ['GREETING'])",
    cwd="import os; print(os.getcwd())",
    big_output="print('x' * 3_000_000)",
    binary_output="import sys; sys.stdout.buffer.write(bytes(range(256)))",
    to_stderr="import sys; print('warning', file=sys.stderr)",
)
JAVASCRIPT = Speech(
    language="javascript",
    hello="console.log('héllo → 世界 🔥')",
    error="const x = 1\n\nthrow new TypeError('deliberate')",
    error_name="TypeError",
    error_line=3,
    exit_seven="process.exit(7)",
    loop="while (true) {}",
    stdin="const text = require('node:process').stdin; let all = '';\n"
    "for await (const piece of text) all += piece;\nconsole.log([...all.trim()].reverse().join(''))",
    arguments="console.log(process.argv.slice(2))",
    environment="console.log(process.env.GREETING)",
    cwd="console.log(process.cwd())",
    big_output="console.log('x'.repeat(3_000_000))",
    binary_output="process.stdout.write(Buffer.from([...Array(256).keys()]))",
    to_stderr="console.error('warning')",
)
BASH = Speech(
    language="bash",
    hello="echo 'héllo → 世界 🔥'",
    error="x=1\n\nnot_a_command_at_all",
    error_name="",
    error_line=3,
    exit_seven="exit 7",
    loop="while :; do :; done",
    stdin='read -r line; echo "$line" | rev',
    arguments='echo "$@"',
    environment='echo "$GREETING"',
    cwd="pwd",
    big_output="head -c 3000000 /dev/zero | tr '\\0' x",
    binary_output="printf '\\x00\\xff\\xfe'",
    to_stderr="echo warning >&2",
)
SPEECHES = [pytest.param(speech, id=speech.language) for speech in (PYTHON, JAVASCRIPT, BASH)]
each = pytest.mark.parametrize("speech", SPEECHES)


@pytest.mark.every_backend
@each
def test_output_arrives_whole_and_as_unicode(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.hello, speech.language)
    assert (run.stdout, run.stderr, run.exit_code, run.error) == ("héllo → 世界 🔥\n", "", 0, None)
    assert run.termination_reason is TerminationReason.COMPLETED
    assert run.succeeded


@each
def test_an_error_names_the_line_of_the_users_code(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.error, speech.language)
    assert run.exit_code != 0
    assert not run.succeeded
    assert run.context_survived
    text = run.stderr if run.error is None else run.error.traceback
    assert f"line {speech.error_line}" in text or f":{speech.error_line}" in text
    if speech.error_name:
        assert run.error is not None
        assert (run.error.name, run.error.value) == (speech.error_name, "deliberate")
    assert "/opt/emberbox" not in text


@each
def test_an_exit_code_is_kept_and_is_no_error(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.exit_seven, speech.language)
    assert run.exit_code == 7
    assert run.error is None


@pytest.mark.every_backend
@each
def test_an_endless_loop_is_stopped_and_the_next_execution_works(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.loop, speech.language, timeout=1.5)
    assert run.termination_reason is TerminationReason.TIMEOUT
    assert run.exit_code != 0
    assert not run.succeeded
    assert sandbox.run_code(speech.hello, speech.language).succeeded


@pytest.mark.every_backend
@each
def test_stdin_reaches_the_code(sandbox: Sandbox, speech: Speech) -> None:
    assert sandbox.run_code(speech.stdin, speech.language, stdin="drawer\n").stdout == "reward\n"


@each
def test_no_stdin_is_the_end_of_file_not_a_hang(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.stdin, speech.language, timeout=20)
    assert run.termination_reason is not TerminationReason.TIMEOUT


@each
def test_arguments_environment_and_directory_reach_the_code(sandbox: Sandbox, speech: Speech) -> None:
    assert "one two" in sandbox.run_code(speech.arguments, speech.language, args=["one two", "3"]).stdout
    run = sandbox.run_code(speech.environment, speech.language, envs={"GREETING": "good day"})
    assert run.stdout == "good day\n"
    sandbox.files.make_dir("below")
    assert sandbox.run_code(speech.cwd, speech.language, cwd="below").stdout == "/home/user/below\n"


@each
def test_environment_of_one_execution_does_not_stay(sandbox: Sandbox, speech: Speech) -> None:
    sandbox.run_code(speech.environment, speech.language, envs={"GREETING": "good day"})
    assert "good day" not in sandbox.run_code(speech.environment, speech.language).stdout


@each
def test_big_output_is_capped_and_says_so(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.big_output, speech.language)
    beginning, mark, end = run.stdout.partition("\n[... 1,951,")
    assert mark
    assert set(beginning) == {"x"}
    assert " bytes left out ...]\n" in end
    assert end.rstrip("\n").endswith("xxx")
    assert len(run.stdout) <= 1 << 20
    assert run.stdout_truncated
    assert not run.stderr_truncated
    assert run.exit_code == 0
    assert run.termination_reason is TerminationReason.OUTPUT_TRUNCATED


@each
def test_binary_output_is_no_accident(sandbox: Sandbox, speech: Speech) -> None:
    run = sandbox.run_code(speech.binary_output, speech.language)
    assert run.exit_code == 0
    assert "\ufffd" in run.stdout
    assert run.stdout[0] == "\0"


@each
def test_streams_are_kept_apart_and_stream(sandbox: Sandbox, speech: Speech) -> None:
    out: list[str] = []
    err: list[str] = []
    run = sandbox.run_code(
        f"{speech.hello}\n{speech.to_stderr}", speech.language, on_stdout=out.append, on_stderr=err.append
    )
    assert "".join(out) == run.stdout == "héllo → 世界 🔥\n"
    assert "".join(err) == run.stderr == "warning\n"


STATE = [
    ("python", "x = 41", "print(x + 1)"),
    ("javascript", "const x = 41; let y = 0", "console.log(x + 1)"),
    ("bash", "x=41; mkdir -p deep && cd deep", "echo $((x + 1))"),
]


@pytest.mark.every_backend
@pytest.mark.parametrize(("language", "before", "after"), STATE)
def test_state_carries_over_and_contexts_are_apart(sandbox: Sandbox, language: str, before: str, after: str) -> None:
    sandbox.run_code(before, language)
    assert sandbox.run_code(after, language).stdout == "42\n"
    other = sandbox.create_code_context(language)
    assert sandbox.run_code(after, context=other).stdout != "42\n"
    sandbox.run_code(before.replace("41", "1"), context=other)
    assert sandbox.run_code(after, context=other).stdout == "2\n"
    assert sandbox.run_code(after, language).stdout == "42\n"
    assert {c.id for c in sandbox.list_code_contexts()} >= {other.id}
    sandbox.restart_code_context(other)
    assert sandbox.run_code(after, context=other).stdout != "2\n"
    sandbox.remove_code_context(other)
    assert other.id not in {c.id for c in sandbox.list_code_contexts()}


@pytest.mark.every_backend
def test_output_arrives_while_the_code_still_runs(sandbox: Sandbox) -> None:
    seen: list[str] = []

    def answer(text: str) -> None:
        seen.append(text)
        sandbox.files.write("go", "")

    code = (
        "import os, time\nprint('first', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('second')"
    )
    run = sandbox.run_code(code, on_stdout=answer, timeout=20)
    assert run.succeeded, "the code waits for a file that is written when its first line has arrived"
    assert "".join(seen) == "first\nsecond\n"


@pytest.mark.every_backend
def test_interrupt_reaches_running_code_and_keeps_its_variables(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 'kept'")
    run = sandbox.run_code(
        "print('started', flush=True)\nwhile True: pass",
        on_stdout=lambda _: sandbox.interrupt(),
        timeout=30,
    )
    assert run.termination_reason is TerminationReason.INTERRUPTED
    assert run.error is not None
    assert run.error.name == "KeyboardInterrupt"
    assert sandbox.run_code("x").text == "'kept'"


@pytest.mark.every_backend
def test_a_crash_loses_the_context_and_says_so(sandbox: Sandbox) -> None:
    sandbox.run_code("x = 1")
    run = sandbox.run_code("import os; os.abort()")
    assert run.termination_reason is TerminationReason.CRASHED
    assert not run.context_survived
    after = sandbox.run_code("x")
    assert after.error is not None
    assert after.error.name == "NameError"


def test_top_level_await_in_python_and_javascript(sandbox: Sandbox) -> None:
    python = "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 42\nawait f()"
    assert sandbox.run_code(python).text == "42"
    assert sandbox.run_code("await Promise.resolve(42)", "javascript").text == "42"


def test_javascript_waits_for_what_it_started(sandbox: Sandbox) -> None:
    code = "async function main() { await new Promise(r => setTimeout(r, 50)); console.log('done') }\nmain()"
    assert sandbox.run_code(code, "js").stdout == "done\n"


def test_javascript_imports_and_redeclares(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import path from 'node:path'\nconst a = path.basename('/x/y')\na", "js").text == "'y'"
    assert sandbox.run_code("const a = 2; a", "js").text == "2"
    sandbox.files.write("helper.mjs", "export const five = 5")
    assert sandbox.run_code("const { five } = await import('./helper.mjs'); five", "js").text == "5"
    sandbox.files.write("old.js", "module.exports = { six: 6 }")
    assert sandbox.run_code("require('./old.js').six", "js").text == "6"


def test_bash_exit_keeps_variables_and_options_do_not_leak(sandbox: Sandbox) -> None:
    assert sandbox.run_code("set -e; kept=yes; false; echo not reached", "bash").exit_code == 1
    run = sandbox.run_code("false; echo $kept", "bash")
    assert (run.stdout, run.exit_code) == ("yes\n", 0)


@pytest.mark.every_backend
def test_folders_of_the_template_can_be_written_and_belong_to_snapshots(sandbox: Sandbox) -> None:
    folders = ["/workspace", "/mnt/data", "/app", "/data", "/testbed", "/logs"]
    write = f"for folder in {folders}:\n    open(folder + '/note', 'w').write('before')"
    assert sandbox.run_code(write).error is None
    point = sandbox.snapshot()
    for folder in folders:
        sandbox.files.write(f"{folder}/note", "after")
    assert {change.path for change in sandbox.diff(point)} == {f"{folder}/note" for folder in folders}
    sandbox.rollback(point)
    assert [sandbox.files.read(f"{folder}/note") for folder in folders] == ["before"] * len(folders)


@pytest.mark.rust
def test_rust_compiles_runs_and_is_cached(sandbox: Sandbox) -> None:
    code = (
        "use std::io::Read;\n"
        "fn main() {\n"
        "    let mut text = String::new();\n"
        "    std::io::stdin().read_to_string(&mut text).unwrap();\n"
        '    println!("{} {:?} {}", text.trim(), std::env::args().nth(1), std::env::var("GREETING").unwrap());\n'
        '    eprintln!("warning");\n'
        "    std::process::exit(7);\n"
        "}\n"
    )
    allowed = code.replace("    std::process::exit(7);\n", "")
    first = sandbox.run_code(allowed, "rust", stdin="in\n", args=["arg"], envs={"GREETING": "hi"})
    assert first.stdout == 'in Some("arg") hi\n'
    assert first.stderr == "warning\n"
    assert first.exit_code == 0
    again = sandbox.run_code(allowed, "rs", stdin="again\n", args=["b"], envs={"GREETING": "ho"})
    assert again.stdout == 'again Some("b") ho\n'
    sandbox.commands.run("for kept in .cache/rust-programs/*/main; do printf '#!/bin/sh\\necho kept' > $kept; done")
    assert sandbox.run_code(allowed, "rs").stdout == "kept\n", "it was compiled again"


@pytest.mark.rust
def test_rust_errors_of_compiler_and_program(sandbox: Sandbox) -> None:
    wrong = sandbox.run_code('fn main() {\n    let x: i32 = "text";\n}\n', "rust")
    assert wrong.exit_code == 1
    assert wrong.error is not None
    assert wrong.error.name == "CompileError"
    assert "main.rs:2" in wrong.stderr
    panic = sandbox.run_code('fn main() { panic!("deliberate") }', "rust")
    assert panic.exit_code == 101
    assert "deliberate" in panic.stderr


@pytest.mark.rust
def test_rust_is_stopped_when_it_takes_too_long(own_sandbox: Sandbox) -> None:
    run = own_sandbox.run_code("fn main() { loop { std::thread::yield_now() } }", "rust", timeout=20)
    assert run.termination_reason is TerminationReason.TIMEOUT
