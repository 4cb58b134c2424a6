"""Settings of execution: limits, policies, languages."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from emberbox.models.base import ALL_LANGUAGES, Language, Model
from emberbox.models.policy import PolicyConfig


class HistoryConfig(Model):
    """What is recorded and when snapshots are taken (REFERENCE: HistoryConfig)."""

    enabled: bool = Field(default=True, description="whether executions are recorded; off: no undo by policy either")
    snapshot_on_execution: bool = Field(default=False, description="keep a snapshot after every execution")
    snapshot_on_failure: bool = Field(
        default=True,
        description="keep the state before an execution that fails; costs a snapshot after every success",
    )
    auto_rollback_on_failure: bool = Field(
        default=False, description="go back to the state before an execution that failed; costs the same"
    )
    max_history_entries: int = Field(
        default=100, ge=1, description="executions kept of each sandbox; older ones are dropped, with code and output"
    )
    persist_history: bool = Field(default=True, description="keep it in a database; false: in memory only")
    track_files: bool = Field(default=True, description="note which files each execution changes")
    integration_mode: Literal["http", "direct"] = Field(
        default="http", description="of agents: use a server (http), or run code in their own process (direct)"
    )


class ResourceLimits(Model):
    """The most that a caller may ask for. A template, which is the operator's, may have more (but for memory)."""

    max_memory_mb: int = Field(default=2048, ge=64, description="most that a machine may ask for")
    max_vcpus: float = Field(default=4.0, ge=0.1, le=256, description="most CPUs that a caller may ask for")
    max_processes: int = Field(
        default=1024, ge=16, le=32768, description="most processes and threads that a caller may ask for"
    )
    max_open_files: int = Field(
        default=4096, ge=64, le=1 << 20, description="most open files of a process that a caller may ask for"
    )
    max_disk_mb: int = Field(
        default=4096, ge=8, le=1 << 20, description="largest home and work directory that a caller may ask for"
    )
    max_tmp_mb: int = Field(default=1024, ge=8, le=1 << 20, description="largest /tmp that a caller may ask for")
    max_output_bytes: int = Field(
        default=16 << 20, ge=1024, le=64 << 20, description="most output of a stream that a caller may ask for"
    )
    max_execution_time_seconds: int = Field(
        default=60, ge=1, description="longest time-out that a caller may ask for (Rust: three times that)"
    )


class SecuritySettings(Model):
    dangerous_patterns_check: bool = Field(default=True, description="look for what the rules forbid before code runs")
    resource_limits: ResourceLimits = Field(default=ResourceLimits(), description="the most that callers may ask for")


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


LimitName = Literal["memory_mb", "vcpus", "processes", "open_files", "disk_mb", "tmp_mb", "output_bytes"]
"""The fields of `MachineLimits`."""


class VmExecutionConfig(Model):
    """Settings of code execution, as they stand in a role file or under `[vm_execution]` of emberbox.toml."""

    enabled: bool = Field(default=False, description="whether an agent of this role may run code at all")
    api_base_url: str = Field(default="http://localhost:8080", description="the server that clients and agents call")
    vm_pool_size: int = Field(
        default=1, ge=0, description="machines kept ready for each template and set of limits; 0: none"
    )
    default_vm_type: str = Field(default="default", description="template of sandboxes that name none")
    execution_timeout_ms: int = Field(default=30_000, ge=1, description="what code may take if its caller says nothing")
    allowed_languages: list[Language] = Field(
        default_factory=lambda: list(ALL_LANGUAGES), description="languages that may be run"
    )
    auto_provision: bool = Field(
        default=True, description="build the image of a template when it is first used; false: only by hand"
    )
    code_validation: bool = Field(default=True, description="check syntax and rules before code runs")
    max_code_length: int = Field(
        default=100_000, ge=1, description="characters that the code of one execution may have"
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="which rules are in force for whom")
    history: HistoryConfig = Field(default=HistoryConfig(), description="what is recorded, when snapshots are taken")
    security_settings: SecuritySettings = Field(default=SecuritySettings(), description="checks and limits")


class LanguageConfig(Model):
    """One language: its names, its files and how its code runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Language
    aliases: tuple[str, ...]
    file_extension: str
    run_command: tuple[str, ...]
    timeout_multiplier: float = Field(default=1.0, gt=0)
    restrictions: tuple[str, ...] = ()
