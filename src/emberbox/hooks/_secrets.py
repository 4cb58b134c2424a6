"""What a secret is, and where it stands in a text. `DETECTORS` is the table of all kinds; the documentation lists it.

Every detector has *anchors*: cheap expressions that begin with a literal, one of which matches in any text in which the
detector finds something. Only lines with an anchor are looked at closely: that is what makes clean output cheap.

The expressions of most formats are those of detect-secrets, read in another way. Positions are taken instead of texts
(a password that is `a` must not take every `a` of its line with it), a token is taken to its end (the library stops
after the 24th character of a Stripe key), and what is slower than linear sees a bounded slice. Four of its detectors
(keywords, npm, OpenAI, JWT) have linear ones of ours in their place: those yield one match per line, take the rest of
the line, or take minutes for a megabyte that was made for it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from emberbox.hooks._finds import MAX_VALUE, Found
from emberbox.hooks._named_values import KEY_PREFIXES, MORE_PREFIXES, NAMES, is_placeholder, is_random, values

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


@cache
def library_patterns(module: str, name: str) -> tuple[re.Pattern[str], ...]:
    """Expressions of one of detect-secrets' detectors. Imported when the first one is needed: it brings `requests`."""
    plugin: Any = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)
    return tuple(plugin.denylist)


def _spans(pattern: re.Pattern[str], text: str, *, groups: bool) -> Iterator[tuple[int, int, re.Match[str]]]:
    """What the library takes for the secret: the groups where an expression has some, else all of the match."""
    for match in pattern.finditer(text):
        if not (groups and pattern.groups):
            yield *match.span(), match
            continue
        for number in range(1, pattern.groups + 1):
            if match.start(number) < match.end(number):
                yield *match.span(number), match


def _library(
    slug: str,
    plugin: str,
    what: str,
    *anchors: str,
    folded: bool = False,
    groups: bool = False,
    inner: str = "",
    tail: str = "",
    near: str = "",
) -> Detector:
    """A detector of the library.

    Args:
        groups: the secret is the groups of the expression.
        inner: the secret is what this finds in the match.
        tail: what also belongs to the secret if it follows.
        near: the expression sees only the surroundings of what this finds.
    """
    module, name = plugin.split(".")
    within, after, around = re.compile(inner), re.compile(tail), re.compile(near, re.IGNORECASE)

    def find_in(text: str, offset: int) -> Iterator[Found]:
        for pattern in library_patterns(module, name):
            for start, end, match in _spans(pattern, text, groups=groups):
                part = within.search(text, start, end) if inner else None
                if inner and part is None:
                    continue
                first, last = part.span() if part else (start, end)
                if tail and (more := after.match(text, last)):
                    last = more.end()
                stop = max(last, match.end())
                yield Found(first + offset, last + offset, slug, match.start() + offset, stop + offset)

    def find(text: str) -> Iterator[Found]:
        if not near:
            yield from find_in(text, 0)
            return
        for match in around.finditer(text):
            begin = max(0, match.start() - 48)
            yield from find_in(text[begin : match.end() + 96], begin)

    return Detector((slug,), f"detect-secrets: {name}", what, anchors, find, folded)


def _ours(slug: str, what: str, pattern: str, *anchors: str, folded: bool = False, digit: bool = True) -> Detector:
    """A format of ours; the secret is the group 1 of the expression, or all of it. `digit`: it has at least one."""
    compiled = re.compile(pattern)
    group = 1 if compiled.groups else 0

    def find(text: str) -> Iterator[Found]:
        for match in compiled.finditer(text):
            if not digit or _DIGIT.search(text, *match.span(group)):
                yield Found(*match.span(group), slug, *match.span())

    return Detector((slug,), "ours", what, anchors, find, folded)


_DIGIT = re.compile(r"\d")
_EDGE = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=[\d;]m))"
"""Where a word begins: also behind a `\\n` of a string literal (JSON, repr), and behind a colour of a terminal."""


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

# An anchor that several detectors share is looked for once. Each costs a pass over all output.
_UPPER_A = r"A(?:(?:KIA|SIA|BIA|CCA|3T[A-Z0-9])[0-9A-Z]{16}|C[a-z0-9]{32}|KC[a-zA-Z0-9]{10}|P[0-9A-F][a-zA-Z0-9]{8})"
_UPPER_S = r"S(?:K[a-z0-9]{32}|G\.[\w-]{22}\.)"
_SK = r"sk-[A-Za-z0-9_-]{16}"
_GL = r"gl(?:pat|dt|ft|soat|rt|cbt|imt|ptt|agent|oas)-"
_COLON = r":(?:[0-9A-Za-z_-]{35}|(?://|\\/\\/)[^\s/\"'<>]{0,1024}@)"
_XO = r"x(?:ox[a-z]|app-)"
_RUN = r"[\"'\]]{0,2}(?: {0,8}(?:=>?|::?=?) {0,8}| {1,9})[\"']?[a-z0-9_-]{24}"
_NEAR = rf"(?:key|password|pass|pwd|pw|token){_RUN}"
_IS = r"\w{0,40}[\]\"'`\\]{0,6}[ \t]{0,16}[=:!>]"
_PREFIXED = "|".join(f"(?<={word}key)|(?<={word}[_-]key)" for word in KEY_PREFIXES + MORE_PREFIXES)
_VALUES = (
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

DETECTORS: tuple[Detector, ...] = (
    _library("aws-key", "aws.AWSKeyDetector", "AWS access key IDs", _UPPER_A),
    _library(
        "aws-key",
        "aws.AWSKeyDetector",
        "AWS secret keys in quotes",
        r"aws[^\n\r]{0,64}[\"'][0-9a-z/+]{40}[\"']",
        folded=True,
        groups=True,
        near=r"aws[^\n\r]{0,64}[\"'][0-9a-z/+]{40}[\"']",
    ),
    _library("github-token", "github_token.GitHubTokenDetector", "GitHub tokens", r"gh[pousr]_", tail=r"\w*"),
    _ours("github-token", "GitHub fine-grained tokens", r"github_pat_\w{20,255}", "github_pat_"),
    _library(
        "gitlab-token",
        "gitlab_token.GitLabTokenDetector",
        "GitLab tokens",
        _GL,
        "GR1348941",
        tail=r"(?:[\w-]|\.(?=\w))*",
    ),
    _ours(
        "gitlab-token",
        "GitLab tokens of any length",
        _GL + r"[\w-]{20,1024}(?:\.\w{2,64})*",
        _GL,
    ),
    _library("slack-token", "slack.SlackDetector", "Slack tokens and webhooks", _XO, r"hooks\.slack", folded=True,
             tail=r"[\w-]*"),
    _ours("slack-token", "Slack app and configuration tokens", r"(?:xapp|xox[a-z](?:\.xox[a-z])?)-\d[\w-]{16,255}",
          _XO, folded=True),
    _library("stripe-key", "stripe.StripeDetector", "Stripe live keys", "k_live_", tail="[0-9a-zA-Z]*"),
    _ours("anthropic-key", "Anthropic keys", r"sk-ant-[\w-]{16,512}", _SK),
    _ours("openai-key", "OpenAI keys", _EDGE + r"(sk-(?!ant-)[A-Za-z0-9_-]{20,512})", _SK),
    _ours("google-key", "Google API keys", r"AIza[\w-]{35}", r"AIza[\w-]{35}", digit=False),
    _ours("huggingface-token", "Hugging Face tokens", _EDGE + r"(hf_[A-Za-z0-9]{30,})", "hf_[A-Za-z0-9]{30}"),
    _ours("npm-token", "npm tokens", _EDGE + r"(npm_[A-Za-z0-9]{30,})", "npm_[A-Za-z0-9]{30}"),
    _ours("npm-token", "npm tokens in .npmrc", r"/:_authToken[ \t]{0,8}=[ \t]{0,8}[\"']?([^\s\"'\\,;$\x00]{8,512})",
          "/:_authToken", digit=False),
    _library("pypi-token", "pypi_token.PypiTokenDetector", "PyPI tokens", "pypi-Ag"),
    _library("sendgrid-key", "sendgrid.SendGridDetector", "SendGrid keys", _UPPER_S),
    _library("square-secret", "square_oauth.SquareOAuthDetector", "Square OAuth secrets", "sq0csp-",
             inner=r"sq0csp-[\w-]+"),
    _library("mailchimp-key", "mailchimp.MailchimpDetector", "Mailchimp keys", "-us[0-9]", near="[0-9a-z]{32}-us[0-9]"),
    _library("twilio-key", "twilio.TwilioKeyDetector", "Twilio keys", _UPPER_A, _UPPER_S),
    _library("telegram-token", "telegram_token.TelegramBotTokenDetector", "Telegram bot tokens",
             _COLON, tail=r"[\w-]*"),
    _library("discord-token", "discord.DiscordBotTokenDetector", "Discord bot tokens", r"\.[\w-]{6}\.[\w-]{27}",
             tail=r"[\w-]*"),
    _library("artifactory", "artifactory.ArtifactoryDetector", "Artifactory tokens and passwords", _UPPER_A,
             inner=r"A(?=[^\d]{0,3}\w*\d)[A-Za-z0-9]+"),
    _library("azure-key", "azure_storage_key.AzureStorageKeyDetector", "Azure storage keys", "AccountKey=",
             inner=r"(?<=AccountKey=)\S+"),
    _library("cloudant", "cloudant.CloudantDetector", "Cloudant credentials", *_VALUES, folded=True, groups=True,
             near=_NEAR),
    _library("ibm-cloud-key", "ibm_cloud_iam.IbmCloudIamDetector", "IBM Cloud IAM keys", *_VALUES, folded=True,
             groups=True, near=_NEAR),
    _library("ibm-cos-key", "ibm_cos_hmac.IbmCosHmacDetector", "IBM object storage keys", *_VALUES, folded=True,
             groups=True, near=_NEAR),
    _library("softlayer", "softlayer.SoftlayerDetector", "SoftLayer credentials", *_VALUES, folded=True,
             groups=True, near=_NEAR),
    _library("softlayer", "softlayer.SoftlayerDetector", "SoftLayer addresses", r"api\.softlayer", folded=True,
             groups=True, near=r"://api\.softlayer\.com/soap/v3[.1]{0,2}/[a-z0-9]{64}"),
    Detector(("jwt",), "ours", "JSON web tokens", ("eyJ[A-Za-z0-9_=-]{5}",), _jwts),
    Detector(("private-key",), "ours", "private keys, header to end", ("private key", "putty-user-key-file"),
             _private_keys, folded=True),
    _library("private-key", "private_key.PrivateKeyDetector", "headers of private keys", "BEGIN ", "PuTTY-User-Key"),
    _library("basic-auth", "basic_auth.BasicAuthDetector", "passwords in URLs", _COLON, groups=True),
    Detector(("basic-auth",), "ours", "passwords in URLs, with any characters",
             (_COLON,), _url_passwords),
    Detector(("bearer-token", "basic-auth"), "ours", "Authorization headers",
             (r"bearer[ \t]", r"authorization[\]\"'`\\]{0,6}[ \t]{0,8}[:=]"), _headers, folded=True),
    Detector(("password", "secret", "aws-key"), "ours; names of detect-secrets: KeywordDetector",
             "values of password, secret, api_key, token, …", _VALUES, values, folded=True),
    Detector(("email",), "ours", "e-mail addresses", (rf"@(?<=[{_LETTER}_.+%-]@)[{_LETTER}-]",), _emails),
)  # fmt: skip
"""Which detector finds what. Where two find the same text, the earlier one names it."""

KINDS: dict[str, str] = {
    slug: "; ".join(one.what for one in DETECTORS if slug in one.slugs)
    for slug in dict.fromkeys(slug for one in DETECTORS for slug in one.slugs)
}
"""Every kind of secret: its slug, and what it is."""
