"""However a Bash script ends, its context goes on, and the kernel's own lines never show."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .conftest import Client, Outcome


@pytest.fixture
def shell(agent: Client) -> Iterator[Callable[[str], Outcome]]:
    """A Bash context of its own, with a variable, a function and a directory that must not get lost."""
    ident = agent.call("context_create", language="bash").final["context"]

    def run(code: str) -> Outcome:
        return agent.code(code, "bash", context=ident)

    run('unit=apples; say() { echo "$unit in $PWD"; }; cd /tmp')
    yield run
    agent.call("context_remove", context=ident)


@pytest.mark.parametrize(
    ("code", "status", "last_words"),
    [
        ('set -euo pipefail\necho "reading $input_file"', 1, "bash: line 2: input_file: unbound variable\n"),
        ("set -e\nsource ./settings.env", 1, "bash: line 2: ./settings.env: No such file or directory\n"),
        ("set -e; . ./settings.env", 1, "bash: line 1: ./settings.env: No such file or directory\n"),
        ("set -o posix; set -e; . ./settings.env", 1, "bash: line 1: ./settings.env: No such file or directory\n"),
        ("set -eEuo pipefail; false | true", 1, ""),
        (": ${missing:?must be set}", 1, "bash: line 1: missing: must be set\n"),
        ("set -o noclobber; exit 3", 3, ""),
        ("set -u; echo ${list[0]}", 1, "bash: line 1: list[0]: unbound variable\n"),
        ("set -e\neval 'if'", 2, None),
        ("exec 10>&1 11>&1 12>&1; set -e; false", 1, ""),
    ],
)
def test_whatever_ends_a_script_its_context_keeps_everything(
    shell: Callable[[str], Outcome], code: str, status: int, last_words: str | None
) -> None:
    outcome = shell(code)
    assert (outcome.final["exit_code"], outcome.final["context_survived"]) == (status, True)
    if last_words is not None:
        assert outcome.stderr == last_words
    assert "descriptor" not in outcome.stderr
    assert "kernel" not in outcome.stderr
    again = shell("say")
    assert (again.stdout, again.stderr) == ("apples in /tmp\n", "")


@pytest.mark.parametrize(
    "code",
    [
        "trap 'echo failed >&2; exit 1' ERR",
        "set -E; trap 'echo failed' ERR; f() { false; }; true",
        "trap 'echo traced' DEBUG",
        "set -T; trap 'echo traced' DEBUG RETURN",
        "set -euo pipefail; set -x",
    ],
)
def test_traps_and_options_end_with_their_execution(shell: Callable[[str], Outcome], code: str) -> None:
    assert shell(code).final["exit_code"] == 0
    outcome = shell("false; echo $undefined on | cat; say; exit 0")
    assert (outcome.stdout, outcome.stderr) == ("on\napples in /tmp\n", "")


def test_a_trap_only_sees_the_code(shell: Callable[[str], Outcome]) -> None:
    outcome = shell("set -eE\ntrap 'echo \"failed in line $LINENO\"' ERR\ntrap 'echo bye' EXIT\nfalse\necho no")
    assert (outcome.stdout, outcome.stderr) == ("failed in line 4\nbye\n", "")


def test_programs_get_none_of_the_kernels_descriptors(shell: Callable[[str], Outcome]) -> None:
    assert (
        shell("python3 -c 'import os; print(sorted(map(int, os.listdir(\"/proc/self/fd\")))[:-1])'").stdout
        == "[0, 1, 2]\n"
    )
