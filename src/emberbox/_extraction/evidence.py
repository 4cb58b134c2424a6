"""What a piece of code is: its language if nobody said it, and whether it is meant for machines or for eyes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emberbox._extraction.needs_python import without_magics
from emberbox.languages import LANGUAGES, resolve
from emberbox.models import Language

if TYPE_CHECKING:
    from tree_sitter import Node

_LOOK = 3_000  # characters at the start of a block that lexical evidence is taken from
_INFO = 500
_JSON_MAX = 50_000

_ATTRIBUTE = re.compile(r"""([A-Za-z_][\w-]{0,40})=("[^"]*"|'[^']*'|[^\s}"']+)""")
_LANGUAGE_PREFIX = re.compile(r"^(?:language|lang)-", re.IGNORECASE)

# What models write instead of a language's name, beyond the aliases that callers may use.
_OTHER_NAMES = {"tool_code": "python", "ipython": "python", "ipython3": "python", "mjs": "javascript", "zsh": "bash"}
# What agents write on the fence of the command that they want to be run.
_AGENT_NAMES = {
    "mswea_bash_command": "bash",
    "bash_command": "bash",
    "bash_exec": "bash",
    "execute_bash": "bash",
    "run_bash": "bash",
    "execute_python": "python",
    "execute_ipython": "python",
    "run_python": "python",
    "python_exec": "python",
    "python_execute": "python",
    "tool_code": "python",
    "code_execution": "python",
}
_TAGGED_AS = {
    "json": {"json", "jsonc", "json5", "jsonl", "ndjson"},
    "diff": {"diff", "patch", "udiff"},
    "transcript": {"console", "shell-session", "sh-session", "bash-session", "shellsession", "terminal", "pycon"}
    | {"python-repl", "doctest", "ipython-console", "session"},
    "output": {"output", "stdout", "stderr", "log", "result", "results", "traceback", "pytb"},
}

_EVIDENCE: dict[Language, tuple[tuple[re.Pattern[str], int], ...]] = {
    "python": (
        (re.compile(r"^[ \t]*(?:async )?def \w+\(.{0,300}:", re.M), 3),
        (re.compile(r"^[ \t]*class \w+[^{;\n]{0,200}:[ \t]*$", re.M), 3),
        (re.compile(r"^(?:import [\w.]+(?: as \w+)?(?:, ?[\w.]+)*|from [\w.]+ import [\w*(, )]+)[ \t]*$", re.M), 3),
        (re.compile(r"^[ \t]*(?:if|for|while|with|elif|try|except|else)\b[^{};\n]{0,300}:[ \t]*(?:#.*)?$", re.M), 2),
        (re.compile(r"^[ \t]*print\(", re.M), 2),
        (re.compile(r"__name__|\bself\.|\bNone\b|\bTrue\b|\brange\("), 1),
    ),
    "javascript": (
        (re.compile(r"\b(?:const|let|var) [\w{\[$][^=\n]{0,80}=(?!=)"), 3),
        (re.compile(r"\bconsole\.(?:log|error|table)\("), 3),
        (re.compile(r"^[ \t]*(?:async )?function\b[^\n]{0,200}\{", re.M), 3),
        (re.compile(r"=>\s*[{(\w]"), 1),
        (re.compile(r"^[ \t]*(?:import|export) [^\n]{0,200}from ['\"]", re.M), 3),
        (re.compile(r"\brequire\(['\"]|\bdocument\.|===|\bJSON\."), 2),
    ),
    "rust": (
        (re.compile(r"\bfn \w+\s*(?:<[^>\n]{0,80}>)?\([^\n]{0,200}\{"), 3),
        (re.compile(r"\b(?:println|eprintln|vec|format|assert_eq|panic)!\s*[(\[]"), 3),
        (re.compile(r"\blet mut \w|&mut |&str\b|\bVec<|\bOption<|\bResult<"), 2),
        (re.compile(r"^use \w+(?:::[\w{}*, ]+)+;", re.M), 3),
        (re.compile(r"^[ \t]*(?:pub )?(?:struct|enum|impl|trait|mod) \w", re.M), 2),
    ),
    "bash": (
        (
            re.compile(
                r"^[ \t]*(?:sudo|apt|apt-get|pip3?|npm|npx|yarn|cd|ls|mkdir|export|echo|curl|wget|git|cat|grep|chmod"
                r"|docker|python3?|node|cargo|rustc|source|touch|tar|sed|awk|find|cp|mv|rm|uv|bash|sh|set|ssh|brew"
                r"|kubectl|make)"
                r" (?![=(])[-\w./~\"'$@*+]",
                re.M,
            ),
            2,
        ),
        (re.compile(r"^[ \t]*(?:if \[|while \[|for \w+ in [^\n:]{0,200}(?:;|$)|case )", re.M), 3),
        (re.compile(r"^[ \t]*(?:fi|done|esac)\b", re.M), 2),
        (re.compile(r"\$\{\w+|\$\(\w|\"\$\w|^\w+=\S*[ \t]*$", re.M), 1),
        (re.compile(r"^[ \t]*\./[\w./-]+", re.M), 2),
    ),
}

_SHEBANG = re.compile(r"#![ \t]*(?:\S*/)?(?:env\s+(?:-S\s+)?)?([A-Za-z]+)[\d.]*\b")
_SHEBANG_NAMES: dict[str, Language] = {
    "python": "python",
    "node": "javascript",
    "bash": "bash",
    "sh": "bash",
    "dash": "bash",
}

_DIFF_HEAD = re.compile(r"^(?:diff --git |@@ -\d|Index: )", re.M)
_DIFF_FILES = re.compile(r"^--- \S[^\n]*\n\+\+\+ \S", re.M)
_PYTHON_PROMPT = re.compile(r"^\s*(?:>>> |>>>$|In \[\d+\]: )")
_SHELL_PROMPT = re.compile(
    r"^\s*(?:\$ \S|[\w.-]+@[\w.-]+:[^$#\n]{0,80}[$#] |\[[\w.-]+@[\w.-]+ [^\]\n]{0,80}\][$#] |PS [A-Z]:)"
)
_OUTPUT = re.compile(
    r"^(?:Traceback \(most recent call last\):|={3,} .{1,60} ={3,}\s*$|error\[E\d{4}\]|npm ERR!|\+[-=+]{3,}\+\s*$"
    r"|[A-Za-z]*(?:Error|Exception): |\[\d\d:\d\d:\d\d\]|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d|Output:|total \d+$)"
)


_EDIT_MARKS = re.compile(
    r"^(?:<{5,9}(?: |$)|>{5,9}(?: |$)|-{3,9} ?SEARCH|\*{3} (?:Begin Patch|Update File|Add File|Delete File)\b)", re.M
)
_TREE = re.compile(r"^[ \t\u2502|]*(?:\u251c|\u2514|\|--|`--|\+--)[\u2500-]* ?\S", re.M)


@dataclass(frozen=True)
class Info:
    """An info string, taken apart.

    Attributes:
        language: the language as written, "" if there is none.
        attributes: `title="x"` and its like.
        flags: the other words, lower case (`no_run`, `copy`).
        agent: the info string by which an agent marks the command that it wants to be run, if it is one.
    """

    language: str
    attributes: dict[str, str]
    flags: frozenset[str]
    agent: str = ""


NO_INFO = Info("", {}, frozenset())


def read_info(info: str) -> Info:
    """Takes an info string apart: `python title="x"`, `{.python #id}`, `rust,no_run`, `js:app.js`."""
    info = info[:_INFO]
    attributes = {key: value.strip("\"'") for key, value in _ATTRIBUTE.findall(info)}
    words = _ATTRIBUTE.sub(" ", info).replace(",", " ").replace("{", " ").replace("}", " ").split()
    words = [word.lstrip(".") for word in words if not word.startswith("#")]
    language, flags = "", words
    if words and not words[0][:1].isdigit():
        language, flags = _LANGUAGE_PREFIX.sub("", words[0]), words[1:]
        head, colon, tail = language.partition(":")
        if colon and head:
            language = head
            if tail:
                attributes.setdefault("filename", tail)
    name = language.lower()
    known = _AGENT_NAMES.get(name) or _OTHER_NAMES.get(name, language)
    return Info(known, attributes, frozenset(word.lower() for word in flags), name if name in _AGENT_NAMES else "")


def looks_like(code: str, language: str) -> str | None:  # noqa: PLR0911 - one return per kind
    """`json`, `diff`, `transcript`, `output`, `edit` (marks of an edit or a conflict) or `tree` (of folders), if the
    code is that rather than a program."""
    for kind, names in _TAGGED_AS.items():
        if language.lower() in names:
            return kind
    head = code[:_LOOK]
    known = resolve(language)
    first = next((line for line in head.splitlines() if line.strip()), "")
    if _DIFF_HEAD.search(head) or _DIFF_FILES.search(head):
        return "diff"
    if known in {None, "python"} and _PYTHON_PROMPT.match(first):
        return "transcript"
    if known in {None, "bash"} and _SHELL_PROMPT.match(first):
        return "transcript"
    if _is_json(code):
        return "json"
    if _OUTPUT.match(first):
        return "output"
    if _EDIT_MARKS.search(head):
        return "edit"
    return "tree" if len(_TREE.findall(head)) >= 2 else None


def _is_json(code: str) -> bool:
    text = code.strip()
    if len(text) < 2 or (text[0], text[-1]) not in {("{", "}"), ("[", "]")}:
        return False
    if len(text) > _JSON_MAX:
        return text[1:40].lstrip()[:1] in {'"', "{", "["}
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def detect(code: str) -> Language | None:
    """The language of code that nobody named, by its words; None if they do not tell."""
    head = code[:_LOOK]
    shebang = _SHEBANG.match(head.lstrip()[:200])
    if shebang is not None:
        return _SHEBANG_NAMES.get(shebang[1])
    scores: dict[Language, int] = {}
    for language, patterns in _EVIDENCE.items():
        scores[language] = sum(weight for pattern, weight in patterns if pattern.search(head))
    ranked = sorted(scores, key=lambda name: -scores[name])
    best, second = scores[ranked[0]], scores[ranked[1]]
    return ranked[0] if best >= 2 and best > second else None


@dataclass(frozen=True)
class Structure:
    """What the syntax tree of a block tells.

    Attributes:
        complete: it parses without an error.
        defines: it has definitions or imports at the top.
        empty: it has nothing but comments.
        runnable: false for a Rust program without `main`.
        stub: a function whose body is left out, if that is all that there is.
    """

    complete: bool
    defines: bool
    empty: bool
    runnable: bool
    stub: str = ""


_DEFINING = {
    "python": {"import_statement", "import_from_statement", "function_definition", "class_definition"}
    | {"decorated_definition", "future_import_statement"},
    "javascript": {"import_statement", "function_declaration", "class_declaration", "lexical_declaration"}
    | {"variable_declaration", "export_statement", "generator_function_declaration"},
    "bash": {"function_definition", "variable_assignment", "declaration_command"},
    "rust": {"function_item", "use_declaration", "struct_item", "enum_item", "impl_item", "mod_item", "trait_item"},
}
_DEFINING["typescript"] = _DEFINING["javascript"]


def structure(language: Language, code: str) -> Structure:
    """Parses a block and says what is in it."""
    spec = LANGUAGES[language]
    if language == "python":
        code = without_magics(code)
    top = spec.parse(code).root_node.named_children
    statements = [node for node in top if not node.type.endswith("comment")]
    main = any(node.type == "function_item" and _named(node.child_by_field_name("name")) == b"main" for node in top)
    return Structure(
        complete=not spec.syntax_findings(code),
        defines=any(node.type in _DEFINING[language] for node in statements),
        empty=not statements,
        runnable=language != "rust" or main,
        stub=_stub(statements) if language == "python" else "",
    )


_STUB = re.compile(rb"^[^\n]*:\s*(?:(?:\"\"\".*\"\"\"|#[^\n]*)\s*)*(?:pass|\.\.\.)?\s*(?:#[^\n]*\s*)*$", re.DOTALL)


def _stub(statements: list[Node]) -> str:
    """The first of the functions, where a block has nothing but functions without bodies."""
    imports = {"import_statement", "import_from_statement", "future_import_statement"}
    rest = [node for node in statements if node.type not in imports]
    for node in rest:
        inner = node.child_by_field_name("definition") or node
        body = inner.child_by_field_name("body")
        text = b"" if body is None or body.text is None else body.text
        if inner.type != "function_definition" or not _STUB.match(b":" + text[:2_000]):
            return ""
    first = (rest[0].child_by_field_name("definition") or rest[0]).child_by_field_name("name") if rest else None
    return (_named(first) or b"").decode("utf-8", "replace")


def _named(node: Node | None) -> bytes | None:
    return None if node is None else node.text
