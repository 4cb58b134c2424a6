"""Rich results of Python and JavaScript in a real sandbox."""

from __future__ import annotations

import base64

from emberbox import Result, Sandbox

CONTRACT = True
"""On gVisor, here and on a server: what is shown here is decided in the guest alone (conftest.py)."""

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_last_expression_is_the_main_result(sandbox: Sandbox) -> None:
    run = sandbox.run_code("x = 41\nx + 1")
    assert run.text == "42"
    assert [r.is_main_result for r in run.results] == [True]
    assert sandbox.run_code("x;").text is None
    assert sandbox.run_code("None").results == []
    assert sandbox.run_code("_").error is None


def test_display_gives_several_results_in_order(sandbox: Sandbox) -> None:
    code = (
        "class Rich:\n"
        "    def _repr_html_(self): return '<b>hi</b>'\n"
        "    def _repr_json_(self): return {'a': [1]}\n"
        "    def __repr__(self): return 'plain'\n"
        "display(1, 'two')\n"
        "display(Rich())\n"
        "3"
    )
    seen: list[Result] = []
    run = sandbox.run_code(code, on_result=seen.append)
    assert [r.text for r in run.results] == ["1", "'two'", "plain", "3"]
    assert run.results[2].html == "<b>hi</b>"
    assert run.results[2].json == {"a": [1]}
    assert [r.is_main_result for r in run.results] == [False, False, False, True]
    assert seen == run.results


def test_figures_become_png_once_each(sandbox: Sandbox) -> None:
    code = (
        "import matplotlib.pyplot as plt\n"
        "plt.plot([1, 2]); plt.show()\n"
        "plt.figure(); plt.plot([3, 4])\n"  # left open at the end
    )
    run = sandbox.run_code(code)
    pictures = [base64.b64decode(r.png) for r in run.results if r.png]
    assert [p[:8] for p in pictures] == [PNG, PNG]
    assert pictures[0] != pictures[1]
    assert run.stderr == ""
    assert sandbox.run_code("plt.get_fignums()").text == "[]"


def test_a_figure_as_the_last_expression(sandbox: Sandbox) -> None:
    run = sandbox.run_code("import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nfig")
    assert len([r for r in run.results if r.png]) == 1


def test_data_frames_come_as_text_html_and_json(sandbox: Sandbox) -> None:
    run = sandbox.run_code("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
    (result,) = run.results
    assert result.text is not None
    assert "a  b" in result.text
    assert result.html is not None
    assert "<table" in result.html
    assert "x" in str(result.json)


def test_a_broken_repr_is_an_error_not_a_crash(sandbox: Sandbox) -> None:
    run = sandbox.run_code("class Bad:\n    def __repr__(self): raise RuntimeError('no repr')\nBad()")
    assert run.context_survived
    assert run.error is not None
    assert (run.error.name, run.error.value) == ("RuntimeError", "no repr")
    assert sandbox.run_code("1").text == "1"


def test_javascript_results(sandbox: Sandbox) -> None:
    run = sandbox.run_code("const o = { a: [1, 2], b: 'x' }; o", "javascript")
    assert run.text == "{ a: [ 1, 2 ], b: 'x' }"
    assert run.results[0].json == {"a": [1, 2], "b": "x"}
    assert sandbox.run_code("undefined", "javascript").results == []
