"""Where settings come from, which one wins, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emberbox import Settings, load_settings
from emberbox.config import default_cache_dir, default_run_dir, default_state_dir
from emberbox.errors import ConfigError
from emberbox.models import VmExecutionConfig


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without any settings, in an empty directory."""
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "EMBERBOX_CACHE_DIR", "EMBERBOX_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- defaults ---------------------------------------------------------------------------------------------------------


def test_defaults(home: Path) -> None:
    settings = load_settings()
    assert settings.cache_dir == home / ".cache" / "emberbox"
    assert settings.backend == "auto"
    assert settings.vm_execution.enabled
    assert settings.vm_execution.max_code_length == 100_000
    assert settings.auto_execute_threshold == 0.7


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/emberbox")


def test_the_state_directory(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 0)
    assert default_state_dir() == Path("/var/lib/emberbox")
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 1234)
    assert default_state_dir() == home / ".local/state/emberbox"
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_state_dir() == Path("/somewhere/emberbox")


def test_the_run_directory_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 0)
    assert default_run_dir() == Path("/run/emberbox")


def test_the_run_directory_of_an_ordinary_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 1234)
    assert default_run_dir() == Path("/tmp/emberbox-1234")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert default_run_dir() == Path("/run/user/1234/emberbox")


# --- the order --------------------------------------------------------------------------------------------------------


def test_the_file_in_the_directory_is_read() -> None:
    write(Path("emberbox.toml"), "boot_timeout_seconds = 7\n[vm_execution]\nmax_code_length = 5\n")
    settings = load_settings()
    assert settings.boot_timeout_seconds == 7
    assert settings.vm_execution.max_code_length == 5
    assert settings.vm_execution.vm_pool_size == 1


def test_the_file_in_the_directory_hides_that_of_the_user(home: Path) -> None:
    write(home / ".config/emberbox/emberbox.toml", "boot_timeout_seconds = 3\nmax_input_bytes = 2000")
    assert load_settings().boot_timeout_seconds == 3
    write(Path("emberbox.toml"), "boot_timeout_seconds = 4")
    settings = load_settings()
    assert (settings.boot_timeout_seconds, settings.max_input_bytes) == (4, 16 << 20)


def test_a_named_file_hides_all_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(Path("emberbox.toml"), "boot_timeout_seconds = 4")
    monkeypatch.setenv("EMBERBOX_CONFIG", str(write(tmp_path / "named.toml", "boot_timeout_seconds = 5")))
    assert load_settings().boot_timeout_seconds == 5


def test_a_variable_wins_over_the_file_and_an_argument_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("emberbox.toml"), "boot_timeout_seconds = 4\nauto_execute_threshold = 0.1")
    monkeypatch.setenv("EMBERBOX_BOOT_TIMEOUT_SECONDS", "5")
    assert load_settings().boot_timeout_seconds == 5
    assert load_settings(boot_timeout_seconds=6).boot_timeout_seconds == 6
    assert load_settings(boot_timeout_seconds=None).boot_timeout_seconds == 5
    assert load_settings().auto_execute_threshold == 0.1


def test_nested_keys_of_file_and_variables_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("emberbox.toml"), "[vm_execution]\nmax_code_length = 5\nexecution_timeout_ms = 6")
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__MAX_CODE_LENGTH", "20000")
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__HISTORY__ENABLED", "false")
    settings = load_settings().vm_execution
    assert (settings.max_code_length, settings.execution_timeout_ms, settings.history.enabled) == (20000, 6, False)


def test_a_file_of_the_host_program_is_not_read() -> None:
    write(Path(".env"), "EMBERBOX_BOOT_TIMEOUT_SECONDS=5")
    assert load_settings().boot_timeout_seconds == 60


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cache_dir", "run_dir", "state_dir", "templates_dir", "runsc"])
def test_paths_become_absolute(key: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Helper processes run in other directories, and nobody else replaces `~` in a file."""
    write(Path("emberbox.toml"), f'{key} = "~/x"')
    assert getattr(load_settings(), key) == home / "x"
    monkeypatch.setenv(f"EMBERBOX_{key.upper()}", "relative/x")
    assert getattr(load_settings(), key) == Path.cwd() / "relative" / "x"


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense = 1", "nonsense"),
        ("[vm_execution]\nnonsense = 1", r"vm_execution\.nonsense"),
        ("[vm_execution.history]\nmax_history_entries = 0", r"vm_execution\.history\.max_history_entries"),
        ('backend = "docker"', "backend"),
        ("boot_timeout_seconds = 0", "boot_timeout_seconds"),
        ("auto_execute_threshold = 1.5", "auto_execute_threshold"),
        ('debian_mirror = "--help"', "debian_mirror"),
        ('runsc_sha512 = "abc"', "runsc_sha512"),
        ("max_input_bytes = 1", "max_input_bytes"),
        ('vm_execution = "on"', "vm_execution"),
        ('vm_execution = { allowed_languages = ["cobol"] }', r"vm_execution\.allowed_languages\.0"),
    ],
)
def test_a_wrong_key_or_value_of_the_file_is_named(text: str, words: str) -> None:
    write(Path("emberbox.toml"), text)
    with pytest.raises(ConfigError, match=f"Wrong settings: {words}: "):
        load_settings()


def test_every_mistake_is_named() -> None:
    write(Path("emberbox.toml"), 'nonsense = 1\nbackend = "docker"')
    with pytest.raises(ConfigError, match=r"(?=.*nonsense)(?=.*backend)"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BACKEND", "docker", "backend"),
        ("BOOT_TIMEOUT_SECONDS", "soon", "boot_timeout_seconds"),
        ("VM_EXECUTION__VM_POOL_SIZE", "-1", "vm_pool_size"),
        ("VM_EXECUTION", "no json", "vm_execution"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(f"EMBERBOX_{name}", value)
    with pytest.raises(ConfigError, match=rf"Wrong settings: .*{words}"):
        load_settings()


@pytest.mark.parametrize("arguments", [{"nonsense": 1}, {"backend": "docker"}])
def test_a_wrong_argument_is_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        load_settings(**arguments)


def test_a_file_that_is_no_toml() -> None:
    write(Path("emberbox.toml"), "a = = b")
    with pytest.raises(ConfigError, match=r"emberbox\.toml is not valid TOML: .*line 1"):
        load_settings()
    Path("emberbox.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_settings()


def test_a_named_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBERBOX_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"Cannot read .*none\.toml: No such file"):
        load_settings()


def test_settings_can_be_made_directly(tmp_path: Path) -> None:
    assert Settings(cache_dir=tmp_path).cache_dir == tmp_path


def test_snapshots_of_a_policy_are_a_choice_here_and_on_in_a_config_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A snapshot after every success costs more than most executions; a role's own configuration has the contract's
    defaults."""
    assert not load_settings().vm_execution.history.snapshot_on_failure
    monkeypatch.setenv("EMBERBOX_VM_EXECUTION__HISTORY__MAX_HISTORY_ENTRIES", "7")
    history = load_settings(vm_execution={"max_code_length": 5}).vm_execution.history
    assert (history.max_history_entries, history.snapshot_on_failure) == (7, False), "one key leaves the others alone"
    assert load_settings(vm_execution=VmExecutionConfig()).vm_execution.history.snapshot_on_failure
