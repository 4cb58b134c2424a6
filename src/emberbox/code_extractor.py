"""Text of a language model → code blocks, how surely each is meant to be run, and whether it may be run.

Blocks are found with a CommonMark parser; confidence and intent come from one scoring table
(`emberbox._extraction.scoring`), and every block carries its reasons in `metadata["why"]`.
"""

from __future__ import annotations

from emberbox._extraction.blocks import Lines, RawBlock, find_blocks
from emberbox._extraction.inline import find_inline
from emberbox._extraction.intent import judge_intent
from emberbox._extraction.judge import Judge
from emberbox.errors import PolicyBlocked, UnsupportedLanguage, ValidationFailed
from emberbox.languages import LanguageSpec, get_language, resolve
from emberbox.models import CodeBlock, ExecutionIntent, Finding, LanguageConfig, VmExecutionConfig

__all__ = ["CodeBlockExtractor"]


class CodeBlockExtractor:
    """Finds code in the text of a language model and judges it.

    Args:
        threshold: confidence from which a block counts as meant to be run.
        config: allowed languages, limits and switches for `validate_code`; the defaults if None.
    """

    def __init__(self, threshold: float = 0.7, config: VmExecutionConfig | None = None) -> None:
        self.threshold = threshold
        self.config = config if config is not None else VmExecutionConfig()

    def extract_code_blocks(self, text: str) -> list[CodeBlock]:
        """All code blocks of a text, the surest first; blocks of equal confidence in the order of the text.

        `code` is what stands between the fences with its line ends as they are, the last one included, less the
        block's own indent and quote marks. `text[start_pos:end_pos]` is the block with its fences.

        `metadata`: `kind` (fence, indented, inline), `line`, `info`, `closed`, `why` (rule, weight, reason, cap), and
        where they apply `attributes`, `looks_like` (json, diff, transcript, output), `code_start` and `code_end`
        (where the code is one slice of the text).
        """
        return Judge(text, self._find(text)).judge()

    def _find(self, text: str) -> list[RawBlock]:
        lines = Lines(text)
        blocks = find_blocks(lines)
        return sorted([*blocks, *find_inline(lines, blocks)], key=lambda block: block.start)

    def detect_execution_intent(self, text: str) -> ExecutionIntent:
        """How strongly a text asks for code to be run, and what to do about it."""
        return judge_intent(text, self.extract_code_blocks(text), self.threshold)

    def validate_code(self, block: CodeBlock, *, syntax: bool = True) -> None:
        """Raises unless the configuration lets the block run.

        Args:
            block: the code.
            syntax: refuse what does not parse; False leaves that to the interpreter, whose message is the best.

        Raises:
            UnsupportedLanguage: the language is unknown or not allowed.
            ValidationFailed: the code is empty, too long or not valid; `details["findings"]` lists every reason.
            PolicyBlocked: it is valid, and does something restricted (a kind of ValidationFailed).
        """
        spec = self._allowed(block.language)
        if not self.config.code_validation:
            return
        findings = self._findings(spec, block.code, syntax=syntax)
        if findings:
            restricted = {restriction.id for restriction in spec.restrictions}
            refusal = PolicyBlocked if all(f.rule in restricted for f in findings) else ValidationFailed
            raise refusal(
                _summary(spec, findings),
                remediation=findings[0].remediation or None,
                details={
                    "language": spec.config.name,
                    "findings": [finding.model_dump() for finding in findings],
                },
            )

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

    def _allowed(self, name: str) -> LanguageSpec:
        spec = get_language(name)
        if spec.config.name not in self.config.allowed_languages:
            allowed = ", ".join(self.config.allowed_languages) or "none"
            raise UnsupportedLanguage(
                f"language {name!r} is not allowed by the configuration; allowed are: {allowed}",
                remediation=f'Add "{spec.config.name}" to `allowed_languages` in the configuration.',
                details={"language": name, "allowed": list(self.config.allowed_languages)},
            )
        return spec

    def _findings(self, spec: LanguageSpec, code: str, *, syntax: bool) -> list[Finding]:
        if not code.strip():
            return [Finding(rule="empty", message="there is no code", line=1, column=1)]
        limit = self.config.max_code_length
        if len(code) > limit:
            # Not parsed: the limit is also what protects the parser.
            return [
                Finding(
                    rule="length",
                    message=f"the code has {len(code)} characters, {limit} are allowed",
                    line=1,
                    column=1,
                    remediation="Shorten the code, or raise `max_code_length` in the configuration.",
                )
            ]
        findings = spec.syntax_findings(code) if syntax else []
        if self.config.security_settings.dangerous_patterns_check:
            findings += spec.check(code, disabled=self.config.disabled_restrictions)
        return findings


def _summary(spec: LanguageSpec, findings: list[Finding]) -> str:
    first = findings[0]
    more = len(findings) - 1
    rest = f" (and {more} more)" if more else ""
    place = f"line {first.line}, column {first.column}"
    return f"{spec.config.name} code refused: {place}: {first.message} [{first.rule}]{rest}"
