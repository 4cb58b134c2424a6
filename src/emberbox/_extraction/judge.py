"""Raw blocks → scored `CodeBlock`s: what each is, how it is made, what the text around it says."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emberbox._extraction import evidence, phrases
from emberbox._extraction.blocks import RawBlock
from emberbox._extraction.scoring import BLOCK_RULES, Score
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


@dataclass(frozen=True)
class Earlier:
    """What a text that is not there any more said about the blocks of its continuation.

    Attributes:
        forbidden: none of the code is to be run.
        thinking: the continuation begins within the model's reasoning.
        first: the continuation has the first block of the whole.
        blocks: blocks that there were.
    """

    forbidden: bool = False
    thinking: bool = False
    first: bool = True
    blocks: int = 0

    def after(self, text: str, intro: str) -> Earlier:
        """What is to be kept of a text, whose first block, if it has one, stands behind `intro`."""
        marks = [match[0] for match in _THOUGHT.finditer(text)]
        thinking = not marks[-1].startswith(_THOUGHT_OVER) if marks else self.thinking
        forbidden = self.forbidden or (self.first and phrases.forbids_everything(intro))
        return Earlier(forbidden, thinking, self.first and len(intro) >= len(text), self.blocks)


class Judge:
    """Scores the blocks of one text.

    Args:
        text: the text.
        blocks: its blocks, in its order.
        earlier: what was said before it, where it is a continuation.
    """

    def __init__(self, text: str, blocks: Sequence[RawBlock], earlier: Earlier | None = None) -> None:
        earlier = earlier or Earlier()
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
        self._retracted = self._find_retracted()
        self._reasons: set[str] = set()
        self._unexamined = Score(BLOCK_RULES)
        self._unexamined.add("not-examined")
        self._unexamined_value = self._unexamined.value  # of very many blocks, perhaps

    def judge(self) -> list[CodeBlock]:
        """All blocks, in the order of the text."""
        judged = (self._block(index, raw) for index, raw in enumerate(self._blocks))
        return [block for block in judged if block is not None]

    def _block(self, index: int, raw: RawBlock) -> CodeBlock | None:
        info = evidence.read_info(raw.info) if raw.info else evidence.NO_INFO
        metadata: dict[str, Any] = {"kind": raw.kind, "line": raw.line, "info": raw.info, "closed": raw.closed}
        if raw.tool:
            metadata["tool"] = raw.tool
        if info.attributes:
            metadata["attributes"] = info.attributes
        if raw.code_start is not None and raw.code_end is not None:
            metadata["code_start"], metadata["code_end"] = raw.code_start, raw.code_end
        if index < self._most:
            score = Score(BLOCK_RULES)
            language, alike = self._examine(index, raw, info, score)
            if alike is not None:
                metadata["looks_like"] = alike
            elif raw.kind == "indented" and language == "text":
                return None  # an indented paragraph, not code
        elif raw.kind == "indented":
            return None
        else:
            language = resolve(info.language) or info.language or "text"
            score = self._unexamined
        metadata["why"] = list(score.why)
        confidence = self._unexamined_value if score is self._unexamined else score.value
        return CodeBlock(
            language=language,
            code=raw.code,
            execution_confidence=confidence,
            start_pos=raw.start,
            end_pos=raw.end,
            metadata=metadata,
        )

    def _examine(self, index: int, raw: RawBlock, info: evidence.Info, score: Score) -> tuple[str, str | None]:
        called = raw.kind in {"tag", "tool-call"}
        alike = None if called else evidence.looks_like(raw.code, info.language)
        known = resolve(info.language)
        language: str = known or info.language
        if raw.kind == "inline":
            known = "bash"
            language = "bash"
            score.add("detected")
        elif known is not None:
            score.add("tagged")
        elif info.language:
            score.add("other-language", info.language)
        else:
            known = evidence.detect(raw.code) if alike is None else None
            language = known or "text"
            score.add("detected" if known else "no-language", known or "")
        if alike is not None:
            score.add("looks-like", alike)
        if known is not None:
            self._structure(known, raw, score)
        self._form(raw, info, score)
        self._surroundings(index, raw, known, score)
        return language, alike

    def _structure(self, language: Language, raw: RawBlock, score: Score) -> None:
        if not raw.code.strip():
            score.add("nothing-to-run")
            return
        if len(raw.code) > _MAX_BLOCK or len(raw.code) > self._budget:
            score.add("not-examined")
            return
        self._budget -= len(raw.code)
        found = evidence.structure(language, raw.code)
        score.add("complete" if found.complete else "incomplete")
        if found.defines:
            score.add("definitions")
        if found.empty:
            score.add("nothing-to-run")
        if not found.runnable:
            score.add("no-main")
        head = raw.code[:20_000]
        if phrases.PLACEHOLDER.search(head) and not phrases.NO_PLACEHOLDER.search(head):
            score.add("placeholder")

    def _form(self, raw: RawBlock, info: evidence.Info, score: Score) -> None:
        if sum(1 for line in raw.code[:2_000].splitlines() if line.strip()) >= 3:
            score.add("lines")
        if raw.kind in {"indented", "inline"}:
            score.add(raw.kind)
        elif raw.kind in {"tag", "tool-call"}:
            score.add("quoted-call" if raw.quoted else "tool-call", raw.tool)
        if not raw.closed:
            score.add("unclosed")
        if info.flags & _NOT_TO_RUN:
            score.add("flag", ", ".join(sorted(info.flags & _NOT_TO_RUN)))

    # --- what the text says -----------------------------------------------------------------------------------------

    def _surroundings(self, index: int, raw: RawBlock, language: Language | None, score: Score) -> None:
        before, after = self._gaps(index, raw)
        comment = phrases.first_comment(raw.code)
        around = f"{before}\n\n{after}\n\n{comment}"
        forbidden = phrases.forbidding(before, after, comment)
        if forbidden is not None or self._forbidden:
            score.add("forbidden", forbidden or "")
        asked = None if forbidden is not None or self._forbidden else phrases.asks(before, after)
        if asked is not None:
            score.add("asked")
        said = {
            "output": phrases.announces_output(before.rsplit("\n\n", 1)[-1]),
            "reference": phrases.REFERENCE.search(around),
            "wrong": phrases.WRONG.search(before) or phrases.WRONG.search(comment),
            "pseudo-code": phrases.PSEUDO.search(before) or phrases.PSEUDO.search(comment),
            "advised-against": phrases.ADVISED_AGAINST.search(before) or phrases.ADVISED_AGAINST.search(after),
            "example": phrases.EXAMPLE.search(before),
            "retracted": index in self._retracted,
            "thinking": self._in(self._thoughts, raw.start),
            "commented-out": self._in(self._comments, raw.start),
        }
        for rule, applies in said.items():
            if applies:
                score.add(rule)
        self._inherit(index, raw, score)
        called = raw.kind in {"tag", "tool-call"} and not raw.quoted
        if language is not None and asked != "request" and not called:
            self._destructive(language, raw, score)

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
        for index, block in enumerate(self._blocks[: self._most]):
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
