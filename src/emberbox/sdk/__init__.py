"""What users program with. `sdk.transport` is loaded at its first use: a client that asks nothing needs no httpx."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberbox.sdk import transport as transport
else:

    def __getattr__(name: str) -> Any:
        if name != "transport":
            raise AttributeError(f"module 'emberbox.sdk' has no attribute {name!r}")
        return import_module("emberbox.sdk.transport")
