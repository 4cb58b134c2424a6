"""Settings: `settings` reads them from file, environment and arguments, `example` explains every one of them."""

from __future__ import annotations

from emberbox.config.settings import (
    Backend,
    Settings,
    default_cache_dir,
    default_run_dir,
    default_state_dir,
    load_settings,
)

__all__ = ["Backend", "Settings", "default_cache_dir", "default_run_dir", "default_state_dir", "load_settings"]
