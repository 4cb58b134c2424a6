"""Which server a command means. Cheap to import: every start of the program does."""

from __future__ import annotations

import os
from dataclasses import dataclass

SERVER_VARIABLE = "EMBERBOX_SERVER"


@dataclass(frozen=True, slots=True)
class Target:
    """Which server is meant; None: the one of $EMBERBOX_SERVER, or else of the settings (`api_base_url`)."""

    server: str | None = None
    token: str | None = None

    @property
    def url(self) -> str:
        return self.server or os.environ.get(SERVER_VARIABLE) or _configured()

    @property
    def named(self) -> bool:
        """Whether anybody named a server: else some commands mean this machine."""
        return bool(self.server or os.environ.get(SERVER_VARIABLE))


def _configured() -> str:
    from emberbox.config import load_settings

    return load_settings().vm_execution.api_base_url
