"""The thread of the event loop in which synchronous twins have their originals run."""

from __future__ import annotations

from anyio.from_thread import BlockingPortalProvider

PROVIDER = BlockingPortalProvider(backend="asyncio")
"""It starts with the first sandbox or client and ends with the last."""
