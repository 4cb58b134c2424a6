"""httpx without its command line, which loads click and rich where they are installed: a tenth of a second of the start
of every client."""

from __future__ import annotations

import sys

_COMMAND_LINE = "httpx._main"
_first = "httpx" not in sys.modules
if _first:
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]  # an ImportError, with which httpx goes on

import httpx  # noqa: E402
from httpx_sse import SSEError, aconnect_sse  # noqa: E402

if _first:
    del sys.modules[_COMMAND_LINE]

__all__ = ["SSEError", "aconnect_sse", "httpx"]
