"""State has one owner: no module assigns an attribute of a `SandboxInstance`, or of a `Node` of a snapshot tree, but
the one that has the class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import emberbox

SOURCE = Path(emberbox.__file__).parent


@dataclass(frozen=True)
class Owned:
    """A class whose attributes only its own module assigns."""

    name: str
    module: Path
    customary: frozenset[str]
    """What its objects are called where nothing says their type."""
    attributes: frozenset[str]
    """Some of its attributes, which must be found."""
    makers: frozenset[str]
    """Some of the functions that return one, which must be found."""


SANDBOX = Owned(
    "SandboxInstance",
    SOURCE / "sandbox/instance.py",
    frozenset({"session", "instance", "sandbox", "owner", "origin", "copy", "child", "fork"}),
    frozenset({"lineage", "machine", "state", "idle_seconds", "last_used", "envs", "metadata"}),
    frozenset({"get_sandbox", "list_sandboxes", "branch", "lease"}),
)
NODE = Owned(
    "Node",
    SOURCE / "sandbox/snapshots/tree.py",
    frozenset({"node", "snapshot", "newest"}),
    frozenset({"moment", "snapshot", "ephemeral", "users", "stopping"}),
    frozenset({"find", "current", "parent", "snapshot"}),
)
MUTATING = frozenset({"append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "update"})


def attributes_of(module: ast.Module, owned: Owned) -> set[str]:
    """Names that the class assigns to `self`, or declares as a dataclass does."""
    made = _class_of(module, owned)
    targets = [target for node in ast.walk(made) for target in targets_of(node)]
    assigned = {t.attr for t in targets if isinstance(t, ast.Attribute) and _last_word(t.value) == "self"}
    return assigned | {_last_word(node.target) for node in made.body if isinstance(node, ast.AnnAssign)}


def containers_of(module: ast.Module, owned: Owned) -> set[str]:
    """Those of them that are dictionaries, lists or sets, which can change without being assigned."""
    found = set()
    for node in ast.walk(_class_of(module, owned)):
        match node:
            case (
                ast.Assign(targets=[ast.Attribute(attr=name)], value=value)
                | ast.AnnAssign(target=ast.Attribute(attr=name), value=ast.expr() as value)
            ):
                if isinstance(value, ast.Dict | ast.List | ast.Set) or _last_word(value) in {"dict", "list", "set"}:
                    found.add(name)
    return found


def _class_of(module: ast.Module, owned: Owned) -> ast.ClassDef:
    (found,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == owned.name)
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


def _says(annotation: ast.expr | None, owned: Owned) -> bool:
    return annotation is not None and owned.name in {
        *(node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)),
        *(node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant)),
    }


def makers_in(module: ast.Module, owned: Owned) -> set[str]:
    """Functions that return one, or some."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {function.name.lstrip("_") for function in functions if _says(function.returns, owned)}


def objects_in(module: ast.Module, makers: set[str], owned: Owned) -> set[str]:
    """Names of such objects in a module: by annotation, by what made them, by custom."""
    found = set(owned.customary)
    for node in ast.walk(module):
        match node:
            case ast.arg(arg=name, annotation=annotation) if _says(annotation, owned):
                found.add(name)
            case ast.AnnAssign(target=target, annotation=annotation) if _says(annotation, owned):
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
    module: ast.Module, owned: Owned, attributes: set[str], containers: set[str], makers: set[str]
) -> list[tuple[int, str]]:
    """Line and text of each write to an attribute of such an object."""
    objects = objects_in(module, makers, owned) | makers
    found = []
    for node in ast.walk(module):
        written = [(target, attributes) for target in targets_of(node)]
        written += [(target, containers) for target in changed_by(node)]
        for target, names in written:
            if isinstance(target, ast.Attribute) and target.attr in names and _last_word(target.value) in objects:
                found.append((target.value.lineno, ast.unparse(target)))
    return found


def parsed() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize("owned", [SANDBOX, NODE], ids=lambda owned: owned.name)
def test_nobody_but_its_module_assigns_its_attributes(owned: Owned) -> None:
    modules = parsed()
    attributes = attributes_of(modules[owned.module], owned)
    containers = containers_of(modules[owned.module], owned)
    assert owned.attributes <= attributes
    assert containers <= attributes
    makers = {maker for module in modules.values() for maker in makers_in(module, owned)}
    assert owned.makers <= makers
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text}"
        for path, module in modules.items()
        if path != owned.module
        for line, text in foreign_writes(module, owned, attributes, containers, makers)
    ]
    assert found == [], f"say what happened with a method of {owned.name}"


def test_a_sandboxs_environment_and_words_are_containers() -> None:
    module = ast.parse(SANDBOX.module.read_text(encoding="utf-8"))
    assert {"envs", "metadata"} <= containers_of(module, SANDBOX)


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
    assert foreign_writes(module, SANDBOX, attributes, {"metadata"}, {"lease", "list_sandboxes"})


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
    assert foreign_writes(module, SANDBOX, {"machine", "state", "files"}, {"state"}, set()) == []


@pytest.mark.parametrize(
    "line",
    [
        "node.moment = now",
        "tree.current().moment = now",
        "old = tree.find('a'); old.ephemeral = True",
        "one.users += 1",
    ],
)
def test_a_write_to_a_snapshots_node_is_found(line: str) -> None:
    module = ast.parse(f"def f(self, one: Node | None, node, tree, now):\n    {line}\n")
    assert foreign_writes(module, NODE, {"moment", "ephemeral", "users"}, set(), {"current", "find"})
