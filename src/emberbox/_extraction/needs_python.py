"""What a Python block defines and needs, from its syntax tree and the compiler's own table of names."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterator

from emberbox._extraction.needs import MAX_NAMES, NOTHING, Needs
from emberbox.hooks._imports_python import NAMES as IMPORTABLE

_KNOWN = frozenset(dir(builtins)) | {
    "__file__", "__name__", "__doc__", "__builtins__", "__annotations__", "__class__", "__module__", "__qualname__",
    "get_ipython", "display", "In", "Out", "_", "__", "exit", "quit", "reveal_type",
}  # fmt: skip
_MAGIC = re.compile(r"^([ \t]*)(?:![ \t]*[\w./~]|%{1,2}\w).*$", re.MULTILINE)
_CELL_MAGIC = re.compile(r"\s*%%(?:time|timeit|capture)\b[^\n]*\n")
_FILE = re.compile(r"[\w./ -]{1,100}\.[A-Za-z]\w{0,5}")
_READS = frozenset(
    {"open", "read_csv", "read_excel", "read_json", "read_parquet", "read_table", "read_pickle", "imread", "loadtxt"}
    | {"genfromtxt", "ZipFile", "load_workbook", "read_feather", "scan_csv"}
)
_WRITES = frozenset(
    {"to_csv", "to_excel", "to_json", "to_parquet", "to_pickle", "savefig", "savetxt", "save", "write_text"}
    | {"write_bytes", "imwrite", "touch", "write_csv", "write_image", "write_html", "to_html"}
)
_PROJECTS = frozenset(
    {"django", "discord", "telegram", "kivy", "bpy", "unreal", "rest_framework", "RPi", "scrapy", "airflow", "odoo"}
)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SILENT = (*_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass)


def without_magics(code: str) -> str:
    """The code as Python: the lines that only a notebook understands (`!pip …`, `%matplotlib`) do nothing."""
    return _MAGIC.sub(r"\1pass", _CELL_MAGIC.sub("\n", code, count=1)) if "!" in code or "%" in code else code


def python_needs(code: str) -> Needs:
    """Reads one block; nothing is needed by what does not parse."""
    tree, text = _parsed(code)
    if tree is None:
        return NOTHING
    try:
        defines, free = _names(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return NOTHING
    own = [node for node in tree.body if isinstance(node, _DEFINITIONS)]
    nodes = list(ast.walk(tree))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    makes, reads = _files(calls)
    guarded = any(isinstance(node, ast.Name) and node.id == "FileNotFoundError" for node in nodes)
    files = () if guarded else tuple(name for name in reads if name not in makes)
    starred = any(isinstance(node, ast.ImportFrom) and any(one.name == "*" for one in node.names) for node in nodes)
    used = {node.id: node.lineno for node in reversed(nodes) if isinstance(node, ast.Name)}
    names = [] if starred else sorted(free - IMPORTABLE, key=lambda name: (used.get(name, 0), name))
    packages = tuple(dict.fromkeys(_packages(nodes)))
    return Needs(
        defines=frozenset(list(defines)[:MAX_NAMES]),
        functions=frozenset(node.name for node in own),
        names=tuple(names),
        files=files,
        makes=makes,
        acts=any(_acts(node) for node in tree.body),
        waits=_waits(nodes, defines),
        method=next((node.name for node in own if _takes_self(node)), ""),
        packages=packages,
    )


def _parsed(code: str) -> tuple[ast.Module | None, str]:
    for text in dict.fromkeys((code, without_magics(code), textwrap.dedent(without_magics(code)))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(text), text
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None, code


def _names(code: str) -> tuple[dict[str, None], set[str]]:
    """What the module defines, in the order of the text, and what it uses without defining it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        top = symtable.symtable(code, "<block>", "exec")
    defines = {
        symbol.get_name(): None
        for symbol in top.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }
    free: set[str] = set()
    tables = [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_declared_global() and symbol.is_assigned():
                defines.setdefault(symbol.get_name())
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                free.add(symbol.get_name())
    return defines, free - _KNOWN - defines.keys()


def _acts(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return any(isinstance(inner, ast.Call | ast.Await) for inner in ast.walk(node))
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant) or not isinstance(node.value.value, str)
    return not isinstance(node, _SILENT)


def _takes_self(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = [*node.args.posonlyargs, *node.args.args]
    return bool(arguments) and arguments[0].arg in {"self", "cls"}


def _waits(nodes: list[ast.AST], defines: dict[str, None]) -> str:
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input":
            if "input" not in defines:
                return "input()"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            word = f"{node.value.id}.{node.attr}"
            if word in {"sys.stdin", "getpass.getpass"} and node.value.id in defines:
                return word
    return ""


def _packages(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            elif (node.module or "").partition(".")[0] in _PROJECTS:
                yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.partition(".")[0] in _PROJECTS)


def _files(calls: list[ast.Call]) -> tuple[frozenset[str], list[str]]:
    """Files that calls write, and those that they read, as far as their names stand in the code."""
    makes: set[str] = set()
    reads: list[str] = []
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        first: object = next((arg.value for arg in call.args[:1] if isinstance(arg, ast.Constant)), None)
        if name in {"write_text", "write_bytes", "touch", "read_text", "read_bytes"}:
            first = _path(call)
        if not isinstance(first, str) or not _FILE.fullmatch(first) or first.startswith("/"):
            continue
        if name in _WRITES or (name == "open" and set(_mode(call)) & set("wax+")):
            makes.add(first)
        elif name in _READS or name.startswith("read_"):
            reads.append(first)
    return frozenset(makes), reads


def _path(call: ast.Call) -> object:
    """The x of `Path("x").read_text()`."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(owner, ast.Call) and owner.args and isinstance(owner.args[0], ast.Constant):
        return owner.args[0].value
    return None


def _mode(call: ast.Call) -> str:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[1:2]
    value = given[0].value if given and isinstance(given[0], ast.Constant) else None
    return value if isinstance(value, str) else ""
