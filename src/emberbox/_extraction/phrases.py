"""What the words around a block say about it. English, with the plainest prohibitions of some other languages.

No expression here nests repetitions, and each looks at some hundred characters: their cost is bounded by the callers.
"""

from __future__ import annotations

import re

_AP = r"['\u2019]?"


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE | re.MULTILINE)


_ADVERB = r"(?:(?:ever|actually|just|blindly|directly|really|simply|also|even|yet|try to|attempt to|want to) ){0,2}"
_NOT = (
    rf"(?:do not|don{_AP}t|never|must not|mustn{_AP}t|should not|shouldn{_AP}t|should never|must never|cannot be"
    rf"|can{_AP}t be|not (?:meant|intended|supposed|safe|ready) to(?: be)?|not to be|avoid|without|refrain from"
    r"|not recommended to|dangerous to|unsafe to|instead of)"
)
_RUN = (
    r"(?:run|ran|running|execute[ds]?|executing|launch(?:ed|ing)?"
    r"|use (?:this|it|the (?:code|script|command|snippet)))\b"
)

FORBIDDEN = _any(
    # "if you don't run this" forbids nothing, nor does "don't forget to run": only certain words may stand between.
    rf"(?<!if you )(?<!when you )(?<!unless you )\b{_NOT} {_ADVERB}(?:be )?{_RUN}",
    r"\b(?:non-executable|do-not-run|not executable|not for execution)\b",
    rf"\b(?:no need|(?:don{_AP}t|do not) (?:need|have)) to (?:run|execute)\b",
    r"(?:不要|请勿|勿|切勿|别|不能|禁止)(?:直接)?(?:运行|执行)",
    r"実行しないで|실행하지 ?마",
    r"\b(?:nicht|niemals) ausführen",
    r"\bne (?:pas|jamais) (?:l[ae]? ?)?exécute|\bn['\u2019]exécute[zr]? (?:pas|jamais)",
    r"\bno (?:lo |la )?ejecut|\bnão (?:o )?execut|\bnon eseguire",
    r"не запуска|لا تشغ",
)
EVERYTHING = _any(
    r"\b(?:any of|none of|these|all of|either of|anything|any code)\b",
    r"\bthe (?:code|snippets|examples|commands|blocks)\b|\bcode (?:below|above)\b",
    r"\bin this (?:answer|message|response)\b",
)
REQUEST = _any(
    rf"\b(?:please|can you|could you|let{_AP}s|let me|i{_AP}ll|i will|i{_AP}m going to|you can|you should|we can"
    r"|now|then|to) (?:now |then |also |just |go ahead and )?(?:run|execut(?:e|ing)|launch|test|try)\b",
    r"\b(?:run|execute|launch|try) (?:this|it|the|these|that|my|following)\b",
    r"\b(?:running|executing) (?:this|the|it)\b",
    r"^(?:run|execute)\b|\b(?:run|execute) (?:and|to)\b",
)
MENTION = _any(
    r"\b(?:run|runs|running|execute[sd]?|executing|script|program|command|try|test|launch)\b",
    r"\b(?:compute[sd]?|calculate[sd]?|solution|save (?:this|it) as)\b",
)
EXAMPLE = _any(r"\bexamples?\b|\be\.g\.|\bfor instance\b|\bsuch as\b")
REFERENCE = _any(
    r"\b(?:for|as) (?:your |future |quick )?(?:reference|illustration|context)\b",
    r"\bfor (?:educational|illustrat\w+|demonstration|information(?:al)?) purposes\b|\billustrat(?:ive|ion) only\b",
    r"\b(?:just|only|purely) (?:an? )?(?:example|illustration|illustrative|for reference|sketch|demo)\b",
    rf"\bwon{_AP}t (?:run|work|compile)\b|\b(?:does|will|would)(?:n{_AP}t| not) (?:run|work|compile)\b",
    r"\bnothing to run\b|\bread-only\b",
)
OUTPUT = _any(
    r"\b(?:example|sample|expected|typical|possible|resulting|console|terminal|program) (?:output|result|response)s?\b",
    r"\b(?:prints?|outputs?|returns?|produces?|shows?|displays?|yields?)"
    r"(?: (?:the following|this|something like|out))?:\s*$",
    rf"\b(?:would|will|should|you{_AP}ll) (?:see|print|output|get|produce|return|show|display)\b[^.\n]{{0,60}}:\s*$",
    r"\b(?:error message|stack ?trace|traceback|the (?:output|result|error|log)s?)\b[^.\n]{0,60}:\s*$",
    r"^\W{0,8}(?:outputs?|results?)\W{0,8}$",
)
WRONG = _any(
    r"\b(?:wrong|incorrect|bad|buggy|broken|vulnerable|insecure|unsafe|problematic|anti-?pattern|naive)"
    r" (?:way|approach|code|example|version|practice|implementation|solution)s?\b",
    rf"\b(?:never|don{_AP}t|do not|avoid) (?:do(?:ing)?|writ(?:e|ing)|us(?:e|ing))"
    r" (?:this|it|something like|code like|the following)\b",
    rf"\u274c|\bhere{_AP}s what not to do\b|\bthe original \(?(?:broken|buggy|wrong)\b",
)
PSEUDO = _any(
    r"\bpseudo-?\s?code\b|\b(?:rough|simplified|conceptual) (?:sketch|outline|skeleton)\b|\bskeleton\b|\btemplate\b"
)
PLACEHOLDER = _any(
    r"^[ \t]*(?:(?:#|//|--|/\*|<!--)[ \t]*)?(?:\.\.\.|\u2026)(?![\w\[({$])",
    r"[:{][ \t]*(?:\.\.\.|\u2026)[ \t]*\}?[ \t]*(?:#.*)?$",
    r"(?:#|//)[ \t]*(?:your (?:code|logic|implementation)|add your|insert your|rest of|the rest|existing code)\b",
    r"(?:#|//)[ \t]*(?:implementation (?:goes )?here|implement (?:this|me|here)|same as (?:before|above)|omitted)\b",
    r"(?:#|//)[ \t]*other (?:code|methods|imports)\b|(?:#[ \t]|//[ \t]*)\[.{1,40}\]$",
)
# Where `...` is what the language wants.
NO_PLACEHOLDER = re.compile(r"\b(?:Protocol|ABC|abstractmethod|overload|Ellipsis|TypedDict)\b")

_COMMENT_START = re.compile(r"^\s*(?:#|//|/\*|\"\"\"|--)")
_PARAGRAPH = re.compile(r"\n[ \t>]*\n")
_BACKWARD = _any(r"\b(?:above|previous|preceding|that (?:code|script|command))\b")
_BEFORE, _AFTER, _WINDOW = 400, 250, 1_200


def paragraphs(text: str) -> list[str]:
    """The non-empty paragraphs of a text."""
    return [part.strip() for part in _PARAGRAPH.split(text.replace("\r", "")) if part.strip()]


def before_of(gap: str, *, first: bool) -> str:
    """What the text between two blocks says about the block that follows it: its last paragraph or two."""
    parts = paragraphs(gap[-_WINDOW:])
    if not first and len(parts) == 1 and _BACKWARD.search(parts[0]) and not parts[0].endswith(":"):
        return ""
    keep = parts[-2:] if first or len(parts) > 2 else parts[-1:]
    return "\n\n".join(keep)[-_BEFORE:]


def after_of(gap: str, *, last: bool) -> str:
    """What the text between two blocks says about the block before it: its first paragraph.

    A lone paragraph between two blocks belongs to the second, unless it points backwards.
    """
    parts = paragraphs(gap[:_WINDOW])
    if not parts or (not last and len(parts) == 1 and not _BACKWARD.search(parts[0])):
        return ""
    return parts[0][:_AFTER]


def forbids_everything(intro: str) -> bool:
    """Whether the text before the first block forbids to run any of the code."""
    return any(
        EVERYTHING.search(intro[match.start() : match.end() + 60].split(".", 1)[0])
        for match in FORBIDDEN.finditer(intro[:4_000])
    )


def first_comment(code: str) -> str:
    """The comment lines at the top of a block."""
    return "\n".join(line for line in code[:600].splitlines()[:4] if _COMMENT_START.match(line))
