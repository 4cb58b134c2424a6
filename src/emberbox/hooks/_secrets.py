"""What a secret is, and where it stands in a text. `DETECTORS` is the table of all kinds; the documentation lists it.

Every detector has *anchors*: cheap expressions that begin with a literal, one of which matches in any text in which the
detector finds something. Only lines with an anchor are looked at closely: that is what makes clean output cheap.

What has a format of its own is a row of `_formats`; here is what tokens with a structure, headers, addresses and keys
over several lines need beyond an expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from emberbox.hooks._finds import MAX_VALUE, Found
from emberbox.hooks._formats import COLON, FORMATS
from emberbox.hooks._named_values import VALUE_ANCHORS, is_placeholder, is_random, values

Finder = Callable[[str], Iterator[Found]]


@dataclass(frozen=True, slots=True)
class Detector:
    """One row of the table. `folded`: the anchors are looked for in the text in lower case."""

    slugs: tuple[str, ...]
    source: str
    what: str
    anchors: tuple[str, ...]
    find: Finder
    folded: bool = False


def fold(text: str) -> str:
    """Lower case, of the same length: one letter of all becomes two in lower case."""
    low = text.lower()
    return low if len(low) == len(text) else text.replace("İ", "i").lower()


# --- e-mail addresses, URLs, headers, tokens with a structure ---------------------------------------------------------

_LETTER = "A-Za-z0-9\u00c0-\u024f"  # not all of Unicode: Chinese and Japanese put no space around an address
_EMAIL = re.compile(
    rf"(?:(?<![{_LETTER}_.+%-])|(?<=\.\.)(?!\.))[.+%_-]*([{_LETTER}_][{_LETTER}_+%-]*(?:\.[{_LETTER}_+%-]+)*)"
    rf"@([{_LETTER}-]+(?:\.[{_LETTER}-]+)*\.([A-Za-z\u00c0-\u024f]{{2,24}}))(?![{_LETTER}_(-])"
)
_FILE_ENDINGS = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "js", "css", "json", "html", "txt", "pdf"})


def _emails(text: str) -> Iterator[Found]:
    for match in _EMAIL.finditer(text):
        start, end = match.start(1), match.end()
        if match[3].lower() in _FILE_ENDINGS:  # logo@2x.png
            continue
        if match[1] == "git" and text[end : end + 1] == ":":  # git@github.com:owner/name
            continue
        slashes = text.rfind("//", max(0, start - 300), start)
        if slashes >= 0 and not _BREAK.search(text, slashes + 2, start):  # the user and host of a URL
            continue
        yield Found(start, end, "email", *match.span())


_BREAK = re.compile(r"[\s/\"'<>]")
_URL_PASSWORD = re.compile(
    r":(?://|\\/\\/)[^\s:/?#\[\]@\"'<>\\]{0,256}:([^\s\"'<>\\/\x00-\x1f]{1,512})@(?=[\w\[.-])",
)


def _url_passwords(text: str) -> Iterator[Found]:
    for match in _URL_PASSWORD.finditer(text):
        if not is_placeholder(match[1]):
            yield Found(*match.span(1), "basic-auth", *match.span())


_DIGIT = re.compile(r"\d")
_HEADER_VALUE = re.compile(
    r"authorization[\]\"'`\\]{0,6}[ \t]{0,8}[:=][ \t]{0,8}\\{0,4}[\"'`]?"
    r"(?:(bearer|basic|token|digest|apikey)[ \t]{1,8})?"
    r"([\w.~+/=-]{8,4096})|\b(bearer)[ \t]{1,8}([\w.~+/=-]{16,4096})",
    re.IGNORECASE,
)


def _headers(text: str) -> Iterator[Found]:
    for match in _HEADER_VALUE.finditer(text):
        scheme, group = (match[1], 2) if match[2] else (match[3], 4)
        slug = "basic-auth" if scheme and scheme.lower() == "basic" else "bearer-token"
        value = match[group]
        if scheme and match[2] and not is_placeholder(value):
            sure = slug == "basic-auth" or _DIGIT.search(value) or len(value) >= 16
        else:  # prose has bearers too
            sure = is_random(value) and len(value) >= 16
        if sure:
            yield Found(*match.span(group), slug, *match.span())


_JWT = re.compile(r"eyJ([A-Za-z0-9_=-]{5,})\.[A-Za-z0-9_=-]+(?:\.[A-Za-z0-9_+/=-]+){0,3}")
_JWT_RUN = re.compile(r"[A-Za-z0-9_=-]*")


def _jwts(text: str) -> Iterator[Found]:
    """Tokens whose first part is a JSON object. Tries eight beginnings per run: `eyJeyJ…` may be a megabyte long."""
    position, tries, run_end = 0, 0, 0
    while (position := text.find("eyJ", position)) >= 0:
        if position >= run_end:
            run_end, tries = _JWT_RUN.match(text, position).end(), 0  # type: ignore[union-attr]
        match = _JWT.match(text, position) if tries < 8 else None
        tries += 1
        if match is None:
            position = run_end
        elif _is_json_object("eyJ" + match[1]):
            yield Found(*match.span(), "jwt", *match.span())
            position = match.end()
        else:
            position += 3


def _is_json_object(part: str) -> bool:
    import base64
    import json

    body = part.rstrip("=")
    if len(body) > MAX_VALUE:
        return False
    try:
        return isinstance(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))), dict)
    except (ValueError, RecursionError):
        return False


# --- private keys within a line (what spans lines is up to _redaction) ------------------------------------------------

_KEY_NAME = r"(?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?"
KEY_HEADER = rf"(?:(?:-{{4,5}} ?)?BEGIN {_KEY_NAME}(?: ?-{{4,5}})?|PuTTY-User-Key-File-\d(?:: ?[\w-]{{1,40}})?)"
KEY_FOOTER = rf"(?:-{{4,5}} ?END {_KEY_NAME}(?: ?-{{4,5}})?|Private-MAC: [0-9a-fA-F]{{1,128}})"
_HEADER, _FOOTER = re.compile(KEY_HEADER), re.compile(KEY_FOOTER)
_KEY_BODY = re.compile(r"(?:[^\"'`<>{}\\]|\\[^\"'`])*+")
_KEY_TAIL = re.compile(r"(?:(?:(?:\\{1,8}[nrt])+|[ \t]+)?[A-Za-z0-9+/=]{16,})*+")


def _private_keys(text: str) -> Iterator[Found]:
    position = 0
    while header := _HEADER.search(text, position):
        position = _end_of_key(text, header.end())
        yield Found(header.start(), position, "private-key", header.start(), position)


def _end_of_key(text: str, start: int) -> int:
    """Where the key ends whose header ends at `start`, as far as this line has it."""
    name = text.find("PRIVATE KEY", start)
    footer = _FOOTER.search(text, max(start, name - 48), name + 32) if name >= 0 else None
    if footer and _KEY_BODY.fullmatch(text, start, footer.start()):
        return footer.end()
    tail = _KEY_TAIL.match(text, start)
    return tail.end() if tail else start


# --- the table --------------------------------------------------------------------------------------------------------

DETECTORS: tuple[Detector, ...] = (
    Detector(("jwt",), "RFC 7519", "JSON web tokens", ("eyJ[A-Za-z0-9_=-]{5}",), _jwts),
    Detector(("private-key",), "RFC 7468, OpenSSH, PuTTY, RFC 9580", "private keys, header to end",
             ("private key", "putty-user-key-file"), _private_keys, folded=True),
    *(Detector((one.slug,), one.source, one.what, one.anchors, one.find, one.folded) for one in FORMATS),
    Detector(("basic-auth",), "RFC 3986, section 3.2.1", "passwords in URLs, with any characters",
             (COLON,), _url_passwords),
    Detector(("bearer-token", "basic-auth"), "RFC 9110, section 11.6.2", "Authorization headers",
             (r"bearer[ \t]", r"authorization[\]\"'`\\]{0,6}[ \t]{0,8}[:=]"), _headers, folded=True),
    Detector(("password", "secret", "aws-key"), "names that programs give them",
             "values of password, secret, api_key, token, …", VALUE_ANCHORS, values, folded=True),
    Detector(("email",), "RFC 5322, section 3.4.1", "e-mail addresses",
             (rf"@(?<=[{_LETTER}_.+%-]@)[{_LETTER}-]",), _emails),
)  # fmt: skip
"""Which detector finds what. Where two find the same text, the earlier one names it."""

KINDS: dict[str, str] = {
    slug: "; ".join(one.what for one in DETECTORS if slug in one.slugs)
    for slug in dict.fromkeys(slug for one in DETECTORS for slug in one.slugs)
}
"""Every kind of secret: its slug, and what it is."""
