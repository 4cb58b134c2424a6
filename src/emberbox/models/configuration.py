"""Settings of execution: limits, policies, languages."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from emberbox.models.base import ALL_LANGUAGES, Language, Model
from emberbox.models.policy import PolicyConfig


class HistoryConfig(Model):
    """What is recorded and when snapshots are taken (REFERENCE: HistoryConfig)."""

    enabled: bool = True
    snapshot_on_execution: bool = False
    snapshot_on_failure: bool = True
    auto_rollback_on_failure: bool = False
    max_history_entries: int = Field(default=100, ge=1)
    persist_history: bool = True
    track_files: bool = Field(default=True, description="note which files each execution changes")
    integration_mode: Literal["http", "direct"] = "http"


class ResourceLimits(Model):
    """The most that one execution may use."""

    max_memory_mb: int = Field(default=2048, ge=64)
    max_execution_time_seconds: int = Field(default=60, ge=1)


class SecuritySettings(Model):
    dangerous_patterns_check: bool = True
    resource_limits: ResourceLimits = ResourceLimits()


class MachineLimits(Model):
    """What one machine may use of the host. Disk is memory here: work directory and /tmp are size-limited and in RAM
    on gVisor, so that `memory_mb` bounds them too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_mb: int = Field(default=2048, ge=128, le=1 << 20)
    vcpus: float = Field(default=2.0, ge=0.1, le=256)
    processes: int = Field(default=256, ge=16, le=32768, description="processes and threads of user code")
    open_files: int = Field(default=1024, ge=64, le=1 << 20)
    disk_mb: int = Field(default=1024, ge=8, le=1 << 20, description="home and work directory")
    tmp_mb: int = Field(default=256, ge=8, le=1 << 20, description="the directory /tmp")
    output_bytes: int = Field(default=1 << 20, ge=1024, le=64 << 20, description="per stream and execution")


class VmExecutionConfig(Model):
    """Settings of code execution, as they stand in a role file or under `[vm_execution]` of emberbox.toml."""

    enabled: bool = False
    api_base_url: str = "http://localhost:8080"
    vm_pool_size: int = Field(default=1, ge=0)
    default_vm_type: str = "default"
    execution_timeout_ms: int = Field(default=30_000, ge=1)
    allowed_languages: list[Language] = Field(default_factory=lambda: list(ALL_LANGUAGES))
    auto_provision: bool = True
    code_validation: bool = True
    max_code_length: int = Field(default=10_000, ge=1, description="characters")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="which rules are in force for whom")
    history: HistoryConfig = HistoryConfig()
    security_settings: SecuritySettings = SecuritySettings()


class LanguageConfig(Model):
    """One language: its names, its files and how its code runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Language
    aliases: tuple[str, ...]
    file_extension: str
    run_command: tuple[str, ...]
    timeout_multiplier: float = Field(default=1.0, gt=0)
    restrictions: tuple[str, ...] = ()
