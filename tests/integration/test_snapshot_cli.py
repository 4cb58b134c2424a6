"""`emberbox snapshot …` as a user runs it: kept by one program, exported, imported elsewhere, gone on from there."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from commandline import emberbox, process
from emberbox import Engine, Sandbox, load_settings
from emberbox.errors import SnapshotFailed, SnapshotNotFound, ValidationFailed

MINIMAL = "minimal"

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("nothing_left")]


def keep() -> str:
    """A kept snapshot of a sandbox that is gone."""
    with Sandbox.create(MINIMAL, envs={"SECRET": "s3cret"}) as sandbox:
        sandbox.run_code("x = 'remembered'")
        sandbox.files.write("f", "written")
        return sandbox.snapshot("point", keep=True).snapshot_id


def goes_on(snapshot_id: str) -> None:
    with Sandbox.create(snapshot=snapshot_id) as sandbox:
        assert sandbox.run_code("x, open('f').read()").text == "('remembered', 'written')"
        assert sandbox.commands.run("echo $SECRET").stdout == "s3cret\n"


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_exported_here_and_imported_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert "No snapshots are kept" in emberbox("snapshot", "list").stdout
    snapshot, file = keep(), tmp_path / name
    listed = emberbox("snapshot", "list")
    assert listed.returncode == 0, listed.stderr
    for word in (snapshot, "ready", "point", MINIMAL, "MiB"):
        assert word in listed.stdout
    done = emberbox("snapshot", "export", snapshot, str(file))
    assert done.returncode == 0, done.stderr
    assert "Keep it private" in done.stdout
    assert "writing" in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    monkeypatch.setenv("EMBERBOX_STATE_DIR", str(tmp_path / "elsewhere"))
    done = process("snapshot", "import", str(file))
    assert done.returncode == 0, done.stderr
    assert f"✓ {snapshot} (point)" in done.stdout
    (row,) = json.loads(emberbox("snapshot", "list", "--json").stdout)
    assert (row["snapshot_id"], row["state"], row["imported"], row["kept"]) == (snapshot, "ready", True, True)
    shown = emberbox("snapshot", "show", snapshot)
    assert "SECRET" in shown.stdout
    assert "s3cret" not in shown.stdout + emberbox("snapshot", "show", snapshot, "--json").stdout, "values stay secret"
    goes_on(snapshot)
    goes_on(snapshot)
    again = emberbox("snapshot", "import", str(file))
    assert again.returncode == 2
    assert "is here already" in again.stderr
    assert emberbox("snapshot", "delete", snapshot).returncode == 0
    assert "No snapshots are kept" in emberbox("snapshot", "list").stdout
    with pytest.raises(SnapshotNotFound, match=snapshot):
        Sandbox.create(snapshot=snapshot)


def test_wrong_use_has_its_exit_codes(tmp_path: Path) -> None:
    for command in (["show", "snap-00"], ["delete", "snap-00"], ["export", "snap-00", str(tmp_path / "x.tar")]):
        done = emberbox("snapshot", *command)
        assert done.returncode == 2, done.stderr
        assert "no kept snapshot 'snap-00'" in done.stderr
        assert "→" in done.stderr
    assert json.loads(emberbox("snapshot", "show", "../x", "--json").stdout)["error"]["code"] == "snapshot_not_found"
    (tmp_path / "bad.tar").write_bytes(b"nonsense")
    assert emberbox("snapshot", "import", str(tmp_path / "bad.tar")).returncode == 2
    missing = emberbox("snapshot", "import", str(tmp_path / "none.tar"))
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_a_damaged_one_is_listed_refused_and_can_be_deleted(tmp_path: Path) -> None:
    snapshot = keep()
    folder = load_settings().state_dir / "snapshots" / snapshot
    with (folder / "pages.img").open("r+b") as file:
        file.truncate(1000)
    assert emberbox("snapshot", "export", snapshot, str(tmp_path / "x.tar")).returncode == 1
    assert not (tmp_path / "x.tar").exists()
    with pytest.raises(SnapshotFailed, match="damaged"):
        Sandbox.create(snapshot=snapshot)
    (folder / "snapshot.json").write_text("{")
    (row,) = json.loads(emberbox("snapshot", "list", "--json").stdout)
    assert (row["snapshot_id"], row["state"]) == (snapshot, "broken")
    assert "broken" in emberbox("snapshot", "list").stdout
    assert emberbox("snapshot", "delete", snapshot).returncode == 0
    assert not folder.exists()


async def test_what_a_durable_sandbox_goes_on_from_is_not_deleted_by_accident() -> None:
    async with Engine(durable=True) as engine:
        session = await engine.lease("alice", template=MINIMAL)
    (row,) = json.loads(emberbox("snapshot", "list", "--json").stdout)
    assert (row["sandbox_id"], row["kind"], row["kept"]) == (session.id, "shutdown", False)
    refused = emberbox("snapshot", "delete", row["snapshot_id"])
    assert refused.returncode == 2
    assert session.id in refused.stderr
    assert emberbox("snapshot", "delete", row["snapshot_id"], "--force").returncode == 0
    async with Engine(durable=True) as engine:
        assert await engine.list_sandboxes() == []
        assert [found.how for found in engine.recovered] == ["lost"]


def test_a_snapshot_has_its_own_template_and_limits() -> None:
    with pytest.raises(ValidationFailed, match="template and the limits"):
        Sandbox.create(MINIMAL, snapshot="snap-00")
