"""Cells as people and models write them, one after the other in one context: what an ordinary interpreter, notebook or
shell does with them. Each stands for a kind of program that once failed here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from emberbox import Sandbox


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    """One sandbox: each case has a context and a folder of its own."""
    with Sandbox.create("default", timeout=900) as sandbox:
        yield sandbox


@dataclass(frozen=True)
class Cell:
    """Code, and what a person sees of it; None: not looked at."""

    code: str
    stdout: str | None = None
    text: str | None = None
    exit_code: int | None = None
    stderr_lacks: tuple[str, ...] = field(default=())


PYTHON: dict[str, list[Cell]] = {
    "a-program-asks-where-it-is": [
        Cell("import os.path\nprint(os.path.dirname(os.path.abspath(__file__)) == os.getcwd())", "True\n"),
    ],
    "the-loop-after-asyncio-run": [
        Cell("import asyncio\nasync def seven():\n    return 7\nprint(asyncio.run(seven()))", "7\n"),
        Cell("asyncio.get_event_loop().run_until_complete(seven())", text="7"),
        Cell("await seven()", text="7"),
        Cell("task = asyncio.ensure_future(seven())"),
        Cell("await task", text="7"),
    ],
    "tasks-and-then-their-results": [
        Cell(
            "import asyncio\nasync def cube(n):\n    await asyncio.sleep(0.01)\n    return n ** 3\n"
            "waiting = [asyncio.create_task(cube(n)) for n in (1, 2, 3)]\nawait asyncio.gather(*waiting)",
            text="[1, 8, 27]",
        ),
    ],
    "the-source-of-a-class": [
        Cell(
            "import inspect\nclass Circle:\n    radius = 2\nprint(inspect.getsource(Circle), end='')",
            "class Circle:\n    radius = 2\n",
        ),
    ],
    "streams-that-a-cell-opened-anew": [
        Cell("import io, sys\nsys.stdout = open(sys.stdout.fileno(), 'w', buffering=1)\nprint(1)"),
        Cell("print(2)", "2\n"),
        Cell("sys.stdout.close()"),
        Cell("print(3)", "3\n"),
        Cell("sys.stderr = io.StringIO()"),
        Cell("print(4)", "4\n"),
    ],
    "more-digits-than-are-shown": [
        Cell("import math\nn = math.factorial(3000)\nn % 10", text="0"),
    ],
    "a-folder-for-data": [
        Cell(
            "from pathlib import Path\nplace = Path('/mnt/data/out')\nplace.mkdir(parents=True)\n"
            "(place / 'a.csv').write_text('x,y\\n')\nprint((place / 'a.csv').read_text(), end='')",
            "x,y\n",
        ),
    ],
    "letters-of-other-scripts-in-a-picture": [
        Cell(
            "import matplotlib.pyplot as plt\nplt.bar(['東京', '서울', 'Köln'], [3, 2, 1])\n"
            "plt.title('人口 😀')\nplt.show()",
            stderr_lacks=("missing from",),
        ),
    ],
    "packages-that-everybody-uses": [
        Cell(
            "import importlib.util\nnames = 'sklearn seaborn requests bs4 openpyxl tqdm tabulate jinja2 yaml plotly'"
            "\nprint([n for n in names.split() if importlib.util.find_spec(n) is None])\nimport IPython.display",
            "[]\n",
        ),
    ],
}
JAVASCRIPT: dict[str, list[Cell]] = {
    "a-class-with-the-name-of-a-builtin": [
        Cell("class Map { constructor() { this.size = 'mine'; } }\nconsole.log(new Map().size)", "mine\n"),
        Cell("[3, 4].map((n) => n + 1)", text="[ 4, 5 ]"),
    ],
    "a-function-with-the-name-of-a-builtin": [
        Cell("function String(x) { return 'mine ' + x; }\nconsole.log(String(3))", "mine 3\n"),
        Cell("const Number = (text) => text * 1;\nconsole.log(Number('3'))", "3\n"),
        Cell("console.log([1.5, 'a', { b: null }])", "[ 1.5, 'a', { b: null } ]\n"),
    ],
    "a-server-and-its-client": [
        Cell(
            "const http = require('http');\n"
            "const server = http.createServer((q, r) => { r.statusCode = 201; r.end('ok'); });\n"
            "server.listen(0, async () => {\n  const got = await fetch(`http://localhost:${server.address().port}/`);\n"
            "  console.log(got.status, await got.text());\n  server.close();\n});",
            "201 ok\n",
        ),
    ],
    "import-attributes": [
        Cell("require('fs').writeFileSync('settings.json', '{\"debug\":true}')"),
        Cell(
            "import settings from './settings.json' with { type: 'json' };\nconsole.log(settings)", "{ debug: true }\n"
        ),
        Cell("import older from './settings.json' assert { type: 'json' };\nconsole.log(older.debug)", "true\n"),
        Cell(
            "const late = await import('./settings.json', { with: { type: 'json' }});\nconsole.log(late.default.debug)",
            "true\n",
        ),
    ],
}
BASH: dict[str, list[Cell]] = {
    "a-trap-ends-with-its-execution": [
        Cell("trap 'echo went wrong >&2; exit 9' ERR\ntrue", exit_code=0),
        Cell("grep -q needle /etc/hostname\necho 'going on'", "going on\n", exit_code=0),
    ],
    "strict-mode-and-a-file-that-is-not-there": [
        Cell("unit=apples; cd /tmp"),
        Cell("set -euo pipefail\n. ./no-such.env", exit_code=1, stderr_lacks=("descriptor", "/opt/")),
        Cell('echo "$unit in $PWD"', "apples in /tmp\n"),
        Cell('set -u\necho "$never_set"', exit_code=1, stderr_lacks=("descriptor", "/opt/")),
        Cell('echo "$unit in $PWD"', "apples in /tmp\n"),
    ],
    "a-commit": [
        Cell(
            "set -e\ngit init -q book && cd book\necho one > one.txt\ngit add . && git commit -qm start\n"
            "git log --format=%s",
            "start\n",
            exit_code=0,
        ),
    ],
    "python-by-its-usual-name": [Cell("python -c 'print(6 * 7)'; python3 -V | cut -d. -f1", "42\nPython 3\n")],
}
RUST: dict[str, list[Cell]] = {
    "let-else": [
        Cell(
            'fn main() {\n    let Ok(n) = "12".parse::<u32>() else { return };\n    println!("{}", n / 2);\n}',
            "6\n",
        ),
    ],
}
CASES = [
    pytest.param(language, cells, id=f"{language}-{name}")
    for language, cases in {"python": PYTHON, "javascript": JAVASCRIPT, "bash": BASH, "rust": RUST}.items()
    for name, cells in cases.items()
]


@pytest.mark.parametrize(("language", "cells"), CASES)
def test_cells_do_what_they_do_elsewhere(
    shared: Sandbox, request: pytest.FixtureRequest, language: str, cells: list[Cell]
) -> None:
    name = request.node.callspec.id
    context = None if language == "rust" else shared.create_code_context(language)
    for number, cell in enumerate(cells, 1):
        done = shared.run_code(cell.code, language, context=context, timeout=60)
        where = f"cell {number} of {name}: {done.stdout!r} {done.stderr!r} {done.error}"
        if cell.exit_code is None:
            assert done.error is None, where
        else:
            assert done.exit_code == cell.exit_code, where
        assert cell.stdout is None or done.stdout == cell.stdout, where
        assert cell.text is None or done.text == cell.text, where
        assert not [words for words in cell.stderr_lacks if words in done.stderr], where
