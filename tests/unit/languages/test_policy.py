"""Which rules are in force for whom, and rules of one's own."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from emberbox.errors import ConfigError
from emberbox.languages import RULES
from emberbox.languages._tree import Source
from emberbox.languages.policy import Policy
from emberbox.languages.spec import Hit, LanguageSpec
from emberbox.models import Language, PolicyConfig

CODE = "import subprocess\neval('1')\n"


def policy(**config: Any) -> Policy:
    return Policy(PolicyConfig.model_validate(config))


def found(policy: Policy, code: str = CODE, language: Language = "python", **who: str) -> list[tuple[str, str]]:
    return [(finding.rule, finding.action) for finding in policy.check(code, language, **who)]


def test_everything_blocks_by_default() -> None:
    assert found(Policy()) == [("python.subprocess", "block"), ("python.eval", "block")]
    assert {(one.rule.id, one.action) for one in Policy().rules()} == {(name, "block") for name in RULES}


def test_rules_are_switched_for_everybody() -> None:
    assert found(policy(disabled=["python.eval"])) == [("python.subprocess", "block")]
    assert found(policy(disabled=["python.*"])) == []
    assert found(policy(ask=["*.subprocess"])) == [("python.subprocess", "ask"), ("python.eval", "block")]
    assert found(policy(disabled=["python.*"], enabled=["python.eval"])) == [("python.eval", "block")]
    assert found(policy(disabled=["python.*"], ask=["python.eval"])) == [("python.eval", "ask")]


def test_a_role_and_then_an_agent_win_over_everybody() -> None:
    config = policy(
        disabled=["python.eval"],
        roles={"analyst": {"enabled": ["python.eval"], "disabled": ["python.subprocess"]}},
        agents={"bot-*": {"ask": ["python.eval"]}},
    )
    assert found(config) == [("python.subprocess", "block")]
    assert found(config, role="analyst") == [("python.eval", "block")]
    assert found(config, role="unknown") == found(config)
    assert found(config, role="analyst", agent_id="bot-7") == [("python.eval", "ask")]
    assert found(config, agent_id="bot-7") == [("python.subprocess", "block"), ("python.eval", "ask")]


def test_groups_can_be_looked_at_alone() -> None:
    code = "import os\nos.system('curl x | sh')\n"
    rules = [finding.rule for finding in Policy().check(code, "python", groups=("danger",))]
    assert rules == ["bash.network-shell"]


@pytest.mark.parametrize("where", ["disabled", "ask", "enabled"])
def test_a_switch_that_switches_nothing_is_an_error_with_the_nearest_name(where: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.{where}: there is no rule 'python\.evil'") as caught:
        policy(**{where: ["python.evil"]})
    assert "Did you mean python.eval?" in caught.value.remediation
    with pytest.raises(ConfigError, match=rf"policy\.agents\.a\.{where}: there is no rule 'x'"):
        policy(agents={"a": {where: ["x"]}})


def test_code_is_read_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Source] = []
    hits = LanguageSpec.hits

    def counted(spec: LanguageSpec, source: Source) -> list[Hit]:
        read.append(source)
        return hits(spec, source)

    monkeypatch.setattr(LanguageSpec, "hits", counted)
    one = policy(agents={"bot": {"ask": ["python.eval"]}})
    assert found(one) == [("python.subprocess", "block"), ("python.eval", "block")]
    assert found(one, agent_id="bot") == [("python.subprocess", "block"), ("python.eval", "ask")]
    assert len({id(source) for source in read if source.code == CODE}) == 1
    assert one.check("eval(x)", "python") != one.check("x", "python") == []


def test_a_finding_says_everything() -> None:
    (finding,) = Policy().check("x = 1; eval(y)", "python")
    assert (finding.rule, finding.line, finding.column, finding.snippet) == ("python.eval", 1, 8, "x = 1; eval(y)")
    assert finding.why == "the text cannot be reviewed beforehand"
    assert "python.eval" in finding.remediation


# --- rules of one's own ---------------------------------------------------------------------------------------------


def own(language: str, **fields: Any) -> dict[str, Any]:
    return {"rules": [{"id": "acme.rule", "language": language, "message": "uses what we do not want", **fields}]}


@pytest.mark.parametrize(
    ("language", "uses", "code"),
    [
        ("python", ["socket"], "import socket"),
        ("python", ["socket"], "from socket import create_connection as c"),
        ("python", ["shutil.copy"], "import shutil as s\ns.copy(a, b)"),
        ("python", ["shutil.copy"], "from shutil import *\ncopy(a, b)"),
        ("python", ["open"], "o = open\no('x')"),
        ("python", ["input"], "x = input()"),
        ("javascript", ["net"], 'const n = require("node:net")'),
        ("javascript", ["fetch"], "await globalThis.fetch('u')"),
        ("javascript", ["process.exit"], "const { exit } = process; exit(1)"),
        ("javascript", ["os.cpus"], "import * as os from 'os'; os.cpus()"),
        ("bash", ["curl"], "sudo \"cu\"rl x"),
        ("bash", ["git push"], "git push origin main"),
        ("rust", ["std::net"], "use std::net::TcpStream;"),
        ("rust", ["std::env::var"], 'fn main() { std::env::var("X"); }'),
    ],
)  # fmt: skip
def test_a_rule_follows_names_to_what_they_mean(language: Language, uses: list[str], code: str) -> None:
    finding, *_ = Policy(PolicyConfig.model_validate(own(language, uses=uses))).check(code, language, groups=("own",))
    assert finding.rule == "acme.rule"
    assert finding.message.startswith("uses what we do not want")


@pytest.mark.parametrize(
    ("language", "uses", "code"),
    [
        ("python", ["socket"], "socketpair = 'socket'  # socket"),
        ("python", ["open"], "def open(x): ...\nopen(1)"),
        ("python", ["shutil.copy"], "import shutil\nshutil.copytree(a, b)"),
        ("javascript", ["fetch"], "function fetch() {}\nfetch()"),
        ("javascript", ["net"], "const net = 1; '/net'"),
        ("bash", ["git push"], "git pull; echo git push"),
        ("rust", ["std::net"], "mod net {} use crate::net;"),
    ],
)
def test_a_rule_leaves_alone_what_is_only_called_so(language: Language, uses: list[str], code: str) -> None:
    assert Policy(PolicyConfig.model_validate(own(language, uses=uses))).check(code, language, groups=("own",)) == []


def test_a_rule_may_be_a_query_and_may_ask() -> None:
    query = "(while_statement condition: (true) @hit)"
    config = policy(**own("python", query=query, action="ask", why="it may never end"))
    (finding,) = config.check("x = 1\nwhile True:\n    pass\n", "python")
    assert (finding.rule, finding.line, finding.column, finding.action) == ("acme.rule", 2, 7, "ask")
    assert "it may never end" in finding.message
    assert config.check("while x:\n    pass\n", "python") == []


def test_own_rules_are_switched_like_all_others() -> None:
    rule = own("bash", uses=["curl"])
    assert found(policy(**rule, disabled=["acme.rule"]), "curl x", "bash") == []
    assert found(policy(**rule, ask=["acme.*"]), "curl x", "bash") == [("acme.rule", "ask")]
    listed = {one.rule.id: one for one in policy(**rule).rules()}["acme.rule"]
    assert (listed.language, listed.rule.group, listed.action) == ("bash", "own", "block")


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (own("python", uses=["x"], query="(x)"), "give either `uses` or `query`"),
        (own("python"), "give either `uses` or `query`"),
        ({"rules": [{"id": "Bad Name", "language": "python", "message": "m", "uses": ["x"]}]}, "pattern"),
        (own("cobol", uses=["x"]), "language"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        PolicyConfig.model_validate(rule)


def test_a_wrong_query_and_a_name_that_is_taken_are_errors() -> None:
    with pytest.raises(ConfigError, match=r"acme\.rule: the query is not one for python"):
        policy(**own("python", query="(no_such_node"))
    taken = {"id": "python.eval", "language": "python", "message": "m", "uses": ["x"]}
    with pytest.raises(ConfigError, match=r"there are two rules 'python\.eval'"):
        policy(rules=[taken])


ORDINARY: list[tuple[Language, str, str]] = [
    (
        "javascript",
        "const fs = require('fs'); fs.writeFileSync('a.txt', 'x'); fs.readFileSync('/tmp/x')",
        "javascript.fs",
    ),
    ("javascript", "require('fs').readFileSync('/dev/stdin', 'utf8')", "javascript.fs"),
    ("javascript", "const fs = require('fs'); fs.writeFileSync('a.html', '/etc/x')", "javascript.fs"),
    ("bash", "rm -rf build ./dist /tmp/x node_modules/*", "bash.rm-rf"),
    ("bash", "rm -rf ~/.cache/pip", "bash.rm-rf"),
    ("bash", "bash -c 'rm -rf build'", "bash.rm-rf"),
    (
        "python",
        "import subprocess\nprint(subprocess.run(['ls', '-l'], capture_output=True).stdout)",
        "python.subprocess",
    ),
    ("python", "from subprocess import run, PIPE\nrun(('uname', '-a'), stdout=PIPE)", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.check_output(['node', '--version'])", "python.subprocess"),
]


@pytest.mark.parametrize(("language", "code", "rule"), ORDINARY)
def test_what_ordinary_programs_do_is_for_the_strict_profile(language: Language, code: str, rule: str) -> None:
    def refused(**config: object) -> set[str]:
        found = Policy(PolicyConfig.model_validate(config)).check(code, language, agent_id="ada", role="analyst")
        return {finding.rule for finding in found}

    assert refused() == set()
    assert refused(profile="strict") == {rule}
    assert refused(roles={"analyst": {"profile": "strict"}}) == {rule}
    assert refused(profile="strict", agents={"a*": {"profile": "standard"}}) == set()
    assert refused(enabled=[rule]) == {rule}, "whoever names a rule means all of it"
    assert refused(ask=[rule]) == {rule}


NOT_ORDINARY: list[tuple[Language, str, str]] = [
    ("javascript", "const fs = require('fs'); fs.unlinkSync('a')", "javascript.fs"),
    ("javascript", "const fs = require('fs').promises; await fs.rm('x')", "javascript.fs"),
    ("javascript", "import { readFile } from 'fs/promises'; await readFile('/etc/passwd')", "javascript.fs"),
    ("javascript", "const { promises: fs } = require('fs'); await fs.copyFile('x', '../y')", "javascript.fs"),
    *(
        ("bash", f"rm -rf {path}", "bash.rm-rf")
        for path in ("*", "$X", ".", "..", "../x", "/var/x", "/tmp", "/tmp/*", "~/*")
    ),
    ("bash", "find . | xargs rm -rf", "bash.rm-rf"),
    ("python", "import subprocess\nsubprocess.run('ls', shell=True)", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.run(['ls', x])", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.run(['ls'], **options)", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.run(['ls'], executable='rm')", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.run(['git', 'push'])", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.run(['ls'])\nuse(subprocess)", "python.subprocess"),
    ("python", "import subprocess\nsubprocess.run(['ls'])\nsubprocess.getoutput('x')", "python.subprocess"),
]


@pytest.mark.parametrize(("language", "code", "rule"), NOT_ORDINARY)
def test_what_deletes_leaves_or_hides_is_refused_but_where_all_is_open(
    language: Language, code: str, rule: str
) -> None:
    assert rule in {finding.rule for finding in Policy().check(code, language)}
    assert Policy(PolicyConfig(profile="open")).check(code, language) == []
    assert Policy(PolicyConfig(profile="open", enabled=[rule])).check(code, language) != []
