"""The names that others build on."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

import emberbox
from emberbox import errors, models


def test_everything_that_is_promised_can_be_had() -> None:
    for name in emberbox.__all__:
        assert getattr(emberbox, name) is not None
    assert sorted(emberbox.__all__) == emberbox.__all__
    assert set(emberbox._HOMES) == set(emberbox.__all__) - {"__version__"}


def test_a_star_import_brings_exactly_the_promised_names() -> None:
    names: dict[str, object] = {}
    exec("from emberbox import *", names)  # noqa: S102 (a constant)
    assert set(names) - {"__builtins__"} == set(emberbox.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'emberbox' has no attribute 'Sandbocks'"):
        emberbox.Sandbocks  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        "VmExecutionConfig", "HistoryConfig", "LanguageConfig", "CodeBlock", "ExecutionIntent", "VmExecuteRequest",
        "VmExecuteResponse", "ParseExecuteRequest", "ParseExecuteResponse", "CommandHistoryEntry",
        "HistoryQueryRequest", "HistoryQueryResponse",
    ],
)  # fmt: skip
def test_names_of_the_contract_in_models(name: str) -> None:
    assert hasattr(getattr(models, name), "model_validate")


@pytest.mark.parametrize(
    "name",
    [
        "VmExecutionError", "VmNotAvailable", "ValidationFailed", "UnsupportedLanguage", "Internal", "SessionNotFound",
        "VmConnectionError", "ConfigError", "ExecutionFailed", "HistoryError", "NoCapacity",
    ],
)  # fmt: skip
def test_names_of_the_contract_in_errors(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.VmExecutionError)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("aio", {"AsyncSandbox", "AsyncFiles", "AsyncCommands", "AsyncCommandHandle", "DEFAULT_SANDBOX_TIMEOUT"}),
        ("sync", {"Sandbox", "Files", "Commands", "CommandHandle"}),
        ("client", {"VmExecutionClient", "VmExecutionClientSync"}),
        ("session_adapter", {"DirectSessionAdapter"}),
        ("fcctl_bridge", {"FcctlBridge"}),
        (
            "config",
            {"Backend", "Settings", "default_cache_dir", "default_run_dir", "default_state_dir", "load_settings"},
        ),
    ],
)
def test_modules_of_the_contract_have_their_names(module: str, names: set[str]) -> None:
    home = import_module(f"emberbox.{module}")
    assert set(home.__all__) == names
    for name in names:
        assert getattr(home, name) is getattr(emberbox, name, getattr(home, name))


def test_names_of_models_are_there_before_they_are_loaded() -> None:
    statement = "from emberbox import models; assert {'Execution', 'service'} < set(dir(models))"
    assert "emberbox.models.execution" in loaded_by(statement)
    assert "emberbox.models.execution" not in loaded_by("import emberbox.models")
    with pytest.raises(AttributeError, match=r"module 'emberbox\.models' has no attribute 'Exekution'"):
        models.Exekution  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("kind", [emberbox.AsyncSandbox, emberbox.Sandbox])
def test_what_methods_take_and_return_can_be_looked_up(kind: type) -> None:
    """As programs do that make a model's tools of them."""
    for _, method in inspect.getmembers(kind, inspect.isfunction):
        get_type_hints(method)
    assert get_type_hints(kind.run_code)["return"] is models.Execution  # type: ignore[attr-defined]


def loaded_by(statement: str) -> set[str]:
    """Names of all modules that a fresh Python has after a statement."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    argv = [sys.executable, "-c", code]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout.split())


def test_the_package_is_cheap_to_import() -> None:
    loaded = loaded_by("import emberbox") - loaded_by("pass")
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(
        {"pydantic", "pydantic_settings", "rich", "tree_sitter", "typer", "asyncio", "markdown_it", "structlog"}
    )
    assert {name for name in loaded if name.startswith("emberbox.")} == set()


def test_the_agent_needs_the_standard_library_alone() -> None:
    loaded = loaded_by("import emberbox.guest.agent, emberbox.guest.kernel_process") - loaded_by("pass")
    strange = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"emberbox"}
    assert strange == set()
    assert {name for name in loaded if name.startswith("emberbox.") and not name.startswith("emberbox.guest")} == set()


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert emberbox.__version__ == project["project"]["version"]
