"""Write the synchronous twins of the asynchronous classes, fully typed, from the source of those.

    python tools/generate_sync.py            # write them
    python tools/generate_sync.py --check    # exit with 1 where one is not up to date

Each method of a twin has the parameters, defaults and documentation of the original, and has the original run on the
portal's thread. Callbacks (`on_…`) are relayed to the caller's thread. What is a twin's own stands in the tables.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
OUTPUTS = {"emberbox/sdk/_sync.py": ["emberbox.sdk.commands", "emberbox.sdk.files", "emberbox.sdk.sandbox"]}
OUTPUTS |= {"emberbox/clients/_sync.py": ["emberbox.clients.vm_execution"]}
TWINS = {"AsyncCommandHandle": "CommandHandle", "AsyncCommands": "Commands", "AsyncFiles": "Files"}
TWINS |= {"AsyncSandbox": "Sandbox", "VmExecutionClient": "VmExecutionClientSync"}
PORTALS = {"AsyncSandbox": "PortalThread()", "VmExecutionClient": "PortalThread('client', 'closed')"}
"""Made for the twins that have one of their own."""
CALLS = {"Sandbox.kill": "finish", "Sandbox.disconnect": "finish", "Sandbox.history": "call_anew"}
CALLS |= {"VmExecutionClientSync.close": "finish"}
"""Methods that are not run by `PortalThread.call`."""
BEFORE = {"Sandbox.disconnect": "if not self.is_remote:\n    return"}
BEFORE |= {"Sandbox.is_running": "if self._portal.ended:\n    return False"}
"""What methods do before they call the original."""
WITHOUT = {"engine"}
"""Parameters that twins lack: an engine belongs to the event loop of its maker."""
NAMES = {"AsyncIterator": "Iterator", "aclose": "close", "__aenter__": "__enter__", "__aexit__": "__exit__", **TWINS}
WORDS = {r"\bawait ": "", r"\ban async ": "a ", r"\basync ": "", "another task": "another thread"}
WORDS |= {"plain functions or coroutine functions": "in the caller's thread"}
WORDS |= {rf"\b{original}\b": name for original, name in NAMES.items()}
"""What the documentation says otherwise."""
HEAD = '''"""The synchronous twins of {}.

Generated from these by tools/generate_sync.py, and not to be edited."""
from __future__ import annotations
from collections.abc import Iterator
from typing import Any, cast
from emberbox.sdk.portal import CallbackRelay, PortalThread, Twin
'''
Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Renamed(ast.NodeTransformer):
    """Puts the twin's names and plain calls in the place of asynchronous ones."""

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.generic_visit(node) and node.value

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(NAMES.get(node.id, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Attribute(self.visit(node.value), NAMES.get(node.attr, node.attr))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        own = PORTALS.get(ast.unparse(node.func))
        self.generic_visit(node)
        node.args[:0] = [_expression(own)] if own else []
        return node


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _documentation(node: Function | ast.ClassDef) -> list[ast.stmt]:
    text = ast.get_docstring(node, clean=False)
    if text is None:
        return []
    for name in WITHOUT:  # the lines of an entry after its first are further in
        text = re.sub(rf"\n( +){name}: .*(\n\1 +.*)*", "", text)
    for old, new in WORDS.items():
        text = re.sub(old, new, text)
    return [ast.Expr(ast.Constant(text))]


def _converted(annotation: ast.expr, value: str, portal: str = "self._portal") -> str:
    """What a twin has in the place of a value of the original's."""
    match annotation:
        case ast.Name(id=name) if name in TWINS:
            return f"{TWINS[name]}({PORTALS.get(name, portal)}, {value})"
        case ast.Subscript(value=ast.Name(id="AsyncIterator")):
            return f"{portal}.pieces({value})"
        case ast.Subscript(value=ast.Name(id="list"), slice=ast.Name(id=name) as one) if name in TWINS:
            return f"[{_converted(one, 'one')} for one in {value}]"
        case ast.BinOp(left=left, right=right) if (made := _converted(right, value)) != value:
            kind = right.value if isinstance(right, ast.Subscript) else right
            return f"{made} if isinstance({value}, {ast.unparse(kind)}) else {_converted(left, value)}"
    return value


def _call(function: str, args: ast.arguments) -> str:
    """The call of the original, with what the twin was called with."""
    if args.vararg or args.kwarg:
        raise SystemExit(f"{function}: name each parameter, so that the twin can pass it on.")
    passed = [(one, "") for one in args.args[1:]] + [(one, f"{one.arg}=") for one in args.kwonlyargs]
    given = [key + (f"relay.wrap({one.arg})" if one.arg.startswith("on_") else one.arg) for one, key in passed]
    return f"{function}({', '.join(given)})"


def _statements(node: Function, original: str, *, overloaded: bool) -> Iterator[str]:
    """What a method does: have the original run."""
    if "classmethod" in map(ast.unparse, node.decorator_list):
        yield f"portal = {PORTALS[original]}"
        yield f"return cls(portal, portal.first(lambda: {_call(f'{original}.{node.name}', node.args)}))"
        return
    key = f"{TWINS[original]}.{NAMES.get(node.name, node.name)}"
    yield BEFORE.get(key, "")
    parameters = {one.arg for one in [*node.args.args, *node.args.kwonlyargs]}
    relay = ""
    if any(one.startswith("on_") for one in parameters):
        relay = ", relay"
        yield f"relay = CallbackRelay({'direct=background' if 'background' in parameters else ''})"
    function = f"{'cast(Any, self._original)' if overloaded else 'self._original'}.{node.name}"
    run = f"self._portal.{CALLS.get(key, 'call')}(lambda: {_call(function, node.args)}{relay})"
    kind = ast.unparse(node.returns or ast.Constant(None))
    result = _converted(_expression(kind), "result")
    if overloaded or result != "result":
        yield f"result: {kind} = {run}\nreturn {result}"
    else:
        yield run if kind == "None" else f"return {run}"


def _method(node: Function, original: str, *, overloaded: bool) -> ast.FunctionDef:
    """The twin of one method."""
    kept = [arg.arg not in WITHOUT for arg in node.args.kwonlyargs]
    node.args.kw_defaults = [one for one, keep in zip(node.args.kw_defaults, kept, strict=True) if keep]
    node.args.kwonlyargs = [one for one, keep in zip(node.args.kwonlyargs, kept, strict=True) if keep]
    documentation, kinds = _documentation(node), {ast.unparse(one) for one in node.decorator_list}
    body = node.body[len(documentation) :]
    if "property" in kinds:
        made = ast.parse(f"return self._original.{node.name}").body
    elif "overload" in kinds or node.name.startswith("__"):
        made = [_Renamed().visit(one) for one in body]
    else:
        made = ast.parse("\n".join(_statements(node, original, overloaded=overloaded))).body
        match body:
            case [ast.Try(handlers=[one])] if f"{original}(" in ast.unparse(one):  # an error that carries originals
                made = [ast.Try(made, [_Renamed().visit(one)], [], [])]
    decorators = [one for one in node.decorator_list if ast.unparse(one) != "abstractmethod"]
    returns = _Renamed().visit(deepcopy(node.returns)) if node.returns else None
    name, arguments = NAMES.get(node.name, node.name), _Renamed().visit(node.args)
    return ast.FunctionDef(name, arguments, [*documentation, *made], decorators, returns)


def _constructor(node: ast.ClassDef) -> Iterator[ast.stmt]:
    """The constructor of a twin that has attributes, or that users make."""
    lines, head = ["super().__init__(portal, original)"], f"self, portal: PortalThread, original: {node.name}"
    made = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    if made is not None and "classmethod" not in ast.unparse(node):
        head = ast.unparse(made.args)
        lines = [f"portal = {PORTALS[node.name]}", "original = portal.first(make)", *lines]
        lines = [f"async def make() -> {node.name}:\n        return {_call(node.name, made.args)}", *lines]
    for one in node.body:
        if isinstance(one, ast.AnnAssign):
            name = ast.unparse(one.target)
            lines.append(f"self.{name} = {_converted(one.annotation, f'original.{name}', 'portal')}")
    if len(lines) > 1:
        yield from ast.parse("\n    ".join([f"def __init__({head}) -> None:", *lines])).body


def _class(node: ast.ClassDef) -> ast.ClassDef:
    """The twin of one class."""
    methods = [one for one in node.body if isinstance(one, Function)]
    overloads = {one.name for one in methods if "overload" in map(ast.unparse, one.decorator_list)}
    public = [one for one in methods if one.name in NAMES or not one.name.startswith("_")]
    body = [*_documentation(node), *_constructor(node)]
    body += [_method(one, node.name, overloaded=one.name in overloads) for one in public]
    return ast.ClassDef(TWINS[node.name], [_expression(f"Twin[{node.name}]")], [], body, [])


def generated(output: str) -> str:
    """The text of one module of twins."""
    body: list[ast.stmt] = ast.parse(HEAD.format(", ".join(f"`{source}`" for source in OUTPUTS[output]))).body
    for_types: list[ast.stmt] = []
    twins: list[ast.stmt] = []
    for source in OUTPUTS[output]:
        tree = ast.parse((SOURCE / f"{source.replace('.', '/')}.py").read_text(encoding="utf-8"))
        found = [one.targets[0] for one in tree.body if isinstance(one, ast.Assign)]
        names = [one.id for one in found if isinstance(one, ast.Name) and one.id.isupper()]
        names += [one.name for one in tree.body if isinstance(one, ast.ClassDef)]
        body.append(ast.ImportFrom(source, [ast.alias(one) for one in names], 0))
        body += [one for one in tree.body[2:] if isinstance(one, ast.ImportFrom)]
        for_types += [one for one in tree.body if isinstance(one, ast.If)]
        twins += [_class(one) for one in tree.body if isinstance(one, ast.ClassDef) and one.name in TWINS]
    text = ast.unparse(ast.fix_missing_locations(ast.Module([*body, *for_types, *twins], [])))
    for command in (["check", "--fix", "--select", "F401,F811,I", "--exit-zero"], ["format"]):
        argv = [sys.executable, "-m", "ruff", *command, "--quiet", "--stdin-filename", str(SOURCE / output), "-"]
        text = subprocess.run(argv, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main() -> None:
    """Write what is not up to date, or complain of it."""
    for output in OUTPUTS:
        path, text = SOURCE / output, generated(output)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            if "--check" in sys.argv[1:]:
                raise SystemExit(f"{path} is not up to date: run python tools/generate_sync.py.")
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
