"""Typed access to the fields of a request, and the error that a request is answered with."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .protocol import Header


class RequestError(Exception):
    """The request cannot be carried out; becomes its `error` event."""

    def __init__(self, kind: str, message: str, errno: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.errno = errno


def bad_request(message: str) -> RequestError:
    """A request whose fields are missing, of the wrong type or out of bounds."""
    return RequestError("bad_request", message)


class RequestFields:
    """The header of one request. Each getter raises RequestError (bad_request) when the field is not as it must be."""

    __slots__ = ("header",)

    def __init__(self, header: Header) -> None:
        self.header = header

    def text(self, name: str) -> str:
        """A string without NUL characters."""
        value = self.header.get(name)
        if not isinstance(value, str) or "\0" in value:
            raise bad_request(f"{name!r} must be a string without NUL characters")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string, or None when the field is absent or null."""
        return None if self.header.get(name) is None else self.text(name)

    def flag(self, name: str) -> bool:
        """A boolean; absent means false."""
        value = self.header.get(name, False)
        if not isinstance(value, bool):
            raise bad_request(f"{name!r} must be a boolean")
        return value

    def integer(self, name: str, default: int | None = None, low: int = 0, high: int = 1 << 62) -> int:
        """An integer between `low` and `high`; `default` when the field is absent or null, if there is one."""
        value = self.header.get(name)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise bad_request(f"{name!r} must be an integer from {low} to {high}")
        return value

    def seconds(self, name: str) -> float | None:
        """A positive number of seconds, or None."""
        value = self.header.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise bad_request(f"{name!r} must be a positive number of seconds")
        return float(value)

    def texts(self, name: str) -> List[str]:
        """A list of strings; absent means empty."""
        value = self.header.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
            raise bad_request(f"{name!r} must be a list of strings without NUL characters")
        return value

    def environment(self, name: str) -> Dict[str, str]:
        """Environment variables; absent means none."""
        value: Any = self.header.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise bad_request(f"{name!r} must be an object of strings")
        for key, item in value.items():
            if not key or "=" in key or "\0" in key or not isinstance(item, str) or "\0" in item:
                raise bad_request(f"{name!r} has an entry that cannot be an environment variable: {key!r}")
        return value
