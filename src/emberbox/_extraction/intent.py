"""How strongly a text asks for its code to be run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from emberbox._extraction import phrases
from emberbox._extraction.scoring import ACTIONS, INTENT_RULES, Score
from emberbox.models import CodeBlock, ExecutionIntent

Action = Literal["auto-execute", "ask", "show", "none"]

_MAX_PROSE = 50_000
_MAX_WORDS = 12


def judge_intent(text: str, blocks: Sequence[CodeBlock], threshold: float) -> ExecutionIntent:
    """Scores the prose of a text, and the code in it, as one request."""
    prose = _prose(text, blocks)
    score = Score(INTENT_RULES)
    requests = _phrases(phrases.REQUEST.finditer(prose))
    mentions = _phrases(phrases.MENTION.finditer(prose))
    forbidden = phrases.FORBIDDEN.search(prose)
    clues: list[str] = []
    runnable = [block for block in blocks if block.execution_confidence >= threshold]
    if forbidden is not None and (not runnable or phrases.forbids_everything(prose)):
        score.add("forbidden")
        clues.append(f"the text forbids it: {forbidden[0]!r}")
    if requests:
        score.add("request")
        if phrases.PLEADS.search(prose):
            score.add("explicit")
        if len(requests) > 1:
            score.add("more-requests")
    elif mentions:
        score.add("mention")
    if any(entry["rule"] == "tool-call" for block in runnable for entry in block.metadata["why"]):
        score.add("tool-call")
    if runnable:
        score.add("code-strong")
        clues.append(f"{len(runnable)} block(s) ready to run: {', '.join(sorted({b.language for b in runnable}))}")
    elif any(block.execution_confidence >= 0.5 for block in blocks):
        score.add("code-weak")
        clues.append("code that may be run")
    if phrases.REFERENCE.search(prose):
        score.add("reference")
        clues.append("for reference or illustration")
    if phrases.EXAMPLE.search(prose):
        score.add("example")
        clues.append("called an example")
    value = score.value
    action = _action(value)
    return ExecutionIntent(
        confidence=value,
        trigger_keywords=[] if forbidden is not None and not runnable else requests or mentions,
        context_clues=clues,
        suggested_action=action,
    )


def _action(confidence: float) -> Action:
    for above, action in ACTIONS:
        if confidence > above:
            return action
    return "none"


def _phrases(matches: Iterable[re.Match[str]]) -> list[str]:
    found: dict[str, None] = {}
    for match in matches:
        found[" ".join(match[0].lower().split())] = None
        if len(found) == _MAX_WORDS:
            break
    return list(found)


def _prose(text: str, blocks: Sequence[CodeBlock]) -> str:
    parts: list[str] = []
    position = size = 0
    for block in sorted(blocks, key=lambda block: block.start_pos):
        if block.metadata.get("kind") == "inline":
            continue
        parts.append(text[position : max(position, block.start_pos)])
        size += len(parts[-1])
        position = max(position, block.end_pos)
        if size > _MAX_PROSE:
            break
    parts.append(text[position:])
    return "\n\n".join(parts)[:_MAX_PROSE]
