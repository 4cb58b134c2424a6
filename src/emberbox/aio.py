"""The asynchronous SDK by its public name; `emberbox.sdk` has it."""

from __future__ import annotations

from emberbox.sdk.commands import AsyncCommandHandle, AsyncCommands
from emberbox.sdk.files import AsyncFiles
from emberbox.sdk.sandbox import DEFAULT_SANDBOX_TIMEOUT, AsyncSandbox

__all__ = ["DEFAULT_SANDBOX_TIMEOUT", "AsyncCommandHandle", "AsyncCommands", "AsyncFiles", "AsyncSandbox"]
