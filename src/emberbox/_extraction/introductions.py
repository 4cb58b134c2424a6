"""What the sentence in front of a block introduces: a program, its output, a change to other code, a file.

A word alone does not tell: "a script that prints the result:" introduces a program, "it prints:" output. So each
expression here asks for the words around the one it is about.
"""

from __future__ import annotations

import re

from emberbox._extraction.phrases import is_request


def _any(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE | re.MULTILINE)


_AP = r"['\u2019]?"
_OUTPUT = (
    r"(?:outputs?|results?|responses?|logs?|console|error messages?|errors?|stack ?traces?|tracebacks?|messages?"
    r"|values?)"
)
_KIND = (
    r"(?:(?:the|an?|this|its|your|full|whole|actual|current|above|final|corresponding|example|sample|expected|typical"
    r"|possible|resulting|console|terminal|program(?:'s)?|script(?:'s)?|test|following|some|same) ){0,4}"
)
_PROGRAM = (
    r"(?:scripts?|programs?|code|functions?|snippets?|commands?|solutions?|implementations?|versions?|examples?"
    r"|one-liners?|cells?|blocks?|class|demo|tests?|way|approach|helper|method|query|loop|calculation|analysis|simulation)"
)
_SAYS = r"(?:prints?|outputs?|returns?|produces?|shows?|displays?|yields?|gives?|logs?|writes?)"
_OUTPUT_FIRST = _any(
    rf"^\W{{0,8}}(?:and |so |with |then )?{_KIND}{_OUTPUT}\b(?! (?:the|a|it|to|of (?!(?:running|the|this)))\b)"
    r"[^.;\n]{0,80}$",
    rf"^\W{{0,8}}(?:and |so )?(?:here{_AP}s|here (?:is|are)|this is|these are|below (?:is|are)|that{_AP}s|it{_AP}s)"
    rf" (?:what )?{_KIND}{_OUTPUT}\b[^.;\n]{{0,80}}$",
    rf"\b(?:example|sample|expected|typical|possible|resulting|console|terminal|program) {_OUTPUT}\W{{0,6}}$",
    rf"^\W{{0,4}}(?:.{{0,60}}\b(?:gave|got|get|saw|see|failed with|fails with|threw|raises|reported|reports)) "
    rf"{_KIND}{_OUTPUT}\b[^.;\n]{{0,40}}:\W{{0,4}}$",
)
_OUTPUT_VERB = _any(
    rf"(?<!what it )\b{_SAYS}(?: (?:the following|this|something like(?: this)?|out|as follows|you|me))?"
    r"\W{0,4}:\W{0,4}$",
    rf"\b(?:would|will|should|you{_AP}ll|might|may) (?:then )?(?:see|print|output|get|produce|return|show|display)\b"
    r"[^.\n]{0,60}:\W{0,4}$",
    rf"\b(?:see|get) {_KIND}{_OUTPUT}\b[^.\n]{{0,40}}:\W{{0,4}}$",
)
_INTRODUCES_PROGRAM = _any(
    rf"\b(?:an?|the|this|following|simple|complete|short|small|another) (?:[\w'-]+ ){{0,4}}{_PROGRAM}\b"
    r"[^:\n]{0,60}?\b(?:that|which|to|and|for|will|would|can|in|using|with|it)\b",
    rf"\bhere{_AP}s (?:how|the code|a|an|one)\b|\bhow to\b|\bthe following {_PROGRAM}\b",
    r"\bas (?:this|these lines) \w+\b|\b(?:so that|to (?:see|get|print|show|display|compute|find|check|verify))\b",
    rf"^\W{{0,4}}(?:this|the|my|your|our) (?:[\w'-]+ ){{0,3}}{_PROGRAM} {_SAYS} (?!the following|this|something|:)\w",
)

_OF_RUNNING = _any(rf"\b{_OUTPUT} (?:of|from|after|when) (?:running|executing)\b")
_CHANGE = _any(
    r"\b(?:change|replace|modify|update|edit|rewrite|swap|turn)\b[^.:\n]{0,100}?\b(?:to|with|into|by|like this"
    r"|as follows|like so|from)\b[^.:\n]{0,40}:\W{0,4}$",
    r"\b(?:change|replace|modify|update|edit|remove|delete) (?:this|the|that|these) (?:[\w`.()'-]+ ){0,4}"
    r"(?:line|lines|function|method|block|part|section|call|import|class|code|loop|condition|file)\b[^.\n]{0,40}:\W{0,4}$",
    r"\badd (?:this|the following|these|an?|another) (?:[\w`'-]+ ){0,3}(?:line|lines|import|route|method|function"
    r"|field|property|attribute|argument|parameter|check|condition|case|to)\b[^.\n]{0,80}:\W{0,4}$",
    r"^\W{0,4}(?:with|to|by|into|becomes|from)\W{0,4}:\W{0,4}$",
)
_EQUALS = (
    r"(?:equivalent (?:to|of|with)|(?:same|identical) (?:as|to|with)|shorthand for|short for|syntactic sugar for"
    r"|equals to|equal to|corresponds to|translates to)"
)
_PIECE = (
    r"(?:code|snippets?|versions?|forms?|statements?|lines?|expressions?|loops?|calls?|blocks?|functions?|programs?)"
)
_SAME_AS = _any(
    rf"\b(?:{_EQUALS}|instead of|rather than|as opposed to|compared? (?:to|with))"
    r"(?: (?:this|the following|writing|doing|something like))?\W{0,4}:?\W{0,4}$",
    # Only what follows: a program that does the same as the code above may well be run.
    rf"\b{_EQUALS} (?:(?:this|these|the following|following) (?:[\w-]+ ){{0,2}}{_PIECE}(?: in \w+)?"
    rf"|the {_PIECE} (?:below|here))\W{{0,4}}$",
    r"\b(?:would be written|can be written|could be written|is written) as\b[^.\n]{0,20}:?\W{0,4}$",
)
_HALF_SENTENCE = _any(
    r"^(?:the |an? )?(?:[\w-]+ ){0,3}(?:comprehension|expression|statement|line|call|syntax|decorator|snippet|writing)"
    r"\W{0,3}$",
    r"\b(?:writing|instead of|the syntax is|general form is|syntax(?: is)?)\W{0,3}$",
)
_REPORT = _any(
    r"\b(?:verified|validated|tested|checked|confirmed|reproduced|ran|run so far|executed|ran successfully)"
    r" (?:this |it |that |everything |the \w+ )?(?:with|using|by|via|through)\b[^.\n]{0,40}:?\W{0,4}$",
    r"^\W{0,4}(?:i|we) (?:(?:have |had |already )+run|(?:have |had |already )*(?:ran|executed|used|tested))\b"
    r"[^.\n]{0,60}:\W{0,4}$",
    r"^\W{0,4}(?:verification|commands? (?:run|used|executed)|what i ran|tests? run|checks? run)\W{0,4}$",
)
# "Let me show you how" speaks to somebody; "let me check" is what an agent says before it acts.
_TELLS = (
    r"(?:(?:now|first|also|briefly|quickly|just|try to) )?(?:show|explain|walk|guide|teach|tell|give (?:you|an|a)|know"
    r"|provide|describe|illustrate|outline|assume|say|suppose|imagine|take an|consider)\b"
)
FIRST_PERSON = _any(
    rf"\b(?:(?:i{_AP}ll|i will|i{_AP}m going to|i am going to|i want to|let me|let us|let{_AP}s)(?! {_TELLS})|i need to"
    r"|i should|i must"
    rf"|now i|first,? i|next,? i|then i|i (?:now|first|then) \w+|i (?:run|execute|check|look|start|use|create)\b)",
    r"</(?:think|thought)>",
)
# An agent that thinks aloud says "we"; so does who explains. So the words count only before the one command that ends a
# turn.
_TOGETHER = _any(
    r"\bwe (?:should|need to|must|can|will|have to) (?:now |first |then |next |also |just )?"
    r"(?:run|re-?run|execute|check|list|look|inspect|verify|test)\b"
)
# The prompt formats in which an agent writes the code that it wants to be run, with tools that it was told of.
AGENT = _any(r"^(?:Thought|THOUGHT|Code|Action):")
ALTERNATIVE = _any(
    r"\b(?:alternativ\w*|another|other (?:way|approach|option|method)|second way|can also|could also)\b",
    r"\b(?:method|approach|option|way|solution) (?:\d|two|three|[bB])\b",
)
REPLACES = _any(
    r"\b(?:wait|actually|hmm|however|but|corrected|fix(?:ed|es)?|improved|updated|final|better|revised|refined|complete"
    r"|full|optimi[sz]ed|instead|mistake|bug|wrong|fails?|simplif\w+|cleaner|so,|rewrite|again|still|now)\b"
)
_FAILS = _any(
    r"\b(?:throws?|raises?|fails? with|crash(?:es)? with|causes?|gives?|produces?|triggers?|results? in|leads? to"
    r"|(?<=you )get|(?<=we )get|(?<=you )see|(?<=we )see|(?<=ll )get|(?<=ll )see)"
    r" (?:this |the following |such )?(?:an? |the )?(?:[\w`'-]+ ){0,3}"
    r"(?:`?\w*(?:Error|Exception)\b`?|(?:error|exception)\b)[^.:\n]{0,80}:\W{0,4}$",
    r"\b(?:this|that|the following|it|code|which) (?:code |one |call |line |version |snippet |program )?"
    rf"(?:will |would |does |also )?(?:fails?|crash(?:es)?|breaks?|(?:does|will|would)(?:n{_AP}t| not)"
    r" (?:compile|work))\W{0,6}$",
)
_FIXES = _any(
    r"\b(?:fix\w*|avoid\w*|prevent\w*|handl\w+|catch\w*|correct\w*|instead|if you (?:get|see)|solv\w+|resolv\w+"
    r"|demonstrat\w+|simulat\w+|(?:program|script|function|class) (?:that|which))\b"
)
_WHENEVER = _any(r"\b(?:when|whenever|if|in case|unless|until)\b[^,]*$")
_COMPLETE = (
    r"(?:scripts?|programs?|code|solutions?|implementations?|functions?|class(?:es)?|versions?|modules?|answer"
    r"|algorithm)\b"
)
_A_PROGRAM = _any(
    rf"\b(?:here{_AP}s|here is|here are|below is|this is|below you{_AP}ll find|i{_AP}ve written|i wrote)\b"
    rf"[^.\n]{{0,60}}\b{_COMPLETE}",
    rf"\b(?:complete|full|final|whole|entire|updated|fixed|corrected|improved|finished|working|optimi[sz]ed)"
    rf" (?:[\w`-]+ ){{0,2}}{_COMPLETE}",
    r"\b(?:solution|implementation|program|script)(?: code)?(?: (?:in|with|using) \w+)?\W*$",
    r"^\W{0,4}(?:save|put|copy|paste)\b",
)
_AN_EXAMPLE = _any(r"\b(?:examples?|e\.g\.|for instance|snippets?|illustrat\w+|sample)\b")
_NAME = r"(?<![\w./-])(?P<name>[\w-][\w.-]*(?:/[\w.-]+)*\.[A-Za-z]\w{0,5})"
_SAVED_AS = (
    _any(
        rf"\b(?:save|store|put|write|copy|paste)\b[^.\n]{{0,60}}?\b(?:as|in|into|to|under)\b[^.\n`*\"']{{0,40}}"
        rf"[`*\"']{{0,3}}{_NAME}"
    ),
    _any(
        r"\b(?:create|make|add|write)\b (?:an? |the )?(?:new |separate |second |python |javascript |test |simple )*"
        rf"(?:file|script|module)?[^.\n`*\"']{{0,30}}[`*\"']{{1,3}}{_NAME}[`*\"']"
    ),
    _any(rf"\b(?:file|script|module) (?:called|named) [`*\"']{{0,3}}{_NAME}"),
)
_HEADING_NAME = re.compile(rf"^(?:#{{1,6}} |\*\*|__|`|File: |Filename: )[`*_]{{0,3}}{_NAME}[`*_]{{0,4}}:?[`*_]{{0,3}}$")
_BARE_NAME = re.compile(rf"^{_NAME}:?$")
_COMMENT_NAME = re.compile(rf"^(?:#|//)[ \t]*(?:file ?name|file|path)?[ \t]*:?[ \t]*{_NAME}[ \t]*$", re.IGNORECASE)


def last_line(text: str) -> str:
    """The line that stands right in front of a block."""
    lines = text.rstrip().rsplit("\n", 1)
    return lines[-1].strip()


def announces_output(paragraph: str) -> str | None:
    """The words that introduce what follows as output, if a paragraph does."""
    line = last_line(paragraph)
    sentence = re.split(r"(?<=[.!?])\s", line)[-1]
    if is_request(sentence) and not _OF_RUNNING.search(sentence):
        return None
    first = _OUTPUT_FIRST.search(sentence)
    if first is not None and not re.search(rf"\b{_PROGRAM} (?:that|which|to)\b", sentence, re.IGNORECASE):
        return first[0].strip()
    verb = _OUTPUT_VERB.search(sentence)
    return None if verb is None or _INTRODUCES_PROGRAM.search(sentence) else verb[0].strip()


def changes_other_code(before: str) -> str | None:
    """The words that introduce a block as a piece to be put into other code."""
    match = _CHANGE.search(last_line(before))
    return None if match is None else match[0].strip()


def shows_the_same(before: str, after: str) -> str | None:
    """The words that set a block beside another way to write it, in front of it or behind it."""
    match = _SAME_AS.search(last_line(before)) or _HALF_SENTENCE.search(last_line(before))
    if match is None:
        match = re.match(
            r"\W{0,3}(?:is|are|does|would be) (?:exactly |roughly |just )?(?:the same|equivalent|identical)", after
        )
    return None if match is None else match[0].strip()


def acts_together(before: str) -> bool:
    """Whether the text says that "we" are to run something now."""
    return _TOGETHER.search(before) is not None


def announces_failure(before: str) -> str | None:
    """The words that announce code that fails; not where it mends, catches or shows how to raise the error."""
    line = last_line(before)
    sentence = re.split(r"(?<=[.!?])\s", line)[-1]
    match = _FAILS.search(sentence)
    if match is None or _FIXES.search(sentence) or is_request(sentence) or introduces_a_program(sentence):
        return None
    return None if _WHENEVER.search(sentence[: match.start()]) else match[0].strip()


def introduces_a_program(before: str) -> bool:
    """Whether the sentence in front of a block introduces a whole program, not an example of something."""
    line = last_line(before)
    return _A_PROGRAM.search(line) is not None and _AN_EXAMPLE.search(line) is None


def reports(before: str) -> str | None:
    """The words that tell that a block was run already."""
    match = _REPORT.search(last_line(before))
    return None if match is None else match[0].strip()


def file_name(attributes: dict[str, str], before: str, code: str) -> str | None:
    """The name under which a block is to be saved, if the text gives one: relative, and inside its folder."""
    named = next((attributes[key] for key in ("filename", "file", "title", "name", "path") if key in attributes), "")
    if named and _BARE_NAME.match(named):
        return _inside(named)
    line = last_line(before)
    for expression in (_HEADING_NAME, _BARE_NAME):
        match = expression.match(line)
        if match is not None:
            return _inside(match["name"])
    saved = next((match for expression in _SAVED_AS if (match := expression.search(line)) is not None), None)
    if saved is not None:
        return _inside(saved["name"])
    comment = _COMMENT_NAME.match(code.split("\n", 1)[0].strip()[:200])
    return None if comment is None else _inside(comment["name"])


def _inside(name: str) -> str | None:
    parts = name.split("/")
    return name if len(name) <= 200 and all(part not in {"", ".", ".."} for part in parts) else None
