"""Raw blocks → scored `CodeBlock`s: what each is, how it is made, what the text around it says."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from emberbox._extraction import evidence, introductions, phrases, relations, whole
from emberbox._extraction.blocks import RawBlock
from emberbox._extraction.needs import NOTHING, Known, Needs
from emberbox._extraction.scoring import BLOCK_RULES, Score
from emberbox.errors import ValidationFailed
from emberbox.languages import resolve
from emberbox.languages.destructive import is_destructive
from emberbox.models import CodeBlock, Language

MAX_EXAMINED = 1_500  # blocks of a text that are parsed and scored in full
MAX_PARSED = 400_000  # characters of a text that are parsed
_MAX_BLOCK = 50_000
_NOT_TO_RUN = frozenset({"no_run", "norun", "no-run", "ignore", "compile_fail", "should_panic", "skip", "noexec"})
_COMMENT = re.compile(r"<!--|-->")
_THOUGHT = re.compile(
    r"</?(?:think(?:ing)?|thoughts?|reasoning|scratchpad|analysis)>|<\|channel\|>analysis|<\|end\|>", re.IGNORECASE
)
_THOUGHT_OVER = ("</", "<|end")
_OF_SHOWN_CODE = frozenset({"edit", "same-as", "report", "draft", "example", "pseudo-code", "template"})
"""Rules about code that is shown to somebody; what is handed to a tool runs whatever it is called."""


@dataclass(frozen=True)
class Earlier:
    """What a text that is not there any more said about the blocks of its continuation.

    Attributes:
        forbidden: none of the code is to be run.
        thinking: the continuation begins within the model's reasoning.
        first: the continuation has the first block of the whole.
        blocks: blocks that there were.
        known: what they define.
        reasons: the rules that applied to the last of them.
        since: blocks that begin before this offset of the continuation have been judged.
        more: the continuation goes on behind what there is of it.
    """

    forbidden: bool = False
    thinking: bool = False
    first: bool = True
    blocks: int = 0
    known: Known = field(default_factory=Known)
    reasons: frozenset[str] = frozenset()
    since: int = 0
    more: bool = False

    def after(self, text: str, intro: str) -> Earlier:
        """What is to be kept of a text, whose first block, if it has one, stands behind `intro`."""
        marks = [match[0] for match in _THOUGHT.finditer(text)]
        thinking = not marks[-1].startswith(_THOUGHT_OVER) if marks else self.thinking
        forbidden = self.forbidden or (self.first and phrases.forbids_everything(intro))
        first = self.first and len(intro) >= len(text)
        return replace(self, forbidden=forbidden, thinking=thinking, first=first)


@dataclass
class Look:
    """What one block is, whatever the text says about it.

    Attributes:
        info: its info string.
        alike: what it looks like, if it is no program.
        known: its language, if that is one that can be run.
        language: its language as it is given out.
        structure: what its syntax tree tells; None where nobody looked.
        needs: what it defines and needs.
        file: the name under which the text says to save it.
    """

    info: evidence.Info
    alike: str | None
    known: Language | None
    language: str
    structure: evidence.Structure | None = None
    needs: Needs = NOTHING
    file: str = ""

    def given(self) -> dict[str, Any]:
        """What of it callers and the next blocks are told, as metadata."""
        found = {
            "looks_like": self.alike,
            "file": self.file,
            "defines": sorted(self.needs.defines | self.needs.functions),
            "makes": sorted(self.needs.makes),
        }
        return {key: value for key, value in found.items() if value}


NOT_LOOKED_AT = Look(evidence.NO_INFO, None, None, "")


def _info(raw: RawBlock) -> evidence.Info:
    return evidence.read_info(raw.info) if raw.info else evidence.NO_INFO


def _is_called(raw: RawBlock) -> bool:
    """Whether a block is handed to a tool, not shown."""
    return raw.kind in {"tag", "tool-call"} and not raw.quoted


def _code_of(look: Look, raw: RawBlock) -> tuple[str, str]:
    """Language and code of a block that is looked at as a program."""
    return (look.known or "", raw.code) if look.structure is not None and look.alike is None else ("", "")


def _words(match: re.Match[str] | None) -> str | None:
    return None if match is None else match[0].strip()


class Judge:
    """Scores the blocks of one text.

    Args:
        text: the text.
        blocks: its blocks, in its order.
        earlier: what was said before it, where it is a continuation.
        threshold: confidence from which a block runs, so that what it defines is there for the next ones.
    """

    def __init__(
        self, text: str, blocks: Sequence[RawBlock], earlier: Earlier | None = None, threshold: float = 0.7
    ) -> None:
        earlier = earlier or Earlier()
        self._threshold = threshold
        self._known = earlier.known.copy()
        self._text = text
        self._blocks = blocks
        self._budget = MAX_PARSED
        fenced = [block for block in blocks if block.kind != "inline"]
        self._forbidden = earlier.forbidden or (
            bool(fenced) and earlier.first and phrases.forbids_everything(text[: fenced[0].start])
        )
        self._comments = self._spans(_COMMENT, ("--",), to_end=True) if "<!--" in text else []
        self._thoughts = self._find_thoughts(earlier.thinking)
        self._most = max(0, MAX_EXAMINED - earlier.blocks)
        self._begin = sum(1 for block in blocks if block.start < earlier.since)
        self._most = min(len(blocks), self._begin + self._most)
        self._retracted = self._find_retracted()
        self._looks = [NOT_LOOKED_AT] * self._begin + [self._look(raw) for raw in blocks[self._begin : self._most]]
        self._drafts = relations.find_drafts([(look.known or "", look.needs) for look in self._looks], self._replaces)
        looked_at = zip(self._looks, blocks, strict=False)
        self._templates = whole.find_templates([_code_of(look, raw) for look, raw in looked_at])
        self._programs = earlier.blocks + sum(1 for look in self._looks if look.known and look.alike is None)
        self._modules: frozenset[str] | None = None
        self._more = earlier.more
        self._scored: dict[int, whole.Judged] = {}
        self._reasons = set(earlier.reasons)
        self._unexamined = Score(BLOCK_RULES)
        self._unexamined.add("not-examined")
        self._unexamined_value = self._unexamined.value  # of very many blocks, perhaps

    def judge(self) -> list[CodeBlock]:
        """All blocks that were not judged before, in the order of the text."""
        judged = {index: self._block(index, self._blocks[index]) for index in range(self._begin, len(self._blocks))}
        if not self._more:  # what is behind may yet use what a block defines
            self._hold_silent_back(judged)
        return [block for block in judged.values() if block is not None]

    def _hold_silent_back(self, judged: dict[int, CodeBlock | None]) -> None:
        whole.hold_silent_back(list(self._scored.values()), self._threshold)
        for index, found in self._scored.items():
            block = judged[index]
            if block is not None and found.score.has("silent"):
                metadata = block.metadata | {"why": list(found.score.why)}
                judged[index] = block.model_copy(
                    update={"execution_confidence": found.score.value, "metadata": metadata}
                )

    def _block(self, index: int, raw: RawBlock) -> CodeBlock | None:
        look = self._looks[index] if index < self._most else None
        info = look.info if look is not None else _info(raw)
        metadata: dict[str, Any] = {"kind": raw.kind, "line": raw.line, "info": raw.info, "closed": raw.closed}
        if raw.tool:
            metadata["tool"] = raw.tool
        if info.attributes:
            metadata["attributes"] = info.attributes
        if raw.code_start is not None and raw.code_end is not None:
            metadata["code_start"], metadata["code_end"] = raw.code_start, raw.code_end
        if look is not None:
            if look.alike is None and raw.kind == "indented" and look.language == "text":
                return None  # an indented paragraph, not code
            score = Score(BLOCK_RULES)
            self._examine(index, raw, look, score)
            quiet = self._is_quiet(index, raw, look, score)
            self._scored[index] = whole.Judged(look.known or "", look.needs, score, quiet)
            metadata |= look.given()
            language = look.language
        elif raw.kind == "indented":
            return None
        else:
            language = resolve(info.language) or info.language or "text"
            score = self._unexamined
        metadata["why"] = list(score.why)
        confidence = self._unexamined_value if score is self._unexamined else score.value
        block = CodeBlock(
            language=language,
            code=raw.code,
            execution_confidence=confidence,
            start_pos=raw.start,
            end_pos=raw.end,
            metadata=metadata,
        )
        self._known.remember(block, self._threshold)
        return block

    def _look(self, raw: RawBlock) -> Look:
        """What a block is, whatever is said about it."""
        info = _info(raw)
        called = raw.kind in {"tag", "tool-call"}
        alike = None if called else evidence.looks_like(raw.code, info.language)
        known = resolve(info.language)
        language: str = known or info.language
        if raw.kind == "inline":
            known = language = "bash"
        elif known is None and not info.language:
            known = evidence.detect(raw.code) if alike is None else None
            language = known or "text"
        look = Look(info, alike, known, language)
        if known is not None and raw.code.strip() and len(raw.code) <= min(_MAX_BLOCK, self._budget):
            self._budget -= len(raw.code)
            try:
                structure, needs = evidence.structure(known, raw.code), relations.needs_of(known, raw.code)
                look.structure, look.needs = structure, needs
            except ValidationFailed:
                self._budget = 0  # to find out that a block cannot be read takes seconds: once for an answer
        return look

    def _examine(self, index: int, raw: RawBlock, look: Look, score: Score) -> None:
        if raw.kind == "inline":
            score.add("detected")
        elif look.known is not None and look.info.language:
            score.add("tagged")
        elif look.info.language:
            score.add("other-language", look.info.language)
        else:
            score.add("detected" if look.known else "no-language", look.known or "")
        if look.alike is not None:
            score.add("looks-like", look.alike)
        if look.known is not None:
            self._structure(raw, look, score)
        self._form(raw, look, score)
        self._surroundings(index, raw, look, score)

    def _structure(self, raw: RawBlock, look: Look, score: Score) -> None:
        found = look.structure
        if not raw.code.strip():
            score.add("nothing-to-run")
            return
        if found is None:
            score.add("not-examined")
            return
        score.add("complete" if found.complete else "incomplete")
        if found.defines:
            score.add("definitions")
        if found.empty:
            score.add("nothing-to-run")
        if not found.runnable:
            score.add("no-main")
        head = raw.code[:20_000]
        left_out = phrases.PLACEHOLDER.search(head)
        if left_out is not None and not phrases.NO_PLACEHOLDER.search(head):
            score.add("placeholder", left_out[0].strip()[:60])
        if found.stub:
            score.add("stub", found.stub)

    def _form(self, raw: RawBlock, look: Look, score: Score) -> None:
        if sum(1 for line in raw.code[:2_000].splitlines() if line.strip()) >= 3:
            score.add("lines")
        if raw.kind in {"indented", "inline"}:
            score.add(raw.kind)
        elif raw.kind in {"tag", "tool-call"}:
            score.add("quoted-call" if raw.quoted else "tool-call", raw.tool)
        if raw.cut:
            score.add("cut-short")
        if not raw.closed and not self._is_turn(raw, look, score):
            score.add("unclosed")
        flags = look.info.flags & _NOT_TO_RUN
        if flags:
            score.add("flag", ", ".join(sorted(flags)))

    @staticmethod
    def _is_turn(raw: RawBlock, look: Look, score: Score) -> bool:
        """Whether a tag is open because an agent's turn ends with its code: the stop word of many templates is the
        closing tag. What deletes something might be cut off all the same."""
        complete = any(entry["rule"] == "complete" for entry in score.why)
        return raw.kind == "tag" and complete and look.known is not None and not is_destructive(look.known, raw.code)

    # --- what the text says -----------------------------------------------------------------------------------------

    def _surroundings(self, index: int, raw: RawBlock, look: Look, score: Score) -> None:
        before, after = self._gaps(index, raw)
        comment = phrases.first_comment(raw.code)
        look.file = introductions.file_name(look.info.attributes, before, raw.code) or ""
        called = _is_called(raw)
        solid = False
        if look.structure is not None and look.known is not None:
            if not called and not look.info.agent and not introductions.AGENT.search(before):
                person = not self._acts_itself(index, raw, before)
                relations.judge_needs(look.known, look.needs, self._known, score, to_a_person=person)
                if person:
                    self._judge_modules(look, score)
            solid = relations.judge_acts(look.known, look.needs, score)
        forbidden = phrases.forbidding(before, after, comment, raw.code)
        if forbidden is not None or self._forbidden:
            score.add("forbidden", forbidden or "")
        asked = None if forbidden is not None or self._forbidden else phrases.asks(before, after)
        if asked is not None:
            score.add("asked")
        self._said(index, raw, look, (before, after, comment), score, solid=solid, asked=asked == "request")
        self._inherit(index, raw, score)
        if look.known is not None and asked != "request" and not called:
            self._destructive(look.known, raw, score)

    def _said(
        self,
        index: int,
        raw: RawBlock,
        look: Look,
        words: tuple[str, str, str],
        score: Score,
        *,
        solid: bool,
        asked: bool,
    ) -> None:
        """Applies the rules that ask what the text says. A complete program needs more than a word to be held back."""
        before, after, comment = words
        around = f"{before}\n\n{after}\n\n{comment}"
        reference = phrases.REFERENCE.search(around)
        weak = reference is None and phrases.ILLUSTRATES.search(around) is not None
        said: dict[str, str | bool | None] = {
            "output": introductions.announces_output(before.rsplit("\n\n", 1)[-1]),
            "reference": _words(reference) or (weak and not solid) or (None if asked else phrases.how_to(before)),
            "wrong": phrases.shown_as_wrong(before) or phrases.shown_as_wrong(comment),
            "pseudo-code": phrases.pseudo(before, solid=solid) or phrases.pseudo(comment, solid=solid),
            "advised-against": _words(phrases.ADVISED_AGAINST.search(before) or phrases.ADVISED_AGAINST.search(after)),
            "example": _words(phrases.EXAMPLE.search(before)),
            "edit": not (solid and look.needs.changes) and introductions.changes_other_code(before),
            "template": index in self._templates and not asked and not introductions.FIRST_PERSON.search(before),
            "same-as": introductions.shows_the_same(before, after),
            "report": introductions.reports(before),
            "draft": index in self._drafts,
            "retracted": index in self._retracted,
            "thinking": self._is_thought(raw),
            "commented-out": self._in(self._comments, raw.start),
        }
        called = _is_called(raw) or bool(look.info.agent)
        if not called:
            said["wrong"] = (
                said["wrong"] or introductions.announces_failure(before) or phrases.ends_in_failure(raw.code)
            )
        for rule, words_found in said.items():
            if words_found and not (called and rule in _OF_SHOWN_CODE):
                score.add(rule, words_found if isinstance(words_found, str) else "")

    def _acts_itself(self, index: int, raw: RawBlock, before: str) -> bool:
        """Whether the text is an agent's that runs the block itself, not one that speaks to somebody who would."""
        if introductions.FIRST_PERSON.search(before):
            return True
        last = index + 1 == len(self._blocks) and not self._text[raw.end :].strip()
        return last and not raw.info and raw.code.strip().count("\n") == 0 and introductions.acts_together(before)

    def _judge_modules(self, look: Look, score: Score) -> None:
        """Applies the rule about modules that nobody knows; those that the answer brings are known."""
        if not look.needs.unknown or self._known.continues:
            return
        if self._modules is None:
            self._modules = whole.own_modules(self._text)
        unknown = [name for name in look.needs.unknown if not {name, name.lower()} & self._modules]
        if unknown:
            score.add("unknown", ", ".join(f"`{name}`" for name in unknown[:4]))

    def _is_quiet(self, index: int, raw: RawBlock, look: Look, score: Score) -> bool:
        """Whether a block that only imports, defines and assigns is shown for nothing but to be read, unless one below
        uses it. Not if it is to be saved, is the only program, is introduced as one, or somebody asks to run it; data
        alone is no program, whoever speaks of it."""
        needs, before = look.needs, self._gaps(index, raw)[0]
        if not needs.silent or look.file or self._known.continues or _is_called(raw) or look.info.agent:
            return False
        only = self._programs == 1 and not score.has("example")
        if needs.data:
            return not only
        if introductions.AGENT.search(before) or self._acts_itself(index, raw, before):
            return False
        if phrases.asks(before, "") == "request":
            return False
        return score.has("unknown") or not (only or introductions.introduces_a_program(before))

    def _replaces(self, index: int) -> bool:
        """Whether the text says that a block comes in place of an earlier one."""
        gap = self._text[self._blocks[index - 1].end : self._blocks[index].start][-1_000:]
        return introductions.REPLACES.search(gap) is not None and not introductions.ALTERNATIVE.search(gap)

    @staticmethod
    def _destructive(language: Language, raw: RawBlock, score: Score) -> None:
        """What cannot be taken back does not run unless somebody asks for it, whatever language the text is in."""
        if score.value > BLOCK_RULES["destructive"].cap and is_destructive(language, raw.code):
            score.add("destructive")

    def _inherit(self, index: int, raw: RawBlock, score: Score) -> None:
        """A block that follows another one without a word between them is there for the same reason."""
        before = self._text[self._blocks[index - 1].end : raw.start] if index else "x"
        reasons = {entry["rule"] for entry in score.why}
        for rule in () if before.strip("> \t\r\n") else ("forbidden", "reference", "wrong"):
            if rule in self._reasons and rule not in reasons:
                score.add(rule, "as the block above")
        self._reasons = {entry["rule"] for entry in score.why}

    def _find_retracted(self) -> set[int]:
        """Blocks that a later paragraph takes back."""
        found: set[int] = set()
        for index in range(self._begin, self._most):
            block = self._blocks[index]
            following = self._blocks[index + 1].start if index + 1 < len(self._blocks) else len(self._text)
            match = phrases.RETRACTED.search(self._text[block.end : min(following, block.end + 2_000)])
            if match is not None:
                found.add(0 if match["which"].lower() in {"first", "original"} else index)
        return found

    def _gaps(self, index: int, raw: RawBlock) -> tuple[str, str]:
        previous = self._blocks[index - 1].end if index else 0
        following = self._blocks[index + 1].start if index + 1 < len(self._blocks) else len(self._text)
        before = self._text[max(previous, raw.start - 2_000) : raw.start]
        after = self._text[raw.end : min(following, raw.end + 2_000)]
        last = index + 1 == len(self._blocks)
        return phrases.before_of(before, first=index == 0), phrases.after_of(after, last=last)

    def _find_thoughts(self, thinking: bool) -> list[tuple[int, int]]:
        """Spans of the model's reasoning; a closing mark alone ends what began with the text, an opening one alone goes
        to the end."""
        if not thinking and _THOUGHT.search(self._text) is None:
            return []
        return self._spans(_THOUGHT, _THOUGHT_OVER, begin=0 if thinking else None, from_start=True, to_end=True)

    def _is_thought(self, raw: RawBlock) -> bool:
        """Whether a block stands in the reasoning. A tool call there is made if the reasoning never ends: the model
        left out the closing mark, or calls tools while it thinks."""
        made = raw.kind in {"tag", "tool-call"} and not raw.quoted
        return self._in(self._thoughts, raw.start) and not (made and self._in(self._thoughts, len(self._text) - 1))

    def _spans(
        self,
        expression: re.Pattern[str],
        closing: tuple[str, ...],
        *,
        begin: int | None = None,
        from_start: bool = False,
        to_end: bool = False,
    ) -> list[tuple[int, int]]:
        """Spans between pairs of marks that stand outside of blocks.

        Args:
            expression: finds both marks.
            closing: how the closing one may begin.
            begin: where one is open already.
            from_start: a closing mark without an opening one closes what began with the text.
            to_end: an opening mark without a closing one opens what ends with the text.
        """
        spans: list[tuple[int, int]] = []
        index = 0
        for match in expression.finditer(self._text):
            while index < len(self._blocks) and self._blocks[index].end <= match.start():
                index += 1
            if index < len(self._blocks) and self._blocks[index].start <= match.start():
                continue
            if not match[0].startswith(closing):
                begin = match.start() if begin is None else begin
            elif begin is not None or (from_start and not spans):
                spans.append((begin or 0, match.end()))
                begin = None
        if begin is not None and to_end:
            spans.append((begin, len(self._text)))
        return spans

    def _in(self, spans: list[tuple[int, int]], offset: int) -> bool:
        index = bisect_right(spans, (offset, len(self._text) + 1)) - 1
        return index >= 0 and offset < spans[index][1]
