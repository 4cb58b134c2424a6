"""What is behind the SDK's sandboxes, for tests that look there."""

from __future__ import annotations

from emberbox import AsyncSandbox
from emberbox.sandbox.instance import SandboxInstance
from emberbox.sdk.backends.local import LocalBackend


def session_of(sandbox: AsyncSandbox) -> SandboxInstance:
    """The session of a sandbox of this process."""
    assert isinstance(sandbox._backend, LocalBackend)
    return sandbox._backend.session
