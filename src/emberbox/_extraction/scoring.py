"""The scoring table: every weight that decides how sure we are that a block, or a text, is meant to be run.

A block's confidence is the sum of the weights of all rules that apply, held between 0 and the lowest cap among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Rule:
    """One line of the table: what it adds, and the most that a block with it can reach."""

    reason: str
    weight: float = 0.0
    cap: float = 1.0


BLOCK_RULES: dict[str, Rule] = {
    # what it is
    "tagged": Rule("its fence names a language that can be run", 0.60),
    "detected": Rule("its content tells a language that can be run", 0.40),
    "other-language": Rule("its language is not one of those that can be run", 0.10, cap=0.30),
    "no-language": Rule("neither fence nor content tell a language", 0.05, cap=0.30),
    # how it is made
    "lines": Rule("it has several lines", 0.10),
    "definitions": Rule("it has definitions or imports", 0.10),
    "complete": Rule("it parses without an error", 0.15),
    "incomplete": Rule("it does not parse", -0.20, cap=0.50),
    "no-main": Rule("a Rust program without `fn main` cannot be run", -0.10, cap=0.50),
    "nothing-to-run": Rule("it has no statement", 0.0, cap=0.30),
    "placeholder": Rule('parts are left out (`...`, "your code here")', -0.20, cap=0.50),
    "cut-short": Rule("its fence ends it within a here-document or a string", -0.30, cap=0.40),
    "unclosed": Rule("its fence is never closed; the text may be cut off", -0.10, cap=0.65),
    "indented": Rule("it is set off by indentation only", -0.15, cap=0.65),
    "inline": Rule("it is a command in the running text", -0.20, cap=0.65),
    "tool-call": Rule("it is given to a tool that runs code", 0.30),
    "quoted-call": Rule("it is a tool call that is shown, not made", -0.20, cap=0.65),
    "stub": Rule("its functions have no bodies", -0.20, cap=0.50),
    # what it has and lacks
    "acts": Rule("it does something that can be seen", 0.10),
    "defines": Rule("it only defines; nothing was called", 0.0),
    "silent": Rule("nothing of it can be seen, and nothing that runs uses it", -0.10, cap=0.60),
    "uses": Rule("it uses what a block above defines, which runs", 0.20),
    "undefined": Rule("it uses names that nothing defines", -0.25, cap=0.45),
    "held-back": Rule("it uses what a block above defines, which is not run", -0.20, cap=0.50),
    "no-class": Rule("it is a method without its class", -0.25, cap=0.45),
    "interactive": Rule("it waits for somebody to type", -0.10, cap=0.60),
    "browser": Rule("it needs a browser", -0.20, cap=0.40),
    "test-suite": Rule("it needs a framework for tests", -0.20, cap=0.50),
    "project": Rule("it belongs into a project with other files or libraries", -0.20, cap=0.50),
    "unknown": Rule("it imports modules that nobody knows", -0.20),
    "files": Rule("it needs files that nothing makes", -0.10, cap=0.60),
    "machine": Rule("it is for the reader's own machine or repository", -0.10, cap=0.60),
    "draft": Rule("a later version takes its place", -0.20, cap=0.50),
    "edit": Rule("it is a change to other code", -0.20, cap=0.50),
    "template": Rule("others differ from it in comments and literals only", -0.20, cap=0.50),
    "same-as": Rule("it is set beside another way to write the same", -0.20, cap=0.50),
    "report": Rule("the text tells that it was run already", -0.20, cap=0.50),
    "not-examined": Rule("too long, or one of too many, to be looked at closely", 0.0, cap=0.60),
    # what it looks like
    "looks-like": Rule("it is data or output, not a program", -0.20, cap=0.30),
    "flag": Rule("its fence says that it is not to be run", -0.20, cap=0.30),
    # what is said about it
    "asked": Rule("words near it speak of running it", 0.15),
    "example": Rule("it is called an example", -0.10),
    "reference": Rule("it is there for reference or illustration", -0.20, cap=0.40),
    "output": Rule("it is introduced as output", -0.30, cap=0.30),
    "wrong": Rule("it is shown as the wrong way", -0.20, cap=0.40),
    "pseudo-code": Rule("it is called pseudo-code or a sketch", -0.20, cap=0.40),
    "advised-against": Rule("the text advises against it", -0.30, cap=0.40),
    "destructive": Rule("it deletes, stops or forces something, and nobody asks to run it", -0.10, cap=0.65),
    "retracted": Rule("the text takes it back later", -0.30, cap=0.40),
    "thinking": Rule("it stands in the model's reasoning, not in its answer", -0.30, cap=0.40),
    "commented-out": Rule("it stands in an HTML comment", -0.20, cap=0.20),
    "forbidden": Rule("the text says not to run it", -0.40, cap=0.20),
}

INTENT_RULES: dict[str, Rule] = {
    "request": Rule("it asks for code to be run", 0.50),
    "explicit": Rule("it asks somebody, in so many words, to run code and to give the result", 0.10),
    "more-requests": Rule("it asks in more than one way", 0.10),
    "mention": Rule("it speaks of running or of a script", 0.20),
    "tool-call": Rule("it calls a tool that runs code", 0.85),
    "code-strong": Rule("it has code that is ready to run", 0.35),
    "code-weak": Rule("it has code that may be run", 0.15),
    "example": Rule("it speaks of examples", -0.05),
    "reference": Rule("it is for reference or illustration", -0.30, cap=0.40),
    "forbidden": Rule("it says not to run the code", 0.0, cap=0.10),
}

ACTIONS: tuple[tuple[float, Literal["auto-execute", "ask", "show"]], ...] = (
    (0.8, "auto-execute"),
    (0.5, "ask"),
    (0.2, "show"),
)


class Score:
    """A sum of rules with its explanation."""

    def __init__(self, table: dict[str, Rule]) -> None:
        self._table = table
        self.why: list[dict[str, Any]] = []

    def add(self, name: str, detail: str = "") -> None:
        """Applies a rule, once."""
        if any(entry["rule"] == name for entry in self.why):
            return
        rule = self._table[name]
        entry: dict[str, Any] = {"rule": name, "weight": rule.weight, "reason": rule.reason}
        if rule.cap < 1:
            entry["cap"] = rule.cap
        if detail:
            entry["detail"] = detail
        self.why.append(entry)

    def drop(self, name: str) -> None:
        """Takes a rule back."""
        self.why = [entry for entry in self.why if entry["rule"] != name]

    def has(self, name: str) -> bool:
        """Whether a rule was applied."""
        return any(entry["rule"] == name for entry in self.why)

    @property
    def value(self) -> float:
        """The confidence."""
        rules = [self._table[entry["rule"]] for entry in self.why]
        total = sum(rule.weight for rule in rules)
        return round(max(0.0, min(total, *(rule.cap for rule in rules), 1.0)), 2) if rules else 0.0
