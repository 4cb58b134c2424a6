"""Run code that a language model wrote in an isolated machine, with undo.

    from emberbox import Sandbox

    with Sandbox.create() as sandbox:
        sandbox.run_code("x = 41")
        print(sandbox.run_code("x + 1").text)      # 42

Names are loaded at first use, so that `import emberbox` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from emberbox.clients._sync import VmExecutionClientSync
    from emberbox.clients.fcctl import FcctlBridge
    from emberbox.clients.sessions import DirectSessionAdapter
    from emberbox.clients.vm_execution import VmExecutionClient
    from emberbox.code_extractor import CodeBlockExtractor
    from emberbox.config import Settings, load_settings
    from emberbox.engine import Engine
    from emberbox.errors import NoCapacity, VmExecutionError
    from emberbox.models import Execution, MachineLimits, Result, TerminationReason
    from emberbox.sdk._sync import Sandbox
    from emberbox.sdk.sandbox import AsyncSandbox

_HOMES = {
    "AsyncSandbox": "sdk.sandbox",
    "CodeBlockExtractor": "code_extractor",
    "DirectSessionAdapter": "clients.sessions",
    "Engine": "engine",
    "Execution": "models",
    "FcctlBridge": "clients.fcctl",
    "MachineLimits": "models",
    "NoCapacity": "errors",
    "Result": "models",
    "Sandbox": "sdk._sync",
    "Settings": "config",
    "TerminationReason": "models",
    "VmExecutionClient": "clients.vm_execution",
    "VmExecutionClientSync": "clients._sync",
    "VmExecutionError": "errors",
    "load_settings": "config",
}

__all__ = [
    "AsyncSandbox",
    "CodeBlockExtractor",
    "DirectSessionAdapter",
    "Engine",
    "Execution",
    "FcctlBridge",
    "MachineLimits",
    "NoCapacity",
    "Result",
    "Sandbox",
    "Settings",
    "TerminationReason",
    "VmExecutionClient",
    "VmExecutionClientSync",
    "VmExecutionError",
    "__version__",
    "load_settings",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'emberbox' has no attribute {name!r}")
    return getattr(import_module(f"emberbox.{home}"), name)
