"""The engine: executions guarded by hooks and policy, their sandboxes, snapshots and records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emberbox.engine.engine import BlockListener, Engine, ExecuteRequest, Recorder

__all__ = ["BlockListener", "Engine", "ExecuteRequest", "Recorder"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emberbox.engine import engine  # clients with hooks import `guardrails` alone

    return getattr(engine, name)
