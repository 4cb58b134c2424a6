"""Python as notebooks have it: magics pass the syntax check, and commands in them meet the rules for Bash."""

from __future__ import annotations

import pytest

from emberbox.languages import get_language
from emberbox.languages._python_cells import python_of
from emberbox.languages.policy import Policy

PYTHON = get_language("python")


@pytest.mark.parametrize(
    ("code", "rule", "line", "column"),
    [
        ("!rm -rf /", "bash.rm-rf", 1, 1),
        ("x = 1\nfiles = !rm -rf /", "bash.rm-rf", 2, 1),
        ("if 1:\n    !sudo rm -rf / \\\n  /etc", "bash.rm-rf", 2, 5),
        ("%%bash\nls\nrm -rf /", "bash.rm-rf", 2, 1),
        ("%%script sh\nrm -rf /", "bash.rm-rf", 2, 1),
        ("%rm -rf /", "bash.rm-rf", 1, 1),
        ("%sx rm -rf /", "bash.rm-rf", 1, 1),
        ("%%time\n!rm -rf /", "bash.rm-rf", 2, 1),
        ("get_ipython().system('rm -rf /')", "bash.rm-rf", 1, 1),
        ("get_ipython().run_cell_magic('bash', '', 'rm -rf /')", "bash.rm-rf", 1, 1),
        ("!echo hi\nimport subprocess", "python.subprocess", 2, 1),
        ("%time eval('x')", "python.eval", 1, 7),
        ("%timeit -n 10 eval('1')", "python.eval", 1, 15),
        ("%%timeit x = eval('1')\n1", "python.eval", 1, 14),
        ("    import subprocess\n    subprocess.run('x')", "python.subprocess", 1, 5),
        ("\ufeffimport subprocess", "python.subprocess", 1, 2),
    ],
)
def test_what_a_magic_runs_meets_the_rules(code: str, rule: str, line: int, column: int) -> None:
    found = Policy().check(code, "python")
    assert (rule, line) in [(finding.rule, finding.line) for finding in found]
    assert column in [finding.column for finding in found if finding.rule == rule]


@pytest.mark.parametrize(
    "code",
    [
        "!ls -l | head",
        "%matplotlib inline\nprint(1)",
        "x = !ls",
        "%%bash\nfor i in 1 2; do echo $i; done",
        "%%writefile a.sh\nrm -rf /",
        "pip install requests\nimport requests",
        "len?",
        "for i in range(3):\n    !echo {i}\n    print(i)",
        "%time x = 1",
        "%%time\nx = 1",
        "    x = 1\n    print(x)",
        "\ufeffprint(1)",
        "s = '''\n!not\n'''\n%time s",
    ],
)
def test_what_notebooks_take_is_valid(code: str) -> None:
    assert PYTHON.syntax_findings(code) == []
    assert Policy().check(code, "python") == []
    assert len(python_of(code).encode()) == len(code.encode())


@pytest.mark.parametrize("code", ["x = = 1", "!ls\nx = = 1", "%%time\nx = = 1", "    x = 1\n  y = 2", "print(1"])
def test_what_is_wrong_stays_wrong(code: str) -> None:
    assert PYTHON.syntax_findings(code)


def test_text_that_only_looks_like_a_magic_is_none() -> None:
    assert Policy().check("text = '''\n!rm -rf /\n'''\nprint(7\n%rm)", "python") == []
