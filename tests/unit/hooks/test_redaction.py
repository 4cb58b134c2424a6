"""Whatever a text is and however it arrives: secrets go, all else stays, and it is the same in the end."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from emberbox.hooks import _key_lines, _redaction
from emberbox.hooks._redaction import MARKER, Rules, StreamRedactor, redact

from .test_secrets import FINE, FOOTER, HEADER, NAMED, PEM, TOKENS

RULES = Rules()
THOROUGH = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

SECRETS = [one for those in TOKENS.values() for one in those]
WORDS = st.sampled_from(
    [
        "the",
        "value",
        "of",
        "42",
        "x=1",
        "1.5",
        "password",
        "token:",
        "secret",
        "api_key =",
        "None",
        "Bearer",
        "==",
        "://",
        "@",
        "'",
        '"',
        "`",
        "\\",
        "\\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "-----",
        "BEGIN",
        "PRIVATE KEY",
        "eyJ",
        "é",
        "日本",
        "😀",
        "..",
        "\x1b[1m",
        "\0",
        "[REDACTED:email]",
        "[REDACTED:",
        "sk-",
        "AKIA",
        "İ",
    ]
)
GAPS = st.sampled_from(["", " ", " ", " ", "\n", "\n", "\r\n", "\r", "\t", ", ", "; "])
KEYS = st.sampled_from(
    [
        f"{HEADER}\n{PEM}\n{PEM}\nab12\n{FOOTER}\n",
        f"{HEADER}\r\n{PEM}\r\n{FOOTER}",
        f"{HEADER}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n{PEM}\n{FOOTER}\n",
        f'  "{HEADER}",\n  "{PEM}",\n  "{FOOTER}"\n',
        f"{HEADER}\n\n\nnothing of a key\n",
        f"{HEADER}\n{PEM}\n",
    ]
)
PIECES = st.one_of(
    st.tuples(st.one_of(WORDS, st.sampled_from(FINE), st.text(max_size=5)), GAPS).map("".join),
    st.tuples(st.sampled_from(SECRETS), GAPS).map("".join),
    st.sampled_from([f"{before}{secret}{behind}" for _, before, secret, behind in NAMED]),
    KEYS,
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
CUTS = st.lists(st.integers(0, 10_000), max_size=12)


def _pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


def _streamed(pieces: list[str], *, idle: bool = False) -> str:
    stream = StreamRedactor(RULES)
    out = []
    for piece in pieces:
        out.append(stream.feed(piece))
        if idle:
            out.append(stream.idle())
    return "".join([*out, stream.finish()])


@pytest.fixture(params=[None, (600, 400, 200)], ids=["real", "small"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real bounds of a long line, and small ones, so that short texts have long lines."""
    if request.param:
        for name, size in zip(("LONG", "AHEAD", "TOKEN"), request.param, strict=True):
            monkeypatch.setattr(_redaction, name, size)


@pytest.mark.usefixtures("sizes")
@given(text=TEXTS, cuts=CUTS)
@THOROUGH
def test_pieces_do_not_matter(text: str, cuts: list[int]) -> None:
    assert _streamed(_pieces(text, cuts)) == redact(RULES, text)


@pytest.mark.usefixtures("sizes")
@given(text=TEXTS)
@settings(THOROUGH, max_examples=50)
def test_neither_do_single_characters(text: str) -> None:
    assert _streamed(list(text)) == redact(RULES, text)


@given(text=TEXTS)  # with the real bounds: where a line is cut, the rest of a token may look like another one
@THOROUGH
@example("x@y.de: 'foo'")
@example("password='[REDACTED:email] and more'")
@example(f"password=hunter2{HEADER}\n{PEM}\n{FOOTER}the")
def test_what_is_redacted_stays_as_it_is(text: str) -> None:
    clean = redact(RULES, text)
    assert redact(RULES, clean) == clean


@given(TEXTS)
@THOROUGH
def test_what_is_left_is_a_part_of_what_was(text: str) -> None:
    """Nothing is added but markers, nothing changes its place."""
    position = 0
    for part in MARKER.split(redact(RULES, text))[::2]:
        for char in part:
            found = text.find(char, position)
            if found < 0:
                assert char == '"'  # a number of JSON has become a text
                continue
            position = found + 1


@pytest.mark.usefixtures("sizes")
@given(st.lists(st.one_of(st.sampled_from(FINE), st.text("abc xyz_-.:/0123456789\n\r\té日", max_size=30)), max_size=10))
@THOROUGH
def test_clean_text_stays(parts: list[str]) -> None:
    text = "\n".join(parts)
    assert redact(RULES, text) == text


@pytest.mark.usefixtures("sizes")
@given(
    st.lists(st.tuples(st.sampled_from(SECRETS), st.sampled_from(["word", "42", "the quick", "日本"])), max_size=12),
    st.sampled_from([" ", "\n", "\t", " \r\n"]),
    CUTS,
    st.booleans(),
)
@THOROUGH
def test_no_secret_survives_and_no_word_goes(
    parts: list[tuple[str, str]], gap: str, cuts: list[int], idle: bool
) -> None:
    text = gap.join(gap.join(part) for part in parts)
    clean = _streamed(_pieces(text, cuts), idle=idle)
    assert MARKER.sub("*", clean) == gap.join(gap.join(("*", word)) for _, word in parts)


@given(st.lists(st.tuples(st.sampled_from(NAMED), st.sampled_from(["\n", "\r\n"])), min_size=1, max_size=6), CUTS)
@THOROUGH
def test_waiting_for_more_shows_no_secret(parts: list[tuple[tuple[str, str, str, str], str]], cuts: list[int]) -> None:
    text = "".join(f"{before}{secret}{behind}{end}" for (_, before, secret, behind), end in parts)
    expected = "".join(f"{before}[REDACTED:{kind}]{behind}{end}" for (kind, before, _, behind), end in parts)
    assert _streamed(_pieces(text, cuts), idle=True) == expected


@given(TEXTS, CUTS)
@THOROUGH
def test_waiting_for_more_changes_nothing(text: str, cuts: list[int]) -> None:
    assert _streamed(_pieces(text, cuts), idle=True) == redact(RULES, text)


# --- JSON -------------------------------------------------------------------------------------------------------------

STRINGS = st.one_of(
    TEXTS,
    st.text(max_size=8),
    st.sampled_from(["password", "token", "secret", "api_key", "a", "b'", "password='", "secret:"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(STRINGS, inner, max_size=4)),
    max_leaves=8,
)


@pytest.mark.usefixtures("sizes")
@given(value=VALUES, indent=st.sampled_from([None, 2]), compact=st.booleans(), ascii_only=st.booleans())
@THOROUGH
def test_json_stays_json(value: Any, indent: int | None, compact: bool, ascii_only: bool) -> None:
    separators = (",", ":") if compact else None
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=ascii_only)
    clean = redact(RULES, text)
    assert _shape(json.loads(clean)) == _shape(value)
    for line in text.splitlines():
        if _parses(line):
            json.loads(redact(RULES, line))


def _shape(value: Any) -> Any:
    """What it is made of, without its texts and numbers. Names may become the same."""
    if isinstance(value, list):
        return [_shape(item) for item in value]
    return dict if isinstance(value, dict) else value if value is None or isinstance(value, bool) else str


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"password": 12345, "n": 1}', '{"password": "[REDACTED:password]", "n": 1}'),
        ('  "password": -1.5e3,', '  "password": "[REDACTED:password]",'),
        ("{'password': 12345}", "{'password': [REDACTED:password]}"),
        ("password: 12345", "password: [REDACTED:password]"),
        ('{"a": "\\nbob@x.org\\u00e9"}', '{"a": "\\n[REDACTED:email]\\u00e9"}'),
        ('{"a": "\\u00e9bob@x.org"}', '{"a": "\\u00e9[REDACTED:email]"}'),
        ('{"a": "\\\\nbob@x.org"}', '{"a": "\\\\[REDACTED:email]"}'),
        ('["password:" , "b"]', '["password:" , "b"]'),
        ('{"password": "a\\\\"}', '{"password": "[REDACTED:password]"}'),
        ('{"a": "password=x1y\\u0041"}', '{"a": "password=[REDACTED:password]\\u0041"}'),
        ('["the password=\'", "it\'s"]', '["the password=\'", "it\'s"]'),
    ],
)
def test_literals_of_json(text: str, expected: str) -> None:
    assert redact(RULES, text) == expected


# --- private keys -----------------------------------------------------------------------------------------------------


def test_a_private_key_goes_as_a_whole() -> None:
    text = f"before\n  {HEADER}\n  {PEM}\n  {PEM}\n  ab12\n  {FOOTER} behind\nafter\n"
    counts: Counter[str] = Counter()
    assert redact(RULES, text, counts) == "before\n  [REDACTED:private-key] behind\nafter\n"
    assert counts == {"private-key": 1}


def test_a_key_in_lines_of_json_keeps_its_quotes() -> None:
    text = json.dumps({"key": [HEADER, PEM, PEM, FOOTER], "mail": "x@y.org"}, indent=1)
    clean = redact(RULES, text)
    assert PEM not in clean
    assert json.loads(clean) == {"key": ["[REDACTED:private-key]"] * 4, "mail": "[REDACTED:email]"}


def test_a_key_of_putty_goes_to_its_mac() -> None:
    lines = ["PuTTY-User-Key-File-" + "2: ssh-rsa", "Encryption: none", "Comment: x", "Public-Lines: 1", PEM]
    lines += ["Private-Lines: 1", PEM, "Private-MAC: " + "ab12" * 10, "more"]
    assert redact(RULES, "\n".join(lines)) == "[REDACTED:private-key]\nmore"


def test_a_header_alone_takes_nothing_with_it() -> None:
    assert redact(RULES, f"{HEADER}\n\nnothing of a key\n") == "[REDACTED:private-key]\n\nnothing of a key\n"
    assert redact(RULES, f"grep '{HEADER}' .\nok\n") == "grep '[REDACTED:private-key]' .\nok\n"
    assert redact(RULES, f"{HEADER}\n") == "[REDACTED:private-key]\n"


@pytest.mark.parametrize("line", [PEM + "\n", "\n", "a1" * 5000 + "\n"])
def test_a_key_without_end_ends(line: str) -> None:
    text = f"{HEADER}\n" + line * 2000 + "the end\n"
    clean = redact(RULES, text)
    assert clean.startswith("[REDACTED:private-key]\n")
    assert clean.endswith("the end\n")
    gone = len(text) - len(clean)
    assert gone <= _key_lines.KEY_CHARACTERS + len(HEADER)
    assert redact(RULES, clean) == clean


def test_a_key_is_not_shown_while_it_waits() -> None:
    stream = StreamRedactor(RULES)
    out = [
        stream.feed(f"{HEADER}\n{PEM[:20]}"),
        stream.idle(),
        stream.feed(f"{PEM[20:]}\n"),
        stream.idle(),
        stream.finish(),
    ]
    assert "".join(out) == "[REDACTED:private-key]\n"


# --- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fed", "shown"),
    [
        ("Continue? [y/N] ", "Continue? [y/N] "),
        ("Don't stop, go on? ", "Don't stop, go on? "),
        ("Loading....", "Loading...."),
        ("....", "...."),
        ("|#####     |", "|#####     |"),
        (">>> ", ">>> "),
        ("name: bob", "name: "),
        ("Enter password: ", ""),
        ("mail bob@x.org ", ""),
        ("AKIA" + "IOSFODNN7", ""),
        ("---- ", ""),
        ("'x1y2' == ", ""),
        ("done\nnext: ", "next: "),
    ],
)
def test_what_is_shown_of_an_incomplete_line(fed: str, shown: str) -> None:
    stream = StreamRedactor(RULES)
    before = stream.feed(fed)
    assert stream.idle() == shown
    assert stream.idle() == ""
    assert before + shown + stream.finish() == redact(RULES, fed)


def test_lines_and_progress_come_out_at_once() -> None:
    stream = StreamRedactor(RULES)
    assert stream.feed("a\nb") == "a\n"
    assert stream.feed(" 10%\r") == "b 10%\r"
    assert stream.feed("x@y.org\r\n") == "[REDACTED:email]\r\n"


# --- long lines -------------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    "unit", ["a", "password ", "@", "a@", "://a:b", "eyJ", "eyJabcdefg.", "sk-", "-----", "\\", "'\"`", "[", "."]
)
def test_megabytes_that_were_made_to_be_slow(unit: str) -> None:
    text = unit * (MEGABYTE // len(unit))
    assert redact(RULES, text) == text


@pytest.mark.parametrize(
    "unit", ["password", 'password="', "password='x' ", f"{HEADER} ", "a@b.org,", "key=" + "a1" * 22 + " "]
)
def test_megabytes_of_secrets(unit: str) -> None:
    text = unit * (MEGABYTE // 8 // len(unit))
    clean = redact(RULES, text)
    assert redact(RULES, clean) == clean
    assert ("[REDACTED:" in clean) == (unit != "password")


@pytest.mark.parametrize("filler", ["lorem ipsum ", "a,b,c;", "1.5 "])
@pytest.mark.parametrize("secret", [SECRETS[0], SECRETS[3], 'password = "correct horse battery"'])
def test_a_secret_anywhere_in_a_long_line_is_found(filler: str, secret: str) -> None:
    for size in range(_redaction.LONG - 120, _redaction.LONG + 60, 7):
        before = (filler * (size // len(filler) + 1))[:size] + " "
        clean = redact(RULES, f"{before}{secret} {filler * 3000}\n")
        assert re.sub(r"password = \"\*\"", "*", MARKER.sub("*", clean)) == f"{before}* {filler * 3000}\n"


def test_pieces_that_end_in_a_secret_do_not_matter_in_a_long_line() -> None:
    """What comes behind LONG may be all that shows that a place before it must not be cut."""
    filler = "lorem ipsum " * 3000
    line = f"{filler[: _redaction.LONG - 40]} password = 'correct horse battery staple' {filler}\n"
    text = f"first\n{line}"
    clean = redact(RULES, text)
    assert "battery" not in clean
    for size in range(_redaction.LONG - 60, _redaction.LONG + 60, 3):
        assert _streamed([text[:size], text[size:]]) == clean


def test_a_long_token_is_not_cut() -> None:
    token = "sk-proj-" + "aB3_" * 100
    text = "x" * (_redaction.LONG - 1 - _redaction.TOKEN) + " " + "y" * (_redaction.TOKEN - 200) + "," + token + " end"
    assert redact(RULES, text).endswith("yyy,[REDACTED:openai-key] end")


def test_json_of_one_long_line_stays_json() -> None:
    rows = [
        {"id": i, "mail": f"u{i}@x.org", "password": i + 100_000, "note": 'a "quoted" \\ text, ' * 9}
        for i in range(999)
    ]
    clean = json.loads(redact(RULES, json.dumps(rows)))
    wanted = {"mail": "[REDACTED:email]", "password": "[REDACTED:password]"}
    assert clean == [row | wanted for row in rows]


def test_what_is_held_back_is_bounded() -> None:
    stream = StreamRedactor(RULES)
    fed = shown = 0
    for _ in range(200):
        shown += len(stream.feed("password a" * 100))
        fed += 1000
        assert fed - shown <= _redaction.LONG + _redaction.AHEAD + 1000
