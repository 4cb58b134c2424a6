"""How a block stands to the others and to where it would run: what it lacks, what it builds on, what replaces it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from emberbox._extraction.needs import NOTHING, Known, Needs
from emberbox._extraction.needs_bash import bash_needs
from emberbox._extraction.needs_javascript import javascript_needs, typescript_needs
from emberbox._extraction.needs_python import python_needs
from emberbox._extraction.scoring import Score
from emberbox.models import Language

_READERS: dict[Language, Callable[[str], Needs]] = {
    "python": python_needs,
    "javascript": javascript_needs,
    "typescript": typescript_needs,
    "bash": bash_needs,
}
_VARIABLE = re.compile(r"\$\{?\w+\}?")
_NAMED = 4  # names that a reason lists


def needs_of(language: Language, code: str) -> Needs:
    """What a block defines and needs. For Rust, whose programs stand alone, that is nothing."""
    reader = _READERS.get(language)
    return NOTHING if reader is None else reader(code)


def judge_needs(language: Language, needs: Needs, known: Known, score: Score, *, to_a_person: bool) -> None:
    """Applies the rules about what a block lacks.

    Args:
        language: of the block.
        needs: what it needs.
        known: what the blocks above define.
        score: takes the rules.
        to_a_person: the text speaks to somebody who would run it on a machine of their own; not an agent that acts.
    """
    _judge_names(language, needs, known, score)
    if needs.method:
        score.add("no-class", f"`{needs.method}`")
    if needs.waits:
        score.add("interactive", f"`{needs.waits}`")
    if needs.browser:
        score.add("browser", _list(needs.browser))
    if needs.tests:
        score.add("test-suite", _list(needs.tests))
    if needs.packages:
        score.add("project", _list(needs.packages))
    if to_a_person:
        lacking = (name for name in needs.files if name.removeprefix("./") not in known.files)
        files = [name for name in lacking if not known.continues and not _made(name, known)]
        if files:
            score.add("files", _list(files))
        if needs.machine and not (needs.machine.startswith("git ") and ".git" in known.files):
            score.add("machine", f"`{needs.machine}`")


def judge_acts(language: Language, needs: Needs, score: Score) -> bool:
    """Applies the rule about what can be seen of a block. Whether it is a complete program: tagged, without errors,
    with nothing that it lacks, and doing something."""
    if language != "rust" and not needs.acts:
        names = sorted(needs.functions or needs.defines)
        if names:
            score.add("defines", f"defines {_list(names)}; nothing was called")
        return False
    has = {entry["rule"] for entry in score.why}
    solid = "complete" in has and not any("cap" in entry for entry in score.why)
    if solid:
        score.add("acts")
    return solid and "tagged" in has


def find_drafts(blocks: Sequence[tuple[str, Needs]], replaces: Callable[[int], bool]) -> set[int]:
    """Blocks whose functions a later block defines anew.

    Args:
        blocks: language and needs of each, in the order of the text.
        replaces: whether the text says that a block takes the place of an earlier one.
    """
    last: dict[tuple[str, str], int] = {}
    drafts: set[int] = set()
    for index in range(len(blocks) - 1, -1, -1):
        language, needs = blocks[index]
        if needs.functions:
            later = last.get((language, min(needs.functions)))
            if later is not None and needs.functions <= blocks[later][1].functions and replaces(later):
                drafts.add(index)
        for name in needs.functions:
            last.setdefault((language, name), index)
    return drafts


def _judge_names(language: Language, needs: Needs, known: Known, score: Score) -> None:
    asked = [(language, name) for name in needs.names]
    if language == "bash" or not asked:
        return
    missing = [name for key in asked for name in key[1:] if key not in known.runnable and key not in known.held]
    held = [name for key in asked for name in key[1:] if key in known.held]
    if missing and known.continues:
        return
    if missing:
        score.add("undefined", _list(missing))
    elif held:
        score.add("held-back", _list(held))
    else:
        score.add("uses", _list([name for _, name in asked]))


def _made(name: str, known: Known) -> bool:
    name = name.removeprefix("./")
    if name.startswith("*") and known.files:
        return any(fnmatchcase(one, name) or "$" in one or "{" in one for one in known.files)
    candidates = {name, name.partition("/")[0], name.rpartition("/")[2]}
    candidates |= {f"{one}.js" for one in candidates}
    patterns = [_VARIABLE.sub("*", one) for one in known.files if "$" in one][:_NAMED]
    return bool(candidates & known.files) or any(fnmatchcase(name, pattern) for pattern in patterns)


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
