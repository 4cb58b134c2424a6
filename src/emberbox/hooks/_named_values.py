"""Secrets that their names tell (`password=…`, `"api_key": "…"`, `--token …`), and what is none: types, code, prose."""

from __future__ import annotations

import re
from collections.abc import Iterator

from emberbox.hooks._finds import MAX_VALUE, Found

_DIGIT = re.compile(r"\d")
_LETTERS = re.compile(r"[^\W\d_]")
_SPACE = re.compile(r"\s")

KEY_PREFIXES = ("api", "auth", "service", "account", "db", "database", "priv", "private", "client")
MORE_PREFIXES = ("access", "secret", "encryption", "signing", "master")
_WORD_FOR_IT = (
    r"pass(?:word|wd|wort|phrase|code)|pwd|contrase(?:ñ|n)a|(?:(?<=[_.-])|(?<=db)|(?<=database)|(?<=key))pass"
)
NAMES = rf"(?:{_WORD_FOR_IT}|(?:{'|'.join(KEY_PREFIXES + MORE_PREFIXES)})[_-]?key|secret|token)"
_NAME = re.compile(NAMES, re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"{NAMES}(?P<suffix>\w{{0,40}})(?P<close>[\]\"'`\\]{{0,6}})[ \t]{{0,16}}"
    r"(?P<op>:=|=>|={1,3}|!==?|::?)[ \t]{0,16}",
    re.IGNORECASE,
)
_QUOTE = re.compile(r"[A-Za-z@&$]{0,2}(\\{0,8})([\"'`])")
_ANNOTATION = re.compile(r"[A-Za-z_][\w\[\], .|]{0,60}?[ \t]{0,4}=[ \t]{0,16}(?=[A-Za-z@&$]{0,2}\\{0,8}[\"'`])")
_BARE = re.compile(rf"[^\s\"'`,;&<>(){{}}\[\]\\|\x00-\x1f\x7f]{{1,{MAX_VALUE}}}")
_SUFFIX = re.compile(
    r"(?:[_-]?(?:\d{1,3}|old|new|value|prod|production|dev|test|staging|primary|secondary|plain|plaintext|base64|b64|hash"
    r"|encrypted|admin|root|user|db))?",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"\s*|(?s:(?:[xX]{3,}+|[*.•#_?\s-])++|\$\{.*|\$\(.*|\{\{?[^{}]*\}\}?|<[^<>]*>|%\(?\w*\)?[sd]|[$%][A-Z_]+%?)"
    r"|(?i:your[_ -].*|[\[(]?(?:redacted|hidden|masked|filtered|removed)[\])]?)"
)
_WORDS_OF_CODE = frozenset({
    "none", "null", "nil", "true", "false", "str", "string", "int", "integer", "number", "bytes", "byte", "bool",
    "boolean", "any", "optional", "undefined", "nan", "secretstr", "secret", "password", "object", "char", "text",
    "varchar", "float", "list", "dict", "tuple", "self", "this", "input", "await", "new", "function", "lambda",
    "not", "os", "env", "process", "required", "missing", "incorrect", "invalid", "wrong", "expired", "empty",
    "hidden", "changed", "reset", "accepted", "ok", "failed", "denied", "yes", "no", "unknown", "unset", "set",
    "must", "is", "too", "the", "an", "and", "or", "if", "else", "type", "default", "final", "const", "var", "let",
})  # fmt: skip
_DOTTED = re.compile(r"[A-Za-z_$]\w*(?:(?:\.|::|\?\.)[A-Za-z_]\w*)+")
_CALLED = re.compile(r"[A-Za-z_$][\w.:$]*!?")
_VARIABLE = re.compile(r"\$[A-Za-z_]+-?")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*[.:!]?")
_AWS = re.compile(r"aws|amz|secret_?access_?key", re.IGNORECASE)
_FUNCTION = re.compile(r"\b(?:def|fn|func|function|fun|class|struct|interface|lambda)\b")


def names_a_secret(name: str) -> bool:
    """Does the name of a value (`password`, `apiKey`) tell that it may be a secret?"""
    return _NAME.search(name) is not None


def is_placeholder(value: str) -> bool:
    """Stars, `${NAME}`, `<password>`, `%s`, `your_key`: what stands where a secret would."""
    return _PLACEHOLDER.fullmatch(value) is not None


def is_random(value: str) -> bool:
    """Letters and digits mixed, as in generated tokens and unlike words, numbers, names and paths."""
    if len(value) < 8 or _SPACE.search(value) or value.startswith(("/", "./", "~/")):
        return False
    if not _DIGIT.search(value):
        return len(value) >= 20 and value.isalnum() and not (value.islower() or value.isupper())
    return _LETTERS.search(value) is not None or (value.isdigit() and len(value) >= 16)


def _assigned(text: str) -> Iterator[Found]:
    for match in _ASSIGNED.finditer(text):
        name = list(_NAME.finditer(text, match.start(), match.end("suffix")))[-1]
        family, slug = _family(text, name)
        plain = _SUFFIX.fullmatch(text, name.end(), match.end("suffix")) is not None
        span = _value(text, match, family, plain=plain)
        if span is not None:
            yield Found(*span, slug, match.start(), span[1] + 1)
    yield from _environment(text)


def _family(text: str, name: re.Match[str]) -> tuple[str, str]:
    """What kind of name it is (password, secret, key or token), and the slug of its value."""
    word = name[0].lower()
    if "pass" in word or "pwd" in word or word.startswith("contrase"):
        return "password", "password"
    family = word if word in ("secret", "token") else "key"
    begin = name.start()
    while begin > max(0, name.start() - 40) and (text[begin - 1].isalnum() or text[begin - 1] in "_-"):
        begin -= 1
    return family, "aws-key" if family != "secret" and _AWS.search(text, begin, name.end()) else "secret"


def _value(text: str, match: re.Match[str], family: str, *, plain: bool) -> tuple[int, int] | None:
    """The secret that follows a name and its `=` or `:`, if one does."""
    position, operator = match.end(), match["op"]
    quote = _QUOTE.match(text, position)
    if quote is None and operator == ":" and (note := _ANNOTATION.match(text, position)):
        quote = _QUOTE.match(text, note.end())
    if quote is not None:
        start, end = _quoted(text, quote)
        value = text[start:end]
        if start < end and not is_placeholder(value) and (family != "token" or (plain and is_random(value))):
            return start, end
        return None
    bare = _BARE.match(text, position)
    if bare is None or not plain or operator not in ("=", ":"):
        return None
    return bare.span() if _is_value(text, bare, match, family) else None


def _is_value(text: str, bare: re.Match[str], match: re.Match[str], family: str) -> bool:
    """Is what follows without quotes a secret? It may be a type, code, or prose."""
    value, after = bare[0], text[bare.end() : bare.end() + 8]
    if any(quote in match["close"] for quote in "\"'`") and not value.isdigit():
        return family == "password" and _NUMBER.fullmatch(value) is not None  # {"password": None}; numbers are data
    folder = match[0].lower().startswith("pwd") and value.startswith(("/", "~", "C:"))  # the shell's working directory
    vague = family in ("key", "token") and not is_random(value)
    if folder or vague or not _is_literal(value, after) or len(value) < 3 or not any(map(str.isalnum, value)):
        return False
    if _WORD.fullmatch(value) is None:
        return True
    near = max(0, match.start() - 200)
    sentence = text[bare.start() - 1] in " \t" and re.match(r"[ \t]+[A-Za-z(]", after) is not None
    argument = after[:1] in (")", ",") and "(" in text[near : match.start()]
    annotation = match["op"] == ":" and (re.match(r"[ \t]*[|=]", after) or _FUNCTION.search(text, near, match.start()))
    return not (sentence or argument or annotation)


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def _is_literal(value: str, after: str) -> bool:
    """A text, and neither a name of the program, a call, nor a word that says that there is none."""
    if is_placeholder(value) or _VARIABLE.fullmatch(value) or value.lower().rstrip(".:!?") in _WORDS_OF_CODE:
        return False
    if after[:1] in ("(", "[") and _CALLED.fullmatch(value):
        return False
    if _DIGIT.search(value):
        return not (_DOTTED.fullmatch(value) and after[:1] in ("(", "["))
    return _DOTTED.fullmatch(value) is None and not (value.isidentifier() and _NAME.search(value))


def _quoted(text: str, quote: re.Match[str]) -> tuple[int, int]:
    """Where the content of a string literal is, whose opening quote `quote` is; (0, 0) where it is none.

    Within another literal the quotes have backslashes before them (`\\"`): the closing one has as many.
    """
    depth, mark, start = len(quote[1]), quote[2], quote.end()
    if depth == 0 and text.startswith(mark * 2, start):
        start += 2
        end = text.find(mark * 3, start, start + MAX_VALUE)
        return start, end if end >= 0 else len(text[: start + MAX_VALUE].rstrip())
    if text[start : start + 1] in _BEHIND_A_QUOTE and _is_closing(text, quote):
        return 0, 0
    position = start
    while (position := text.find(mark, position, start + MAX_VALUE)) >= 0:
        slashes = position - len(text[start:position].rstrip("\\")) - start
        if slashes < depth:  # the literal around it ends here
            return start, position - slashes
        if (slashes - depth) % (2 * (depth + 1)) == 0:
            return start, position - depth
        position += 1
    bare = _BARE.match(text, start)  # it is not closed: cut off, or an apostrophe
    return bare.span() if bare else (0, 0)


_BEHIND_A_QUOTE = frozenset(",;:)}]>+.% \t\r\n\\/") | {""}


def _is_closing(text: str, quote: re.Match[str]) -> bool:
    """Is an odd number of these quotes before it? Looks back a bounded way, so that many of them stay cheap."""
    return text.count(quote[2], max(0, quote.start() - 2000), quote.start(2)) % 2 == 1


_ENVIRONMENT = re.compile(
    rf"(?:export |declare -x |set |- )?([A-Za-z_]\w{{0,80}})=([^\s\"'`]\S{{0,{MAX_VALUE}}})\s*", re.IGNORECASE
)


def _environment(text: str) -> Iterator[Found]:
    """A line that is `NAME=value` as `env` prints it: the value goes to the end, whatever is in it."""
    match = _ENVIRONMENT.fullmatch(text)
    names = list(_NAME.finditer(match[1])) if match else []
    if not match or not names or not _SUFFIX.fullmatch(match[1], names[-1].end()):
        return
    family, slug = _family(match[1], names[-1])
    value = match[2]
    if family in ("key", "token") and not is_random(value):
        return
    if match[1].isupper():
        code = is_placeholder(value) or (match[1].endswith("PWD") and value.startswith(("/", "~")))
    else:  # `password=f(x),` is an argument of a call
        code = re.search(r"[(){}\[\]]|[,;]$|[&;]\w+=", value) is not None or not _is_literal(value, "")
    if not code and value.lower() not in _WORDS_OF_CODE:
        yield Found(*match.span(2), slug, *match.span())


_COMPARED = re.compile(rf"([\"'`])[ \t]{{0,16}}[!=]==?[ \t]{{0,16}}[\w.]{{0,64}}?{NAMES}", re.IGNORECASE)


def _compared(text: str) -> Iterator[Found]:
    """`"value" == password`. Without spaces in it, so that what has been printed of a line can be told from it."""
    for match in _COMPARED.finditer(text):
        opening = text.rfind(match[1], max(0, match.start() - 256), match.start())
        start, end = opening + 1, match.start()
        if 0 < start < end and not _SPACE.search(text, start, end) and "\\" not in text[start:end]:
            _, slug = _family(text, list(_NAME.finditer(match[0]))[-1])
            yield Found(start, end, slug, opening, match.end())


_FLAG = re.compile(rf"--(?:[\w-]{{0,40}}-)?{NAMES}[ ]{{1,4}}({_BARE.pattern})", re.IGNORECASE)
_ELEMENT = re.compile(rf"<[\w:.-]{{0,40}}?{NAMES}\w{{0,20}}>([^<>\s\"\\]{{3,{MAX_VALUE}}})</", re.IGNORECASE)


def _flags_and_elements(text: str) -> Iterator[Found]:
    """`--password value` and `<password>value</password>`."""
    for pattern in (_FLAG, _ELEMENT):
        for match in pattern.finditer(text):
            value = match[1]
            usable = not is_placeholder(value) and not value.startswith(("-", "$"))
            if usable and (pattern is _ELEMENT or _DIGIT.search(value)):
                _, slug = _family(match[0], next(_NAME.finditer(match[0])))
                yield Found(*match.span(1), slug, *match.span())


def values(text: str) -> Iterator[Found]:
    yield from _assigned(text)
    yield from _compared(text)
    yield from _flags_and_elements(text)


# --- anchors (see _secrets) ----------------------------------------------------------------------------------------

_IS = r"\w{0,40}[\]\"'`\\]{0,6}[ \t]{0,16}[=:!>]"
_RUN = r"[\"'\]]{0,2}(?: {0,8}(?:=>?|::?=?) {0,8}| {1,9})[\"']?[a-z0-9_-]{24}"
_PREFIXED = "|".join(f"(?<={word}key)|(?<={word}[_-]key)" for word in KEY_PREFIXES + MORE_PREFIXES)
VALUE_ANCHORS = (
    (
        rf"pass(?:(?:word|wd|wort|phrase|code)(?:{_IS}|(?<=-password) |(?<=-passwd) |(?<=-passphrase) |(?<=-passcode) )"
        rf"|(?:(?<=[_.-]pass)|(?<=dbpass)|(?<=basepass)|(?<=keypass))(?:{_IS}| )|(?:word)?{_RUN})"
    ),
    rf"pw(?:d(?:{_IS}|(?<=-pwd) )|d?{_RUN})",
    rf"secret(?:{_IS}|(?<=-secret) )",
    rf"contrase.a{_IS}",
    rf"key(?:(?:{_PREFIXED})(?:{_IS}| )|{_RUN})",
    rf"token(?:{_IS}|(?<=-token) |{_RUN})",
    rf"==[ \t]{{0,16}}[\w.]{{0,64}}?{NAMES}",
    rf"!=[ \t]{{0,16}}[\w.]{{0,64}}?{NAMES}",
)
"""One of these is in every text in which `values` finds something, in lower case."""
