"""Root file systems: nothing in an image leads out of it, and the last touches are right."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from emberbox.errors import ImageError
from emberbox.images import contents
from emberbox.images.contents import (
    SKELETON,
    debian_packages,
    inside,
    npm_packages,
    prepare_rootfs,
    python_packages,
    python_version,
    size_of,
)
from emberbox.images.template import Template, TemplateFile


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs"
    (path / "etc").mkdir(parents=True)
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that nothing may touch."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_text("secret")
    return path


def template(*files: TemplateFile, directory: Path = Path("/")) -> Template:
    return Template(name="mine", directory=directory, files=list(files))


def link(rootfs: Path, path: str, target: object) -> None:
    here = rootfs / path.lstrip("/")
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(str(target))


def text(rootfs: Path, path: str, content: str) -> Path:
    here = rootfs / path.lstrip("/")
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_text(content)
    return here


# --- links ------------------------------------------------------------------------------------------------------------

LINKS = {
    "no link": ({}, "/etc/x", "etc/x"),
    "what is not there": ({}, "/a/b/c", "a/b/c"),
    "the root": ({}, "/", ""),
    "a relative link": ({"/lib": "usr/lib"}, "/lib/x", "usr/lib/x"),
    "an absolute link": ({"/lib": "/usr/lib"}, "/lib/x", "usr/lib/x"),
    "a link at the end": ({"/etc/resolv.conf": "/run/resolv.conf"}, "/etc/resolv.conf", "run/resolv.conf"),
    "a chain": ({"/a": "/b", "/b": "c", "/c": "/d"}, "/a/x", "d/x"),
    "a link through a link": ({"/var/run": "/run", "/run/x": "../etc"}, "/var/run/x/y", "etc/y"),
    "up over the root": ({"/a": "../../../../etc"}, "/a/x", "etc/x"),
    "up in the middle": ({"/a": "/b/../../../c"}, "/a", "c"),
    "up after a link is that of its target": ({"/a": "/usr/lib/deep"}, "/a/../x", "usr/lib/x"),
    "up in the path itself": ({}, "/../../etc/passwd", "etc/passwd"),
    "dots and slashes": ({}, "/./a//b/.", "a/b"),
}


@pytest.mark.parametrize(("links", "path", "expected"), LINKS.values(), ids=LINKS.keys())
def test_links_are_followed_as_the_guest_would(rootfs: Path, links: dict[str, str], path: str, expected: str) -> None:
    for name, target in links.items():
        link(rootfs, name, target)
    assert inside(rootfs, path) == rootfs / expected


def test_loops_of_links_end_with_an_error(rootfs: Path) -> None:
    link(rootfs, "/a", "b")
    link(rootfs, "/b", "/a")
    link(rootfs, "/self", "self/x")
    for path in ("/a", "/b/x", "/self"):
        with pytest.raises(ImageError, match=f"Too many symbolic links in the image at {path}"):
            inside(rootfs, path)


@pytest.mark.parametrize("up", ["", "../../../../../../../.."])
def test_files_are_never_written_outside(rootfs: Path, outside: Path, up: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_NOT_PERSISTENT", ("/tmp/nothing",))  # the folder outside is below /tmp itself
    target = f"{up}{outside}"
    link(rootfs, "/srv", target)
    link(rootfs, "/etc/passwd", f"{target}/secret")
    link(rootfs, "/etc/hosts", f"{target}/new")
    link(rootfs, "/home", target)
    link(rootfs, "/usr/share/x", f"{target}/secret")
    files = [TemplateFile(path=path, content="guest") for path in ("/srv/y", "/usr/share/x", "/home/user/z")]
    prepare_rootfs(rootfs, template(*files))
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    assert (rootfs / str(outside).lstrip("/") / "y").read_text() == "guest"


def test_a_link_to_what_is_empty_in_every_machine_is_seen_through(rootfs: Path) -> None:
    link(rootfs, "/var/run", "/run")
    with pytest.raises(ImageError, match="/var/run/x"):
        prepare_rootfs(rootfs, template(TemplateFile(path="/var/run/x", content="")))


def test_nothing_outside_is_read_for_the_manifest(rootfs: Path, outside: Path) -> None:
    text(outside, "status", "Package: leak\nStatus: install ok installed\nVersion: 1\n")
    text(outside, "leak/package.json", '{"name": "leak", "version": "1"}')
    link(rootfs, "/var/lib/dpkg/status", outside / "status")
    link(rootfs, "/usr/share/nodejs/one", outside / "leak")
    link(rootfs, "/usr/share/nodejs/@two", outside)
    text(rootfs, "/usr/share/nodejs/three/x", "")
    link(rootfs, "/usr/share/nodejs/three/package.json", outside / "leak/package.json")
    link(rootfs, "/node_modules", outside)
    assert debian_packages(rootfs) == {}
    assert npm_packages(rootfs) == {}


def test_modes_and_sizes_outside_are_left_alone(rootfs: Path, outside: Path) -> None:
    (outside / "secret").chmod(0o4755)
    link(rootfs, "/link", outside / "secret")
    link(rootfs, "/folder", outside)
    prepare_rootfs(rootfs, template())
    assert stat.S_IMODE((outside / "secret").stat().st_mode) == 0o4755
    before = size_of(rootfs)
    (outside / "secret").write_bytes(b"x" * 100_000)
    assert size_of(rootfs) == before


# --- the last touches -------------------------------------------------------------------------------------------------


def test_mount_points_the_user_and_the_names_are_there(rootfs: Path) -> None:
    text(rootfs, "/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")
    text(rootfs, "/etc/group", "root:x:0:\n")
    text(rootfs, "/etc/machine-id", "0123")
    prepare_rootfs(rootfs, template())
    for path in ("home/user", "opt/emberbox/guest", "tmp", "run", "dev", "proc", "sys"):
        assert (rootfs / path).is_dir()
    assert (rootfs / "etc/passwd").read_text().splitlines() == [
        "root:x:0:0:root:/root:/bin/bash",
        "user:x:1000:1000::/home/user:/bin/bash",
    ]
    assert (rootfs / "etc/group").read_text() == "root:x:0:\nuser:x:1000:\n"
    assert (rootfs / "etc/hostname").read_text() == "emberbox\n"
    assert "127.0.0.1 localhost emberbox\n" in (rootfs / "etc/hosts").read_text()
    assert (rootfs / "etc/machine-id").read_text() == (rootfs / "etc/resolv.conf").read_text() == ""


def test_a_user_that_is_there_is_not_added_again(rootfs: Path) -> None:
    text(rootfs, "/etc/passwd", "user:x:1000:1000:own:/home/user:/bin/sh\n")
    prepare_rootfs(rootfs, template())
    prepare_rootfs(rootfs, template())
    assert (rootfs / "etc/passwd").read_text() == "user:x:1000:1000:own:/home/user:/bin/sh\n"
    assert (rootfs / "etc/group").read_text() == "user:x:1000:\n"


def test_set_uid_and_set_gid_bits_are_dropped(rootfs: Path) -> None:
    modes = {"usr/bin/su": 0o4755, "usr/bin/wall": 0o2755, "usr/bin/both": 0o6711, "usr/bin/plain": 0o755}
    for name, mode in modes.items():
        text(rootfs, name, "").chmod(mode)
    os.mkfifo(rootfs / "pipe")
    prepare_rootfs(rootfs, template())
    assert {name: stat.S_IMODE((rootfs / name).stat().st_mode) for name in modes} == {
        name: mode & 0o777 for name, mode in modes.items()
    }


def test_the_templates_files_are_written_with_their_modes(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\0\xff")
    files = [
        TemplateFile(path="/srv/deep/er/text", content="é", mode=0o600),
        TemplateFile(path="/usr/local/bin/tool", source=Path("data"), mode=0o755),
    ]
    prepare_rootfs(rootfs, template(*files, directory=tmp_path))
    assert (rootfs / "srv/deep/er/text").read_bytes() == "é".encode()
    assert stat.S_IMODE((rootfs / "srv/deep/er/text").stat().st_mode) == 0o600
    assert (rootfs / "usr/local/bin/tool").read_bytes() == b"\0\xff"
    assert stat.S_IMODE((rootfs / "usr/local/bin/tool").stat().st_mode) == 0o755


def test_files_of_the_home_directory_wait_in_the_skeleton(rootfs: Path) -> None:
    prepare_rootfs(rootfs, template(TemplateFile(path="/home/user/a/b.txt", content="b")))
    assert (rootfs / SKELETON.lstrip("/") / "a/b.txt").read_text() == "b"
    assert list((rootfs / "home/user").iterdir()) == []


@pytest.mark.parametrize("path", ["/tmp/x", "/run/x/y", "/dev/x", "/proc/x", "/sys/x", "/tmp", "//tmp/x"])
def test_a_file_that_no_machine_would_see_is_refused(rootfs: Path, path: str) -> None:
    with pytest.raises(ImageError, match=r"'mine' puts a file at /.*, which is empty in every machine"):
        prepare_rootfs(rootfs, template(TemplateFile(path=path, content="")))


def test_names_that_only_begin_like_an_empty_directory_are_fine(rootfs: Path) -> None:
    prepare_rootfs(rootfs, template(TemplateFile(path="/tmpfiles/x", content="1")))
    assert (rootfs / "tmpfiles/x").read_text() == "1"


# --- lists for the manifest -------------------------------------------------------------------------------------------


def test_installed_debian_packages(rootfs: Path) -> None:
    status = """Package: bash
Status: install ok installed
Version: 5.2.15-2+b7
Description: shell
 Version: 9 is what a description says
 Package: nor is this one

Package: removed
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok half-installed
Version: 2

Package: never
Status: install ok not-installed

Version: 3:1.0~rc1
Package: last
Status: hold ok installed
"""
    text(rootfs, "/var/lib/dpkg/status", status)
    assert debian_packages(rootfs) == {"bash": "5.2.15-2+b7", "last": "3:1.0~rc1"}


def test_an_image_without_dpkg_has_no_debian_packages(rootfs: Path) -> None:
    assert debian_packages(rootfs) == {}


def test_the_version_of_python_is_that_of_the_link(rootfs: Path) -> None:
    text(rootfs, "/usr/bin/python3.11", "")
    link(rootfs, "/usr/bin/python3", "/usr/bin/python3.11")
    assert python_version(rootfs) == "3.11"


@pytest.mark.parametrize("name", ["python3", "perl", "python2.7"])
def test_an_image_without_python_is_refused(rootfs: Path, name: str) -> None:
    link(rootfs, "/usr/bin/python3", name) if name != "python3" else text(rootfs, "/usr/bin/python3", "")
    with pytest.raises(ImageError, match="no Python 3"):
        python_version(rootfs)


def test_python_packages_by_their_normal_names(rootfs: Path) -> None:
    link(rootfs, "/usr/bin/python3", "python3.11")
    for folder, name, version in (
        ("usr/lib/python3/dist-packages/Zope.Interface-5.egg-info", "Zope.Interface", "5.0"),
        ("usr/local/lib/python3.11/dist-packages/my_package-1.dist-info", "My__Package", "1.2.3"),
        ("usr/lib/python3.9/dist-packages/other-1.dist-info", "other", "1"),
    ):
        name_of = "PKG-INFO" if folder.endswith("egg-info") else "METADATA"
        text(rootfs, f"{folder}/{name_of}", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert python_packages(rootfs) == {"zope-interface": "5.0", "my-package": "1.2.3"}


def test_npm_packages_with_scopes_links_and_nonsense(rootfs: Path) -> None:
    for path, content in {
        "node_modules/left-pad": '{"name": "left-pad", "version": "1.3.0"}',
        "usr/share/nodejs/left-pad": '{"name": "left-pad", "version": "0.1"}',
        "usr/share/nodejs/@types/node": '{"name": "@types/node", "version": "18"}',
        "usr/lib/nodejs/elsewhere": '{"name": "linked", "version": "2"}',
        "usr/share/nodejs/unnamed": '{"version": "1"}',
        "usr/share/nodejs/broken": "{",
        "usr/share/nodejs/list": "[]",
        "usr/share/nodejs/plain": '{"name": "plain"}',
    }.items():
        text(rootfs, f"{path}/package.json", content)
    text(rootfs, "/usr/share/nodejs/file.js", "")
    link(rootfs, "/usr/share/nodejs/linked", "/usr/lib/nodejs/elsewhere")
    assert npm_packages(rootfs) == {"left-pad": "1.3.0", "@types/node": "18", "linked": "2", "plain": ""}


# --- what a template may add ------------------------------------------------------------------------------------------


def test_links_and_folders_to_write_to(rootfs: Path) -> None:
    link(rootfs, "/usr/local/bin/show", "old")
    links = {"/usr/local/bin/show": "../../bin/cat", "/opt/new/x": "/nowhere"}
    mine = Template(name="mine", directory=Path("/"), links=links, writable=["/mnt/data"])
    prepare_rootfs(rootfs, mine)
    assert (rootfs / "usr/local/bin/show").readlink() == Path("../../bin/cat")
    assert (rootfs / "opt/new/x").readlink() == Path("/nowhere")
    assert (rootfs / "mnt/data").is_dir()


def test_a_link_stays_in_the_image(rootfs: Path, outside: Path) -> None:
    link(rootfs, "/lib", outside)
    prepare_rootfs(rootfs, Template(name="mine", directory=Path("/"), links={"/lib/secret": "x"}))
    assert (outside / "secret").read_text() == "secret"


def test_programs_of_pip_packages_are_run_by_the_images_python(rootfs: Path) -> None:
    text(rootfs, "/packages/bin/tool", "#!/root/venv/bin/python\nprint(1)\n")
    (rootfs / "packages/bin/native").write_bytes(b"\x7fELF")
    contents.adopt_programs(rootfs, rootfs / "packages/bin")
    assert (rootfs / "usr/local/bin/tool").read_text() == "#!/usr/bin/python3\nprint(1)\n"
    assert (rootfs / "usr/local/bin/native").read_bytes() == b"\x7fELF"
    assert stat.S_IMODE((rootfs / "usr/local/bin/tool").stat().st_mode) == 0o755
    assert not (rootfs / "packages/bin").exists()
    contents.adopt_programs(rootfs, rootfs / "packages/bin")
