"""How long a server is waited for."""

from __future__ import annotations

CONNECT_SECONDS = 10.0
CALL_SECONDS = 60.0
EXECUTION_SECONDS = 900.0
"""How long an answer to code without a time-out is waited for: the server's own default, a queue, and a person."""
EVENT_SECONDS = 60.0
"""A stream sends something every 15 seconds, if only to say that it lives."""
SETTLE_SECONDS = 5.0
"""How long the last answers are waited for before the connections are closed."""
