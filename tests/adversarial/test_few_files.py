"""Near the limit of open files a start fails, in words, and leaves no descriptor behind: a server that has had a bad
moment must not have a worse one each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("few_files.py")
pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.parametrize("what", ["start", "engine"])
def test_a_failed_start_leaves_no_descriptor(what: str) -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), what],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env={**os.environ, "EMBERBOX_VM_EXECUTION__VM_POOL_SIZE": "0", "EMBERBOX_BACKEND": "gvisor"},
    )
    tries = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr
    assert [one for one in tries if one["left"]] == []
    assert [one for one in tries if one["said"].startswith("unexpected")] == []
    assert [one["said"] for one in tries[-2:]] == ["done", "as before"]
    failed = [one["said"] for one in tries[:-2]]
    assert len(failed) >= 5
    assert any("Too many open files" in said and "LimitNOFILE" in said for said in failed)
