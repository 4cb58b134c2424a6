"""The Python kernel, as its users see it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .conftest import PACKAGE_PARENT, Client, agent_argv, configuration


def run(agent: Client, context: str, code: str) -> object:
    main = agent.code(code, context=context).main
    return None if main is None else main["text/plain"]


def test_variables_stay_and_the_last_expression_is_the_result(agent: Client, context: str) -> None:
    assert run(agent, context, "x = 41") is None
    assert run(agent, context, "x + 1") == "42"
    assert run(agent, context, "_") == "42"
    assert run(agent, context, "None") is None
    assert agent.code("'é' * 2", context=context).final["execution_count"] == 5


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1;", None),
        ("(1 +\n 1) ;  # done", None),
        ("'a;b'", "'a;b'"),
        ("1 # ;", "1"),
        ("(1)  # comment\n", "1"),
        ("'é'; 'ü'", "'ü'"),
        ("if True:\n    5", None),
        ("", None),
        ("# nothing", None),
    ],
)
def test_a_semicolon_silences(agent: Client, context: str, code: str, expected: str | None) -> None:
    assert run(agent, context, code) == expected


def test_contexts_are_apart(agent: Client, context: str) -> None:
    agent.code("mine = 1")
    assert agent.code("mine", context=context).final["error"]["name"] == "NameError"
    assert agent.code("mine").main == {"text/plain": "1"}


def test_top_level_await(agent: Client, context: str) -> None:
    code = "import asyncio\nq = asyncio.Queue()\nawait q.put(7)\nasync with asyncio.Lock():\n    pass\nq.qsize()"
    assert run(agent, context, code) == "1"
    assert run(agent, context, "await q.get()") == "7"
    assert run(agent, context, "async def f(): return 8\nasyncio.run(f())") == "8"


def test_output_of_all_kinds_is_captured(agent: Client, context: str) -> None:
    code = (
        "import os, subprocess, sys\nprint('a', flush=False)\nos.write(1, b'b\\n')\n"
        "subprocess.run(['echo', 'c'])\nos.system('echo d')\nprint('e', file=sys.stderr)\nsys.stdout.write('f')\nNone"
    )
    outcome = agent.code(code, context=context)
    assert (outcome.stdout, outcome.stderr) == ("a\nb\nc\nd\nf", "e\n")


def test_the_input_is_that_of_the_request(agent: Client, context: str) -> None:
    code = "print(input(), input())"
    assert agent.code(code, stdin="é\nb\nrest".encode(), context=context).stdout == "é b\n"
    assert agent.code(code, context=context).final["error"]["name"] == "EOFError"
    assert run(agent, context, "import sys\nsys.stdin.read()") == "''"
    assert agent.code("sys.stdin.read()", stdin=b"again", context=context).main == {"text/plain": "'again'"}


def test_environment_directory_and_arguments_are_for_one_execution(agent: Client, context: str, tmp_path: Path) -> None:
    code = "import os, sys\nprint(os.environ.get('A'), os.getcwd(), sys.argv[1:])"
    home = agent.code(code, context=context).stdout
    outcome = agent.code(code, context=context, env={"A": "b"}, cwd=str(tmp_path), args=["x", "y z"])
    assert outcome.stdout == f"b {tmp_path} ['x', 'y z']\n"
    assert agent.code(code, context=context).stdout == home
    assert home.startswith("None ")


def test_a_context_has_its_own_directory_and_environment(agent: Client, tmp_path: Path) -> None:
    ident = agent.call("context_create", language="python", cwd=str(tmp_path), env={"A": "b"}).final["context"]
    assert agent.code("import os\nprint(os.getcwd(), os.environ['A'])", context=ident).stdout == f"{tmp_path} b\n"
    agent.call("context_restart", context=ident)
    assert agent.code("import os\nprint(os.getcwd(), os.environ['A'])", context=ident).stdout == f"{tmp_path} b\n"
    agent.call("context_remove", context=ident)
    assert agent.finish(agent.begin_code("1", context=ident)).final["kind"] == "not_found"


def test_tracebacks_show_the_users_code_only(agent: Client, context: str) -> None:
    agent.code("def inner():\n    raise ValueError('bad')", context=context)
    outcome = agent.code("try:\n    inner()\nexcept ValueError as e:\n    raise KeyError('k') from e", context=context)
    error = outcome.final["error"]
    assert (error["name"], error["value"]) == ("KeyError", "'k'")
    assert error["traceback"] == (
        "Traceback (most recent call last):\n"
        '  File "<cell 2>", line 2, in <module>\n    inner()\n'
        "  File \"<cell 1>\", line 2, in inner\n    raise ValueError('bad')\n"
        "ValueError: bad\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback (most recent call last):\n"
        "  File \"<cell 2>\", line 4, in <module>\n    raise KeyError('k') from e\n"
        "KeyError: 'k'\n"
    )
    assert (outcome.final["exit_code"], outcome.reason, outcome.stderr) == (1, "completed", "")


def test_errors_under_await_show_the_users_code_only(agent: Client, context: str) -> None:
    error = agent.code("async def f():\n    1/0\nawait f()", context=context).final["error"]
    assert "asyncio" not in error["traceback"]
    assert 'File "<cell 1>", line 2, in f' in error["traceback"]


def test_syntax_errors_point_to_the_place(agent: Client, context: str) -> None:
    error = agent.code("x = 1\ny = (", context=context).final["error"]
    assert error["name"] == "SyntaxError"
    assert 'File "<cell 1>", line 2\n    y = (\n        ^\n' in error["traceback"]


ADDED = "import json  # added by emberbox\nfrom math import sqrt  # added by emberbox\n"


def test_added_imports_do_not_move_lines(agent: Client, context: str) -> None:
    code = f'"""Doc."""\n{ADDED}def f():\n    return sqrt(4) / 0\n\nlen(\n    json.dumps(f())\n)'
    error = agent.code(code, context=context).final["error"]
    assert 'File "<cell 1>", line 6, in <module>\n    json.dumps(f())\n' in error["traceback"]
    assert 'File "<cell 1>", line 3, in f\n    return sqrt(4) / 0\n' in error["traceback"]
    source = "def f():\n    return sqrt(4) / 0\n"
    assert run(agent, context, "import inspect\ninspect.getsource(f)") == repr(source)
    assert run(agent, context, "json.dumps([sqrt(9)])") == "'[3.0]'"


def test_added_imports_do_not_move_syntax_errors(agent: Client, context: str) -> None:
    error = agent.code(f"{ADDED}x = 1\nif x:\n    y = (", context=context).final["error"]
    assert 'File "<cell 1>", line 3\n    y = (\n        ^\n' in error["traceback"]
    error = agent.code(f"{ADDED}x = [\n\n)", context=context).final["error"]
    assert "does not match opening parenthesis '[' on line 1" in error["value"]
    error = agent.code(f"{ADDED}\nreturn 1", context=context).final["error"]
    assert 'File "<cell 3>", line 2\n' in error["traceback"]
    assert "another exception" not in error["traceback"]


def test_added_imports_give_way_to_earlier_variables(agent: Client, context: str) -> None:
    agent.code("json = 5\ndef sqrt(x): return 'mine'\nwhere = 6", context=context)
    assert run(agent, context, f"{ADDED}json, sqrt(4)") == "(5, 'mine')"
    code = "import xml.dom  # added by emberbox\nimport os.path as where  # added by emberbox\n"
    assert run(agent, context, f"{code}xml.dom.__name__, where") == "('xml.dom', 6)"
    assert run(agent, context, "import json\njson.dumps(1)") == "'1'"


def test_an_added_import_of_what_is_not_there_is_missed_where_it_is_used(agent: Client, context: str) -> None:
    code = "import not_there as nt  # added by emberbox\ndef f():\n    return nt.x\n"
    assert run(agent, context, f"{code}6") == "6"
    error = agent.code(f"{code}f()", context=context).final["error"]
    assert (error["name"], error["value"]) == ("NameError", "name 'nt' is not defined")
    assert 'line 3, in <module>\n    f()\n  File "<cell 2>", line 2, in f\n' in error["traceback"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('x = """\nimport json  # added by emberbox\n"""\nx', "'\\nimport json  # added by emberbox\\n'"),
        ("x = 1  # added by emberbox\nx", "1"),
        ("if True:\n    import json  # added by emberbox\njson.dumps(2)", "'2'"),
        ("import json, math as m  # added by emberbox\r\n(json.dumps(3),\r\n m.pi > 3)", "('3', True)"),
        ("import json  # added by emberbox\rjson.dumps(4)", "'4'"),
        ("import json  # added by emberbox\njson.dumps(5);", None),
        ("from __future__ import annotations\nimport json  # added by emberbox\ndef f(x: json): return 6\nf(7)", "6"),
        ("import json  # added by emberbox\nf'''{\n  json.dumps(\n8)}'''", "'8'"),
        ("'doc'\nimport json  # added by emberbox\n__doc__", "'doc'"),
        ("# added by emberbox", None),
    ],
)
def test_the_mark_of_an_added_import_changes_nothing_else(
    agent: Client, context: str, code: str, expected: str | None
) -> None:
    outcome = agent.code(code, context=context)
    assert outcome.final["error"] is None, outcome.final["error"]
    assert outcome.main == (None if expected is None else {"text/plain": expected})


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import sys\nsys.exit()", 0, ""),
        ("import sys\nsys.exit(3)", 3, ""),
        ("import sys\nsys.exit('reason')", 1, "reason\n"),
        ("exit()", 0, ""),
    ],
)
def test_exit_ends_the_execution_only(agent: Client, context: str, code: str, exit_code: int, stderr: str) -> None:
    agent.code("kept = 1", context=context)
    outcome = agent.code(code, context=context)
    assert (outcome.final["exit_code"], outcome.final["error"], outcome.stderr) == (exit_code, None, stderr)
    assert outcome.reason == "completed"
    assert run(agent, context, "kept") == "1"
    assert agent.code("input()", stdin=b"x", context=context).main == {"text/plain": "'x'"}


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import os\nos._exit(3)", 3), ("import os\nos.kill(os.getpid(), 9)", 137), ("import os\nos.abort()", 134)],
)
def test_a_dead_kernel_is_reported_and_replaced(agent: Client, context: str, code: str, exit_code: int) -> None:
    outcome = agent.code("x = 1\nprint('before')\n" + code, context=context)
    assert (outcome.reason, outcome.final["exit_code"], outcome.stdout) == ("crashed", exit_code, "before\n")
    assert not outcome.final["context_survived"]
    outcome = agent.code("x", context=context)
    assert (outcome.final["error"]["name"], outcome.final["execution_count"]) == ("NameError", 1)


def test_a_timeout_interrupts_and_the_context_survives(agent: Client, context: str) -> None:
    agent.code("kept = 1", context=context)
    outcome = agent.code("while True: pass", context=context, timeout=0.2)
    assert (outcome.reason, outcome.final["context_survived"]) == ("timeout", True)
    assert outcome.final["error"]["name"] == "KeyboardInterrupt"
    outcome = agent.code("import asyncio\nawait asyncio.sleep(1000)", context=context, timeout=0.2)
    assert (outcome.reason, outcome.final["context_survived"]) == ("timeout", True)
    assert run(agent, context, "kept") == "1"


def test_code_that_ignores_interrupts_is_killed(agent: Client, context: str) -> None:
    code = "import time\nwhile True:\n    try: time.sleep(1000)\n    except BaseException: pass"
    outcome = agent.code(code, context=context, timeout=0.1)
    assert (outcome.reason, outcome.final["context_survived"]) == ("timeout", False)
    assert run(agent, context, "1") == "1"


def test_interrupt_and_kill_by_request(agent: Client, context: str) -> None:
    for number, reason, survived in ((signal.SIGINT, "interrupted", True), (signal.SIGKILL, "killed", False)):
        ident = agent.begin_code("import time\nprint('go')\ntime.sleep(1000)", context=context)
        agent.wait(ident, "stdout")
        agent.call("signal", target=ident, signal=int(number))
        outcome = agent.finish(ident)
        assert (outcome.reason, outcome.final["context_survived"]) == (reason, survived)


def test_one_execution_at_a_time(agent: Client, context: str) -> None:
    ident = agent.begin_code("import time\ntime.sleep(1000)", context=context)
    agent.wait(ident, "started")
    assert agent.finish(agent.begin_code("1", context=context)).final["kind"] == "busy"
    agent.call("context_restart", context=context)
    assert agent.finish(ident).reason == "killed"


def test_rich_results(agent: Client, context: str) -> None:
    code = (
        "class R:\n  def __repr__(self): return 'r'\n  def _repr_html_(self): return '<b>r</b>'\n"
        "  def _repr_png_(self): return b'png'\n  def _repr_json_(self): return {'a': 1}\n"
        "  def _repr_latex_(self): raise ValueError\n"
        "class M:\n  def __repr__(self): return 'm'\n"
        "  def _repr_mimebundle_(self, include=None, exclude=None): return {'text/markdown': '*m*'}, {}\n"
        "display(M(), {'text/html': '<i>'})\nR()"
    )
    outcome = agent.code(code, context=context)
    assert outcome.results == [
        {"text/plain": "m", "text/markdown": "*m*"},
        {"text/html": "<i>"},
        {"text/plain": "r", "text/html": "<b>r</b>", "image/png": "cG5n", "application/json": {"a": 1}},
    ]
    assert outcome.main == outcome.results[2]


@pytest.mark.parametrize(
    ("code", "begin"),
    [
        ("'x' * 10**6", "'xxx"),
        ("'\\udc80'", "'\\udc80'"),
    ],
)
def test_results_that_misbehave(agent: Client, context: str, code: str, begin: str) -> None:
    outcome = agent.code(code, context=context)
    assert outcome.main is not None
    assert outcome.main["text/plain"].startswith(begin)
    assert len(outcome.main["text/plain"]) < 300_000


def test_results_are_bounded_in_sum(agent: Client, context: str) -> None:
    code = "for _ in range(10): display('x' * 300)"
    outcome = agent.code(code, context=context, results_limit=1000)
    assert outcome.final["results_truncated"]
    assert len(outcome.results) == 3
    assert outcome.reason == "output-truncated"


def test_too_much_output_is_dropped(agent: Client, context: str) -> None:
    outcome = agent.code("print('é' * 100000)\nprint('x')", context=context, stdout_limit=101)
    assert outcome.stdout == "é" * 50
    assert (outcome.final["stdout_truncated"], outcome.reason) == (True, "output-truncated")


FAKE_PYPLOT = """
_open = {}
def figure(number=None):
    from matplotlib.figure import Figure
    if number is None: number = len(_open) + 1
    return _open.setdefault(number, Figure())
def get_fignums(): return sorted(_open)
def close(figure):
    for number, other in list(_open.items()):
        if other is figure: del _open[number]
def show(): raise AssertionError("not patched")
"""
FAKE_FIGURE = """
class Figure:
    def __repr__(self): return "figure"
    def savefig(self, file, format, bbox_inches): file.write(b"png")
"""


@pytest.fixture
def plots(agent: Client, context: str, tmp_path: Path) -> str:
    """A context that finds a stand-in for matplotlib."""
    package = tmp_path / "matplotlib"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "pyplot.py").write_text(FAKE_PYPLOT)
    (package / "figure.py").write_text(FAKE_FIGURE)
    agent.code(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})", context=context)
    return context


PICTURE = {"text/plain": "figure", "image/png": "cG5n"}


def test_figures_are_shown_once_each(agent: Client, plots: str) -> None:
    code = "import matplotlib.pyplot as plt\nplt.figure()\nplt.show()\nplt.figure()\nplt.figure();"
    outcome = agent.code(code, context=plots)
    assert outcome.results == [PICTURE] * 3
    assert outcome.main is None
    assert agent.code("1", context=plots).results == [{"text/plain": "1"}]


def test_a_figure_as_the_last_expression_is_the_result(agent: Client, plots: str) -> None:
    outcome = agent.code("import matplotlib.pyplot as plt\nfigure = plt.figure()\nfigure", context=plots)
    assert outcome.results == [PICTURE]
    assert outcome.main == PICTURE
    assert agent.code("figure", context=plots).main == PICTURE


def test_a_fork_of_the_kernel_is_no_kernel(agent: Client, context: str) -> None:
    code = "import os\nif os.fork() == 0:\n    print('child')\nelse:\n    os.wait()\n    print('parent')\n5"
    outcome = agent.code(code, context=context)
    assert (outcome.stdout, outcome.main) == ("child\n5\nparent\n", {"text/plain": "5"}) or outcome.main == {
        "text/plain": "5"
    }
    assert run(agent, context, "6") == "6"


def test_multiprocessing_dataclasses_and_pickle_work(agent: Client, context: str) -> None:
    code = (
        "import dataclasses, multiprocessing, pickle\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n"
        "def double(p): return P(p.x * 2)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n    r = pool.map(double, [P(1), P(2)])\n"
        "pickle.loads(pickle.dumps(r))"
    )
    assert run(agent, context, code) == "[P(x=2), P(x=4)]"


def test_threads_and_their_errors(agent: Client, context: str) -> None:
    code = "import threading\nt = threading.Thread(target=lambda: 1/0)\nt.start(); t.join()\n'done'"
    outcome = agent.code(code, context=context)
    assert outcome.main == {"text/plain": "'done'"}
    assert "ZeroDivisionError" in outcome.stderr


def test_user_code_has_no_descriptors_of_the_agent(agent: Client, context: str) -> None:
    code = "import subprocess\nsubprocess.run(['ls', '/proc/self/fd'], close_fds=False)\nNone"
    assert agent.code(code, context=context).stdout.split() == ["0", "1", "2", "3"]


def test_the_agents_package_is_out_of_sight(agent: Client, context: str) -> None:
    modules = "[n for n in sys.modules if n.split('.')[0] == 'guest']"
    folders = "[p for p in sys.path if os.path.isdir(p + '/guest')]"
    code = f"import os, sys\n{modules}, {folders}"
    assert run(agent, context, code) == "([], [])"


def test_nonsense_on_the_control_channel_costs_the_kernel_only(agent: Client, context: str) -> None:
    code = (
        "import os, stat\nfor fd in range(3, 400):\n    try:\n"
        "        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b'\\xff' * 100)\n    except OSError: pass\n"
        "import time\ntime.sleep(1000)"
    )
    outcome = agent.code(code, context=context)
    assert (outcome.reason, outcome.final["context_survived"]) == ("crashed", False)
    assert run(agent, context, "1") == "1"


def test_memory_errors_have_their_reason(agent: Client, context: str) -> None:
    assert agent.code("raise MemoryError", context=context).reason == "memory"
    assert agent.code("bytearray(1 << 60)", context=context).reason == "memory"
    assert agent.code("import errno\nraise OSError(errno.ENOSPC, 'x')", context=context).reason == "disk"
    assert agent.code('raise RuntimeError("can\'t start new thread")', context=context).reason == "processes"


def test_one_absurd_allocation_fails_by_itself(tmp_path: Path) -> None:
    client = Client(agent_argv(), PACKAGE_PARENT)
    client.wait(0, "hello")
    client.call("configure", **configuration(tmp_path, memory=1 << 30, warm=["python"]))
    assert client.code("x = bytearray(1 << 31)").reason == "memory"
    assert client.code("1 + 1").main == {"text/plain": "2"}
    client.close()


def test_many_contexts_leave_nothing_behind(agent: Client) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))

    before = None
    for _ in range(5):
        ident = agent.call("context_create", language="python").final["context"]
        agent.code("import os\nos._exit(0)", context=ident)
        agent.call("context_remove", context=ident)
        before = before or descriptors()
    assert descriptors() == before


def test_a_restarted_context_is_free_at_once(agent: Client) -> None:
    number = agent.begin_code("print('up', flush=True)\nwhile True: pass", context=None)
    agent.wait(number, "stdout")
    restart = agent.begin("context_restart", context="python")
    again = agent.begin_code("print('again')")
    assert agent.finish(restart).final["ev"] == "done"
    assert agent.finish(again).stdout == "again\n"
    assert agent.finish(number).reason == "killed"
    assert agent.code("print('still here')").stdout == "still here\n"
