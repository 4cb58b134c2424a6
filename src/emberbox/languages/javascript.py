"""JavaScript (node): restrictions are resolved through `require`, `import`, destructuring and computed names."""

from __future__ import annotations

from collections.abc import Iterator

from emberbox.languages import _javascript_names as names
from emberbox.languages._javascript_dangers import DANGERS, Dangers
from emberbox.languages._tree import Source
from emberbox.languages.spec import Hit, LanguageSpec, Restriction
from emberbox.models import LanguageConfig

RESTRICTIONS = (
    Restriction(
        "javascript.child-process", "starts other programs with `child_process`", "code should not leave its language"
    ),
    Restriction("javascript.eval", "evaluates text as code with `eval`", "the text cannot be reviewed beforehand"),
    Restriction(
        "javascript.new-function", "makes code from text with `Function`", "the text cannot be reviewed beforehand"
    ),
    Restriction("javascript.fs", "uses the file system module `fs`", "a wrong path costs files of others"),
)

CONFIG = LanguageConfig(
    name="javascript",
    aliases=("js", "node", "nodejs"),
    file_extension=".js",
    run_command=("node",),
    timeout_multiplier=1.0,
    restrictions=tuple(rule.id for rule in RESTRICTIONS),
)

_MODULES = {
    "child_process": "javascript.child-process",
    "fs": "javascript.fs",
    "fs/promises": "javascript.fs",
}


def _check(source: Source) -> Iterator[Hit]:
    scope = names.Scope(source)
    for node, module in scope.modules:
        rule = _MODULES.get(module.removeprefix("node:"))
        if rule is not None:
            # what is done with files counts, below: nearly every program that touches one loads this module
            yield Hit(rule, node.start_byte, node.end_byte, f"`{module}`", strict=rule == "javascript.fs")
    for node, path in scope.uses():
        if path == "eval":
            yield Hit("javascript.eval", node.start_byte, node.end_byte)
    for node in scope.timers_with_text:
        yield Hit("javascript.eval", node.start_byte, node.end_byte, "a timer with text instead of a function")
    for node in scope.constructions:
        yield Hit("javascript.new-function", node.start_byte, node.end_byte)
    yield from Dangers(source, scope).find()


SPEC = LanguageSpec(CONFIG, RESTRICTIONS, DANGERS, "tree_sitter_javascript", _check)
