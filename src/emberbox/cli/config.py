"""`emberbox config …`: the settings in force, a file checked, an example of all of them."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from emberbox.cli.exits import Exit, fail
from emberbox.cli.printing import printable
from emberbox.config import Settings, load_settings
from emberbox.config.example import example
from emberbox.errors import ConfigError, VmExecutionError
from emberbox.hooks.loading import manager_of
from emberbox.languages.policy import Policy

_COLOURS = {"default": "dim", "file": "green", "environment": "cyan"}
_PASSWORD = re.compile(r"(://[^:/@\s]*):[^@/\s]+@")


def print_example() -> None:
    """The settings file with everything explained; leaves the process."""
    print(example(), end="")
    sys.exit(int(Exit.SUCCESS))


# --- show -------------------------------------------------------------------------------------------------------------


def show(*, as_json: bool) -> None:
    """The settings in force, where each comes from, and which file was read; leaves the process."""
    try:
        settings = load_settings()
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    path = settings_file()
    rows = list(_rows(settings, path))
    if as_json:
        told = {key: {"value": value, "from": source} for key, value, source in rows}
        print(json.dumps({"file": None if path is None else str(path), "settings": told}, indent=2, ensure_ascii=False))
    else:
        _show(Console(highlight=False, soft_wrap=True), path, rows)
    sys.exit(int(Exit.SUCCESS))


def settings_file() -> Path | None:
    """The file that `load_settings` reads here and now; None where there is none."""
    named = os.environ.get("EMBERBOX_CONFIG")
    places = [Path(named)] if named else [Path("emberbox.toml"), Path.home() / ".config/emberbox/emberbox.toml"]
    return next((path.absolute() for path in places if path.is_file()), None)


def _rows(settings: Settings, path: Path | None) -> Iterator[tuple[str, Any, str]]:
    """Name, value and source of each setting; passwords in addresses are not shown."""
    in_file = {} if path is None else dict(_flat(tomllib.loads(path.read_text(encoding="utf-8"))))
    for key, value in _settings(settings, ""):
        yield key, _hidden(value), _source(key, in_file)


def _settings(model: BaseModel, path: str) -> Iterator[tuple[str, Any]]:
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", model.model_dump(mode="json", include={name})[name]


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """All keys of a table, those of tables in it included."""
    for name, value in table.items():
        yield f"{path}{name}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")


def _source(key: str, in_file: Mapping[str, Any]) -> str:
    parts = key.split(".")
    # a variable may hold a whole table, as JSON
    for length in range(len(parts), 0, -1):
        if os.environ.get(f"EMBERBOX_{'__'.join(parts[:length])}".upper()) is not None:
            return "environment"
    return "file" if key in in_file else "default"


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1:***@", value)
    if isinstance(value, list):
        return [_hidden(one) for one in value]
    return {key: _hidden(one) for key, one in value.items()} if isinstance(value, dict) else value


def _show(console: Console, path: Path | None, rows: list[tuple[str, Any, str]]) -> None:
    told = "no file was read" if path is None else f"file: {escape(str(path))}"
    console.print(f"[bold]{told}[/]")
    for key, value, source in rows:
        text = "not set" if value is None else printable(json.dumps(value, ensure_ascii=False))
        line = Text(f"{key} = {text}", style=_COLOURS[source])
        console.print(line if source == "default" else line.append(f"  ({source})", style="bold"))


# --- check ------------------------------------------------------------------------------------------------------------


def check(file: Path, *, as_json: bool) -> None:
    """Whether a file can be used: exit code 0, or 2 with everything that is wrong with it; leaves the process.
    Variables of the environment do not count, so that none of them hides a mistake."""
    problems = problems_of(file)
    if as_json:
        print(json.dumps({"file": str(file), "problems": problems}, indent=2, ensure_ascii=False))
    else:
        console = Console(stderr=bool(problems), highlight=False, soft_wrap=True)
        if not problems:
            console.print(f"[bold green]✓[/] {escape(str(file))}: nothing to object to")
        for problem in problems:
            console.print(f"[bold red]✗[/] {escape(printable(f'{file}: {problem}'))}")
    sys.exit(int(Exit.USAGE if problems else Exit.SUCCESS))


def problems_of(file: Path) -> list[str]:
    """Everything that is wrong with a settings file: keys and values, then rules of one's own and hooks."""
    variables = [name for name in os.environ if name.startswith("EMBERBOX_")]
    kept = {name: os.environ.pop(name) for name in variables}
    os.environ["EMBERBOX_CONFIG"] = str(file)
    try:
        settings = Settings()
        policy = Policy(settings.vm_execution.policy)
        manager_of(settings.hooks, settings.vm_execution, policy)
    except ValidationError as exc:
        return [f"{'.'.join(map(str, one['loc'])) or 'settings'}: {one['msg']}" for one in exc.errors()]
    except ConfigError as exc:
        return [exc.message]
    finally:
        del os.environ["EMBERBOX_CONFIG"]
        os.environ.update(kept)
    return []
