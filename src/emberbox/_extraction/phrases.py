"""What the words around a block say about it. English, with the plainest prohibitions of some other languages.

No expression here nests repetitions, and each looks at some hundred characters: their cost is bounded by the callers.
"""

from __future__ import annotations

import re
from typing import Literal

from emberbox._extraction.needs import word_set

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
    r"\b(?:any of|none of|these|them|all of|either of|anything|any code)\b",
    r"\bthe (?:code|snippets|examples|commands|blocks)\b|\bcode (?:below|above)\b",
    r"\bin this (?:answer|message|response)\b",
)
REQUEST = _any(
    rf"\b(?:please|can you|could you|let{_AP}s|let me|i{_AP}ll|i will|i{_AP}m going to|you can|you should|we can"
    r"|now|then|to) (?:now |then |also |just |go ahead and )?(?:run|execut(?:e|ing)|launch|test|try)\b",
    r"\b(?:run|execute|launch|try) (?:this|it|the|these|that|my|following)\b",
    r"\b(?:running|executing) (?:this|the|it)\b",
    r"(?:^|[.!?:;] )(?:just |simply |then |now |please )?(?:run|execute)\b|\b(?:run|execute) (?:and|to)\b",
)
PLEADS = _any(
    r"\b(?:please|can you|could you|would you|will you|i want you to|i need you to|i would like you to)\b[^.?!\n]{0,40}"
    r"\b(?:run|execute)\b"
)
MENTION = _any(
    r"\b(?:run|runs|running|execute[sd]?|executing|script|program|command|try|test|launch)\b",
    r"\b(?:compute[sd]?|calculate[sd]?|solution|save (?:this|it) as)\b",
)
EXAMPLE = _any(r"\bexamples?\b|\be\.g\.|\bfor instance\b|\bsuch as\b")
REFERENCE = _any(
    r"\b(?:for|as) (?:your |future |quick )?reference\b|\billustrat(?:ive|ion) only\b|\bfor context\b",
    r"\b(?:just|only|purely) (?:an? )?(?:illustration|illustrative|for reference|for illustration|sketch)\b",
    rf"\bwon{_AP}t (?:run|work|compile)\b|\b(?:does|will|would)(?:n{_AP}t| not) (?:run|work|compile)\b",
    r"\b(?:contained|consisted of|looked like this|used to be)\s*:\s*$",
    r"\bnothing to run\b|\bread-only\b",
)
# What a whole program may be called as well; a fragment is called so because it is one.
ILLUSTRATES = _any(
    r"\b(?:for|as) (?:an? )?illustration\b|\b(?:just|only|purely) (?:an? )?(?:example|demo)\b",
    r"\bfor (?:educational|illustrat\w+|demonstration|information(?:al)?) purposes\b",
)
ADVISED_AGAINST = _any(
    r"\b(?:advise|recommend|warn|caution|counsel)(?:s|ed)? (?:you |people |everyone )?(?:strongly )?against"
    r" (?:it|this|that|running|doing|executing)\b",
    rf"\bi (?:really )?(?:would not|wouldn{_AP}t) (?:run|do|execute) (?:it|this|that)\b",
)
RETRACTED = _any(
    r"\b(?:ignore|disregard|forget|scrap|discard|skip|don['\u2019]?t use|do not use) (?:about )?(?:the|that|my)"
    r" (?P<which>first|previous|above|earlier|original|last) (?:\w+ )?"
    r"(?:script|code|version|snippet|answer|one|block|attempt|draft|command|program|function)\b",
)
WRONG = _any(
    r"\btricks? like (?:this|these)\b",
    r"(?<!\bno )(?<!\bnot )(?<!\bwithout )"
    r"\b(?:wrong|incorrect|bad|buggy|broken|vulnerable|insecure|unsafe|problematic|anti-?pattern|naive)"
    r" (?:way|approach|code|example|version|practice|implementation|solution)s?\b",
    rf"\b(?:never|don{_AP}t|do not|avoid) (?:do(?:ing)?|writ(?:e|ing)|us(?:e|ing))"
    r" (?:this|it|something like|code like|the following)\b",
    rf"\u274c|\bhere{_AP}s what not to do\b|\bthe original \(?(?:broken|buggy|wrong)\b",
)
PSEUDO = _any(r"\bpseudo-?\s?code\b|\b(?:rough|simplified|conceptual) (?:sketch|outline|skeleton)\b")
_SKELETON = _any(r"\bskeleton\b|\btemplate\b")
_IS_SKELETON = _any(
    r"^\W{0,4}(?:here(?:['\u2019]s| is)|this is|below is|use this|start (?:with|from)|the)\b[^.:\n]{0,40}"
    r"\b(?:skeleton|template)\b(?! (?:string|literal|engine|method|file|tag|that|which))"
)
PLACEHOLDER = _any(
    r"^[ \t]*(?:(?:#|//|--|/\*|<!--)[ \t]*)?(?:\.\.\.|\u2026)(?![\w\[({$])",
    r"[:{][ \t]*(?:\.\.\.|\u2026)[ \t]*\}?[ \t]*(?:#.*)?$",
    r"(?:#|//)[ \t]*(?:your (?:code|logic|implementation)|add your|insert your|rest of|the rest|existing code)\b",
    r"(?:#|//)[ \t]*(?:implementation (?:goes )?here|implement (?:this|me|here)|same as (?:before|above)|omitted)\b",
    r"[\"'<](?:insert|replace|enter|add)[-_](?:\w+[-_])*(?:key|token|password|secret|id|url|name|here|domain)[\"'>]",
    r"\byour[-_](?:\w+[-_]){0,4}\w+\b(?=[\"'>@/:. ]|$)|<your[ _-][\w -]{1,40}>|/path/to/|\bsk-\.\.\.",
    r"[\"'<]your (?:\w+ ){0,3}(?:key|token|secret|here)[\"'>]|TODO:? ?(?:add )?your\b",
    r"(?:#|//)[ \t]*other (?:code|methods|imports)\b|(?:#[ \t]|//[ \t]*)\[[A-Za-z][^\[\],]{1,40} [^\[\],]{1,40}\]$",
)
# Where `...` is what the language wants.
NO_PLACEHOLDER = re.compile(r"\b(?:Protocol|ABC|abstractmethod|overload|Ellipsis|TypedDict)\b")

# "You can use X for that … Here is an example snippet": how it is done, not a thing to be done.
_SNIPPET = _any(r"\b(?:example|sample) (?:code )?snippet\b|\bsnippet (?:as an|for) example\b")
_HOW_TO = _any(
    r"\b(?:you|one|developers|we) (?:can|could|should|may|might|need to|have to|would) (?:[a-z]+ )?"
    r"(?:use|call|create|import|define|add|write|do|build|start|follow|implement)\b"
)
_TRIES = re.compile(
    r"^[ \t]*(?:try\b|except\b|\} ?catch\b|with (?:pytest|self)\.)|\bcatch ?\(|assertRaises", re.MULTILINE
)
_FAILURE = re.compile(
    r"(?:#|//)[ \t]*(?:\u274c[^\n]*"
    r"|(?:(?:this|it|which|that|will|would|line|code) ){0,3}(?:raises?|throws?|fails?|crash(?:es)?)(?: with)?"
    r"(?:[.!]?$| (?:an? |the )?[`\w.]*(?:[Ee]rror|[Ee]xception)\b[^\n]*)"
    r"|(?:Uncaught |Compile[- ]?(?:time)? ?|Runtime |Type |Syntax )?(?:[A-Z]\w*)?(?:Error|Exception)\b[ \t]*"
    r"(?:[:!.(][^\n]*)?)$"
)
_MENDS = _any(
    r"\b(?:fix(?:es|ed|ing)?|correct(?:s|ed|ing)?|repair\w*|mend\w*|replac\w+|improv\w+|refactor\w*|rewrit\w+|rewrote"
    r"|solv\w+|avoid\w*|handl\w+|detect\w*|find\w*|instead of|rather than|better than)\b"
)
_COMMENT_START = re.compile(r"^\s*(?:#|//|/\*|\"\"\"|--)")
_PARAGRAPH = re.compile(r"\n[ \t>]*\n")
_BACKWARD = _any(r"\b(?:above|previous|preceding|that (?:code|script|command))\b")
_FORWARD = _any(r"\b(?:below|following|next (?:code|script|command|snippet|block))\b")
_VOID = _any(
    r"^\W*(?:if|once|when|whenever|should|only|suppose|unless|shall|in case)\b|\?\W*$",
    r"\b(?:idea|recommend\w*|advis\w+|tempt\w+|by mistake|accidental\w*|careful|danger\w*|never|nobody)\b",
    r"\b(?:you|he|she|they|somebody|someone|who) (?:ran|executed|runs|executes|has run)\b",
    r"\bwould (?:wipe|delete|destroy)\b",
)
# "don't run it as root" forbids a way of running it, and so does "on Python 2".
_ONLY_SO = _any(
    r"\W*(?:it|this|them|these|that|the \w+)?(?: \w+)?\W*"
    r"(?:as (?:root|admin\w*|an? )|twice|more than once|at the same time|in parallel|concurrently|with sudo|under \w"
    r"|(?:on|with|in|using) (?:python|node|windows|mac\w*|linux|an? (?:old|older|32-bit)|old|older|jupyter|idle"
    r"|the repl|a browser|the browser|a notebook|version)\b)"
)
# What is forbidden, where it has a name: "don't run pip as root" says nothing about a block without pip.
_OBJECT = re.compile(r"[ \t]+[`\"']?(?P<name>[\w./+-]{2,40})")
_PRONOUNS = word_set(
    """
    it this them these that those the any anything either all code commands command script scripts snippet
    snippets block blocks above below following example examples program programs here in on until unless without
    before yet if when as directly manually blindly on your my our by for at from and or now again something
    everything and-then with to
    """
)
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
        if not _ONLY_SO.match(intro, match.end())
    )


def forbidding(before: str, after: str, comment: str, code: str = "") -> str | None:
    """The words that forbid to run a block, if there are some: in front of it not those about the one above, behind it
    not those about the one below; and not those about something that the block does not have."""
    for text, elsewhere in ((before, _BACKWARD), (after, _FORWARD), (comment, None)):
        for match in FORBIDDEN.finditer(text):
            if _ONLY_SO.match(text, match.end()) or _is_about_something_else(text, match.end(), code):
                continue
            if elsewhere is None or not elsewhere.search(_sentence(text, match)):
                return match[0]
    return None


def _is_about_something_else(text: str, end: int, code: str) -> bool:
    found = _OBJECT.match(text, end)
    if found is None:
        return False
    name = found["name"].lower().strip(".")
    return bool(name) and name not in _PRONOUNS and name.isascii() and name not in code.lower()


def shown_as_wrong(text: str) -> str | None:
    """The words that show a block as the wrong way; not where the sentence says that this is what it mends."""
    for match in WRONG.finditer(text):
        begin = max(text.rfind(". ", 0, match.start()), text.rfind("\n", 0, match.start())) + 1
        if not _MENDS.search(text[begin : match.start()]):
            return match[0]
    return None


def how_to(before: str) -> str | None:
    """The words that show a snippet of how something is done, where the text also tells what one can do."""
    snippet = _SNIPPET.search(before)
    return snippet[0] if snippet is not None and _HOW_TO.search(before) else None


def ends_in_failure(code: str) -> str | None:
    """The comment in the last line of a block that tells how it fails. What catches the error shows it on purpose."""
    match = _FAILURE.search(code.rstrip()[-400:].rsplit("\n", 1)[-1])
    return None if match is None or _TRIES.search(code) else match[0].strip()[:80]


def pseudo(text: str, *, solid: bool) -> str | None:
    """The words that call a block pseudo-code, a sketch or a template. A complete program may well use a template."""
    match = PSEUDO.search(text) or _IS_SKELETON.search(text) or (None if solid else _SKELETON.search(text))
    return None if match is None else match[0]


def asks(before: str, after: str) -> Literal["request", "mention"] | None:
    """Whether the words around a block ask to run it, or only speak of running. A condition, a question and a warning
    do not ask."""
    for text in (before, after):
        if any(not _VOID.search(_sentence(text, match)) for match in REQUEST.finditer(text)):
            return "request"
    spoken = any(not _VOID.search(_sentence(before, match)) for match in MENTION.finditer(before))
    return "mention" if spoken else None


def is_request(sentence: str) -> bool:
    """Whether a sentence asks to run something."""
    return REQUEST.search(sentence) is not None and not _VOID.search(sentence)


def _sentence(text: str, match: re.Match[str]) -> str:
    """The sentence around a match."""
    begin = max(text.rfind(end, 0, match.start()) for end in (". ", "! ", "? ", "\n\n"))
    stops = [stop for stop in (text.find(end, match.end()) for end in (". ", "! ", "? ", "\n\n")) if stop >= 0]
    return text[begin + 1 : min(stops, default=len(text))]


def first_comment(code: str) -> str:
    """The comment lines at the top of a block."""
    return "\n".join(line for line in code[:600].splitlines()[:4] if _COMMENT_START.match(line))
