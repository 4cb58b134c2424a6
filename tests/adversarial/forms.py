"""All routes of the server, from its own OpenAPI document, with a body for each and a name for each place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from emberbox.config import load_settings
from emberbox.server.app import create_app

DOCUMENT = create_app(load_settings()).openapi()
_KNOWN = {"language": "python", "code": "1", "command": "true", "cmd": "true", "llm_response": "hi", "name": "n"}


@dataclass(frozen=True)
class Operation:
    """One route: `path` has places in braces."""

    method: str
    path: str
    schema: dict[str, Any] | None = field(hash=False, compare=False)
    query: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def fields(self) -> list[str]:
        """Of the body."""
        return [] if self.schema is None else list(self.schema.get("properties", {}))

    @property
    def body(self) -> dict[str, Any]:
        """A body that is valid, with what must be in it."""
        if self.schema is None:
            return {}
        wanted = self.schema.get("required", [])
        return {name: _value(name, self.schema["properties"][name]) for name in wanted}

    def url(self, names: dict[str, str]) -> str:
        """With these names; `?path=` and the like where they must be there."""
        query = "&".join(f"{name}=x" for name in self.query if name == "path")
        return self.path.format(**names) + (f"?{query}" if query else "")


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    for one in schema.get("anyOf", ()):
        if one.get("type") != "null":
            return _resolved(one)
    return schema


def _value(name: str, schema: dict[str, Any]) -> Any:
    schema = _resolved(schema)
    if name in _KNOWN:
        return _KNOWN[name]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object":
        return {key: _value(key, schema["properties"][key]) for key in schema.get("required", [])}
    if kind == "array":
        return [_value("", schema["items"])]
    return {"integer": 1, "number": 1.0, "boolean": False}.get(str(kind), "x")


def _operations() -> Iterator[Operation]:
    for path, methods in DOCUMENT["paths"].items():
        for method, told in methods.items():
            content = told.get("requestBody", {}).get("content", {})
            schema = content.get("application/json", {}).get("schema")
            query = tuple(one["name"] for one in told.get("parameters", ()) if one["in"] == "query")
            yield Operation(method.upper(), path, None if schema is None else _resolved(schema), query)


OPERATIONS = list(_operations())
