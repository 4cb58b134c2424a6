"""Settings: defaults, then a TOML file, then `EMBERBOX_*` variables, then arguments; the later one wins.

The file is `--config FILE`, or `$EMBERBOX_CONFIG`, or `emberbox.toml` in the current directory, or
`~/.config/emberbox/emberbox.toml`. A nested key in a variable is written with two underscores:
`EMBERBOX_VM_EXECUTION__MAX_CODE_LENGTH=20000`.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from emberbox.errors import ConfigError
from emberbox.models import HistoryConfig, HooksConfig, VmExecutionConfig
from emberbox.models.server import ServerConfig

Backend = Literal["auto", "firecracker", "gvisor", "qemu"]


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/emberbox`, or `~/.cache/emberbox`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "emberbox"


def default_run_dir() -> Path:
    """Where machines keep sockets and state while they run: `/run/emberbox` for root, else under `$XDG_RUNTIME_DIR`
    or `/tmp`. Short, because the path of a Unix socket ends at 107 bytes (unix(7))."""
    if os.getuid() == 0:
        return Path("/run/emberbox")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "emberbox" if base else Path(f"/tmp/emberbox-{os.getuid()}")  # noqa: S108 (checked at use)


def default_state_dir() -> Path:
    """What outlives a run: `/var/lib/emberbox` for root, else `emberbox` in `$XDG_STATE_HOME` or `~/.local/state`."""
    if os.getuid() == 0:
        return Path("/var/lib/emberbox")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "emberbox"


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="EMBERBOX_", env_nested_delimiter="__", extra="forbid", nested_model_default_partial_update=True
    )

    backend: Backend = Field(
        default="auto",
        description="which isolation to use; auto: a microVM where setup has proven one here, else gvisor",
    )
    cache_dir: Path = Field(default_factory=default_cache_dir, description="images and downloads")
    run_dir: Path = Field(default_factory=default_run_dir, description="state of running machines")
    state_dir: Path = Field(
        default_factory=default_state_dir, description="history, kept snapshots, sandboxes of durable engines"
    )
    history_url: str | None = Field(
        default=None, description="SQLAlchemy URL of the history; history.db in state_dir by default"
    )
    snapshot_dir: Path | None = Field(default=None, description="snapshots; `snapshots` in cache_dir by default")
    max_snapshots: int = Field(default=50, ge=1, description="snapshots that one sandbox may have")
    max_snapshot_mb_per_agent: int = Field(
        default=20_480, ge=1, description="MiB of all snapshots of an agent's sandboxes"
    )
    session_idle_seconds: float = Field(
        default=900.0, gt=0, description="an agent's own sandbox that nobody uses for so long is ended or suspended"
    )
    max_sandboxes_per_agent: int = Field(default=20, ge=1, description="sandboxes that one agent may have")
    adoption_seconds: float = Field(
        default=60.0, ge=0, description="how long machines of a durable engine wait for the next one after a crash"
    )
    templates_dir: Path | None = Field(default=None, description="folder with own template files (NAME.toml)")
    debian_mirror: str | None = Field(
        default=None, pattern=r"^(https?|file|copy):", description="mirror to build images from, instead of the default"
    )
    runsc: Path | None = Field(default=None, description="the runsc program to use instead of the one found")
    runsc_sha512: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{128}$", description="checksum that a downloaded runsc release must have"
    )
    firecracker: Path | None = Field(default=None, description="the firecracker program, instead of the one found")
    jailer: Path | None = Field(default=None, description="Firecracker's jailer, instead of the one found")
    kernel: Path | None = Field(default=None, description="the guest kernel (vmlinux) of microVMs, instead of our own")
    jail: bool = Field(default=True, description="confine Firecracker by its jailer; only root can")
    disk_bandwidth_mb: int | None = Field(
        default=None, ge=1, le=100_000, description="MiB a second that a microVM may read from its disk"
    )
    disk_operations: int | None = Field(
        default=None, ge=1, description="reads a second that a microVM may ask its disk for"
    )
    qemu: Path | None = Field(default=None, description="the qemu-system-x86_64 program, instead of the one found")
    qemu_accel: Literal["auto", "kvm", "tcg"] = Field(
        default="auto", description="what QEMU machines run by; auto: KVM; tcg: full emulation, which is slow"
    )
    boot_timeout_seconds: float = Field(default=60.0, gt=0, description="deadline for the start of a machine")
    max_sandboxes: int = Field(default=200, ge=1, description="sandboxes at once, those of the warm pool included")
    capacity_timeout_seconds: float = Field(
        default=30.0, ge=0, description="how long a new sandbox waits for a place or for memory of the host"
    )
    min_free_memory_mb: int = Field(
        default=256, ge=0, description="MiB that the host must have left for a new sandbox to start"
    )
    pool_max_age_seconds: float = Field(
        default=3600.0, gt=0, description="age at which a machine of the warm pool is replaced"
    )
    auto_execute_threshold: float = Field(default=0.7, ge=0, le=1, description="confidence from which blocks run")
    max_input_bytes: int = Field(default=16 << 20, ge=1024, description="longest answer that is read")
    hooks: HooksConfig = Field(default_factory=HooksConfig, description="policy around every execution")
    server: ServerConfig = Field(default_factory=ServerConfig, description="the service, `emberbox serve`")
    # A snapshot after every success costs more than most executions: here it is a choice. Keys that a file sets leave
    # the others as they are here.
    vm_execution: VmExecutionConfig = Field(
        default=VmExecutionConfig(enabled=True, history=HistoryConfig(snapshot_on_failure=False)),
        description="how code runs, and which code",
    )

    @field_validator(
        "cache_dir", "run_dir", "state_dir", "templates_dir", "runsc", "firecracker", "jailer", "kernel", "qemu"
    )
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        """Helper processes run in other directories."""
        return None if value is None else value.expanduser().absolute()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over variables over the file; no .env files (they belong to the program that embeds us)."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings, _FileSource(cls)


class _FileSource(PydanticBaseSettingsSource):
    """The TOML file as the weakest source."""

    def __call__(self) -> dict[str, Any]:
        path = _config_path()
        if path is None:
            return {}
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"Cannot read the configuration file {path}: {exc.strerror}.") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path} is not valid TOML: {exc}.") from exc

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Not used: the file is read as a whole. The base class wants it."""
        del field
        return None, field_name, False


def _config_path() -> Path | None:
    named = os.environ.get("EMBERBOX_CONFIG")
    if named:
        return Path(named)
    for path in (Path("emberbox.toml"), Path.home() / ".config/emberbox/emberbox.toml"):
        if path.is_file():
            return path
    return None


def load_settings(**arguments: Any) -> Settings:
    """The settings in force; `arguments` that are not None win.

    Raises:
        ConfigError: a wrong key or value; the message names every one.
    """
    try:
        return Settings(**{key: value for key, value in arguments.items() if value is not None})
    except ValidationError as exc:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in exc.errors())
        raise ConfigError(f"Wrong settings: {problems}.") from exc
    except SettingsError as exc:
        raise ConfigError(f"Wrong settings: {exc}.") from exc
