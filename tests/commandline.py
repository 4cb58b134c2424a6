"""Runs the `emberbox` program for tests: in their own process, or as a process where it takes one."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner

from emberbox.cli.app import app

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "emberbox.cli.entry"]
"""What a user types for `emberbox`."""
SECONDS = 180.0
"""How long a process may take; in the process of the tests their own time-out counts."""
_WIDE = {"COLUMNS": "400"}
"""Lines hold what tests look for, unless these say how wide they are."""

Done = subprocess.CompletedProcess[str]


def emberbox(*arguments: str, stdin: str | bytes = b"", **variables: str) -> Done:
    """Run a command in this process, at the root of the checkout; give what it printed and its exit code.

    Starting an interpreter takes longer than most commands; `process` does it for what needs one (signals, terminals,
    pipes that stay open, `serve`). What the program does not turn into a message is raised. An asynchronous test calls
    this in a thread: most commands have an event loop of their own.

    Args:
        stdin: what is piped in.
        variables: more variables of the environment, for this command.
    """
    assert "serve" not in arguments[:1], "a server changes signals and logs of its process"
    handlers = list(logging.root.handlers)
    with (
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", ["emberbox", *arguments]),
        mock.patch.dict(os.environ, _WIDE | variables),
    ):
        result = CliRunner().invoke(app, arguments, input=stdin, prog_name="emberbox", catch_exceptions=False)
    assert logging.root.handlers == handlers, "the command changed how this process logs"
    return subprocess.CompletedProcess(
        ["emberbox", *arguments], result.exit_code, result.stdout_bytes.decode(), result.stderr_bytes.decode()
    )


def process(*arguments: str, stdin: str | bytes = b"", **variables: str) -> Done:
    """As `emberbox`, in a process of its own."""
    done = subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
        env={**os.environ, **_WIDE, **variables},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
