"""The example of the settings says everything, says it right, and loads; `emberbox config` shows what is in force."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from emberbox.cli import config as cli
from emberbox.config import Settings, load_settings
from emberbox.config.example import FOR_ROOT, NAMED, ROWS, SAMPLES, _setting, example, uncommented
from emberbox.models import HooksConfig, PolicyConfig, VmExecutionConfig
from emberbox.models.server import ServerConfig

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy/emberbox.toml"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a file nor a variable of this host takes part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("EMBERBOX_", "XDG_"))]:
        monkeypatch.delenv(name)


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """All settings, those of tables included, with their fields."""
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{path}{name}.")


NAMES = dict(fields(Settings))
TABLES = {name for name in NAMES if any(other.startswith(f"{name}.") for other in NAMES)}


def flat(table: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Keys of the tables of a file, as far down as there are settings."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if f"{path}{name}" in TABLES:
            found |= flat(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found


def load(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    path = tmp_path / "example.toml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("EMBERBOX_CONFIG", str(path))
    return load_settings()


# --- the example ------------------------------------------------------------------------------------------------------


def test_the_file_is_the_one_that_is_generated_now() -> None:
    assert FILE.read_text(encoding="utf-8") == example(), (
        "write it anew: emberbox config example > deploy/emberbox.toml"
    )


def test_it_is_the_same_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    first = example()
    monkeypatch.setenv("EMBERBOX_SERVER__PORT", "1234")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 1234)
    assert example() == first


def test_as_it_is_it_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(example(), tmp_path, monkeypatch) == load("", tmp_path, monkeypatch)


def test_every_setting_is_in_it_at_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_file = flat(tomllib.loads(uncommented(example())))
    assert set(in_file) == set(NAMES) - TABLES
    monkeypatch.setattr("emberbox.config.settings.os.getuid", lambda: 0)
    monkeypatch.setenv("HOME", "/root")
    settings, defaults = load(uncommented(example()), tmp_path, monkeypatch), load("", tmp_path, monkeypatch)
    for name in in_file:
        value, default = (_value(of, name) for of in (settings, defaults))
        if name in SAMPLES:
            assert default is None, f"{name} has a default now: take it out of SAMPLES"
            assert value is not None
        elif name not in ROWS and name not in NAMED:
            assert value == default, name
    assert _value(defaults, "cache_dir") == Path(FOR_ROOT["cache_dir"][0])


def _value(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def test_the_examples_of_tables_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(uncommented(example()), tmp_path, monkeypatch)
    for name, rows in ROWS.items():
        assert _value(settings, name) == list(rows)
        said = {key for row in rows for key in row.model_fields_set}
        assert said == set(type(rows[0]).model_fields), f"a key of {name} is in no example"
    for name, tables in NAMED.items():
        assert _value(settings, name) == tables
    assert cli.problems_of(tmp_path / "example.toml") == [], "hooks and rules of the examples can be made"


def test_everything_is_explained() -> None:
    rows = [type(row) for group in (*ROWS.values(), *(list(one.values()) for one in NAMED.values())) for row in group]
    for name, field in [*NAMES.items(), *(pair for row in rows for pair in row.model_fields.items())]:
        assert field.description, f"{name} has no description"
    lines = example().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#(?!\[)\S", line):
            assert lines[number - 1].startswith(("# ", "#")), f"nothing is said of {line}"
    assert max(map(len, (line for line in lines if line.startswith("# ")))) <= 100


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("backend", "One of auto, firecracker, gvisor, qemu."),
        ("server.port", "0 to 65535."),
        ("server.log_level", "One of debug, info, warning, error."),
        ("adoption_seconds", "Seconds, at least 0."),
        ("boot_timeout_seconds", "Seconds, more than 0."),
        ("vm_execution.execution_timeout_ms", "Milliseconds, at least 1."),
        ("vm_execution.allowed_languages", "Any of python, javascript, bash, rust, typescript."),
        ("max_input_bytes", "Bytes, at least 1024; the default is 16 MiB."),
        ("auto_execute_threshold", "0 to 1."),
        ("runsc", "Not set by default; for example:"),
        ("state_dir", "As for root; other users have it below ~/.local/state"),
        ("hooks.use", "None by default; for example:"),
    ],
)
def test_unit_range_and_choices_are_said(name: str, words: str) -> None:
    text = example()
    table, _, key = name.rpartition(".")
    below = text.partition(f"\n[{table}]\n")[2] if table else text
    before = re.split(rf"(?m)^#(?:{key} =|\[\[{re.escape(name)}\]\])", below)[0]
    paragraph = before.rpartition("\n\n")[2].replace("\n# ", " ")
    assert words in paragraph


def test_the_default_of_the_settings_counts_not_that_of_the_model() -> None:
    """A snapshot after every success is on in a role's configuration, and off here."""
    assert VmExecutionConfig().history.snapshot_on_failure
    assert "\n#snapshot_on_failure = false\n" in example()
    assert "\n[vm_execution]\n\n# Whether an agent of this role may run code at all.\n#enabled = true\n" in example()


def test_a_new_setting_without_a_value_wants_a_sample() -> None:
    class Grown(ServerConfig):
        colour: str | None = Field(default=None, description="of the walls")

    with pytest.raises(KeyError, match=r"server\.colour"):
        list(_setting("server.colour", Grown.model_fields["colour"], None))


# --- config show ------------------------------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        cli.show(as_json=True)
    assert left.value.code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_show_says_where_each_setting_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys)["file"] is None
    (tmp_path / "emberbox.toml").write_text("max_sandboxes = 7\n[server]\nport = 1\nhost = 'localhost'\n")
    monkeypatch.setenv("EMBERBOX_SERVER__PORT", "2")
    monkeypatch.setenv("EMBERBOX_HOOKS", '{"timeout_seconds": 3}')
    answer = shown(capsys)
    assert answer["file"] == str(tmp_path / "emberbox.toml")
    told = answer["settings"]
    assert set(told) == set(NAMES) - TABLES
    assert told["max_sandboxes"] == {"value": 7, "from": "file"}
    assert told["server.host"] == {"value": "localhost", "from": "file"}
    assert told["server.port"] == {"value": 2, "from": "environment"}
    assert told["hooks.timeout_seconds"] == {"value": 3, "from": "environment"}
    assert told["backend"] == {"value": "auto", "from": "default"}


def test_show_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "emberbox.toml").write_text("max_sandboxes = 7\n")
    with pytest.raises(SystemExit):
        cli.show(as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"file: {tmp_path / 'emberbox.toml'}"
    assert "max_sandboxes = 7  (file)" in lines
    assert "runsc = not set" in lines


def test_show_keeps_passwords(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBERBOX_HISTORY_URL", "postgresql+asyncpg://ada:s3cr-et@db/emberbox")
    assert shown(capsys)["settings"]["history_url"]["value"] == "postgresql+asyncpg://ada:***@db/emberbox"


def test_show_of_wrong_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMBERBOX_BACKEND", "docker")
    with pytest.raises(SystemExit) as left:
        cli.show(as_json=True)
    assert left.value.code == 2
    assert "backend" in json.loads(capsys.readouterr().out)["error"]["message"]


# --- config check, config example -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense = 1\nbackend = 'docker'", ["backend: ", "nonsense: "]),
        ("[server]\nport = 99999", ["server.port: "]),
        ("a = = b", ["not valid TOML"]),
        ("[hooks]\nuse = ['nothing-of-that-name']", ["nothing-of-that-name"]),
        ("[hooks]\nuse = [{name = 'output-sanitizer', options = {colour = 1}}]", ["cannot be made"]),
        ("[vm_execution.policy]\ndisabled = ['bash.no-such-rule']", ["bash.no-such-rule"]),
        (
            "[[vm_execution.policy.rules]]\nid = 'a.b'\nlanguage = 'bash'\nmessage = 'x'\nquery = '(nonsense) @hit'",
            ["a.b"],
        ),
    ],
)
def test_check_names_everything_that_is_wrong(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERBOX_BACKEND", "auto")  # a variable hides no mistake of the file
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as left:
        cli.check(path, as_json=True)
    assert left.value.code == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len(problems) == len(words)
    for word in words:
        assert any(word in problem for problem in problems)
    assert os.environ["EMBERBOX_BACKEND"] == "auto"
    assert "EMBERBOX_CONFIG" not in os.environ


def test_check_of_a_good_file_and_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.check(FILE, as_json=False)
    assert left.value.code == 0
    assert "nothing to object to" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        cli.check(tmp_path / "none.toml", as_json=False)
    assert left.value.code == 2
    assert "No such file" in capsys.readouterr().err


def test_the_command_prints_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.print_example()
    assert left.value.code == 0
    assert capsys.readouterr().out == example()


def test_the_tables_of_the_settings_are_the_models() -> None:
    assert {"hooks", "server", "vm_execution", "vm_execution.policy", "vm_execution.history"} <= TABLES
    assert set(HooksConfig.model_fields) | set(PolicyConfig.model_fields) <= {n.rpartition(".")[2] for n in NAMES}
