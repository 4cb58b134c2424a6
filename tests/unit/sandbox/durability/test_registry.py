"""Records of sandboxes that outlive the process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from emberbox.errors import ConfigError
from emberbox.images.store import Image
from emberbox.sandbox.durability.registry import SandboxRegistry
from snapshot_fakes import make_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sandboxes"


@pytest.fixture
def ledger(folder: Path) -> Iterator[SandboxRegistry]:
    ledger = SandboxRegistry(folder)
    ledger.open()
    yield ledger
    ledger.close()


def test_records_come_back_as_they_were_oldest_first(ledger: SandboxRegistry, image: Image) -> None:
    now = datetime.now(UTC)
    young = make_record(image, "sb-a", started_at=now, path=["ex-1"], head="snap-1", own=True, machine="gv1")
    old = make_record(image, "sb-b", started_at=now - timedelta(hours=1), end_at=now, idle_seconds=3.5, good=False)
    for record in (young, old):
        ledger.write(record)
    assert ledger.records() == [old, young]
    ledger.write(old.model_copy(update={"head": "snap-2"}))
    assert [record.head for record in ledger.records()] == ["snap-2", "snap-1"]
    ledger.remove("sb-b")
    ledger.remove("sb-b")
    assert ledger.records() == [young]


def test_an_environment_may_be_secret(ledger: SandboxRegistry, image: Image, folder: Path) -> None:
    previous = os.umask(0)
    try:
        ledger.write(make_record(image))
    finally:
        os.umask(previous)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes == {"sandboxes": 0o700, "sb-1.json": 0o600, ".lock": 0o600}


def test_one_process_at_a_time(ledger: SandboxRegistry, folder: Path) -> None:
    ledger.open()  # its own lock is no obstacle
    second = SandboxRegistry(folder)
    with pytest.raises(ConfigError, match="Another process keeps the sandboxes") as error:
        second.open()
    assert "another `state_dir`" in error.value.remediation
    ledger.close()
    second.open()
    second.close()


def test_the_lock_goes_with_its_process(folder: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from emberbox.sandbox.durability.registry import SandboxRegistry; "
        "SandboxRegistry(Path(sys.argv[1])).open(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == -9, "it had the lock"
    ledger = SandboxRegistry(folder)
    ledger.open()
    ledger.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sandbox_id": "sb-bad"}', "\0" * 100])
def test_what_cannot_be_read_is_put_aside_and_spares_the_others(
    ledger: SandboxRegistry, image: Image, folder: Path, text: str
) -> None:
    good = make_record(image, "sb-good")
    ledger.write(good)
    (folder / "sb-bad.json").write_text(text)
    assert ledger.records() == [good]
    assert (folder / "sb-bad.unreadable").read_text() == text, "it is somebody's"
    assert ledger.unreadable() == {"sb-bad"}
    assert ledger.records() == [good]


def test_what_is_told_of_a_damaged_record_holds_nothing_of_its_environment(
    ledger: SandboxRegistry, folder: Path
) -> None:
    for text in ('{"envs": {"PASSWORD": "s3cret"', '{"envs": {"PASSWORD": "s3cret"}}', '{"envs": "s3cret"}'):
        (folder / "sb-bad.json").write_text(text)
        with capture_logs() as logs:
            assert ledger.records() == []
        (told,) = logs
        assert "sb-bad" in told["file"]
        assert "s3cret" not in str(told)


def test_records_of_another_version_or_name_are_put_aside(ledger: SandboxRegistry, image: Image, folder: Path) -> None:
    ledger.write(make_record(image, "sb-new", format=2))
    (folder / "sb-alias.json").write_text(make_record(image, "sb-other").model_dump_json())
    assert ledger.records() == []
    assert ledger.unreadable() == {"sb-new", "sb-alias"}


def test_a_write_that_fails_leaves_the_older_record(
    ledger: SandboxRegistry, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.write(make_record(image, head="snap-1"))
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.write(make_record(image, head="snap-2"))
    monkeypatch.setattr(Path, "replace", replace)
    assert [record.head for record in ledger.records()] == ["snap-1"]


def test_a_write_that_was_cut_short_is_cleared_at_the_next_open(image: Image, folder: Path) -> None:
    ledger = SandboxRegistry(folder)
    ledger.open()
    ledger.write(make_record(image))
    ledger.close()
    (folder / ".sb-2.json.x7").write_text('{"sandbox_id"')
    ledger.open()
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "sb-1.json"]
    ledger.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/sandboxes"):
        SandboxRegistry(tmp_path / "file" / "sandboxes").open()
