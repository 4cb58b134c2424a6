"""Role files: what is accepted, and what is said of what is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from emberbox.agent import Role
from emberbox.agent.providers import endpoint_of
from emberbox.errors import ConfigError

ROOT = Path(__file__).parents[3]
DIRECT = {"enabled": True, "history": {"integration_mode": "direct"}}
MODEL = {"llm_provider": "ollama", "llm_model": "qwen"}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "role.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_example_is_a_role_that_needs_no_server() -> None:
    role = Role.load(ROOT / "examples/role.json")
    assert (role.name, role.llm_provider, role.has_model) == ("Analyst", "ollama", True)
    assert role.vm_execution.enabled
    assert role.vm_execution.history.integration_mode == "direct"


def test_the_page_has_every_key_and_no_other() -> None:
    table = (ROOT / "docs/agent.md").read_text(encoding="utf-8").partition("| Key | Default | |")[2]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    assert sorted(key for cell in cells for key in re.findall(r"`(\w+)`", cell)) == sorted(Role.model_fields)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "r", "extra": {**MODEL, "goals": ["g"], "vm_execution": DIRECT}},
        {"name": "r", "extra": {**MODEL, "goals": ["g"], "extra": {"vm_execution": DIRECT}}},
        {"name": "r", **MODEL, "goals": ["g"], "vm_execution": DIRECT},
    ],
)
def test_keys_may_stand_on_every_level(data: dict[str, Any], tmp_path: Path) -> None:
    role = Role.load(write(tmp_path, data))
    assert (role.llm_model, role.goals, role.vm_execution.history.integration_mode) == ("qwen", ["g"], "direct")


@pytest.mark.parametrize(("value", "enabled"), [(True, True), (False, False), ({}, False)])
def test_vm_execution_may_be_a_switch(value: object, enabled: bool) -> None:
    role = Role.of({"name": "r", "extra": {"vm_execution": value}})
    assert role.vm_execution.enabled is enabled
    assert role.vm_execution.history.integration_mode == "http"


def test_a_role_without_more_has_no_model_and_runs_nothing() -> None:
    role = Role.of({"name": "r"})
    assert not role.has_model
    assert not role.vm_execution.enabled
    assert role.agent == "r"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"name: Field required"),
        ({"name": ""}, r"name: "),
        ({"name": "a\nb"}, r"name: "),
        ({"name": "r", "extra": {"llm_modle": "x"}}, r"extra\.llm_modle: unknown key \(is llm_model meant\?\)"),
        ({"name": "r", "goal": ["x"]}, r"goal: unknown key \(is goals meant\?\)"),
        ({"name": "r", "extra": {"extra": {"zzz": 1}}}, r"extra\.extra\.zzz: unknown key"),
        ({"name": "r", "extra": {"vm_execution": {"vm_pool": 1}}}, r"extra\.vm_execution\.vm_pool: unknown key"),
        ({"name": "r", "extra": {"vm_execution": {"vm_pool_size": -1}}}, r"vm_execution\.vm_pool_size: .*greater"),
        (
            {"name": "r", "vm_execution": {"history": {"integration_mode": "both"}}},
            r"vm_execution\.history\.integration_mode: .*'http' or 'direct'",
        ),
        ({"name": "r", "vm_execution": "yes"}, r"vm_execution: "),
        ({"name": "r", "vm_execution": {"allowed_languages": ["cobol"]}}, r"vm_execution\.allowed_languages\.0: "),
        ({"name": "r", "max_rounds": 0}, r"max_rounds: "),
        ({"name": "r", "max_repairs": "many"}, r"max_repairs: "),
        ({"name": "r", "use_tools": "sometimes"}, r"use_tools: "),
        ({"name": "r", **MODEL, "llm_temperature": 3}, r"llm_temperature: "),
        ({"name": "r", **MODEL, "llm_base_url": "localhost:11434"}, r"llm_base_url: .*is no address"),
        ({"name": "r", **MODEL, "llm_base_url": "http://me:secret@host/v1"}, r"llm_base_url: an address has no user"),
        ({"name": "r", **MODEL, "llm_api_key_env": "sk-123"}, r"llm_api_key_env: "),
        ({"name": "r", "llm_provider": "openai"}, r"llm_model: which model"),
        ({"name": "r", "llm_model": "gpt"}, r"llm_provider: whose model"),
        ({"name": "r", "goals": [], "extra": {"goals": []}}, r"goals and extra\.goals are the same key"),
        ({"name": "r", "extra": []}, r"extra must be an object with keys, not list"),
        ([], r"the whole of it must be an object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(data: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, data)
    with pytest.raises(ConfigError, match=message) as caught:
        Role.load(path)
    assert caught.value.message.startswith(str(path))
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ('{"name": "a", "name": "b"}', "'name' stands there twice"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"name": "' + "x" * (1 << 20) + '"}', "is longer than"),
    ],
)
def test_what_is_no_json_is_said(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Role.load(write(tmp_path, content))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read the role file .*nowhere\.json: No such file"):
        Role.load(tmp_path / "nowhere.json")


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "role.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"name": "r"}')
    assert Role.load(path).name == "r"


# --- where the model is ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "OPENROUTER", "OLLAMA", "VLLM", "ACME_AI"):
        monkeypatch.delenv(f"{name}_API_KEY", raising=False)
        monkeypatch.delenv(f"{name}_BASE_URL", raising=False)


def role_of(provider: str, **keys: Any) -> Role:
    return Role.of({"name": "r", "extra": {"llm_provider": provider, "llm_model": "m", **keys}})


@pytest.mark.parametrize(
    ("provider", "url"),
    [
        ("ollama", "http://localhost:11434/v1"),
        ("Ollama", "http://localhost:11434/v1"),
        ("vllm", "http://localhost:8000/v1"),
        ("openrouter", "https://openrouter.ai/api/v1"),
        ("openai", "https://api.openai.com/v1"),
    ],
)
def test_known_providers_have_an_address(provider: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")
    assert endpoint_of(role_of(provider)).url == url


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://gpu:11434", "http://gpu:11434/v1"),
        ("http://gpu:11434/", "http://gpu:11434/v1"),
        ("https://host/api/v1/", "https://host/api/v1"),
        ("https://host/v1/chat/completions", "https://host/v1"),
    ],
)
def test_the_role_says_where_else(given: str, url: str) -> None:
    assert endpoint_of(role_of("ollama", llm_base_url=given)).url == url


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_AI_BASE_URL", "https://acme.example/v1")
    monkeypatch.setenv("ACME_AI_API_KEY", "acme-key")
    endpoint = endpoint_of(role_of("acme-ai"))
    assert (endpoint.url, endpoint.key) == ("https://acme.example/v1", "acme-key")
    assert "acme-key" not in repr(endpoint)


def test_a_variable_of_ones_own_has_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "common")
    monkeypatch.setenv("TEAM_KEY", "own")
    assert endpoint_of(role_of("openai", llm_api_key_env="TEAM_KEY")).key == "own"


@pytest.mark.parametrize(("provider", "variable"), [("openai", "OPENAI_API_KEY"), ("openrouter", "OPENROUTER_API_KEY")])
def test_a_missing_key_is_named(provider: str, variable: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable} is not set"):
        endpoint_of(role_of(provider))


def test_a_server_of_ones_own_needs_no_key() -> None:
    assert endpoint_of(role_of("openai", llm_base_url="http://127.0.0.1:1234/v1")).key is None
    assert endpoint_of(role_of("ollama")).key is None


def test_what_cannot_be_a_key_is_said_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\nsecret")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY holds characters") as caught:
        endpoint_of(role_of("openai"))
    assert "secret" not in str(caught.value)


def test_an_unknown_provider_needs_an_address() -> None:
    with pytest.raises(ConfigError, match=r"llm_base_url.*'acme-ai'"):
        endpoint_of(role_of("acme-ai"))


def test_a_wrong_address_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BASE_URL", "gpu:8000")
    with pytest.raises(ConfigError, match=r"VLLM_BASE_URL: .*is no address"):
        endpoint_of(role_of("vllm"))
