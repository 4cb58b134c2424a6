"""Private keys of many lines: where one begins, which lines belong to it, where it ends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from emberbox.hooks._secrets import KEY_FOOTER, KEY_HEADER

KEY_CHARACTERS = 64 * 1024
KEY_LINES = 400
"""A private key that never ends has ended by then."""

KEY_OPENS = re.compile(rf"(?P<header>{KEY_HEADER})[ \t]*(?P<decor>(?:\\[nr])*[\"'`]?[ \t]*[,;+)\\]*)[ \t]*[\r\n]?\Z")
KEY_MARKER = "[REDACTED:private-key]"
KEY_BITS = re.compile(r"[A-Za-z0-9+/=]{16,}(?:\\[nr])*")
KEY_ENDS = re.compile(KEY_FOOTER)
_KEY_FIELD = re.compile(
    r"[ \t>|]*(?:Proc-Type|DEK-Info|Version|Comment|Hash|Charset|MessageID|Subject|Encryption|Key-Derivation"
    r"|Argon2-[\w-]+|Public-Lines|Private-Lines|X-[\w-]+): .*\s*"
)
_KEY_LINE = re.compile(r"[\s>|#*+\"':.\d-]{0,40}?(?P<body>[A-Za-z0-9+/=]+)(?:\\[nr])*[\"'`,;]*\s*")
_KEY_RUN = re.compile(r"[A-Za-z0-9+/=]{40}")
KEY_TEXT = re.compile(
    r"(?P<before>[\s>|#*+(\[b-]*[\"'`])"
    r"(?P<body>[A-Za-z0-9+/]{16,}={0,2}|[A-Za-z0-9+/]{2,}={1,2}|[A-Za-z-]+: [^\"'`\\]*)"
    r"(?P<behind>(?:\\[nr])*[\"'`]\s*[,;+)\\]*\s*)"
)


@dataclass(slots=True)
class Key:
    """A private key whose header has been seen.

    Attributes:
        texts: its lines are literals of a program or of JSON, each of which keeps its quotes.
        held: what comes out after all if the key has no end: what is empty behind its last line.
        line: the line of its header up to its marker.
    """

    texts: bool
    held: str
    line: str
    lines: int = 0
    characters: int = 0
    begun: bool = False

    def takes(self, line: str) -> bool:
        """Does the line belong to the key?"""
        self.lines += 1
        self.characters += len(line)
        if self.lines > KEY_LINES or self.characters > KEY_CHARACTERS:
            return False
        if self.texts:
            return KEY_TEXT.fullmatch(line) is not None
        if not line.strip():
            self.held += line
            return True
        match = _KEY_LINE.fullmatch(line)
        body = match["body"] if match else ""
        whole = len(body) >= 16 or (body != "" and (self.begun or not body.isalpha()))
        if whole or _KEY_FIELD.fullmatch(line) or _KEY_RUN.search(line):
            self.begun = self.begun or len(body) >= 16
            self.held = line[len(line.rstrip("\r\n")) :]
            return True
        return False
