"""TypeScript: runs as JavaScript without its types, in the same contexts and under the same rules.

There is no grammar of its own here: JavaScript's finds what the rules ask for behind most type annotations, and node
says what is wrong.
"""

from __future__ import annotations

from emberbox.languages import javascript
from emberbox.languages._tree import Source
from emberbox.languages.spec import LanguageSpec
from emberbox.models import Finding, LanguageConfig

CONFIG = LanguageConfig(
    name="typescript",
    aliases=("ts",),
    file_extension=".ts",
    run_command=("node",),
    timeout_multiplier=1.0,
)


def _syntax(_source: Source) -> list[Finding]:
    return []


SPEC = LanguageSpec(CONFIG, (), (), "tree_sitter_javascript", javascript.SPEC.checker, _syntax)
