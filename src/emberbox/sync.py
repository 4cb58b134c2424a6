"""The synchronous SDK by its public name; `emberbox.sdk` has it."""

from __future__ import annotations

from emberbox.sdk._sync import CommandHandle, Commands, Files, Sandbox

__all__ = ["CommandHandle", "Commands", "Files", "Sandbox"]
