"""What is imported when: a client of a server needs neither engine nor database, and says where more is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("sqlalchemy", "alembic", "fastapi", "tree_sitter", "markdown_it", "structlog", "uvicorn", "pydantic_settings")
AT_THE_FIRST_CALL = ("pydantic", "httpx", "anyio", "rich", "click")
"""What a client or a sandbox needs, and the import of its class does not."""
_CLIENT_ONLY = """
import sys
from importlib.abc import MetaPathFinder
WITHOUT = set({without!r})
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in WITHOUT:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def loaded(code: str) -> set[str]:
    """Modules that are there after some code has run in a fresh interpreter."""
    code += "\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import emberbox", (*HEAVY, "pydantic", "httpx")),
        ("import emberbox.client",
         (*HEAVY, *AT_THE_FIRST_CALL, "emberbox.engine", "emberbox.languages", "emberbox.machines.contract")),
        ("from emberbox import VmExecutionClient, VmExecutionClientSync", (*HEAVY, *AT_THE_FIRST_CALL)),
        ("from emberbox import Sandbox, AsyncSandbox", (*HEAVY, *AT_THE_FIRST_CALL, "asyncio", "emberbox.engine")),
        ("import emberbox.sdk.backends.remote",
         (*HEAVY, "emberbox.engine", "emberbox.machines.contract", "rich", "click")),
        (
            "import emberbox.cli.execute",
            ("sqlalchemy", "fastapi", "httpx", "emberbox.machines.firecracker", "emberbox.machines.qemu",
             "emberbox.images.builder", "emberbox._extraction.judge", "packaging", "click"),
        ),
    ],
)  # fmt: skip
def test_nothing_is_imported_that_is_not_needed(code: str, without: tuple[str, ...]) -> None:
    assert loaded(code).isdisjoint(without)


def client_only(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where only the client is installed."""
    without = [*HEAVY, "typer", "click", "rich", "packaging", "pyflakes", "prometheus_client", "opentelemetry"]
    whole = _CLIENT_ONLY.format(without=without) + code
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=60, check=False)


def test_the_client_alone_is_enough_for_a_server_and_says_what_is_missing_for_more() -> None:
    assert (
        "pip install 'emberbox[engine]', or give the `base_url` of a server"
        in client_only(
            "from emberbox import Sandbox, errors\n"
            "try:\n    Sandbox.create()\nexcept errors.VmNotAvailable as exc:\n    print(exc.remediation)"
        ).stdout
    )
    refused = client_only(
        "from emberbox import Sandbox, errors\n"
        "try:\n    Sandbox.create(base_url='http://127.0.0.1:9')\n"
        "except errors.VmConnectionError as exc:\n    print('tried')"
    )
    assert refused.stdout == "tried\n", refused.stderr
    program = client_only("from emberbox.cli.entry import main\nmain()")
    assert program.returncode == 5
    assert "pip install 'emberbox[all]'" in program.stderr


def test_output_that_cannot_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        done = subprocess.run(
            [sys.executable, "-m", "emberbox.cli.entry", "--version"], stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "cannot write the output: No space left" in done.stderr
