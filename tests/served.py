"""A real server process for tests: started as a user starts it, and watched to leave nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any
from unittest import mock

import httpx

from commandline import PROGRAM, Done, emberbox, process
from emberbox.host.rundir import processes_of

START_SECONDS = 60.0
STOP_SECONDS = 180.0
"""What deploy/emberbox.service gives it."""


class Served:
    """A server process. Use `start()` and `stop()`.

    Args:
        settings: variables of the environment, without `EMBERBOX_`; nested ones with two underscores.
        state: folder of its history, tokens and sandboxes; one of its own unless given.
        args: more arguments of `emberbox serve`.
    """

    def __init__(self, settings: dict[str, str] | None = None, state: Path | None = None, *args: str) -> None:
        self.run_dir = Path(tempfile.mkdtemp(prefix="ebs-", dir="/tmp"))
        self._own_state = state is None
        self.state = state or Path(tempfile.mkdtemp(prefix="ebs-state-", dir="/tmp"))
        self.config = self.state / "emberbox.toml"
        self._settings = settings or {}
        self._args = args
        self.program = PROGRAM
        """What a user types for `emberbox`."""
        self.url = ""
        self.lines: deque[str] = deque(maxlen=2000)
        """What it wrote to standard error."""
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._told = threading.Event()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """For commands that shall see the same settings."""
        own = {f"EMBERBOX_{name}": value for name, value in self._settings.items()}
        base = {k: v for k, v in os.environ.items() if not k.startswith("EMBERBOX_") or k == "EMBERBOX_CACHE_DIR"}
        where = {"EMBERBOX_RUN_DIR": str(self.run_dir), "EMBERBOX_STATE_DIR": str(self.state)}
        return base | where | own | ({"EMBERBOX_CONFIG": str(self.config)} if self.config.exists() else {})

    def start(self) -> Served:
        """Start it and wait until it says that it serves."""
        self.url = ""
        self._told.clear()
        argv = [*self.program, "serve", "--port", "0", *self._args]
        self._process = subprocess.Popen(
            argv, env=self.environment() | {"COLUMNS": "200"}, stderr=subprocess.PIPE, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._told.wait(START_SECONDS)
        assert self.url, "\n".join(self.lines)
        return self

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode("utf-8", "replace").rstrip("\n")
            self.lines.append(line)
            if (found := re.search(r"serves at (http://\S+)", line)) is not None:
                self.url = found[1]
                self._told.set()
        self._told.set()

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; its exit status."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(how)
        status = self._process.wait(STOP_SECONDS)
        if self._reader is not None:
            self._reader.join(5)
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._process = None
        return status

    def finish(self) -> None:
        """Stop it for good, and look whether anything is left."""
        try:
            self.stop()
            deadline = time.monotonic() + 10
            while (left := processes_of(f"{self.run_dir}/")) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert left == [], f"processes are left: {left}"
            assert list(self.run_dir.iterdir()) == [], "files are left in the run directory"
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            shutil.rmtree(self.run_dir, ignore_errors=True)
            if self._own_state:
                shutil.rmtree(self.state, ignore_errors=True)

    # --- asking ---------------------------------------------------------------------------------------------------

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        """A plain HTTP client of it."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def end_machines(self, token: str | None = None) -> None:
        """End all machines: the server stays for other tests, what one made does not."""
        with self.client(token) as client:
            for vm in client.get("/api/vms").json()["vms"]:
                client.delete(f"/api/vms/{vm['id']}")

    def logs(self) -> list[dict[str, Any]]:
        """Its structured log so far."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def cli(self, *args: str, **variables: str) -> Done:
        """Run an `emberbox` command with its settings."""
        with mock.patch.dict(os.environ, self.environment(), clear=True):
            return emberbox(*args, **variables)

    def another(self, *args: str) -> Done:
        """Try to start one more server with its settings, which has to be refused."""
        with mock.patch.dict(os.environ, self.environment(), clear=True):
            return process("serve", *args)

    def token(self, *args: str) -> str:
        """A new token."""
        done = self.cli("token", "create", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
