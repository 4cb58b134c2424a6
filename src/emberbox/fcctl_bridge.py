"""The bridge by its public name; `emberbox.clients` has it."""

from __future__ import annotations

from emberbox.clients.fcctl import FcctlBridge

__all__ = ["FcctlBridge"]
