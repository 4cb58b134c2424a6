"""How long the way of one execution is, from the SDK to the machine's channel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TOOL = Path(__file__).parents[2] / "tools/count_frames.py"


def test_the_way_of_one_execution_stays_short(nothing_left: None) -> None:
    done = subprocess.run([sys.executable, str(_TOOL)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Sandbox.run_code" in done.stdout.splitlines()[0]
    assert "Channel._send" in done.stdout.splitlines()[-1]
