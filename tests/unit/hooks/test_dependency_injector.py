"""The hook that adds forgotten imports: where it adds them, what it leaves as it was, and what then runs."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest.conftest import PACKAGE_PARENT, Client, agent_argv, configuration, node_folders
from hypothesis import given, settings
from hypothesis import strategies as st

from emberbox.guest.kernels import added
from emberbox.hooks import _imports_python
from emberbox.hooks.contract import Allow, Modify, PreToolContext
from emberbox.hooks.dependency_injector import LONGEST, DependencyInjectorHook
from emberbox.languages.policy import Policy
from emberbox.models import PolicyConfig

HOOK = DependencyInjectorHook()
MARKER = "  # added by emberbox"


def changed(code: str, language: str, hook: DependencyInjectorHook = HOOK) -> str:
    """The code that runs in the end."""
    decision = hook.pre_tool(PreToolContext(code=code, language=language))
    if isinstance(decision, Modify):
        assert isinstance(decision.value, str)
        return decision.value
    assert decision == Allow()
    return code


def added_to(code: str, language: str, hook: DependencyInjectorHook = HOOK) -> list[str]:
    """What was added, from the reason that the audit trail gets."""
    decision = hook.pre_tool(PreToolContext(code=code, language=language))
    return decision.reason.removeprefix("added ").split(", ") if isinstance(decision, Modify) else []


# --- where it is added ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("json.dumps(1)", "{json}\njson.dumps(1)"),
        ("# c\n\n# d\njson.dumps(1)\n", "# c\n\n# d\n{json}\njson.dumps(1)\n"),
        ("#!/usr/bin/python3\n# -*- coding: utf-8 -*-\njson.x, json.dumps", None),
        (
            "#!/usr/bin/python3\n# -*- coding: utf-8 -*-\njson.dumps",
            "#!/usr/bin/python3\n# -*- coding: utf-8 -*-\n{json}\njson.dumps",
        ),
        ('"""Doc.\n\nMore."""\n\njson.dumps', '"""Doc.\n\nMore."""\n{json}\n\njson.dumps'),
        (
            "'doc'\nfrom __future__ import annotations  # c\nx = json.dumps",
            "'doc'\nfrom __future__ import annotations  # c\n{json}\nx = json.dumps",
        ),
        (
            "from __future__ import (\n    division,\n)\njson.dumps",
            "from __future__ import (\n    division,\n)\n{json}\njson.dumps",
        ),
        (
            "@(\nfunctools.cache\n)\ndef f(): ...",
            "import functools" + MARKER + "\n@(\nfunctools.cache\n)\ndef f(): ...",
        ),
        ("(\njson.dumps(1)\n)", "{json}\n(\njson.dumps(1)\n)"),
        ("# c\r\njson.dumps\r\n", "# c\r\n{json}\r\njson.dumps\r\n"),
        ("'''d'''\rjson.dumps\r", "'''d'''\r{json}\rjson.dumps\r"),
        ("# c\r\r\n'''d'''\r\n\njson.dumps", "# c\r\r\n'''d'''\r\n{json}\r\n\njson.dumps"),
        ("\\\njson.dumps(1)", "{json}\n\\\njson.dumps(1)"),
        ("\f# c\n\tjson.dumps", None),
    ],
)
def test_python_gets_its_lines_where_they_belong(code: str, expected: str | None) -> None:
    expected = code if expected is None else expected.replace("{json}", f"import json{MARKER}")
    assert changed(code, "python") == expected


def test_the_kernel_knows_the_lines() -> None:
    assert _imports_python.MARKER == added.MARKER == MARKER


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "os.EOL"),
        ("#!/usr/bin/env node\n", "os.EOL"),
        ("// c\n/* d */ ", "os.EOL\n"),
        ('"use strict";\n', "os.EOL"),
        ("'use strict'\n\n// é\n", "os.EOL"),
        ("\ufeff", "os.EOL"),
        ("#!/usr/bin/env node\r\n'use asm'; 'é'\r\n", "\tos.EOL\r\n".lstrip()),
    ],
)
def test_javascript_gets_it_on_the_line_of_its_first_statement(before: str, after: str) -> None:
    owner = "globalThis." if "use strict" in before else ""
    expected = f'{before}if (!("os" in globalThis)) {owner}os = require("os"); {after}'
    assert changed(before + after, "js") == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "fn f() { Rc::new(1); }"),
        ("\ufeff", "fn f() { Rc::new(1); }"),
        ("#![allow(dead_code)]\n//! Doc é.\n\n// c\n", "fn f() { Rc::new(1); }\n"),
        ("#!/usr/bin/env x\r\n/* c */ ", "/// Doc.\r\n#[inline]\r\nfn f() { Rc::new(1); }"),
        ("/*! d */\n", "/** Doc. */ fn f() { Rc::new(1); }"),
        ("//// c\n", "#[derive(Clone)]\nstruct A(Rc<u8>);"),
    ],
)
def test_rust_gets_it_on_the_line_of_its_first_item(before: str, after: str) -> None:
    assert changed(before + after, "rs") == f"{before}use std::rc::Rc; {after}"


# --- policy, switches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "language", "expected"),
    [
        ("subprocess.run(['a'])\njson.dumps(1)", "python", ["import json"]),
        ("os.system('ls')\njson.dumps(1)\nre.compile('a')", "python", ["import json", "import re"]),
        ("os.getcwd()", "python", ["import os"]),
        ("eval('1')\njson.dumps(1)", "python", ["import json"]),
        ("shutil.rmtree('/')\njson.dumps(1)", "python", ["import json"]),
        ("fs.rmSync('x'); path.join('a')", "javascript", ['const path = require("path")']),
        ("'use strict'; child_process.execSync('ls')", "javascript", []),
        ('fn f() { process::Command::new("x"); Rc::new(1); }', "rust", ["use std::rc::Rc"]),
        ('fn f() { fs::remove_file("x"); }\nfn g() { fs::read("x"); }', "rust", []),
        ('fn f() { process::exit(1); fs::read("x"); }', "rust", ["use std::process", "use std::fs"]),
    ],
)
def test_nothing_is_added_that_the_policy_forbids(code: str, language: str, expected: list[str]) -> None:
    assert added_to(code, language, DependencyInjectorHook(Policy())) == expected
    assert len(added_to(code, language)) > len(expected) or expected == added_to(code, language)


def test_the_policy_is_that_of_the_agent_and_its_role() -> None:
    allowed = {"trusted": {"disabled": ["python.subprocess"]}}
    hook = DependencyInjectorHook(Policy(PolicyConfig.model_validate({"agents": allowed, "roles": allowed})))
    code = "subprocess.run(['a'])"
    assert hook.pre_tool(PreToolContext(code=code, language="python")) == Allow()
    assert isinstance(hook.pre_tool(PreToolContext(code=code, language="python", agent_id="trusted")), Modify)
    assert isinstance(hook.pre_tool(PreToolContext(code=code, language="python", role="trusted")), Modify)


@pytest.mark.parametrize("strict", ["", "'use strict'; "])
def test_what_a_module_would_be_used_for_counts(strict: str) -> None:
    policy = Policy(PolicyConfig.model_validate({"disabled": ["javascript.fs"]}))
    hook = DependencyInjectorHook(policy)
    assert added_to(f"{strict}fs.rmSync('/', {{ recursive: true }})", "javascript", hook) == []
    assert len(added_to(f"{strict}fs.statSync('/')", "javascript", hook)) == 1


def test_names_can_be_left_out() -> None:
    hook = DependencyInjectorHook(disabled=["np", "fs", "Rc"])
    assert added_to("np.zeros(1), json.dumps(1)", "python", hook) == ["import json"]
    assert added_to("fs.statSync('x')", "javascript", hook) == []
    assert added_to("fn f() { Rc::new(Arc::new(1)); }", "rust", hook) == ["use std::sync::Arc"]


@pytest.mark.parametrize("language", ["bash", "sh", "cobol", ""])
def test_other_languages_are_left_alone(language: str) -> None:
    assert changed("json.dumps(path.join(HashMap::new()))", language) == "json.dumps(path.join(HashMap::new()))"


def test_long_code_is_left_alone() -> None:
    code = "json.dumps(1)"
    assert changed(code + " " * (LONGEST - len(code)), "python") != code
    code += " " * (LONGEST + 1 - len(code))
    assert changed(code, "python") == code


def test_long_code_is_not_checked_again_and_again() -> None:
    hook = DependencyInjectorHook(Policy())
    long = "x = 1\n" * 9_000
    assert added_to(f"json.dumps(1)\nre.x, os.getcwd()\n{long}", "python", hook) == [
        "import json",
        "import os",
        "import re",
    ]
    mixed = f"json.dumps(1)\nre.x, os.getcwd(), os.system('x'), subprocess.run('x')\n{long}"
    assert changed(mixed, "python", hook) == mixed


def test_the_name_and_the_reason() -> None:
    assert HOOK.name == "dependency-injector"
    decision = HOOK.pre_tool(PreToolContext(code="np.array(json.loads('[]'))", language="py"))
    assert isinstance(decision, Modify)
    assert decision.reason == "added import json, import numpy as np"


# --- properties -------------------------------------------------------------------------------------------------------

ADDED = {
    "python": re.compile(rf"(?<![^\r\n])(?:import|from) [^\r\n]*{MARKER}(?:\r\n|\r|\n)"),
    "javascript": re.compile(r'if \(!\("\w+" in globalThis\)[^;]*; '),
    "rust": re.compile(r"use std::[\w:]+; "),
}
PIECES = {
    "python": f"""json.dumps(1)|Path('x')|'doc'|# c|from __future__ import annotations|np.x|x = '''|'''|import os|;|(
|)|\\|\f|os.getcwd()|def f(x: Optional[int]):|    pass|datetime.now()|import re{MARKER}|await asyncio.sleep(1)""",
    "javascript": """path.join('a')|fs.statSync('x')|'use strict'|// c|#!x|/* c */|function f(os) {|}|`${|os.cpus()|{|;
|crypto.createHash('x')|const path = 1|({ fs })|globalThis.x = 1""",
    "rust": """fn f() {|}|Rc::new(1);|use std::rc::Rc;|#![allow(x)]|//! d|/// d|// c|mod a {|#[a]|struct Cell<T>(T);|#!x
|io::stdout().flush();|let x: HashMap<u8, u8> = m!(env::args());|use a::*;""",
}
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n", " ", "\t", ""])


@st.composite
def programs(draw: st.DrawFn) -> tuple[str, str]:
    """A language and a text that is made of pieces of it, with line ends of all kinds."""
    language = draw(st.sampled_from(sorted(PIECES)))
    pieces = st.one_of(st.sampled_from(PIECES[language].replace("\n", "").split("|")), st.text(max_size=3))
    parts = draw(st.lists(st.tuples(pieces, LINE_ENDS), max_size=12))
    return language, draw(st.sampled_from(["", "\ufeff"])) + "".join(piece + end for piece, end in parts)


def without_one(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (text[: match.start()] + text[match.end() :] for match in pattern.finditer(text))


def compiles(code: str) -> bool:
    try:
        compile(code, "<code>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError:
        return False
    return True


@settings(deadline=None)
@given(programs())
def test_taking_away_what_was_added_gives_the_original(program: tuple[str, str]) -> None:
    language, code = program
    result = changed(code, language)
    count = len(added_to(code, language))
    texts = {result}
    for _ in range(count):
        texts = {shorter for text in texts for shorter in without_one(ADDED[language], text)}
    assert code in texts
    assert changed(result, language) == result
    if language == "python" and result != code and compiles(code):
        assert compiles(result)


@settings(deadline=None)
@given(st.text(), st.sampled_from(["python", "javascript", "rust", "bash"]))
def test_no_text_is_too_odd(code: str, language: str) -> None:
    result = changed(code, language, DependencyInjectorHook(Policy()))
    assert result.endswith(code)
    assert language != "bash" or result == code


@pytest.mark.parametrize(
    ("code", "language"),
    [
        ("json" + ".x" * 40_000, "python"),
        ("json.x" + "+1" * 40_000, "python"),
        ("(" * 40_000 + "json.x", "python"),
        ("if json.x:\n" + "".join(" " * depth + "if 1:\n" for depth in range(1, 90)) + " " * 90 + "1", "python"),
        ("-" * 90_000 + "path.join()", "javascript"),
        ("(" * 40_000 + "path.join()" + ")" * 40_000, "javascript"),
        ("path.join()" + ".x()" * 20_000, "javascript"),
        ("fn f() { x" + ".lines()" * 10_000 + "; }", "rust"),
        ("fn f() {" * 10_000 + "Rc::new(1)" + "}" * 10_000, "rust"),
    ],
)
def test_deep_code_does_no_harm(code: str, language: str) -> None:
    result = changed(code, language)
    assert result.endswith(code)
    assert changed(result, language) == result


# --- what then runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A real agent with its kernels, on the host."""
    client = Client(agent_argv(), PACKAGE_PARENT)
    client.wait(0, "hello")
    assert client.call("configure", **configuration(tmp_path_factory.mktemp("home"))).final["ev"] == "done"
    yield client
    client.close()


def result_of(agent: Client, code: str, language: str) -> object:
    outcome = agent.code(changed(code, language), language)
    assert outcome.final["error"] is None, outcome.final["error"]
    return None if outcome.main is None else outcome.main["text/plain"]


def test_python_runs_with_what_was_added(agent: Client) -> None:
    code = "'''Doc.'''\ndef f(x: Optional[int]):\n    return json.dumps({'x': math.floor(x)})\nf(2.5)"
    assert result_of(agent, code, "python") == "'{\"x\": 2}'"
    assert result_of(agent, "await asyncio.sleep(0, result=str(Path('/x')))", "python") == "'/x'"
    outcome = agent.code(changed("# c\nx = 1\n\ntime.sleep('a')", "python"))
    assert "line 4, in <module>\n    time.sleep('a')\n" in outcome.final["error"]["traceback"]


def test_variables_of_earlier_python_stay(agent: Client) -> None:
    agent.code("from types import SimpleNamespace\nrandom = SimpleNamespace(choice=lambda x: 'mine')")
    assert result_of(agent, "random.choice([1])", "python") == "'mine'"


@pytest.mark.skipif(
    shutil.which("node") is None or not any(Path(folder, "acorn/package.json").exists() for folder in node_folders()),
    reason="there is no node here, or no acorn",
)
def test_javascript_runs_with_what_was_added(agent: Client) -> None:
    def run(code: str) -> object:
        return result_of(agent, code, "javascript")

    assert run("path.join('a', 'b')") == "'a/b'"
    assert (
        run("'use strict'\nclass A extends EventEmitter {}\ntypeof os.cpus + new A().listenerCount('x')")
        == "'function0'"
    )
    assert run("crypto.createHash('md5').update('').digest('hex').length") == "32"
    assert run("const util = require('util'); typeof util.inspect") == "'function'"
    agent.code(
        "const url = { parse: () => 'mine' }; let zlib = null; const crypto = { createHash: () => 'mine' }",
        "javascript",
    )
    assert run("url.parse('x')") == "'mine'"
    assert run("[typeof zlib, zlib?.gzipSync('x')]") == "[ 'object', undefined ]"
    assert run("crypto.createHash('x')") == "'mine'"
    error = agent.code(changed("\nos.cpus()\nnotThere", "javascript"), "javascript").final["error"]
    assert "<cell 9>:3" in error["traceback"], error["traceback"]
