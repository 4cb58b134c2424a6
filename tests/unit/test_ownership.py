"""A sandbox's state has one owner: no module assigns an attribute of a `SandboxInstance` but its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import emberbox

SOURCE = Path(emberbox.__file__).parent
OWNER = SOURCE / "sandbox/instance.py"
NAMES = frozenset({"session", "instance", "sandbox", "owner", "origin", "copy", "child", "fork"})
"""What sandboxes are called where nothing says their type."""
MUTATING = frozenset({"append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "update"})


def attributes_of(owner: ast.Module) -> set[str]:
    """Names that the class assigns to `self`."""
    targets = [target for node in ast.walk(_session_of(owner)) for target in targets_of(node)]
    return {t.attr for t in targets if isinstance(t, ast.Attribute) and _last_word(t.value) == "self"}


def containers_of(owner: ast.Module) -> set[str]:
    """Those of them that are dictionaries, lists or sets, which can change without being assigned."""
    found = set()
    for node in ast.walk(_session_of(owner)):
        match node:
            case (
                ast.Assign(targets=[ast.Attribute(attr=name)], value=value)
                | ast.AnnAssign(target=ast.Attribute(attr=name), value=ast.expr() as value)
            ):
                if isinstance(value, ast.Dict | ast.List | ast.Set) or _last_word(value) in {"dict", "list", "set"}:
                    found.add(name)
    return found


def _session_of(owner: ast.Module) -> ast.ClassDef:
    (found,) = (node for node in owner.body if isinstance(node, ast.ClassDef) and node.name == "SandboxInstance")
    return found


def targets_of(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement (or an expression within one) writes to or removes."""
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            yield from (leaf for target in targets for leaf in _leaves(target))
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
            yield from _leaves(target)
        case ast.withitem(optional_vars=ast.expr() as target):
            yield from _leaves(target)
        case ast.Call(func=ast.Name(id="setattr" | "delattr"), args=[one, ast.Constant(value=str(name)), *_]):
            yield ast.Attribute(one, name)


def _leaves(target: ast.expr) -> Iterator[ast.expr]:
    match target:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            yield from (leaf for part in parts for leaf in _leaves(part))
        case ast.Starred(value=inner) | ast.Subscript(value=inner):
            yield from _leaves(inner)
        case _:
            yield target


def _last_word(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lstrip("_")
        case ast.Call(func=function):
            return _last_word(function)
        case ast.Await(value=inner):
            return _last_word(inner)
    return ""


def _says_session(annotation: ast.expr | None) -> bool:
    return annotation is not None and "SandboxInstance" in {
        *(node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)),
        *(node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant)),
    }


def makers_in(module: ast.Module) -> set[str]:
    """Functions that return a sandbox, or some."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name.lstrip("_") for function in functions if _says_session(function.returns)}


def sandboxes_in(module: ast.Module, makers: set[str]) -> set[str]:
    """Names of sandboxes in a module: by annotation, by what made them, by custom."""
    found = set(NAMES)
    for node in ast.walk(module):
        match node:
            case ast.arg(arg=name, annotation=annotation) if _says_session(annotation):
                found.add(name)
            case ast.AnnAssign(target=target, annotation=annotation) if _says_session(annotation):
                found.add(_last_word(target))
            case ast.Assign(targets=[target], value=value) | ast.For(target=target, iter=value):
                if _last_word(value) in makers:
                    found.add(_last_word(target))
            case ast.comprehension(target=target, iter=value) if _last_word(value) in makers:
                found.add(_last_word(target))
    return found - {"", "self"}


def changed_by(node: ast.AST) -> Iterator[ast.expr]:
    """The container that a call changes."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute() as target, attr=method)) if method in MUTATING:
            yield target


def foreign_writes(
    module: ast.Module, attributes: set[str], containers: set[str], makers: set[str]
) -> list[tuple[int, str]]:
    """Line and text of each write to an attribute of a sandbox."""
    sandboxes = sandboxes_in(module, makers) | makers
    found = []
    for node in ast.walk(module):
        written = [(target, attributes) for target in targets_of(node)]
        written += [(target, containers) for target in changed_by(node)]
        for target, names in written:
            if isinstance(target, ast.Attribute) and target.attr in names and _last_word(target.value) in sandboxes:
                found.append((target.value.lineno, ast.unparse(target)))
    return found


def parsed() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def test_nobody_but_a_sandbox_assigns_its_attributes() -> None:
    modules = parsed()
    attributes = attributes_of(modules[OWNER])
    assert {"lineage", "machine", "state", "idle_seconds", "last_used"} <= attributes
    containers = containers_of(modules[OWNER])
    assert {"envs", "metadata"} <= containers <= attributes
    makers = {maker for module in modules.values() for maker in makers_in(module)}
    assert {"get_sandbox", "list_sandboxes", "branch", "lease"} <= makers
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path, module in modules.items()
        if path != OWNER
        for line, text in foreign_writes(module, attributes, containers, makers)
    ]
    assert found == [], "say what happened with a method of Session"


@pytest.mark.parametrize(
    "line",
    [
        "session.lineage = other",
        "self._sandbox.machine = other",
        "self._owner.last_used += 1",
        "a, (child.state, *_) = one",
        "del copy.machine",
        "one.state = 'killed'",
        "made = await engine.lease('a'); made.idle_seconds = 7",
        "for each in await engine.list_sandboxes(): each.machine = None",
        "(await engine.lease('a')).machine = None",
        "session.metadata.update(name='a')",
        "session.metadata['name'] = 'a'",
        "setattr(session, 'machine', None)",
    ],
)
def test_such_a_line_is_found(line: str) -> None:
    module = ast.parse(f"async def f(self, one: SandboxInstance | None, session, engine):\n    {line}\n")
    attributes = {"lineage", "machine", "state", "last_used", "idle_seconds", "metadata"}
    assert foreign_writes(module, attributes, {"metadata"}, {"lease", "list_sandboxes"})


@pytest.mark.parametrize(
    "line",
    [
        "self.machine = None",
        "session.name = 1",
        "x = session.machine",
        "info.state = 1",
        "session.used(7)",
        "session.files.remove('a')",
    ],
)
def test_any_other_is_not(line: str) -> None:
    module = ast.parse(f"def f(self, session, info):\n    {line}\n")
    assert foreign_writes(module, {"machine", "state", "files"}, {"state"}, set()) == []
