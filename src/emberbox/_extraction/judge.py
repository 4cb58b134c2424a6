"""Raw blocks → scored `CodeBlock`s: what each is, how it is made, what the text around it says."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from emberbox._extraction import evidence, phrases
from emberbox._extraction.blocks import RawBlock
from emberbox._extraction.scoring import BLOCK_RULES, Score
from emberbox.languages import resolve
from emberbox.models import CodeBlock, Language

MAX_EXAMINED = 1_500  # blocks of a text that are parsed and scored in full
MAX_PARSED = 400_000  # characters of a text that are parsed
_MAX_BLOCK = 50_000
_NOT_TO_RUN = frozenset({"no_run", "norun", "no-run", "ignore", "compile_fail", "should_panic", "skip", "noexec"})
_COMMENT = re.compile(r"<!--|-->")


class Judge:
    """Scores the blocks of one text."""

    def __init__(self, text: str, blocks: Sequence[RawBlock]) -> None:
        self._text = text
        self._blocks = blocks
        self._budget = MAX_PARSED
        fenced = [block for block in blocks if block.kind != "inline"]
        self._forbidden = phrases.forbids_everything(text[: fenced[0].start]) if fenced else False
        self._comments = self._comment_spans() if "<!--" in text else []
        self._unexamined = Score(BLOCK_RULES)
        self._unexamined.add("not-examined")

    def judge(self) -> list[CodeBlock]:
        """All blocks, by confidence, then by position."""
        judged = (self._block(index, raw) for index, raw in enumerate(self._blocks))
        return sorted(
            (block for block in judged if block is not None),
            key=lambda block: (-block.execution_confidence, block.start_pos),
        )

    def _block(self, index: int, raw: RawBlock) -> CodeBlock | None:
        info = evidence.read_info(raw.info) if raw.info else evidence.NO_INFO
        metadata: dict[str, Any] = {"kind": raw.kind, "line": raw.line, "info": raw.info, "closed": raw.closed}
        if info.attributes:
            metadata["attributes"] = info.attributes
        if raw.code_start is not None and raw.code_end is not None:
            metadata["code_start"], metadata["code_end"] = raw.code_start, raw.code_end
        if index < MAX_EXAMINED:
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
        return CodeBlock(
            language=language,
            code=raw.code,
            execution_confidence=score.value,
            start_pos=raw.start,
            end_pos=raw.end,
            metadata=metadata,
        )

    def _examine(self, index: int, raw: RawBlock, info: evidence.Info, score: Score) -> tuple[str, str | None]:
        alike = evidence.looks_like(raw.code, info.language)
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
        self._surroundings(index, raw, score)
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
        if not raw.closed:
            score.add("unclosed")
        if info.flags & _NOT_TO_RUN:
            score.add("flag", ", ".join(sorted(info.flags & _NOT_TO_RUN)))

    # --- what the text says -----------------------------------------------------------------------------------------

    def _surroundings(self, index: int, raw: RawBlock, score: Score) -> None:
        before, after = self._gaps(index, raw)
        comment = phrases.first_comment(raw.code)
        around = f"{before}\n\n{after}\n\n{comment}"
        forbidden = phrases.FORBIDDEN.search(around)
        if forbidden or self._forbidden:
            score.add("forbidden", forbidden[0] if forbidden else "")
        elif phrases.REQUEST.search(before) or phrases.MENTION.search(before) or phrases.REQUEST.search(after):
            score.add("asked")
        if phrases.OUTPUT.search(before.rsplit("\n\n", 1)[-1]):
            score.add("output")
        if phrases.REFERENCE.search(around):
            score.add("reference")
        if phrases.WRONG.search(before) or phrases.WRONG.search(comment):
            score.add("wrong")
        if phrases.PSEUDO.search(before) or phrases.PSEUDO.search(comment):
            score.add("pseudo-code")
        if phrases.EXAMPLE.search(before):
            score.add("example")
        if self._is_commented_out(raw.start):
            score.add("commented-out")

    def _gaps(self, index: int, raw: RawBlock) -> tuple[str, str]:
        previous = self._blocks[index - 1].end if index else 0
        following = self._blocks[index + 1].start if index + 1 < len(self._blocks) else len(self._text)
        before = self._text[max(previous, raw.start - 2_000) : raw.start]
        after = self._text[raw.end : min(following, raw.end + 2_000)]
        last = index + 1 == len(self._blocks)
        return phrases.before_of(before, first=index == 0), phrases.after_of(after, last=last)

    def _comment_spans(self) -> list[tuple[int, int]]:
        """Spans of HTML comments that begin outside of blocks."""
        spans: list[tuple[int, int]] = []
        begin: int | None = None
        index = 0
        for match in _COMMENT.finditer(self._text):
            while index < len(self._blocks) and self._blocks[index].end <= match.start():
                index += 1
            inside = index < len(self._blocks) and self._blocks[index].start <= match.start()
            if match[0] == "<!--" and begin is None and not inside:
                begin = match.start()
            elif match[0] == "-->" and begin is not None and not inside:
                spans.append((begin, match.end()))
                begin = None
        return spans

    def _is_commented_out(self, offset: int) -> bool:
        index = bisect_right(self._comments, (offset, len(self._text) + 1)) - 1
        return index >= 0 and offset < self._comments[index][1]
