"""Role files: who an agent is, which model it asks, where its code runs (docs/agent.md)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import httpx
from pydantic import Field, ValidationError, field_validator, model_validator

from emberbox.errors import ConfigError
from emberbox.models import Model, VmExecutionConfig

KNOWN_PROVIDERS: Mapping[str, str] = {
    "ollama": "http://localhost:11434/v1",
    "openai": "https://api.openai.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "vllm": "http://localhost:8000/v1",
}
"""Providers whose address is known."""
_MOST_BYTES = 1 << 20
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,199}$"
_ONE_LINE = r"^[^\x00-\x1f\x7f]+$"


class Role(Model):
    """A role file. Its keys may stand at the top level or under `extra`.

    `Role.load(path)` reads one, `Role.of(mapping)` takes one that is in memory; both raise ConfigError.
    """

    name: str = Field(min_length=1, max_length=100, pattern=_ONE_LINE)
    agent_id: str | None = Field(
        default=None, min_length=1, max_length=200, pattern=_ONE_LINE, description="in history and policy; the name"
    )
    goals: list[str] = Field(default_factory=list, max_length=100, description="told to the model")
    system_prompt: str | None = Field(
        default=None, max_length=100_000, description="who the model is, instead of our words; how to run code is added"
    )

    llm_provider: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,49}$")
    llm_model: str | None = Field(default=None, min_length=1, max_length=300, pattern=_ONE_LINE)
    llm_base_url: str | None = Field(default=None, description="without /chat/completions; the provider's own")
    llm_api_key_env: str | None = Field(
        default=None, pattern=_VARIABLE, description="variable with the key; PROVIDER_API_KEY"
    )
    llm_temperature: float | None = Field(default=None, ge=0, le=2)
    llm_max_tokens: int | None = Field(default=None, ge=1, description="of one answer")
    llm_timeout_seconds: float = Field(default=120.0, gt=0, le=3600, description="for one answer, retries included")
    use_tools: Literal["auto", "always", "never"] = Field(
        default="auto", description="tool calls, or code blocks; auto: tools, unless the server refuses them"
    )

    max_rounds: int = Field(default=8, ge=1, le=100, description="answers whose code runs, in one command")
    max_repairs: int = Field(default=3, ge=0, le=100, description="tries after code that failed, in one command")
    rollback_between_tries: bool = Field(default=False, description="each repair starts from before the failure")
    ask: Literal["unsure", "always", "never"] = Field(
        default="unsure", description="when a person is asked before code runs"
    )
    auto_execute_threshold: float | None = Field(
        default=None, ge=0, le=1, description="confidence from which blocks run; that of the settings"
    )
    max_output_chars: int = Field(default=8_000, ge=200, le=1_000_000, description="of a stream, for the model")
    max_messages: int = Field(default=100, ge=4, le=10_000, description="of the conversation that are kept")
    max_conversation_chars: int = Field(default=200_000, ge=10_000, le=10_000_000)

    vm_execution: VmExecutionConfig = Field(default_factory=VmExecutionConfig)
    sandbox_timeout_seconds: float = Field(
        default=3600.0, gt=0, description="unused for so long, the agent's sandbox ends"
    )
    server_token_env: str = Field(
        default="EMBERBOX_TOKEN", pattern=_VARIABLE, description="variable with the server's token (mode http)"
    )

    @field_validator("llm_provider")
    @classmethod
    def _lower(cls, value: str | None) -> str | None:
        return None if value is None else value.lower()

    @field_validator("llm_base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else model_address(value)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.llm_model is None and (self.llm_provider or self.llm_base_url):
            raise ValueError("llm_model: which model of the provider? It is missing")
        if self.llm_model is not None and self.llm_provider is None:
            raise ValueError(f"llm_provider: whose model is that? One of {', '.join(KNOWN_PROVIDERS)}, or another name")
        return self

    @property
    def has_model(self) -> bool:
        """Whether there is a model to ask."""
        return self.llm_model is not None

    @property
    def agent(self) -> str:
        """Under which name history and policy know it."""
        return self.agent_id or self.name

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The role of a JSON file.

        Raises:
            ConfigError: it cannot be read, is not JSON, or has a wrong key or value, which the message names.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except OSError as exc:
            message = f"Cannot read the role file {path}: {exc.strerror}."
            raise ConfigError(message, remediation="Check the path.") from exc
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"The role file {path} is longer than {_MOST_BYTES} bytes.")
        try:
            parsed = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once_each)
        except (ValueError, RecursionError) as exc:
            raise ConfigError(f"The role file {path} is not valid JSON: {exc}.") from exc
        return cls.of(parsed, source=str(path))

    @classmethod
    def of(cls, data: object, *, source: str = "the role") -> Self:
        """The role that a mapping of a role file's form describes; `source` is what errors call it.

        Raises:
            ConfigError: a wrong key or value, which the message names.
        """
        values, places = _flat(data, source)
        try:
            return cls.model_validate(values)
        except ValidationError as exc:
            found = exc.errors(include_input=False, include_url=False)
            problems = "; ".join(_problem(error, places) for error in found)
            raise ConfigError(
                f"{source}: {problems}.", remediation="Correct the named key; docs/agent.md lists all of them."
            ) from exc


def model_address(url: str) -> str:
    """The address of a model's server, without a slash at its end; `/v1` is added where there is no path. Raises
    ValueError."""
    try:
        parts = httpx.URL(url.strip())
    except httpx.InvalidURL as exc:
        raise ValueError(f"{url!r:.200} is no address: {exc}") from exc
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError(f"{url!r:.200} is no address; write http://HOST:PORT/v1")
    if parts.userinfo or parts.query or parts.fragment:
        raise ValueError("an address has no user, password, ? or # here; the key comes from the environment")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return str(parts.copy_with(path=path or "/v1"))


def _once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.100} stands there twice")
        found[key] = value
    return found


def _flat(data: object, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys of all levels as one, and where each of them stands in the file."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    level, prefix = data, ""
    for _ in range(3):
        if not isinstance(level, Mapping):
            what = prefix.rstrip(".") or "the whole of it"
            raise ConfigError(f"{source}: {what} must be an object with keys, not {type(level).__name__}.")
        for key, value in level.items():
            if key == "extra" and prefix != "extra.extra.":
                continue
            if key in values:
                raise ConfigError(f"{source}: {places[key]} and {prefix}{key} are the same key: keep one of them.")
            is_switch = key == "vm_execution" and isinstance(value, bool)
            values[key] = {"enabled": value} if is_switch else value
            places[key] = f"{prefix}{key}"
        if "extra" not in level:
            break
        level, prefix = level["extra"], f"{prefix}extra."
    return values, places


def _problem(error: Any, places: Mapping[str, str]) -> str:
    """One error of validation, with the key as it stands in the file."""
    location = [str(part) for part in error["loc"]]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not location:
        return message
    name = ".".join([places.get(location[0], location[0]), *location[1:]])
    if error["type"] != "extra_forbidden":
        return f"{name}: {message}"
    near = difflib.get_close_matches(location[-1], Role.model_fields, n=1) if len(location) == 1 else []
    return f"{name}: unknown key" + (f" (is {near[0]} meant?)" if near else "")
