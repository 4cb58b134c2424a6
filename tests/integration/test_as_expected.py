"""Small programs as people write them, in the default template on a real sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emberbox import Sandbox, TerminationReason


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    """One sandbox for all of them, where they do no harm to each other."""
    with Sandbox.create("default") as sandbox:
        yield sandbox


def test_two_hundred_threads(shared: Sandbox) -> None:
    code = (
        "import time\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(max_workers=200) as pool:\n"
        "    print(sum(pool.map(lambda n: time.sleep(0.2) or n, range(200))))"
    )
    assert shared.run_code(code).stdout == "19900\n"


def test_node_reserves_what_it_wants(shared: Sandbox) -> None:
    worker = "require('worker_threads').parentPort.postMessage(1)"
    code = (
        'const { Worker } = require("worker_threads"); let done = 0;\n'
        f'for (let n = 0; n < 12; n += 1) new Worker("{worker}", {{ eval: true }})'
        '.on("message", () => { done += 1; if (done === 12) console.log("all"); });'
    )
    assert shared.run_code(code, "javascript").stdout == "all\n"
    memory = "new WebAssembly.Memory({ initial: 1, maximum: 65536 }).buffer.byteLength"
    assert shared.run_code(memory, "javascript").text == "65536"
    server = (
        'const server = require("http").createServer((request, response) => response.end("pong"));\n'
        "server.listen(0, async () => {\n"
        "  const answer = await fetch(`http://127.0.0.1:${server.address().port}/`);\n"
        "  console.log(answer.status, await answer.text());\n  server.close();\n});"
    )
    assert shared.run_code(server, "javascript").stdout == "200 pong\n"


def test_what_ipython_shows_is_a_result(shared: Sandbox) -> None:
    code = (
        "from IPython.display import HTML, Markdown, clear_output, display\n"
        "display(HTML('<b>bold</b>'), Markdown('# title'))\nclear_output()\n"
        "handle = display({'text/html': '<i>raw</i>'}, raw=True, display_id=True)"
    )
    run = shared.run_code(code)
    assert run.error is None
    assert [result.html for result in run.results] == ["<b>bold</b>", None, "<i>raw</i>"]
    assert run.results[1].markdown == "# title"


def test_magics_and_their_policy(shared: Sandbox) -> None:
    run = shared.run_code("%matplotlib inline\nword = 'hi'\n!echo {word} there\n%pip --version")
    assert run.error is None
    assert run.stdout.startswith("hi there\npip ")


def test_the_end_of_long_output_is_kept(shared: Sandbox) -> None:
    run = shared.run_code("for number in range(300):\n    print('x' * 10_000)\nprint('RESULT 42')")
    assert run.termination_reason is TerminationReason.OUTPUT_TRUNCATED
    assert run.stdout_truncated
    assert run.stdout.startswith("xxx")
    assert run.stdout.endswith("x\nRESULT 42\n")
    assert " bytes left out ...]\n" in run.stdout


def test_a_long_program_is_taken(shared: Sandbox) -> None:
    line = "number_of_lines_so_far = globals().get('number_of_lines_so_far', 0) + 1;\n"
    assert shared.run_code(line * 400 + "print(number_of_lines_so_far)").stdout == "400\n"


def test_without_a_network_one_line_says_what_to_do(shared: Sandbox) -> None:
    for code, language in (
        ("pip install no-such-package-here", "bash"),
        ("git clone https://example.org/a.git", "bash"),
        ("uv pip install --system no-such-package-here", "bash"),
        ("npm install no-such-package-here", "bash"),
        ("apt-get install -y cowsay", "bash"),
        ("cargo install no-such-package-here", "bash"),
        ("import urllib.request\nurllib.request.urlopen('http://example.org')", "python"),
    ):
        run = shared.run_code(code, language)
        assert not run.succeeded
        assert [note for note in run.notes if "no network" in note], run.stderr


def test_no_path_of_the_kernel_shows(shared: Sandbox) -> None:
    for code, language in (
        ("import x from './missing.json' with { type: 'json' }", "javascript"),
        ("require('./missing')", "javascript"),
        ("await import('./missing.mjs')", "javascript"),
        ("null.x", "javascript"),
        ("%nothing", "python"),
        ("class B:\n    def __repr__(self):\n        1 / 0\nB()", "python"),
        ("import asyncio\nasync def f():\n    1 / 0\nawait f()", "python"),
        ("trap x NO_SUCH_SIGNAL; set -u; echo $nothing", "bash"),
    ):
        run = shared.run_code(code, language)
        assert not run.succeeded
        said = run.stderr + (run.error.traceback + run.error.value if run.error else "")
        assert "/opt/" not in said, said
