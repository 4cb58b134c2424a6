"""What the words around a block say about it. English, with the plainest prohibitions of other languages."""

from __future__ import annotations

import re

_I = re.IGNORECASE
_VERB = r"(?:run|execut|launch|start|evaluat|invok|try|paste|copy)"
_ADVERB = r"(?:(?:ever|actually|just|blindly|directly|really|simply|also|even|yet|try to|attempt to|want to) ){0,2}"

# `if you don't run this` and `don't forget to run` are no prohibitions; the first is left out by the look-behind.
FORBIDDEN = re.compile(
    r"(?<!if you )(?<!when you )(?<!unless you )"
    r"\b(?:do not|don['\u2019]?t|never|must not|mustn['\u2019]?t|should not|shouldn['\u2019]?t|should never|must never"
    r"|cannot be|can['\u2019]t be|not (?:meant|intended|supposed|safe|ready) to(?: be)?|not to be|avoid|without|refrain from"
    r"|not recommended to|dangerous to|unsafe to|instead of) "
    + _ADVERB
    + r"(?:be )?"
    + r"(?:run|ran|running|execute[ds]?|executing|launch(?:ed|ing)?|use (?:this|it|the (?:code|script|command|snippet)))\b"
    r"|\bdo not execute\b|\b(?:non-executable|do-not-run|not executable|not for execution)\b"
    r"|\b(?:no need|don['\u2019]?t need|don['\u2019]?t have) to (?:run|execute)\b"
    r"|(?:不要|请勿|勿|切勿|别|不能|禁止)(?:直接)?(?:运行|执行)|実行しないで|실행하지 마|nicht ausf\u00fchren|niemals ausf\u00fchren"
    r"|ne (?:pas|jamais) (?:l[ae]? ?)?ex[\u00e9e]cute|n['\u2019]ex[\u00e9e]cute[zr]? (?:pas|jamais)|no (?:lo |la )?ejecut"
    r"|n\u00e3o (?:o )?execut|\u043d\u0435 \u0437\u0430\u043f\u0443\u0441\u043a|non eseguire|لا تشغ",
    _I,
)
_GLOBAL = re.compile(
    r"\b(?:any of|none of|these|all of|either of|anything|any code|the (?:code|snippets|examples|commands|blocks)|code (?:below|above)"
    r"|in this (?:answer|message|response))\b",
    _I,
)
REQUEST = re.compile(
    r"\b(?:please|can you|could you|let['\u2019]?s|let me|i['\u2019]?ll|i will|i['\u2019]?m going to|you can|you should|we can|now|then|to) "
    r"(?:now |then |also |just |go ahead and )?(?:run|execut(?:e|ing)|launch|test|try)\b"
    r"|\b(?:run|execute|launch|try) (?:this|it|the|these|that|my|following)\b"
    r"|\b(?:running|executing) (?:this|the|it)\b|^(?:run|execute)\b|\b(?:run|execute) (?:and|to)\b",
    _I | re.M,
)
MENTION = re.compile(
    r"\b(?:run|runs|running|execute[sd]?|executing|script|program|command|try|test|launch|compute[sd]?|calculate[sd]?"
    r"|solution|save (?:this|it) as)\b",
    _I,
)
EXAMPLE = re.compile(r"\bexamples?\b|\be\.g\.|\bfor instance\b|\bsuch as\b", _I)
REFERENCE = re.compile(
    r"\b(?:for|as) (?:your |future |quick )?(?:reference|illustration|illustrative purposes|demonstration purposes|context)\b"
    r"|\billustrat(?:ive|ion) only\b|\bfor (?:educational|illustration|information(?:al)?) purposes\b"
    r"|\b(?:just|only|purely) (?:an? )?(?:example|illustration|illustrative|for reference|sketch|demo)\b"
    r"|\bwon['\u2019]?t (?:run|work|compile)\b|\b(?:does|do|will|would) ?n(?:['\u2019]?t|ot) (?:run|work|compile)\b"
    r"|\bnothing to run\b|\bread-only\b",
    _I,
)
OUTPUT = re.compile(
    r"\b(?:example|sample|expected|typical|possible|resulting|console|terminal|program) (?:output|result|response)s?\b"
    r"|\boutputs?:\s*$|\b(?:prints?|outputs?|returns?|produces?|shows?|displays?|yields?)(?: (?:the following|this|something like|out))?:\s*$"
    r"|\b(?:would|will|should|you['\u2019]?ll|you will|you should) (?:see|print|output|get|produce|return|show|display)\b[^.\n]{0,60}:\s*$"
    r"|\b(?:error message|stack ?trace|traceback|the (?:output|result|error|log)s?(?: is| was| looks like)?)\b[^.\n]{0,40}:\s*$"
    r"|^\W*outputs?\W*$|^\W*results?\W*$",
    _I | re.M,
)
WRONG = re.compile(
    r"\b(?:wrong|incorrect|bad|buggy|broken|vulnerable|insecure|unsafe|problematic|anti-?pattern|naive) "
    r"(?:way|approach|code|example|version|practice|implementation|solution)s?\b"
    r"|\b(?:never|don['\u2019]?t|do not|avoid) (?:do(?:ing)?|writ(?:e|ing)|us(?:e|ing)) (?:this|it|something like|code like|the following)\b"
    r"|\u274c|\b(?:here['\u2019]?s|this is) what not to do\b|\bthe original \(?(?:broken|buggy|wrong)\b",
    _I,
)
PSEUDO = re.compile(
    r"\bpseudo-?\s?code\b|\b(?:rough|simplified|conceptual) (?:sketch|outline|skeleton)\b|\bskeleton\b|\btemplate\b", _I
)
PLACEHOLDER = re.compile(
    r"^[ \t]*(?:(?:#|//|--|/\*|<!--)[ \t]*)?(?:\.\.\.|\u2026)(?![\w\[({$])"
    r"|[:{][ \t]*(?:\.\.\.|\u2026)[ \t]*\}?[ \t]*(?:#.*)?$"
    r"|(?:#|//)[ \t]*(?:your (?:code|logic|implementation)|add your|insert your|rest of|the rest|existing code|implementation (?:goes )?here"
    r"|implement (?:this|me|here)|same as (?:before|above)|omitted|\[.{1,40}\]$|other (?:code|methods|imports))\b",
    _I | re.M,
)
NO_PLACEHOLDER = re.compile(r"\b(?:Protocol|ABC|abstractmethod|overload|Ellipsis|TypedDict)\b")
COMMENT_START = re.compile(r"^\s*(?:#|//|/\*|\"\"\"|--)")

_PARAGRAPH = re.compile(r"\n[ \t>]*\n")
_BEFORE, _AFTER = 400, 250
_BACKWARD = re.compile(r"\b(?:above|previous|preceding|that (?:code|script|command))\b", _I)


def paragraphs(text: str) -> list[str]:
    """The non-empty paragraphs of a text."""
    return [part.strip() for part in _PARAGRAPH.split(text) if part.strip()]


def before_of(gap: str, *, first: bool) -> str:
    """What the text between two blocks says about the block that follows it."""
    parts = paragraphs(gap[-_BEFORE * 3 :])
    if not first and len(parts) == 1 and _BACKWARD.search(parts[0]) and not parts[0].endswith(":"):
        return ""
    keep = parts[-2:] if first or len(parts) > 2 else parts[-1:]
    return "\n\n".join(keep)[-_BEFORE:]


def after_of(gap: str, *, last: bool) -> str:
    """What the text between two blocks says about the block before it."""
    parts = paragraphs(gap[: _AFTER * 3])
    if not parts:
        return ""
    if not last and len(parts) == 1 and not _BACKWARD.search(parts[0]):
        return ""
    return parts[0][:_AFTER]


def forbids_everything(intro: str) -> bool:
    """Whether the text before the first block forbids to run any of the code."""
    for match in FORBIDDEN.finditer(intro[:4_000]):
        tail = intro[match.start() : match.end() + 60].split(".", 1)[0]
        if _GLOBAL.search(tail):
            return True
    return False


def first_comment(code: str) -> str:
    """The comment lines at the top of a block."""
    lines = code[:600].splitlines()[:4]
    return "\n".join(line for line in lines if COMMENT_START.match(line))
