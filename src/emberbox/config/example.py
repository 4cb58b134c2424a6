"""The settings file with every setting explained (`emberbox config example`, deploy/emberbox.toml).

It is made from the models' own fields, defaults, bounds and descriptions, so that it says what is in force. Prose
begins with `# `, a setting at its default with `#`: whoever removes that sign changes it. Heads of tables are no
comments, because a key that is uncommented below a head that is not would end up in another table.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from emberbox.config.settings import Settings
from emberbox.models import HookUse
from emberbox.models.policy import PolicySwitches, RuleConfig

_WIDTH = 100
HEAD = """\
# Every setting of Emberbox, commented out at its default. Made by `emberbox config example`.
#
# Remove the # before a setting to change it. `emberbox config check FILE` says what is wrong with a
# file, `emberbox config show` which settings are in force and where each comes from.
#
# The file that counts is that of --config, else of $EMBERBOX_CONFIG, else ./emberbox.toml, else
# ~/.config/emberbox/emberbox.toml. Environment variables win over it; a dot is written as two
# underscores there: EMBERBOX_STATE_DIR, EMBERBOX_SERVER__PORT. Unknown keys are an error.
"""
FOR_ROOT: Mapping[str, tuple[str, str]] = {
    "cache_dir": ("/root/.cache/emberbox", "below ~/.cache, or $XDG_CACHE_HOME where that is set"),
    "run_dir": ("/run/emberbox", "below $XDG_RUNTIME_DIR, or /tmp/emberbox-UID"),
    "state_dir": ("/var/lib/emberbox", "below ~/.local/state, or $XDG_STATE_HOME where that is set"),
}
"""Defaults that depend on the user: what they are for root, and where they are for others."""
SAMPLES: Mapping[str, object] = {
    "history_url": "postgresql+asyncpg://emberbox@localhost/emberbox",
    "snapshot_dir": "/var/cache/emberbox/snapshots",
    "templates_dir": "/etc/emberbox/templates",
    "debian_mirror": "https://deb.debian.org/debian",
    "runsc": "/usr/bin/runsc",
    "runsc_sha512": "0" * 128,
    "firecracker": "/usr/local/bin/firecracker",
    "jailer": "/usr/local/bin/jailer",
    "kernel": "/usr/local/lib/emberbox/vmlinux",
    "disk_bandwidth_mb": 200,
    "disk_operations": 5000,
    "qemu": "/usr/bin/qemu-system-x86_64",
    "server.token_file": "/etc/emberbox/tokens.json",
    "server.max_sandbox_seconds": 86_400.0,
    "server.otlp_endpoint": "http://localhost:4318",
}
"""What stands in the place of settings that have no value by default."""
ROWS: Mapping[str, Sequence[BaseModel]] = {
    "hooks.use": (
        HookUse(name="output-sanitizer", order=10, options={"mode": "redact"}),
        HookUse(name="execution-logger", agents=["team-*"], templates=["default"], timeout_seconds=2.0),
    ),
    "vm_execution.policy.rules": (
        RuleConfig(
            id="acme.no-push",
            language="bash",
            message="publishes to git",
            why="releases are made by people",
            uses=["git push"],
            action="ask",
        ),
        RuleConfig(
            id="acme.no-endless-loop",
            language="python",
            message="may never end",
            query="(while_statement condition: (true) @hit)",
        ),
    ),
}
"""Examples of lists of tables."""
NAMED: Mapping[str, Mapping[str, BaseModel]] = {
    "vm_execution.policy.roles": {"reviewer": PolicySwitches(ask=["*.network-shell"], enabled=["python.*"])},
    "vm_execution.policy.agents": {"ops-*": PolicySwitches(disabled=["bash.rm-rf"], ask=["bash.power"])},
}
"""Examples of tables by name."""
_UNITS = {"seconds": "seconds", "ms": "milliseconds", "hours": "hours", "mb": "MiB", "bytes": "bytes"}


def example() -> str:
    """The whole file; the same for everybody and on every host."""
    lines = [*HEAD.splitlines(), *_table(Settings.model_construct(), "")]
    return "\n".join(lines) + "\n"


def uncommented(text: str) -> str:
    """The example with every setting in force."""
    return re.sub(r"(?m)^#(?=[^\s#])", "", text)


def _table(defaults: BaseModel, path: str) -> Iterator[str]:
    """A table: its own keys, then the tables in it, then lists of tables, which no key of its own may follow."""
    fields = {f"{path}{name}": field for name, field in type(defaults).model_fields.items()}
    tables = [name for name, field in fields.items() if _is_model(field.annotation)]
    for name, field in fields.items():
        if name not in tables and name not in ROWS and name not in NAMED:
            yield from _setting(name, field, getattr(defaults, name.removeprefix(path)))
    for name in tables:
        yield from ("", *_prose(_sentence(fields[name])), f"[{name}]")
        yield from _table(getattr(defaults, name.removeprefix(path)), f"{name}.")
    for name, field in fields.items():
        head = _prose(f"{_sentence(field)} None by default; for example:")
        if name in ROWS:
            yield from ("", *head)
            yield from _rows(name, ROWS[name])
        elif name in NAMED:
            yield from ("", *head)
            for key, switches in NAMED[name].items():
                yield from _row(f"[{name}.{_key(key)}]", switches, type(switches).model_fields)


def _setting(name: str, field: FieldInfo, default: object) -> Iterator[str]:
    yield ""
    told = [_sentence(field), _bounds(name, field)]
    if name in FOR_ROOT:
        default, others = FOR_ROOT[name]
        told.append(f"As for root; other users have it {others}.")
    elif default is None:
        default = SAMPLES[name]
        told.append("Not set by default; for example:")
    elif isinstance(default, int) and default >= 1 << 20 and not default % (1 << 20):
        told[-1] = f"{told[-1][:-1]}; the default is {default >> 20} MiB."
    yield from _prose(" ".join(filter(None, told)))
    yield f"#{name.rpartition('.')[2]} = {_value(default)}"


def _rows(name: str, rows: Sequence[BaseModel]) -> Iterator[str]:
    """Keys are explained where they come up first."""
    explained: set[str] = set()
    for row in rows:
        if explained:
            yield "#"
        fields = type(row).model_fields
        yield from _row(f"[[{name}]]", row, {key: field for key, field in fields.items() if key not in explained})
        explained |= row.model_fields_set


def _row(head: str, row: BaseModel, explained: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield f"#{head}"
    for key in type(row).model_fields:
        if key in row.model_fields_set:
            if key in explained:
                field = explained[key]
                yield from _prose(" ".join(filter(None, [_sentence(field), _bounds(key, field)])))
            yield f"#{_key(key)} = {_value(getattr(row, key))}"


def _sentence(field: FieldInfo) -> str:
    """The description, as a sentence of its own."""
    text = field.description or ""
    if not text:
        return ""
    first = text if text[0] in "`/" else text[0].upper() + text[1:]
    return first if first.endswith(".") else f"{first}."


def _bounds(name: str, field: FieldInfo) -> str:
    """Unit and range, or what may be chosen."""
    choices = _choices(field)
    if choices:
        return choices
    found = re.search(rf"_({'|'.join(_UNITS)})(_|$)", name.rpartition(".")[2])
    unit = _UNITS[found[1]] if found else ""
    if re.search(rf"\b{unit}\b", field.description or ""):
        unit = ""  # it is said there
    least, most = _limit(field, Ge, "ge"), _limit(field, Le, "le")
    above, below = _limit(field, Gt, "gt"), _limit(field, Lt, "lt")
    words = unit
    if least is not None and most is not None:
        words = f"{least:g} to {most:g} {unit}".rstrip()
    elif least is not None:
        words = f"{unit}, at least {least:g}" if unit else f"at least {least:g}"
    elif above is not None:
        words = f"{unit}, more than {above:g}" if unit else f"more than {above:g}"
    if below is not None:
        words += f", less than {below:g}"
    return f"{words[0].upper()}{words[1:]}." if words else ""


def _limit(field: FieldInfo, kind: type, attribute: str) -> float | None:
    for one in field.metadata:
        if isinstance(one, kind):
            return float(getattr(one, attribute))
    return None


def _choices(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is Literal:
        return f"One of {', '.join(map(str, get_args(kind)))}."
    if get_origin(kind) is list and get_origin(get_args(kind)[0]) is Literal:
        return f"Any of {', '.join(map(str, get_args(get_args(kind)[0])))}."
    for one in field.metadata:
        pattern = re.fullmatch(r"\^\(([a-z|]+)\)\$", getattr(one, "pattern", None) or "")
        if pattern:
            return f"One of {', '.join(pattern[1].split('|'))}."
    return ""


def _is_model(kind: Any) -> bool:
    if get_origin(kind) in {Union, UnionType}:
        return any(_is_model(one) for one in get_args(kind))
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _prose(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH - 2, break_on_hyphens=False)]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: Any) -> str:
    """In TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_value(one)}' for key, one in value.items())} }}"
    return json.dumps(str(value), ensure_ascii=False)
