from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberbox.sandbox.snapshots.unified import MOST_STEPS, Effort, TooDifferent, unified_diff

_HEAD = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n")
_NO_NEWLINE = "\\ No newline at end of file\n"

TEXTS = st.text(st.sampled_from("abc\n\n\n\r\x0c\u2028 -+@\\"), max_size=120)
LINES = st.lists(st.sampled_from(["a", "b", "{", "}", "", "unique"]), max_size=60).map("\n".join)


def lines_of(text: str) -> list[str]:
    return [line + "\n" for line in text.split("\n")[:-1]] + [last for last in text.split("\n")[-1:] if last]


def applied(old: str, diff: str) -> str:
    """What patch(1) makes of `old`, strictly: every line of context and every count must be right."""
    if not diff:
        return old
    source, patch = lines_of(old), lines_of(diff)
    assert patch[0].startswith("--- ")
    assert patch[1].startswith("+++ ")
    at, out, number = 0, [], 2
    while number < len(patch):
        head = _HEAD.fullmatch(patch[number])
        assert head, patch[number]
        number += 1
        start, removed, begin, added = (1 if part is None else int(part) for part in head.groups())
        start, begin = start - (removed > 0), begin - (added > 0)
        out += source[at:start]
        at = start
        assert len(out) == begin
        while number < len(patch) and not patch[number].startswith("@@"):
            mark, line = patch[number][0], patch[number][1:]
            number += 1
            if number < len(patch) and patch[number] == _NO_NEWLINE:
                line = line.removesuffix("\n")
                number += 1
            if mark in " -":
                assert source[at] == line
                at, removed = at + 1, removed - (1)
            if mark in " +":
                out.append(line)
                added -= 1
        assert (removed, added) == (0, 0)
    return "".join(out + source[at:])


@given(TEXTS | LINES, TEXTS | LINES)
def test_a_diff_applied_to_the_old_text_gives_the_new_one(old: str, new: str) -> None:
    diff = unified_diff(old, new, "a/f", "b/f")
    assert applied(old, diff) == new
    assert (diff == "") == (old == new)


@given(st.lists(st.sampled_from("ab"), max_size=12), st.lists(st.sampled_from("ab"), max_size=12))
def test_among_lines_that_repeat_it_is_a_shortest_one(old: list[str], new: list[str]) -> None:
    # no line is there once, and the ends differ: nothing is set aside
    a, b = [*"aabb", *old, *"aabb"], [*"bbaa", *new, *"bbaa"]
    diff = unified_diff("".join(f"{x}\n" for x in a), "".join(f"{x}\n" for x in b), "a", "b")
    changed = sum(line[0] in "+-" for line in diff.splitlines()[2:])
    same = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            same[i + 1][j + 1] = same[i][j] + 1 if x == y else max(same[i][j + 1], same[i + 1][j])
    assert changed == len(a) + len(b) - 2 * same[-1][-1]


def test_it_looks_as_other_programs_print_it() -> None:
    old = "".join(f"{n}\n" for n in range(1, 21))
    new = old.replace("3\n", "three\n", 1).replace("20\n", "20")
    assert unified_diff(old, new, "a/f", "b/f") == (
        "--- a/f\n+++ b/f\n@@ -1,6 +1,6 @@\n 1\n 2\n-3\n+three\n 4\n 5\n 6\n"
        "@@ -17,4 +17,4 @@\n 17\n 18\n 19\n-20\n+20\n\\ No newline at end of file\n"
    )
    assert unified_diff("", "x\n", "/dev/null", "b/f") == "--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n"
    assert unified_diff("x\ny\n", "", "a/f", "/dev/null") == "--- a/f\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-x\n-y\n"


def _drawn(seed: int, lines: int, words: str) -> str:
    draw = random.Random(seed)
    return "".join(f"{draw.choice(words)}\n" for _ in range(lines))


HOSTILE = {
    "few words in another order": (_drawn(1, 1 << 17, "abcdefgh"), _drawn(2, 1 << 17, "abcdefgh")),
    "one line against two": ("a\n" * (1 << 17), "b\na\n" * (1 << 16)),
    "nothing but newlines": ("\n" * (1 << 18), ("\n" * 9 + "a\n") * ((1 << 18) // 11)),
    "shifted": ("ab\ncd\n" * 40_000, "cd\nab\ncd\ncd\n" * 20_000),
    "every second one twice": (
        "".join(f"{n}\n" for n in range(40_000)), "".join(f"{n + n % 2}\n" for n in range(40_000))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_texts_end_after_so_many_steps(case: str) -> None:
    effort = Effort(MOST_STEPS)
    old, new = HOSTILE[case]
    try:
        assert applied(old, unified_diff(old, new, "a", "b", effort)) == new
    except TooDifferent:
        # one more round of the search than there was room for
        assert -len(old) - len(new) <= effort.left < 0


def test_large_texts_are_shown_where_their_lines_tell_them_apart() -> None:
    old = "".join(f"row {n}\n" if n % 3 else "}\n" for n in range(30_000))
    new = "".join(f"row {n}\n" if n % 3 and n % 5 else "}\n" for n in range(30_000))
    assert applied(old, unified_diff(old, new, "a", "b")) == new
    rewritten = "".join(f"line {n}\n" for n in range(20_000))
    assert applied(old, unified_diff(old, rewritten, "a", "b")) == rewritten


def test_many_diffs_share_what_one_may_take() -> None:
    effort = Effort(220)
    with pytest.raises(TooDifferent):
        unified_diff("a\nb\n" * 50, "b\na\na\n" * 50, "a", "b", effort)
    with pytest.raises(TooDifferent):
        unified_diff("a\na\nb\nb\n", "b\nb\na\na\n", "a", "b", effort)
