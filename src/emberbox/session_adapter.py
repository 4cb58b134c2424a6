"""Sessions on a server by their public name; `emberbox.clients` has them."""

from __future__ import annotations

from emberbox.clients.sessions import DirectSessionAdapter

__all__ = ["DirectSessionAdapter"]
