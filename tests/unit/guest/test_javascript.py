"""The JavaScript kernel, as its users see it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .conftest import Client, node_folders

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here"),
    pytest.mark.skipif(
        not any(Path(folder, "acorn/package.json").exists() for folder in node_folders()),
        reason="there is no acorn here (Debian package node-acorn, NODE_PATH, or the image of `./ember setup`)",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def _finished(agent: Client) -> None:
    """The tests share the default context: starting node takes its time."""


def text(agent: Client, code: str) -> object:
    outcome = agent.code(code, "javascript")
    assert outcome.final["error"] is None, outcome.final["error"]
    return None if outcome.main is None else outcome.main["text/plain"]


def test_declarations_stay_and_can_be_made_again(agent: Client) -> None:
    assert (
        text(agent, "const a = 1; let [b, {c}] = [2, {c: 3}]; var d = 4; function f() { return a + b; } class K {}")
        is None
    )
    assert text(agent, "[a, b, c, d, f(), typeof K]") == "[ 1, 2, 3, 4, 3, 'function' ]"
    assert text(agent, "const a = 5; b = 6; [a, f()]") == "[ 5, 7 ]"
    assert text(agent, "for (var i = 0; i < 3; i++) { var inner = i }; inner") == "2"
    assert text(agent, "const crypto = require('crypto'); crypto.randomBytes(3).length") == "3"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1", "2"),
        ("(1 + 1);", "2"),
        ("(1 /* c */) // d\n", "2"),
        ("'s'", "'s'"),
        ("undefined", None),
        ("if (true) { 1 }", None),
        ("await Promise.resolve(7)", "7"),
        ("Promise.resolve(8)", "8"),
        ("(async () => {})()", None),
        ("setTimeout(() => {}, 1)", None),
        ("#!/usr/bin/env node\n9", "9"),
        (
            "import fs, { statSync as r } from 'fs'; import * as p from 'path'\ntypeof fs.statSync + typeof r + p.sep",
            "'functionfunction/'",
        ),
        ("(await import('node:os')).EOL", "'\\n'"),
        ("import.meta.url.slice(0, 8)", "'file:///'"),
        ("export const e1 = 1; export default function named() {}; e1", "1"),
        ("require.main === module", "true"),
    ],
)
def test_results(agent: Client, code: str, expected: str | None) -> None:
    expected = "1" if code.startswith("(1 /*") else expected
    assert text(agent, code) == expected


def test_plain_data_comes_as_json_too(agent: Client) -> None:
    outcome = agent.code("display({'text/html': '<b>'}); ({a: [1, null]})", "javascript")
    assert outcome.results == [
        {"text/html": "<b>"},
        {"text/plain": "{ a: [ 1, null ] }", "application/json": {"a": [1, None]}},
    ]


def test_it_runs_until_nothing_is_left_to_do(agent: Client) -> None:
    code = "async function main() { await new Promise((r) => setTimeout(r, 20)); console.log('late') }\nmain()"
    assert agent.code(code, "javascript").stdout == "late\n"


def test_errors_point_to_the_users_line(agent: Client) -> None:
    error = agent.code("let ok = 1;\nfunction g() {\n  null.foo;\n}\ng()", "javascript").final["error"]
    assert error["name"] == "TypeError"
    lines = error["traceback"].splitlines()
    cell = lines[0].rsplit(":", 1)[0]
    assert lines[:5] == [f"{cell}:3", "  null.foo;", "       ^", "", f"TypeError: {error['value']}"]
    assert [line.strip() for line in lines[5:]] == [f"at g ({cell}:3:8)", f"at {cell}:5:1"]


def test_syntax_errors_point_to_the_line(agent: Client) -> None:
    error = agent.code("let a = 1;\nlet z = ;", "javascript").final["error"]
    assert error["name"] == "SyntaxError"
    assert ":2\nlet z = ;\n        ^\n" in error["traceback"]


@pytest.mark.parametrize(
    "code",
    [
        "setTimeout(() => { throw new TypeError('late') }, 1); setInterval(() => {}, 1000)",
        "Promise.reject(new TypeError('late'))",
        "const k = 1; k = 2",
    ],
)
def test_uncaught_errors_end_the_execution_not_the_context(agent: Client, code: str) -> None:
    agent.code("var kept = 1", "javascript")
    outcome = agent.code(code, "javascript")
    assert (outcome.final["exit_code"], outcome.final["error"]["name"]) == (1, "TypeError")
    assert text(agent, "kept") == "1"


def test_exit_ends_the_execution_not_the_context(agent: Client) -> None:
    code = (
        "var kept = 2; setInterval(() => {}, 1000); process.on('exit', (c) => console.log('bye', c)); process.exit(3)"
    )
    outcome = agent.code(code, "javascript")
    assert (outcome.final["exit_code"], outcome.final["error"], outcome.stdout) == (3, None, "bye 3\n")
    assert text(agent, "kept") == "2"
    assert agent.code("process.exitCode = 4", "javascript").final["exit_code"] == 4
    assert agent.code("1", "javascript").final["exit_code"] == 0


def test_waiting_for_ever_is_an_error(agent: Client) -> None:
    assert agent.code("await new Promise(() => {})", "javascript").final["exit_code"] == 13


@pytest.mark.parametrize("code", ["while (true) {}", "await new Promise((r) => setTimeout(r, 1e6))"])
def test_a_timeout_leaves_the_context_alive(agent: Client, code: str) -> None:
    agent.code("var kept = 3", "javascript")
    outcome = agent.code(code, "javascript", timeout=0.3)
    assert (outcome.reason, outcome.final["context_survived"]) == ("timeout", True)
    assert text(agent, "kept") == "3"


def test_input_arguments_environment_directory(agent: Client, tmp_path: Path) -> None:
    (tmp_path / "lib.js").write_text("module.exports = 5")
    code = (
        "let data = ''; process.stdin.on('data', (d) => data += d).on('end', () =>"
        " console.log(data, process.argv.slice(2), process.env.A, require('./lib'), __dirname))"
    )
    outcome = agent.code(code, "javascript", stdin="é".encode(), args=["x"], env={"A": "b"}, cwd=str(tmp_path))
    assert outcome.stdout == f"é [ 'x' ] b 5 {tmp_path}\n"
    assert text(agent, "require('fs').readFileSync(0, 'utf8') + process.env.A") == "'undefined'"


def test_a_dead_kernel_is_reported_and_replaced(agent: Client) -> None:
    outcome = agent.code("process.kill(process.pid, 'SIGKILL')", "javascript")
    assert (outcome.reason, outcome.final["context_survived"]) == ("crashed", False)
    assert agent.code("typeof kept", "javascript").main == {"text/plain": "'undefined'"}


def test_names_of_builtins_can_be_declared_and_break_nothing(agent: Client) -> None:
    ident = agent.call("context_create", language="javascript").final["context"]

    def shown(code: str) -> str:
        outcome = agent.code(code, "javascript", context=ident)
        assert outcome.final["error"] is None, outcome.final["error"]
        assert outcome.final["exit_code"] == 0
        return str(outcome.stdout + (outcome.main or {}).get("text/plain", ""))

    declare = "class Set { constructor() { this.items = []; } add(x) { this.items.push(x); return this; } }\n"
    assert shown(declare + "new Set().add(1).items.length") == "1"
    assert shown("[1, 2].map((n) => n * 2)") == "[ 2, 4 ]"
    assert shown("new Set().add(7).items[0]") == "7", "later cells have it too"
    for name in (
        "Number",
        "JSON",
        "Promise",
        "Object",
        "Map",
        "Error",
        "Array",
        "String",
        "Symbol",
        "Buffer",
        "process",
    ):
        assert shown(f"const {name} = (text) => text + 1; console.log({name}(2))") == "3\n", name
        assert shown("const { a, ...rest } = { a: 1, b: [2] }; rest") == "{ b: [ 2 ] }", name
        assert shown(f"{name}(3)") == "4", name
    assert shown("const crypto = require('crypto'); crypto.createHash('md5').update('').digest('hex').length") == "32"
    assert shown("crypto.createHash('md5').update('').digest('hex').length") == "32"
    assert agent.code("throw new TypeError('x')", "javascript", context=ident).final["error"]["name"] == "TypeError"
    assert shown("const Set = 5; Set") == "5", "and can be declared once more"
    assert shown("globalThis.Set.name + require('vm').runInNewContext('1')") == "'Set1'"


@pytest.mark.parametrize(
    "code",
    [
        'import data from "./data.json" with { type: "json" };\nconsole.log(data);',
        "import data from './data.json' assert { type: 'json' }\nconsole.log(data)",
        'import { default as data } from "./data.json" with {\n  "type": "json"\n};\nconsole.log(data);',
        'const { default: data } = await import("./data.json", { with: { type: "json" } });\nconsole.log(data);',
        'const data = (await import("./data.json", { assert: { type: "json" } })).default;\nconsole.log(data);',
    ],
)
def test_import_attributes(agent: Client, code: str) -> None:
    (agent.workdir / "data.json").write_text('{"a": 1}')
    outcome = agent.code(code + '\nconsole.log("import(1) with { type }")', "javascript")
    assert outcome.stdout == "{ a: 1 }\nimport(1) with { type }\n", outcome.final["error"]
    failed = agent.code(code + "\nnull.x", "javascript").final["error"]
    assert f":{code.count(chr(10)) + 2}:" in failed["traceback"]
