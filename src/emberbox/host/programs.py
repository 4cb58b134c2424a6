"""Programs of the host."""

from __future__ import annotations

import subprocess
from pathlib import Path


def version_text(program: Path) -> str:
    """What a program answers to `--version`; raises OSError, SubprocessError: it does not."""
    done = subprocess.run([program, "--version"], capture_output=True, timeout=20, check=True, env={"PATH": "/usr/bin"})
    return done.stdout.decode("utf-8", "replace")
