"""Settings of the HTTP server."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from emberbox.models.base import Model

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8080


class ServerConfig(Model):
    """How `emberbox serve` listens, whom it lets in, and how much each may ask."""

    host: str = Field(default=DEFAULT_HOST, description="address to listen on; others than loopback need tokens")
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535, description="0: any free one")
    token_file: Path | None = Field(
        default=None, description="file of `emberbox token`; `tokens.json` in state_dir by default"
    )
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="names (without port) by which clients may call it, beside localhost and plain addresses",
    )
    allowed_origins: list[str] = Field(
        default_factory=list, description="web pages that may call it, such as https://agents.example.com"
    )
    max_body_bytes: int = Field(default=16 << 20, ge=1024, description="longest request")
    max_answer_length: int = Field(
        default=1 << 20, ge=1024, description="characters of a model's answer that is searched for code"
    )
    max_incoming_bytes: int = Field(
        default=256 << 20,
        ge=1024,
        description="of all requests above 64 KiB together that are received or worked at; beyond it they are 503. "
        "One of max_body_bytes always fits",
    )
    max_incoming_bytes_per_caller: int = Field(
        default=64 << 20, ge=1024, description="the same for each token (without tokens: each client address); then 429"
    )
    max_unread_bytes: int = Field(
        default=256 << 20,
        ge=65536,
        description="of all answers together that their readers have not taken yet; beyond it the oldest one of the "
        "caller with the most is cut short",
    )
    max_page_bytes: int = Field(
        default=8 << 20,
        ge=1024,
        description="of code and output in one answer about the history; it ends early then, and `next` says where to "
        "go on",
    )
    requests_per_second: float = Field(
        default=500.0, gt=0, description="of each token (without tokens: of each client address), on average"
    )
    max_concurrent_executions: int = Field(default=64, ge=1, description="of each token at once")
    max_sockets: int = Field(default=100, ge=1, description="open WebSockets and streams of each token")
    slow_reader_seconds: float = Field(
        default=30.0,
        gt=0,
        description="a client that takes nothing of its answer for so long is hung up on, and its execution ended",
    )
    slow_request_seconds: float = Field(
        default=30.0, gt=0, description="what a client has for the head of a request, and for each piece of its body"
    )
    max_sandbox_seconds: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="longest time until a machine is killed that a client may ask for; one that asks for none gets it",
    )
    max_command_seconds: float = Field(
        default=86_400.0,
        gt=0,
        le=1e9,
        description="longest time-out of a command that a client may ask for; one that asks for none gets it",
    )
    max_connections: int = Field(default=1000, ge=1, description="open connections of all clients together")
    drain_seconds: float = Field(
        default=30.0, ge=0, description="how long a stop waits for executions that are under way"
    )
    idempotency_hours: float = Field(default=24.0, gt=0, description="how long an Idempotency-Key is remembered")
    probe_seconds: float = Field(
        default=30.0, gt=0, description="age from which /ready wants to see a machine answer again"
    )
    otlp_endpoint: str | None = Field(
        default=None, pattern=r"^https?://", description="OpenTelemetry collector, such as http://localhost:4318"
    )
    log_level: str = Field(
        default="info", pattern="^(debug|info|warning|error)$", description="what the log holds: this level and above"
    )

    @field_validator("token_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ValueError(f"{origin!r:.80} is no origin: write scheme://host[:port], without a path")
        return value
