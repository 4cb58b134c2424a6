"""What people know from notebooks: magics, one event loop, a file of one's own, streams that come back."""

from __future__ import annotations

import os

import pytest

from .conftest import Client


def cells(agent: Client, context: str, *sources: str) -> list[str]:
    """The output of cells, which must all succeed, and the text of the last one's value."""
    shown = []
    for source in sources:
        outcome = agent.code(source, context=context)
        assert outcome.final["exit_code"] == 0, outcome.final["error"]
        assert outcome.final["error"] is None
        shown.append(outcome.stdout + (outcome.main or {}).get("text/plain", ""))
    return shown


@pytest.fixture(scope="module")
def lasting(agent: Client) -> str:
    """A context that some tests share: what one of them writes another one runs."""
    return str(agent.call("context_create", language="python").final["context"])


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("!echo one; echo two", "one\ntwo\n"),
        ("x = 6\n!echo {x * 7} $x $HOME_OF_NOBODY", "42 6\n"),
        ("files = !printf 'a\\nb\\n'\nfiles", "['a', 'b']"),
        ("for n in range(2):\n    !echo {n}\n", "0\n1\n"),
        ("def f(n):\n    !echo {n + 1}\nf(1)", "2\n"),
        ("!echo one \\\n  two\nprint(3)", "one two\n3\n"),
        ("print('''\n!no command\n%no magic\n''')", "\n!no command\n%no magic\n\n"),
        ("%matplotlib inline\nprint(6 * 7)", "42\n"),
        ("# a comment\n%load_ext autoreload\n%autoreload 2\n5 \\\n%3", "2"),
        ("%env GREETING=hi\n!echo $GREETING", "env: GREETING=hi\nhi\n"),
        ("get_ipython().system('echo plain')\nget_ipython().run_line_magic('matplotlib', 'inline')", "plain\n"),
        ("%%bash\nfor i in 1 2; do echo $i; done", "1\n2\n"),
        ("\n%%writefile hello.py\nprint('hello')\n", "Writing hello.py\n"),
        ("%run hello.py", "hello\n"),
        ("%%capture out\nprint('hidden')", ""),
        ("print(out.stdout, end='')", "hidden\n"),
        ("zebra = 1\n%who_ls", "'zebra']"),
        ("\ufeffprint('mark')", "mark\n"),
        ("    x = 1\n    if x:\n        print('''a\n    b''')", "a\n    b\n"),
        ("    !echo indented\n    print(2)", "indented\n2\n"),
        ("1\n!true\n7;", ""),
    ],
)
def test_a_cell_of_a_notebook(agent: Client, lasting: str, source: str, shown: str) -> None:
    output = cells(agent, lasting, source)[0]
    assert output.endswith(shown) if source.startswith("zebra") else output == shown


def test_time_is_measured_and_the_value_is_shown(agent: Client, context: str) -> None:
    outcome = agent.code("%%time\ntotal = sum(range(10))\ntotal", context=context)
    assert "Wall time: " in outcome.stdout
    assert outcome.main == {"text/plain": "45"}
    assert "Wall time: " in agent.code("%time other = total + 1", context=context).stdout
    assert "per loop" in agent.code("%timeit -n 10 -r 2 sum(range(other))", context=context).stdout
    assert agent.code("other", context=context).main == {"text/plain": "46"}


def test_errors_in_and_of_magics(agent: Client, context: str) -> None:
    error = agent.code("x = 1\n%no_such_thing", context=context).final["error"]
    assert error["name"] == "UsageError"
    assert "%no_such_thing" in error["value"]
    assert "line 2" in error["traceback"]
    assert "kernels" not in error["traceback"]
    assert "%%nothing" in agent.code("%%nothing\n1", context=context).final["error"]["value"]
    failed = agent.code("%%bash\nexit 3", context=context).final
    assert (failed["exit_code"], failed["error"]["name"]) == (1, "CalledProcessError")
    in_body = agent.code("%%time\n\n1 / 0", context=context).final["error"]
    assert "line 3" in in_body["traceback"]
    wrong = agent.code("!true\nx = = 1", context=context).final["error"]
    assert wrong["name"] == "SyntaxError"
    assert "line 2" in wrong["traceback"]


def test_a_command_that_fails_is_no_error_and_leaves_its_exit_code(agent: Client, context: str) -> None:
    assert cells(agent, context, "!exit 3", "_exit_code") == ["", "3"]


def test_one_event_loop_lasts(agent: Client, context: str) -> None:
    define = "import asyncio\nasync def square(n):\n    await asyncio.sleep(0.01)\n    return n * n\n"
    assert cells(
        agent,
        context,
        define + "tasks = [asyncio.create_task(square(n)) for n in range(3)]",
        "await asyncio.gather(*tasks)",
        "more = [asyncio.create_task(square(n)) for n in range(2)]\nawait asyncio.gather(*more)",
        "asyncio.run(square(5))",
        "asyncio.get_event_loop().run_until_complete(square(6))",
        "await asyncio.sleep(0)\nasyncio.run(square(7))",
        "loop = asyncio.get_event_loop(); later = loop.create_task(square(8))",
        "await later",
        "asyncio.get_event_loop() is loop",
        "future = asyncio.ensure_future(square(9))",
        "await future",
        "loop.close()",
        "await square(10)",
        "asyncio.get_event_loop().run_until_complete(square(11))",
    ) == ["", "[0, 1, 4]", "[0, 1]", "25", "36", "49", "", "64", "True", "", "81", "", "100", "121"]


def test_a_task_begins_with_the_cell_that_makes_it(agent: Client, context: str) -> None:
    define = "import asyncio\nasync def work():\n    print('begun')\n    await asyncio.sleep(0)\n    return 1\n"
    source = define + "t = asyncio.create_task(work())"
    assert cells(agent, context, source, "await t") == ["begun\n", "1"]


def test_a_time_out_in_an_await_names_the_line_that_waits(agent: Client, context: str) -> None:
    source = "import asyncio\nasync def wait():\n    await asyncio.sleep(60)\n\nawait wait()"
    outcome = agent.code(source, context=context, timeout=0.5)
    assert outcome.reason == "timeout"
    text = outcome.final["error"]["traceback"]
    assert "line 5, in <module>" in text
    assert "line 3, in wait" in text
    assert "selectors" not in text
    assert outcome.final["error"]["name"] == "KeyboardInterrupt"
    assert agent.code("await asyncio.sleep(0, 'on')", context=context).main == {"text/plain": "'on'"}


def test_the_code_has_a_file_of_its_own(agent: Client, context: str) -> None:
    code = (
        "import os, pathlib\npathlib.Path(__file__).resolve().parent == pathlib.Path.cwd(), os.path.basename(__file__)"
    )
    assert cells(agent, context, code) == ["(True, 'main.py')"]
    (agent.workdir / "below").mkdir(exist_ok=True)
    assert agent.code("os.path.dirname(__file__)", context=context, cwd="below").main == {
        "text/plain": repr(str(agent.workdir / "below"))
    }
    assert agent.code("os.path.dirname(__file__)", context=context).main == {"text/plain": repr(str(agent.workdir))}


def test_the_source_of_classes_and_functions(agent: Client, context: str) -> None:
    shown = cells(
        agent,
        context,
        "import inspect\nclass Point:\n    x = 1\n\nclass Line:\n    def __init__(self):\n        pass",
        "def double(n):\n    return 2 * n",
        "print(inspect.getsource(Point) + inspect.getsource(Line) + inspect.getsource(double), end='')",
        "class Point:\n    y = 2",
        "print(inspect.getsource(Point), end='')",
    )
    assert shown[2].startswith("class Point:\n    x = 1\nclass Line:\n    def __init__(self):")
    assert shown[2].endswith("def double(n):\n    return 2 * n\n")
    assert shown[4] == "class Point:\n    y = 2\n"


def test_a_pool_of_spawned_processes_knows_what_cells_define(agent: Client, context: str) -> None:
    define = "import multiprocessing\nFACTOR = 3\ndef triple(n):\n    return FACTOR * n\n"
    use = (
        "print('once')\n"
        "with multiprocessing.get_context('spawn').Pool(2) as pool:\n    print(pool.map(triple, [1, 2]))\n"
    )
    assert cells(agent, context, define, use) == ["", "once\n[3, 6]\n"]


@pytest.mark.parametrize(
    "harm",
    [
        "import sys\nsys.stdout = open(sys.stdout.fileno(), 'w', buffering=1)",
        "import sys\nsys.stdout.close()",
        "import os\nos.close(1); os.close(2)",
        "import os, sys\nsys.stdout = os.fdopen(1, 'w')",
        "import sys\nout = open(1, 'w')\ndel out",
        "import sys, io\nsys.stdout = io.StringIO(); sys.stderr = None",
        "import sys\nsys.stdin.close()",
    ],
)
def test_streams_that_a_cell_took_away_are_back_in_the_next_one(agent: Client, context: str, harm: str) -> None:
    agent.code(harm, context=context)
    agent.code("print('between')", context=context)
    for word in ("two", "three"):
        outcome = agent.code(
            f"import os, sys\nprint({word!r})\nos.system('echo child')\nprint(1, file=sys.stderr)", context=context
        )
        assert (outcome.stdout, outcome.stderr, outcome.final["error"]) == (f"{word}\nchild\n", "1\n", None)


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("10**5000", "ValueError", "limit (4300 digits)"),
        ("class B:\n    def __repr__(self):\n        raise KeyError('inside')\nB()", "KeyError", "'inside'"),
    ],
)
def test_a_last_value_that_cannot_be_shown_says_why(
    agent: Client, context: str, code: str, name: str, value: str
) -> None:
    outcome = agent.code(code, context=context)
    assert outcome.final["exit_code"] == 1
    assert outcome.final["error"]["name"] == name
    assert value in outcome.final["error"]["value"]
    assert "kernels" not in outcome.final["error"]["traceback"]
    assert agent.code("1", context=context).main == {"text/plain": "1"}


def test_what_is_printed_after_an_execution_is_kept_apart_from_the_next_one(agent: Client, context: str) -> None:
    for name in ("go", "said"):
        os.mkfifo(agent.workdir / name)
    code = (
        "import os, threading\n"
        "def late():\n"
        "    open('go').read()\n"
        "    os.write(1, b'from the thread')\n"
        "    open('said', 'w').close()\n"
        "threading.Thread(target=late).start()"
    )
    agent.code(code, context=context)
    (agent.workdir / "go").write_text("now: no execution is under way")
    (agent.workdir / "said").read_text()
    following = agent.code("print('mine')", context=context)
    assert following.stdout == "mine\n"
    assert following.final["late"] == "from the thread"
    assert "late" not in agent.code("print('mine')", context=context).final


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("import os\nos._exit(3)", "exit code 3"),
    ],
)
def test_an_interpreter_that_died_says_why(agent: Client, context: str, code: str, words: str) -> None:
    outcome = agent.code(code, context=context)
    assert outcome.final["context_survived"] is False
    error = outcome.final["error"]
    assert error["name"] == "InterpreterDied"
    assert words in error["value"]
    assert "python" in error["value"]


def test_a_time_out_that_needed_force_says_so(agent: Client, context: str) -> None:
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    outcome = agent.code(code, context=context, timeout=0.3)
    assert outcome.reason == "timeout"
    assert "did not stop when its time was over" in outcome.final["error"]["value"]
