"""TypeScript in a real sandbox: it shares the contexts and the rules of JavaScript."""

from __future__ import annotations

import pytest

from emberbox import Sandbox
from emberbox.errors import PolicyBlocked

TEMPLATE = "default"


def test_types_are_taken_away_and_variables_are_shared(sandbox: Sandbox) -> None:
    code = (
        "interface Point { x: number }\nconst p: Point = { x: 6 };\n"
        "function twice<T>(v: T): T[] { return [v, v]; }\np.x * 7"
    )
    run = sandbox.run_code(code, "typescript")
    assert (run.text, run.stderr, run.error) == ("42", "", None)
    assert sandbox.run_code("twice(p.x)", "javascript").text == "[ 6, 6 ]"
    assert sandbox.run_code("const q: Point = p; q.x as number", "ts").text == "6"


def test_what_types_cannot_be_taken_from_is_rewritten(sandbox: Sandbox) -> None:
    run = sandbox.run_code("enum Color { Red, Green }\nconsole.log(Color.Green, Color[0])", "ts")
    assert (run.stdout, run.stderr) == ("1 Red\n", "")


def test_errors_name_the_line(sandbox: Sandbox) -> None:
    run = sandbox.run_code("type A = { b: number };\n\nconst a: A = null!;\na.b", "ts")
    assert run.error is not None
    assert run.error.name == "TypeError"
    assert ":4:" in run.error.traceback
    wrong = sandbox.run_code("const a: = 1", "ts")
    assert wrong.error is not None
    assert "/opt/" not in wrong.error.traceback


def test_the_rules_of_javascript_hold(sandbox: Sandbox) -> None:
    with pytest.raises(PolicyBlocked, match="child_process"):
        sandbox.run_code('import { exec } from "child_process";\nconst run: string = "ls"; exec(run);', "ts")
