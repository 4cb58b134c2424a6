"""What the operator is told of sandboxes when nobody waits for an answer."""

from __future__ import annotations


def warn(event: str, reason: object, **fields: str) -> None:
    """Log a warning, with why and of what."""
    import structlog

    log: structlog.stdlib.BoundLogger = structlog.get_logger("emberbox")
    log.warning(event, **fields, reason=str(reason))
