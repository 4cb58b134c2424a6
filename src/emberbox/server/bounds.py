"""What a client may ask for at most, beside what the engine bounds for everybody. More is refused, never cut down."""

from __future__ import annotations

from emberbox.config import Settings
from emberbox.errors import ValidationFailed
from emberbox.models import VmExecutionConfig
from emberbox.models.server import ServerConfig
from emberbox.sandbox.instance import SandboxInstance


def life(config: ServerConfig, seconds: float | None, name: str = "timeout_seconds") -> float | None:
    """After how many seconds a machine is killed; the most that there may be, if the client does not say."""
    return _bounded(name, seconds, config.max_sandbox_seconds, "server.max_sandbox_seconds")


def named_life(config: ServerConfig, seconds: float | None, name: str = "timeout_seconds") -> float | None:
    """The same where nothing said means: never."""
    most = config.max_sandbox_seconds
    if seconds is None and most is not None:
        raise ValidationFailed(
            f"{name}: a machine cannot live for ever here, but {most:g} s.",
            remediation="Ask for a time, or unset server.max_sandbox_seconds.",
            details={"field": name, "asked": None, "most": most},
        )
    return life(config, seconds, name)


def command_seconds(config: ServerConfig, seconds: float | None) -> float | None:
    """How long a command may run; the longest that it may, if the client does not say."""
    return _bounded("timeout_seconds", seconds, config.max_command_seconds, "server.max_command_seconds")


def output_bytes(session: SandboxInstance, asked: int | None) -> int | None:
    """How much one execution may print, of what its machine may."""
    most = session.limits.output_bytes
    if asked is not None and asked > most:
        raise _too_much(
            "resource_limits.output_bytes", asked, most, "make the machine with a larger limits.output_bytes"
        )
    return asked


def config_seconds(settings: Settings, wanted: VmExecutionConfig | None) -> float | None:
    """The time-out of each block that a request's own settings want."""
    if wanted is None or "execution_timeout_ms" not in wanted.model_fields_set:
        return None
    asked = wanted.execution_timeout_ms / 1000
    most = settings.vm_execution.security_settings.resource_limits.max_execution_time_seconds
    if asked > most:
        setting = "vm_execution.security_settings.resource_limits.max_execution_time_seconds"
        raise _too_much("vm_config.execution_timeout_ms", asked * 1000, most * 1000, f"raise {setting}")
    return asked


def _bounded(name: str, asked: float | None, most: float | None, setting: str) -> float | None:
    if asked is None or most is None:
        return most if asked is None else asked
    if asked > most:
        raise _too_much(name, asked, most, f"raise {setting}")
    return asked


def _too_much(name: str, asked: float, most: float, otherwise: str) -> ValidationFailed:
    return ValidationFailed(
        f"{name} {asked:.15g} is above the limit of {most:.15g}.",
        remediation=f"Ask for less, or {otherwise}.",
        details={"field": name, "asked": asked, "most": most},
    )
