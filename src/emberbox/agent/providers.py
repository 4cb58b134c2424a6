"""Where a role's model is, and with which key."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import httpx

from emberbox.agent.role import KNOWN_PROVIDERS, Role, model_address
from emberbox.errors import ConfigError

_WANT_A_KEY = frozenset({"openai", "openrouter"})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of the chat API. The key is in no text that this object makes."""

    provider: str
    url: str
    key_variable: str
    key: str | None = field(default=None, repr=False)

    @property
    def is_local(self) -> bool:
        """On this host: no proxy is asked."""
        return httpx.URL(self.url).host in _LOCAL

    def without_key(self, text: str) -> str:
        """A text in which the key does not stand."""
        return text if self.key is None else text.replace(self.key, "[REDACTED]")


def endpoint_of(role: Role) -> Endpoint:
    """The server of a role's model: what the role says, else PROVIDER_BASE_URL and PROVIDER_API_KEY of the environment,
    else the provider's own address.

    Raises:
        ConfigError: the address is not known, or the key is missing or cannot be one.
    """
    provider = role.llm_provider or ""
    prefix = re.sub(r"[^A-Z0-9]", "_", provider.upper())
    url = _address_of(role, provider, f"{prefix}_BASE_URL")
    variable = role.llm_api_key_env or f"{prefix}_API_KEY"
    key = os.environ.get(variable, "").strip() or None
    needed = role.llm_api_key_env is not None or (provider in _WANT_A_KEY and url == KNOWN_PROVIDERS[provider])
    if key is None and needed:
        raise ConfigError(
            f"The role {role.name!r} asks {provider} for {role.llm_model}, which needs a key; {variable} is not set.",
            remediation=f"Set the environment variable {variable} to the key.",
        )
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(
            f"The key in {variable} holds characters that no key has.", remediation="Copy the key once more."
        )
    return Endpoint(provider, url, variable, key)


def _address_of(role: Role, provider: str, variable: str) -> str:
    if role.llm_base_url is not None:
        return role.llm_base_url
    told = os.environ.get(variable, "").strip()
    if told:
        try:
            return model_address(told)
        except ValueError as exc:
            raise ConfigError(f"{variable}: {exc}.", remediation="Correct or unset the variable.") from exc
    if provider not in KNOWN_PROVIDERS:
        raise ConfigError(
            f"extra.llm_base_url: where {provider!r} is, is not known; known are {', '.join(KNOWN_PROVIDERS)}.",
            remediation=f"Give llm_base_url in the role file, or the variable {variable}.",
        )
    return KNOWN_PROVIDERS[provider]
