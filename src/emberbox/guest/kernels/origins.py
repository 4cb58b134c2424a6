"""Where code of cells comes from: for `inspect.getsource` of classes, and for processes that import `__main__` anew."""

from __future__ import annotations

import ast
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List

    from .errors import Sources
    from .modules import Watcher


def listen(modules: Watcher, sources: Sources) -> None:
    """Tell `inspect` and `multiprocessing` about cells, once they are loaded."""
    modules.want("inspect", lambda inspect: _tell_inspect(inspect, sources))
    modules.want("multiprocessing.spawn", lambda spawn: _tell_spawn(spawn, sources))


def _tell_inspect(inspect: Any, sources: Sources) -> None:
    getfile = inspect.getfile

    def getfile_of_cell(object: Any) -> Any:  # noqa: A002 - the parameter's name is that of the original
        if isinstance(object, type) and object.__module__ == "__main__":
            cell = _cell_of(object, sources)
            if cell is not None:
                return cell
        return getfile(object)

    getfile_of_cell.__name__, getfile_of_cell.__doc__ = "getfile", getfile.__doc__
    inspect.getfile = getfile_of_cell


def _cell_of(cls: type, sources: Sources) -> str | None:
    for value in vars(cls).values():
        code = getattr(getattr(value, "__wrapped__", value), "__code__", None)
        if code is not None and code.co_filename.startswith("<cell "):
            return str(code.co_filename)
    defined = re.compile(rf"^[ \t]*class[ \t]+{re.escape(cls.__name__)}\b", re.MULTILINE)
    return next((name for name, text in reversed(sources.texts()) if defined.search(text)), None)


def _tell_spawn(spawn: Any, sources: Sources) -> None:
    get_preparation_data = spawn.get_preparation_data

    def preparation_data(name: str) -> Any:
        data = get_preparation_data(name)
        if data.pop("init_main_from_path", None) is not None:
            data["init_main_from_path"] = _file_of_definitions(sources)
        return data

    spawn.get_preparation_data = preparation_data


def _file_of_definitions(sources: Sources) -> str:
    """A file with what the cells define: a new process that ran all of them would do everything twice."""
    import tempfile

    folder = os.path.join(tempfile.gettempdir(), f"cells-{os.getpid()}")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "main.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n\n".join(_definitions(text) for _, text in sources.texts()))
    return path


def _definitions(source: str) -> str:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    kept: List[ast.stmt] = [statement for statement in tree.body if _defines(statement)]
    lines = source.split("\n")
    return "\n".join(
        "\n".join(lines[_first_line(statement) - 1 : statement.end_lineno])
        for statement in kept
        if _alone(statement, tree)
    )


def _first_line(statement: ast.stmt) -> int:
    decorators: List[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _alone(statement: ast.stmt, tree: ast.Module) -> bool:
    """Whether its lines hold no other statement."""
    return not any(
        other is not statement
        and other.lineno <= (statement.end_lineno or 0)
        and (other.end_lineno or 0) >= statement.lineno
        for other in tree.body
    )


def _defines(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return True
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        return not any(isinstance(node, (ast.Call, ast.Await, ast.Yield)) for node in ast.walk(statement.value))
    return False
