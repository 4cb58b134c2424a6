"""Takes secrets out of texts and streams, and nothing else. What is a secret is up to _secrets.

A text is redacted in segments that depend on the text alone: lines, and parts of lines longer than `LONG`. So a stream
gives the same, however it is cut into pieces. Within a segment it goes on until nothing more is found: what is redacted
stays as it is when it is redacted again.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from emberbox.hooks._finds import Found
from emberbox.hooks._key_lines import KEY_BITS, KEY_ENDS, KEY_MARKER, KEY_OPENS, KEY_TEXT, Key
from emberbox.hooks._secrets import DETECTORS, KINDS, Detector, fold

LONG = 16 * 1024
"""Characters of the longest line that is looked at in one piece."""
AHEAD = 8 * 1024
"""Characters behind LONG that are looked at before a longer line is cut: no secret is to be cut in two."""
TOKEN = 4 * 1024
"""Characters of the longest run without a space that is not cut where there is another way."""
_PASSES = 64

MARKER = re.compile(r"\[REDACTED:(?P<kind>[a-z0-9-]{1,40})\]")
_MASK = "\0"
_LINE_END = re.compile(r"[\r\n]")


class Span(NamedTuple):
    """A secret to be replaced. `quoted`: it is a number of JSON, which becomes a text."""

    start: int
    end: int
    slug: str
    quoted: bool = False


class Rules:
    """Which secrets are looked for.

    Args:
        kinds: slugs of KINDS; None: all.
        allow: texts that are no secrets, and domains (`@example.com`) whose addresses are none.
    """

    def __init__(self, kinds: Collection[str] | None = None, allow: Sequence[str] = ()) -> None:
        self.kinds = frozenset(KINDS if kinds is None else kinds)
        self._allowed = frozenset(allow)
        self._domains = tuple(one.lower() for one in allow if one.startswith("@"))

    @cached_property
    def _detectors(self) -> tuple[Detector, ...]:
        return tuple(one for one in DETECTORS if self.kinds.intersection(one.slugs))

    @cached_property
    def _anchors(self) -> tuple[tuple[re.Pattern[str], bool, tuple[int, ...]], ...]:
        """Each anchor once, whether it is meant for lower case, and the detectors that it belongs to."""
        anchors: dict[tuple[str, bool], list[int]] = {}
        for number, detector in enumerate(self._detectors):
            for anchor in detector.anchors:
                anchors.setdefault((anchor, detector.folded), []).append(number)
        return tuple((re.compile(text), folded, tuple(who)) for (text, folded), who in anchors.items())

    def lines(self, text: str) -> list[tuple[int, int]]:
        """Where the lines are, with their ends, that have an anchor. No line is longer than LONG."""
        low = fold(text)
        marks = [mark for mark in "\n\r" if mark in text]
        found: dict[int, int] = {}
        for pattern, folded, _ in self._anchors:
            match = pattern.search(low if folded else text)
            while match:
                at = match.start()
                start = max((text.rfind(mark, max(0, at - LONG), at) for mark in marks), default=-1) + 1
                ending = _LINE_END.search(text, at)
                end = ending.end() if ending else len(text)
                found[start] = end
                match = pattern.search(low if folded else text, end)
        return sorted(found.items())

    def concerns(self, text: str) -> bool:
        """Is there an anchor at all?"""
        low = fold(text)
        return any(pattern.search(low if folded else text) for pattern, folded, _ in self._anchors)

    def found(self, text: str) -> list[Found]:
        """All secrets of a line or a part of one, as detectors see them; they may overlap."""
        low = fold(text)
        who = {
            one for pattern, folded, those in self._anchors if pattern.search(low if folded else text) for one in those
        }
        finds = (find for number in sorted(who) for find in self._detectors[number].find(text))
        return [find for find in finds if find.slug in self.kinds and not self._is_fine(text[find.start : find.end])]

    def _is_fine(self, secret: str) -> bool:
        return secret in self._allowed or (bool(self._domains) and secret.lower().endswith(self._domains))


# --- one segment ------------------------------------------------------------------------------------------------------


class _View:
    """A segment as the detectors see it: markers, and what will be one, are a single character that means nothing.

    So what is found the first time and what is found when the result is redacted again cannot differ.
    """

    def __init__(self, text: str, spans: Sequence[Span]) -> None:
        hidden = sorted([(one.start, one.end, one.quoted) for one in spans] + _markers_outside(text, spans))
        self._pieces: list[
            tuple[int, int, int]
        ] = []  # place in the view, place in the text, length in the text if hidden
        parts: list[str] = []
        size = position = 0
        for start, end, quoted in hidden:
            for part, length in ((text[position:start], 0), ('"' * quoted + _MASK + '"' * quoted, end - start)):
                self._pieces.append((size, start if length else position, length))
                parts.append(part)
                size += len(part)
            position = end
        self._pieces.append((size, position, 0))
        self.text = "".join([*parts, text[position:]])
        self._hides = bool(hidden)

    def span(self, find: Found) -> tuple[int, int] | None:
        """Where a find is in the text, without hidden places at its ends; None if nothing else is in it."""
        if not self._hides:
            return find.start, find.end
        start, end = find.start, find.end
        while start < end and self._piece(start)[2]:
            start += 1
        while start < end and self._piece(end - 1)[2]:
            end -= 1
        visible = any(char.isalnum() and not self._piece(start + i)[2] for i, char in enumerate(self.text[start:end]))
        if start == end or not visible:
            return None
        first, last = self._piece(start), self._piece(end - 1)
        return first[1] + start - first[0], last[1] + end - last[0]

    def _piece(self, place: int) -> tuple[int, int, int]:
        return self._pieces[bisect_right(self._pieces, (place, 1 << 60, 0)) - 1]


def _markers_outside(text: str, spans: Sequence[Span]) -> list[tuple[int, int, bool]]:
    if "[REDACTED:" not in text:
        return []
    found = (match.span() for match in MARKER.finditer(text))
    return [(a, b, False) for a, b in found if not any(one.start < b and a < one.end for one in spans)]


def spans_of(rules: Rules, text: str, *, inside: bool = False) -> list[Span]:
    """The secrets of a segment, in order and apart. `inside`: the segment begins within a string literal of JSON."""
    spans: list[Span] = []
    literals: _Literals | None = None
    for _ in range(_PASSES):
        view = _View(text, spans)
        new = []
        for find in rules.found(view.text):
            place = view.span(find)
            if place is not None:
                literals = literals or _Literals(text, inside=inside)
                new += [Span(a, b, find.slug, quoted) for a, b, quoted in literals.fit(*_aligned(text, *place))]
        merged = _merged(spans + new)
        if merged == spans:
            break
        spans = merged
    return spans


def _merged(spans: list[Span]) -> list[Span]:
    """What overlaps becomes one; the longest names it, and of equals the first."""
    out: list[Span] = []
    longest = 0
    for one in sorted(spans, key=lambda span: span.start):
        last = out[-1] if out else None
        if last is None or one.start >= last.end:
            out.append(one)
            longest = one.end - one.start
            continue
        better = one.end - one.start > longest
        longest = max(longest, one.end - one.start)
        out[-1] = Span(last.start, max(last.end, one.end), one.slug if better else last.slug, last.quoted or one.quoted)
    return out


_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|[bfnrt/])")
_COLOUR = re.compile(r"(?:\x1b|\\u001[bB]|\\x1b|\\033|\\e)\[[\d;]{0,16}m")
_HALF = re.compile(r"\\u[0-9a-fA-F]{0,3}\Z|\\\Z")


def _aligned(text: str, start: int, end: int) -> tuple[int, int]:
    """No escape (`\\n`, `\\u00e9` of a string literal, a colour of a terminal) may be cut: it is left out, whole."""
    for colour in _COLOUR.finditer(text, max(0, start - 24), min(end, start + 24)):
        if colour.start() < start < colour.end():
            start = colour.end()
    for back in range(1, 6):
        at = start - back
        if at >= 0 and text[at] == "\\":
            if _odd_slashes(text, at + 1) and (match := _ESCAPE.match(text, at)) and match.end() > start:
                start = match.end()
            break
    half = _HALF.search(text, max(start, end - 5), end)
    if half and _odd_slashes(text, half.start() + 1):
        end = half.start()
    return start, max(start, end)


def _odd_slashes(text: str, end: int) -> bool:
    start = end
    while start > 0 and text[start - 1] == "\\":
        start -= 1
    return (end - start) % 2 == 1


_NUMBER = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?"
_STRING = r'"(?:[^"\\\x00-\x1f]|\\.)*+(?:"|\Z)'
_TOKENS = re.compile(rf"(?:[\s{{}}\[\],:]|{_STRING}|{_NUMBER}|true|false|null|NaN|-?Infinity)*+")
_TOKEN = re.compile(rf"(?P<string>{_STRING})|(?P<number>{_NUMBER})")


class _Literals:
    """The string literals and numbers of a segment that may be a part of a JSON text; of others, nothing is known."""

    def __init__(self, text: str, *, inside: bool) -> None:
        self._strings: list[tuple[int, int]] = []
        self._numbers: set[tuple[int, int]] = set()
        source, shift = (f'"{text}', 1) if inside else (text, 0)
        self.known = _TOKENS.fullmatch(source) is not None
        for match in _TOKEN.finditer(source) if self.known else ():
            start, end = match.start() - shift, match.end() - shift
            if match["number"]:
                self._numbers.add((start, end))
            else:
                closed = end - start > 1 and match[0].endswith('"') and not _odd_slashes(match[0], len(match[0]) - 1)
                self._strings.append((start + 1, end - 1 if closed else end))

    def fit(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The part of a find that can be replaced so that JSON stays JSON: within one literal, or all of a number."""
        if not self.known:
            if start < end:
                yield start, end, False
            return
        if (start, end) in self._numbers:
            yield start, end, True
            return
        index = bisect_right(self._strings, (start, 1 << 60)) - 1
        if index >= 0 and start < self._strings[index][1]:
            yield start, min(end, self._strings[index][1]), False


def _rendered(text: str, spans: Sequence[Span], skip: int = 0) -> str:
    """The text from `skip` on, with a marker for each span."""
    parts: list[str] = []
    position = skip
    for one in spans:
        if one.end > skip:
            marker = f"[REDACTED:{one.slug}]"
            parts += (text[position : max(position, one.start)], f'"{marker}"' if one.quoted else marker)
            position = one.end
    return "".join([*parts, text[position:]])


# --- where long lines are cut -----------------------------------------------------------------------------------------

_SPACES = " \t\v\f"
_SEPARATORS = _SPACES + ",;|&<>(){}[]\"'"


def _cut(window: str, whole: Sequence[tuple[int, int]]) -> int:
    """Where to cut a line that is longer than LONG and begins with `window`: behind a space or another separator, near
    LONG, and not within `whole`, places that are in order and apart. In a megabyte without any: at LONG."""
    begins = [begin for begin, _ in whole]
    for floor, separators in ((LONG - TOKEN, _SPACES), (LONG - TOKEN, _SEPARATORS), (0, _SEPARATORS)):
        top = LONG
        while place := max(window.rfind(char, floor, top) for char in separators) + 1:
            index = bisect_left(begins, place) - 1
            if index < 0 or whole[index][1] <= place:
                return place
            top = begins[index]
    return LONG - _odd_slashes(window, LONG)


def _whole(rules: Rules, window: str) -> list[tuple[int, int]]:
    """What must not be cut: secrets with the names that tell of them, and markers."""
    places = [(find.begin, find.stop) for find in rules.found(window)]
    out: list[tuple[int, int]] = []
    for begin, stop in sorted(places + [match.span() for match in MARKER.finditer(window)]):
        if out and begin < out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((begin, stop))
    return out


def _end_of_lines(text: str, start: int) -> int:
    """The end of the last complete line from `start` on before which no line is longer than LONG."""
    position = start
    while True:
        end = max(text.rfind("\n", position, position + LONG), text.rfind("\r", position, position + LONG)) + 1
        if end == 0:
            return position
        position = end


# --- streams ----------------------------------------------------------------------------------------------------------

_FAR = re.compile(r"pass|pw|secret|token|key|contrase|auth|bearer|://|:\\/\\/|begin|putty|aws|\[redacted")
"""Words after which a secret may come at a distance, and halves of what is told by both of its ends."""
_UNDECIDED = re.compile(r"[\"'`]\S*\s*[!=]{0,3}\s*[\w.]*\Z|-{2,} ?\w*\Z")
"""What more text may make a secret, but for incomplete tokens: `"value" == pass…`, `---- BEG…`."""
_OF_TOKENS = frozenset("_.%+-:/=~@\\")


def _decided(text: str) -> int:
    """How much of an incomplete line cannot belong to a secret, whatever follows. It has no word of _FAR."""
    end = len(text)
    while end > 0 and (text[end - 1].isalnum() or text[end - 1] in _OF_TOKENS) and text[end - 2 : end] != "..":
        end -= 1
    undecided = _UNDECIDED.search(text, max(0, len(text) - 512))
    return min(end, undecided.start()) if undecided else end


class StreamRedactor:
    """Redacts a text that comes in pieces. What `feed` and `finish` return is, together, what `redact` makes of it.

    Holds back no more than an incomplete line, and of that at most LONG + AHEAD characters (24 Ki) beside the piece
    that it was just given. Nothing of a private key is kept but ends of lines, KEY_CHARACTERS at most.
    """

    def __init__(self, rules: Rules, counts: Counter[str] | None = None) -> None:
        self._rules = rules
        self._counts: Counter[str] = Counter() if counts is None else counts
        self._parts: list[str] = []
        self._size = 0
        self._released = 0  # characters of the incomplete line that `idle` has shown
        self._key: Key | None = None
        self._continues = False  # the incomplete line is the rest of a long one
        self._inside = False  # that rest begins within a string literal, if the line is JSON

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain."""
        self._parts.append(text)
        self._size += len(text)
        if self._size < LONG + AHEAD and "\n" not in text and "\r" not in text:
            return ""
        return self._take(final=False)

    def finish(self) -> str:
        """The text has ended: return the rest."""
        out = self._take(final=True)
        key, self._key = self._key, None
        return out + (key.held if key else "")

    def idle(self) -> str:
        """Return of the incomplete line what cannot belong to a secret whatever follows: prompts, dots of progress."""
        text = "".join(self._parts)
        self._parts = [text]
        if self._key or self._released == len(text) or _FAR.search(fold(text)) or self._rules.found(text):
            return ""
        end = max(self._released, _decided(text))
        out, self._released = text[self._released : end], end
        return out

    def _take(self, *, final: bool) -> str:
        text = "".join(self._parts)
        out: list[str] = []
        position = 0
        while position < len(text):
            end = position if self._continues or self._released else _end_of_lines(text, position)
            if end > position:
                out.append(self._block(text[position:end]))
            else:
                end, clean = self._end_of_segment(text, position, final=final)
                if end == position:
                    break
                out.append(self._segment(text[position:end], clean=clean))
            position = end
        self._parts = [text[position:]]
        self._size = len(text) - position
        return "".join(out)

    def _end_of_segment(self, text: str, start: int, *, final: bool) -> tuple[int, bool]:
        """Where the segment ends that begins at `start` (there, if that is not certain yet), and whether it is known
        to be clean."""
        ending = _LINE_END.search(text, start, start + LONG + AHEAD)
        end = ending.end() if ending else min(len(text), start + LONG + AHEAD)
        if not (ending or final or end - start == LONG + AHEAD):
            return start, False
        if end - start <= LONG:
            return end, False
        window = text[start:end]
        clean = not self._rules.concerns(window)
        return start + _cut(window, [] if clean else _whole(self._rules, window)), clean

    def _block(self, block: str) -> str:
        """Complete lines, none longer than LONG."""
        out: list[str] = []
        position = 0
        for start, end in [*self._rules.lines(block), (len(block), len(block))]:
            while self._key and position < start:
                ending = _LINE_END.search(block, position)
                after = ending.end() if ending else len(block)
                out.append(self._segment(block[position:after]))
                position = after
            out.append(block[position:start])
            if start < end:
                out.append(self._segment(block[start:end]))
            position = end
        return "".join(out)

    def _segment(self, text: str, *, clean: bool = False) -> str:
        skip = min(self._released, len(text))
        self._released -= skip
        out = self._of_key(self._key, text) if self._key else text[skip:] if clean else self._redacted(text, skip)
        self._continues = not text.endswith(("\n", "\r"))
        quotes = (_SLASHED.sub("", text) if "\\" in text else text).count('"') if self._continues else 0
        self._inside = self._continues and self._inside != (quotes % 2 == 1)
        return out

    def _redacted(self, text: str, skip: int = 0) -> str:
        spans = spans_of(self._rules, text, inside=self._inside)
        self._counts.update(one.slug for one in spans if one.end > skip)
        out = _rendered(text, spans, skip)
        opening = KEY_OPENS.search(text, skip) if any(one.slug == "private-key" for one in spans) else None
        if opening:
            behind = text[opening.end("header") :]
            line = _rendered(text, spans)
            self._key = Key(texts=bool(opening["decor"]), held=behind, line=line[: len(line) - len(behind)])
            if not opening["decor"]:
                return out[: len(out) - len(behind)]
        return out

    def _of_key(self, key: Key, text: str) -> str:
        """A line after the header of a private key."""
        footer = KEY_ENDS.search(text)
        if footer:
            self._key = None
            before = KEY_BITS.sub("", text[: footer.start()]) + KEY_MARKER if key.texts else ""
            line = before or key.line  # what follows is seen with what it follows, as it will be the next time
            return before + self._redacted(line + text[footer.end() :], skip=len(line))
        if key.takes(text):
            return KEY_TEXT.sub(rf"\g<before>{KEY_MARKER}\g<behind>", text) if key.texts else ""
        self._key = None
        return ("" if key.texts else key.held) + self._redacted(text)


_SLASHED = re.compile(r"\\.")


def redact(rules: Rules, text: str, counts: Counter[str] | None = None) -> str:
    """The text with `[REDACTED:kind]` in place of each secret. `counts` gets one more of its kind for each."""
    stream = StreamRedactor(rules, counts)
    return stream.feed(text) + stream.finish()
