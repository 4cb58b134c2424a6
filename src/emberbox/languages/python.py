"""Python: its syntax check is CPython's own compiler; its restrictions are resolved through imports and aliases."""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from emberbox.languages import _python_names as names
from emberbox.languages._python_cells import commands_in, python_of
from emberbox.languages._python_dangers import DANGERS, Dangers
from emberbox.languages._tree import Source, generic_syntax_findings, walk
from emberbox.languages.spec import Hit, LanguageSpec, Restriction
from emberbox.models import Finding, LanguageConfig

if TYPE_CHECKING:
    from tree_sitter import Node

RESTRICTIONS = (
    Restriction("python.subprocess", "starts other programs with `subprocess`", "code should not leave its language"),
    Restriction("python.os-system", "starts other programs through `os`", "code should not leave its language"),
    Restriction("python.eval", "evaluates text as code with `eval`", "the text cannot be reviewed beforehand"),
    Restriction("python.exec", "executes text as code with `exec`", "the text cannot be reviewed beforehand"),
    Restriction("python.dunder-import", "imports with `__import__`", "the module's name is hidden from review"),
)

CONFIG = LanguageConfig(
    name="python",
    aliases=("py", "python3"),
    file_extension=".py",
    run_command=("python3",),
    timeout_multiplier=1.0,
    restrictions=tuple(rule.id for rule in RESTRICTIONS),
)

_NEWER_SYNTAX = frozenset({"type_alias_statement", "type_parameter", "template_string"})


_VARIANTS = ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")
_OS_STARTERS = frozenset(
    {"system", "popen", "posix_spawn", "posix_spawnp"}
    | {f"{stem}{variant}" for stem in ("exec", "spawn") for variant in _VARIANTS}
)
_EXACT = {
    "builtins.eval": "python.eval",
    "builtins.exec": "python.exec",
    "builtins.__import__": "python.dunder-import",
    "importlib.__import__": "python.dunder-import",
    "asyncio.create_subprocess_exec": "python.subprocess",
    "asyncio.create_subprocess_shell": "python.subprocess",
}


_RUNNERS = frozenset(f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen"))
_NAMES = frozenset(
    {"PIPE", "STDOUT", "DEVNULL", "CompletedProcess", "CalledProcessError", "TimeoutExpired", "SubprocessError"}
)
"""Of `subprocess`, what starts nothing."""
_HARMLESS = frozenset(
    {"basename", "cat", "cmp", "cut", "date", "df", "diff", "dirname", "du", "echo", "false", "file", "free", "grep"}
    | {
        "head",
        "hostname",
        "id",
        "ls",
        "md5sum",
        "nproc",
        "printf",
        "ps",
        "pwd",
        "realpath",
        "seq",
        "sha256sum",
        "sleep",
    }
    | {"sort", "stat", "tail", "tr", "tree", "true", "uname", "uniq", "uptime", "wc", "which", "whoami"}
)
"""Programs that look and tell, whatever their arguments are."""
_LOOKED_FOR = frozenset(
    {"shutil.rmtree", "os.fork", "os.dup2", "os.path", "pathlib.Path", "socket.socket", "requests.get"}
    | {"urllib.request.urlopen"}
)


def _rule(path: str) -> str | None:
    """The restriction that the use of a dotted name violates."""
    if path in _EXACT:
        return _EXACT[path]
    module, _, rest = path.partition(".")
    if module in {"subprocess", "_posixsubprocess"}:
        return "python.subprocess"
    if module in {"os", "posix"} and rest.partition(".")[0] in _OS_STARTERS:
        return "python.os-system"
    return None


def _matters(path: str) -> bool:
    """Whether a wildcard import of the module is to bring this name in."""
    return _rule(path) is not None or path in _LOOKED_FOR


def _starts_harmless_programs(source: Source, scope: names.Scope, references: list[tuple[Node, str]]) -> bool:
    """Whether all that is done with `subprocess` is to start programs of constant lists that do no harm."""
    used = [(node, path) for node, path in references if path.partition(".")[0] == "subprocess"]
    calls = [(node, path) for node, path in used if not _NAMES.intersection(path.split(".")[1:2])]
    return bool(calls) and all(path in _RUNNERS and _is_harmless(source, scope, node) for node, path in calls)


def _is_harmless(source: Source, scope: names.Scope, function: Node) -> bool:
    call = function.parent
    arguments = None if call is None or call.type != "call" else call.child_by_field_name("arguments")
    if arguments is None or not arguments.named_children:
        return False
    first, *others = arguments.named_children
    if first.type not in {"list", "tuple"} or any(other.type != "keyword_argument" for other in others):
        return False
    words = [scope.constant(child) for child in first.named_children]
    keywords = (other.child_by_field_name("name") for other in others)
    named = {source.text(keyword) for keyword in keywords if keyword is not None}
    known = all(word is not None for word in words) and not named & {"shell", "executable", "preexec_fn", "env"}
    return known and bool(words) and (words[0] in _HARMLESS or words[1:] == ["--version"])


def _check(source: Source) -> Iterator[Hit]:
    scope = names.Scope(source, _matters)
    references = list(scope.references())
    ordinary = _starts_harmless_programs(source, scope, references)
    imported: list[str] = []
    for node, path in scope.imports:
        rule = _rule(path)
        if rule is not None:
            imported.append(path)
            strict = ordinary and path.startswith("subprocess")
            yield Hit(rule, node.start_byte, node.end_byte, f"import of `{path}`", strict=strict)
    for node, path in references:
        rule = _rule(path)
        # Where the import of the very thing is a finding, its uses would only repeat it.
        if rule is not None and not any(path == known or path.startswith(f"{known}.") for known in imported):
            shown = path.removeprefix("builtins.")
            yield Hit(rule, node.start_byte, node.end_byte, f"use of `{shown}`")
    yield from Dangers(source, scope).find()


def _syntax(source: Source) -> list[Finding]:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    if "\0" in source.code:  # what the compiler says of it differs from one patch release to the next
        return [source.finding(_bad_character(source), "source code cannot contain null bytes")]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape sequence is the author's business
            compile(source.code, "<code>", "exec", flags=flags, dont_inherit=True)
    except SyntaxError as error:
        if _valid_in_notebook(source.code, flags):
            return []
        if _valid_in_newer_python(source, error):
            return []
        return [_finding(source, error)]
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        # NUL, lone surrogates, nesting beyond the compiler's stack: the guest's compiler refuses them as well.
        found = generic_syntax_findings(source)
        return found or [source.finding(_bad_character(source), f"cannot be compiled: {_plain(error)}")]
    return []


def _valid_in_notebook(code: str, flags: int) -> bool:
    """Whether it is valid with its magics hidden, or without an indent that all lines share; the guest takes both."""
    text = python_of(code)
    attempts = [text] if text != code else []
    if text.lstrip("\r\n")[:1].isspace():
        attempts.append("if 1:\n" + text)
    for attempt in attempts:
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            compile(attempt, "<code>", "exec", flags=flags, dont_inherit=True)
            return True
    return False


def _valid_in_newer_python(source: Source, error: SyntaxError) -> bool:
    """Whether the code only uses syntax that is newer than the Python that runs Emberbox; the guest has its own."""
    if source.root.has_error:
        return False
    if (error.msg or "").startswith("f-string"):
        return True
    return any(node.type in _NEWER_SYNTAX for node in walk(source.root))


def _finding(source: Source, error: SyntaxError) -> Finding:
    line = min(max(error.lineno or 1, 1), source.code.count("\n") + 1)
    snippet = source.line_text(line)
    column = max(error.offset or 1, 1)
    if isinstance(error, IndentationError):  # the compiler points into the indent; people look at the word behind it
        column = len(snippet) - len(snippet.lstrip()) + 1
    return Finding(rule="syntax", message=error.msg or "invalid syntax", line=line, column=column, snippet=snippet)


def _bad_character(source: Source) -> int:
    for index, char in enumerate(source.code):
        if char == "\0" or "\ud800" <= char <= "\udfff":
            return len(Source.encode(source.code[:index]))
    return 0


def _plain(error: BaseException) -> str:
    if isinstance(error, UnicodeError):
        return "a lone surrogate is not a character"
    if isinstance(error, RecursionError | MemoryError):
        return "too deeply nested"
    return str(error)


SPEC = LanguageSpec(CONFIG, RESTRICTIONS, DANGERS, "tree_sitter_python", _check, _syntax, commands_in, python_of)
