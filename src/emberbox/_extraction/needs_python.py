"""What a Python block defines and needs, from its syntax tree and the compiler's own table of names."""

from __future__ import annotations

import ast
import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Iterator

from emberbox._extraction.modules import is_known
from emberbox._extraction.needs import MAX_NAMES, NOTHING, Needs, word_set
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
_SHOWS = word_set(
    """
    print pprint display show write writelines stdout input run call check_call check_output Popen system execute
    executemany commit makedirs mkdir remove unlink rename replace rmtree copy copyfile copytree move urlretrieve send
    sendall put post publish exec run_until_complete gather main start serve imshow plot
    """
)
"""Names of calls whose effect is seen outside of the program, or which run what is."""
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SILENT = (*_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass)


_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)


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
    return Needs(
        defines=frozenset(list(defines)[:MAX_NAMES]),
        functions=frozenset(node.name for node in own),
        names=tuple(names),
        files=files,
        makes=makes,
        acts=any(_acts(node) for node in tree.body),
        waits=_waits(nodes, defines),
        method=next((node.name for node in own if _takes_self(node)), ""),
        packages=tuple(dict.fromkeys(_packages(nodes))),
        unknown=tuple(dict.fromkeys(_unknown(nodes))),
        uses=frozenset(free),
        silent=without_magics(code) == code and _is_silent(tree, nodes),
        data=bool(tree.body) and all(_is_data(node) for node in tree.body),
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


def _is_silent(tree: ast.Module, nodes: list[ast.AST]) -> bool:
    """Whether nothing can be seen of a block: imports, definitions and assignments, whose values call neither what
    writes or prints nor, where the block has such calls, what it defines itself."""
    if not tree.body or any(not isinstance(node, _ASSIGNMENTS) and _acts(node) for node in tree.body):
        return False
    own = {node.name for node in nodes if isinstance(node, _DEFINITIONS)}
    loud = any(isinstance(node, ast.Call) and _called(node) in _SHOWS | _WRITES for node in nodes)
    for node in tree.body:
        for inner in _at_once(node) if isinstance(node, _ASSIGNMENTS) else ():
            if isinstance(inner, ast.Await):
                return False
            if isinstance(inner, ast.Call):
                name = _called(inner)
                opens = name == "open" and set(_mode(inner)) & set("wax+")
                if opens or name in _SHOWS | _WRITES or (loud and name in own):
                    return False
    return True


def _at_once(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a statement that run with it, not those of a function in it."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += [child for child in ast.iter_child_nodes(one) if not isinstance(child, ast.Lambda)]


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_data(node: ast.stmt) -> bool:
    """Whether a statement gives a name to a literal."""
    if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
        return False
    computed = (ast.Name, ast.Call, ast.Attribute, ast.Lambda)
    return not any(isinstance(inner, computed) for inner in ast.walk(node.value))


def _takes_self(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    arguments = [*node.args.posonlyargs, *node.args.args]
    return bool(arguments) and arguments[0].arg in {"self", "cls"}


def _waits(nodes: list[ast.AST], defines: dict[str, None]) -> str:
    """The words with which a block waits for somebody to type; not where it puts an input of its own in the place of
    the real one, or asks whether somebody is there at all."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            words = ast.unparse(node.func) if _called(node) in _PROMPTS else ""
            if words == "input" and "input" not in defines:
                return "input()"
            if words == "open" and node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0:
                return "open(0)"
            if words == "fileinput.input" or (words == "getpass.getpass" and "getpass" in defines):
                return words
    own = any(isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_stdin(node) for node in nodes)
    guarded = any(isinstance(node, ast.Attribute) and node.attr == "isatty" for node in nodes)
    given = any(isinstance(node, ast.ImportFrom) and node.module == "sys" and _brings_stdin(node) for node in nodes)
    if own or guarded:
        return ""
    for node in nodes:
        target = _read_of(node)
        if target is not None and (_is_stdin(target) or (given and isinstance(target, ast.Name))):
            return "sys.stdin"
    return ""


_PROMPTS = frozenset({"input", "open", "getpass"})
_OF_STDIN = frozenset({"read", "readline", "readlines", "buffer", "__iter__", "__next__"})


def _is_stdin(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "stdin" and getattr(node.value, "id", "") == "sys"


def _brings_stdin(node: ast.ImportFrom) -> bool:
    return any(one.name == "stdin" and one.asname is None for one in node.names)


def _read_of(node: ast.AST) -> ast.AST | None:
    """What a node reads from: the x of `x.readline()`, `for line in x`, `f(x)`; None if it is no stream's name."""
    found: ast.AST | None = None
    if isinstance(node, ast.Attribute) and node.attr in _OF_STDIN:
        found = node.value
    elif isinstance(node, ast.For | ast.comprehension):
        found = node.iter
    elif isinstance(node, ast.Call):
        found = next((one for one in node.args if _is_stdin(one) or getattr(one, "id", "") == "stdin"), None)
    return found if found is not None and (_is_stdin(found) or getattr(found, "id", "") == "stdin") else None


def _unknown(nodes: list[ast.AST]) -> Iterator[str]:
    """Modules that are imported outside of a `try` and that nobody knows, by their first names."""
    tried = {inner for node in nodes if isinstance(node, ast.Try) for inner in node.body}
    for node in nodes:
        if node in tried:
            continue
        named = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            named = [node.module or ""]
        yield from (first for name in named if (first := name.partition(".")[0]) and not is_known(first))


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
