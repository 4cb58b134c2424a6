"""Text of a language model → code blocks, how surely each is meant to be run, and whether it may be run.

Blocks are found with a CommonMark parser; confidence and intent come from one scoring table
(`emberbox._extraction.scoring`), and every block carries its reasons in `metadata["why"]`. What reads texts is imported
with the first text: to run plain code needs none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from emberbox.errors import PolicyBlocked, ValidationFailed
from emberbox.languages import get_language, resolve
from emberbox.languages.policy import Policy
from emberbox.languages.validation import allowed_language, unfit
from emberbox.models import CodeBlock, ExecutionIntent, Finding, LanguageConfig, VmExecutionConfig

if TYPE_CHECKING:
    from emberbox._extraction.stream import BlockStream

__all__ = ["CodeBlockExtractor"]
_MOST_FINDINGS = 100
"""In an error."""


class CodeBlockExtractor:
    """Finds code in the text of a language model and judges it.

    Args:
        threshold: confidence from which a block counts as meant to be run.
        config: allowed languages, limits and policy for `validate_code`; the defaults if None.

    Raises:
        ConfigError: the policy of the configuration is wrong.
    """

    def __init__(self, threshold: float = 0.7, config: VmExecutionConfig | None = None) -> None:
        self.threshold = threshold
        self.config = config if config is not None else VmExecutionConfig()
        self.policy = Policy(self.config.policy)
        self._stream: BlockStream | None = None

    def extract_code_blocks(self, text: str) -> list[CodeBlock]:
        """All code blocks of a text, the surest first; blocks of equal confidence in the order of the text.

        `code` is what stands between the fences with its line ends as they are, the last one included, less the
        block's own indent and quote marks. `text[start_pos:end_pos]` is the block with its fences.

        `metadata`: `kind` (fence, indented, inline, tag, tool-call), `line`, `info`, `closed`, `why` (rule, weight,
        reason, cap), and where they apply `attributes`, `looks_like` (json, diff, transcript, output, edit, tree),
        `tool` (name of the tool that is called), `file` (the relative name under which the text says to save the
        block), `defines` and `makes` (names and files that exist once it has run), `code_start` and `code_end` (where
        the code is one slice of the text).
        """
        return self.read(text)[0]

    def read(self, text: str, *, continues: bool = False) -> tuple[list[CodeBlock], ExecutionIntent]:
        """The blocks of a text, as `extract_code_blocks` gives them, and its intent; the text is read once for both.

        Args:
            text: of the model.
            continues: it is for a sandbox that was used before: names and files that the text does not make may be
                there all the same.
        """
        from emberbox._extraction.reading import read

        return read(text, self.threshold, continues=continues)

    def feed(self, chunk: str) -> list[CodeBlock]:
        """The next piece of a text that is still being written: the blocks that closed with it, in the order of the
        text, so that they can run while the model goes on. `finish` gives the rest.

        What is said behind a block cannot count for it here. One extractor follows one text at a time.
        """
        if self._stream is None:
            from emberbox._extraction.stream import BlockStream

            self._stream = BlockStream(self.threshold)
        return self._stream.feed(chunk)

    def finish(self) -> list[CodeBlock]:
        """The text given to `feed` has ended: the blocks that are left, in the order of the text. The next `feed`
        begins another text."""
        stream, self._stream = self._stream, None
        return [] if stream is None else stream.finish()

    def detect_execution_intent(self, text: str) -> ExecutionIntent:
        """How strongly a text asks for code to be run, and what to do about it."""
        return self.read(text)[1]

    def validate_code(
        self,
        block: CodeBlock,
        *,
        syntax: bool = True,
        agent_id: str | None = None,
        role: str | None = None,
        asking: bool = False,
    ) -> list[Finding]:
        """Raises unless the configuration lets the block run.

        Args:
            block: the code.
            syntax: refuse what does not parse; False leaves that to the interpreter, whose message is the best.
            agent_id, role: for whom the policy is asked; None: as for everybody.
            asking: the caller asks a person about what the policy leaves to one: these findings do not raise, they are
                returned.

        Raises:
            UnsupportedLanguage: the language is unknown or not allowed.
            ValidationFailed: the code is empty, too long or not valid; `details["findings"]` has the first 100 reasons.
            PolicyBlocked: it is valid, and does something restricted (a kind of ValidationFailed).
        """
        return self.check_code(block.code, block.language, syntax=syntax, agent_id=agent_id, role=role, asking=asking)

    def check_code(
        self,
        code: str,
        language: str,
        *,
        syntax: bool = True,
        agent_id: str | None = None,
        role: str | None = None,
        asking: bool = False,
    ) -> list[Finding]:
        """As `validate_code`, for code in a language that need not be a block of an answer."""
        spec = allowed_language(language, self.config)
        if not self.config.code_validation:
            return []
        bad = unfit(code, self.config.max_code_length)
        if bad is not None:
            raise refusal(ValidationFailed, spec.config.name, [bad])
        wrong = spec.syntax_findings(code) if syntax else []
        found: list[Finding] = []
        if self.config.security_settings.dangerous_patterns_check:
            found = self.policy.check(code, spec.config.name, agent_id=agent_id, role=role)
        left = [finding for finding in found if asking and finding.action == "ask"]
        refused = wrong + [finding for finding in found if finding not in left]
        if refused:
            raise refusal(ValidationFailed if wrong else PolicyBlocked, spec.config.name, refused)
        return left

    def get_language_config(self, name: str) -> LanguageConfig:
        """The configuration of a language by name or alias.

        Raises:
            UnsupportedLanguage: there is no such language.
        """
        return get_language(name).config

    def is_language_supported(self, name: str) -> bool:
        """Whether code of this language (a name or an alias) may be run under the configuration."""
        language = resolve(name)
        return language is not None and language in self.config.allowed_languages


def refusal(kind: type[ValidationFailed], language: str, findings: list[Finding]) -> ValidationFailed:
    """The error that says why code was refused, with the first of the findings in its message."""
    first = findings[0]
    more = len(findings) - 1
    rest = f" (and {more} more)" if more else ""
    return kind(
        f"{language} code refused: line {first.line}, column {first.column}: {first.message} [{first.rule}]{rest}",
        remediation=first.remediation or None,
        details={"language": language} | told(findings),
    )


def told(findings: Sequence[Finding]) -> dict[str, Any]:
    """Of an error's details: the first findings, and how many there are where these are not all. Code may have ten
    thousand, and each is as long as a line."""
    first: dict[str, Any] = {"findings": [finding.model_dump() for finding in findings[:_MOST_FINDINGS]]}
    return first if len(findings) <= _MOST_FINDINGS else first | {"findings_in_all": len(findings)}
