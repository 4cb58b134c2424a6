"""Template files: what is wrong is named, and the key follows what an image is built from."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import ConfigError, ImageError
from emberbox.images import template as module
from emberbox.images.template import Template, list_templates, load_template, read_template

from .conftest import WriteTemplate

FULL = """
description = "All of it"
suite = "trixie"
packages = ["python3", "git", "libstdc++6"]
pip = ["numpy>=2", "requests[socks]==2.32.0"]
npm = ["left-pad@1.3.0", "@scope/name@^2.0.0", "plain"]
writable = ["/data", "/mnt/data"]
run = [["localedef", "--inputfile=fr_FR"]]
links = { "/usr/local/bin/show" = "../bin/cat" }
env = { TEAM = "red" }
workdir = "/home/user/project"
languages = ["python", "javascript"]
warm = ["python", "javascript"]
warmup = "import json"

[limits]
memory_mb = 512
vcpus = 0.5

[[files]]
path = "/home/user/hello.txt"
content = "hello"
mode = 0o600
"""


def test_a_whole_template(write_template: WriteTemplate) -> None:
    template = write_template(FULL)
    assert template.name == "mine"
    assert template.packages == ["python3", "git", "libstdc++6"]
    assert template.npm == ["left-pad@1.3.0", "@scope/name@^2.0.0", "plain"]
    assert (template.limits.memory_mb, template.limits.vcpus, template.limits.processes) == (512, 0.5, 256)
    assert template.files[0].mode == 0o600
    assert template.files[0].data(template.directory) == b"hello"


def test_an_empty_file_is_a_template(write_template: WriteTemplate) -> None:
    template = write_template("")
    assert (template.suite, template.languages, template.workdir) == ("bookworm", ["python", "bash"], "/home/user")


WRONG = {
    "an unknown key": ('pakages = ["git"]', "pakages"),
    "an unknown key of the limits": ("[limits]\nmemory = 5", "limits.memory"),
    "too little memory": ("[limits]\nmemory_mb = 1", "limits.memory_mb"),
    "a name of a suite": ('suite = "Book Worm"', "suite"),
    "a suite that is an option": ('suite = "--help"', "suite"),
    "a package that is an option": ('packages = ["git", "--yes"]', "packages.1"),
    "a package with a comma": ('packages = ["git,curl"]', "packages.0"),
    "a package in upper case": ('packages = ["Git"]', "packages.0"),
    "packages that are no list": ('packages = "git"', "packages"),
    "a requirement that is none": ('pip = ["numpy >>> 2"]', "pip: .*numpy >>> 2"),
    "a pip option": ('pip = ["--index-url=http://x"]', "pip: .*index-url"),
    "a pip package from an address": ('pip = ["x @ https://example.org/x.whl"]', "pip: .*direct references"),
    "an npm option": ('npm = ["--global"]', "npm.0"),
    "an npm address": ('npm = ["git+https://example.org/x"]', "npm.0"),
    "an npm path": ('npm = ["../x"]', "npm.0"),
    "a name of a variable": ('env = { "A B" = "x" }', r"env\.A B"),
    "a variable that is no text": ("env = { A = 5 }", r"env\.A"),
    "a work directory elsewhere": ('workdir = "/srv"', "workdir: .*/home/user"),
    "a work directory beside the home": ('workdir = "/home/username"', "workdir"),
    "a work directory that leads out": ('workdir = "/home/user/../../etc"', "workdir"),
    "an unknown language": ('languages = ["cobol"]', "languages.0"),
    "a language that cannot be warm": ('warm = ["rust"]', "warm.0"),
    "a file without a path": ('[[files]]\ncontent = ""', "files.0.path"),
    "a file with a relative path": ('[[files]]\npath = "etc/x"\ncontent = ""', "files.0.path"),
    "a file that leads out": ('[[files]]\npath = "/../x"\ncontent = ""', "files.0.path"),
    "the root as a file": ('[[files]]\npath = "/"\ncontent = ""', "files.0.path"),
    "a file from nowhere": ('[[files]]\npath = "/x"', "files.0: .*content"),
    "a file of two origins": ('[[files]]\npath = "/x"\ncontent = ""\nsource = "x"', "files.0: .*source"),
    "a set-uid file": ('[[files]]\npath = "/x"\ncontent = ""\nmode = 0o4755', "files.0.mode"),
    "a link that leads out": ('[links]\n"/../x" = "y"', "links: .*absolute path"),
    "a link from nowhere": ('[links]\n"x" = "y"', "links: .*absolute path"),
    "a folder of the system to write to": ('writable = ["/etc/x"]', "writable: .*used by the system"),
    "a folder of Emberbox's to write to": ('writable = ["/opt/emberbox/x"]', "writable: .*used by the system"),
    "a folder to write to that leads out": ('writable = ["/../x"]', "writable.0"),
    "a folder to write to with an option": ('writable = ["/x,size=1"]', "writable.0"),
    "a program without a name": ("run = [[]]", "run.0"),
    "a name": ('name = "other"', "name"),
    "a directory": ('directory = "/etc"', "directory"),
}


@pytest.mark.parametrize(("text", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(write_template: WriteTemplate, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.toml is wrong: {words}"):
        write_template(text)


def test_all_that_is_wrong_is_named_at_once(write_template: WriteTemplate) -> None:
    with pytest.raises(ConfigError, match=r"(?s)pakages.*suite|suite.*pakages"):
        write_template('pakages = []\nsuite = "?"')


def test_a_file_name_that_is_no_name_of_a_template(tmp_path: Path) -> None:
    path = tmp_path / "My Template.toml"
    path.touch()
    with pytest.raises(ConfigError, match="name: "):
        read_template(path)


def test_a_file_that_is_no_toml(write_template: WriteTemplate, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML: .*line 2"):
        write_template('suite = "trixie"\npackages = git')
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_template(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*none\.toml: No such file"):
        read_template(tmp_path / "none.toml")


# --- files of a template ----------------------------------------------------------------------------------------------


def test_a_source_is_beside_the_template(write_template: WriteTemplate, own_settings: Settings) -> None:
    assert own_settings.templates_dir is not None
    (own_settings.templates_dir / "data.bin").write_bytes(b"\0\1")
    template = write_template('[[files]]\npath = "/x"\nsource = "data.bin"')
    assert template.files[0].data(template.directory) == b"\0\1"


def test_a_source_that_is_missing_is_named_with_its_place(write_template: WriteTemplate) -> None:
    template = write_template('[[files]]\npath = "/srv/x"\nsource = "gone.bin"')
    with pytest.raises(ImageError, match=r"gone\.bin, which a template puts at /srv/x: No such file"):
        template.key()


@pytest.mark.parametrize("path", ["//tmp/x", "/./tmp//x", "///tmp/x/"])
def test_a_path_has_one_form(write_template: WriteTemplate, path: str) -> None:
    assert write_template(f'[[files]]\npath = "{path}"\ncontent = ""').files[0].path == "/tmp/x"


# --- the key ----------------------------------------------------------------------------------------------------------

CHANGES = {
    "suite": 'suite = "trixie"',
    "another package": 'packages = ["git"]',
    "pip": 'pip = ["numpy"]',
    "npm": 'npm = ["left-pad"]',
    "a file": '[[files]]\npath = "/x"\ncontent = ""',
    "another path": '[[files]]\npath = "/y"\ncontent = ""',
    "other content": '[[files]]\npath = "/x"\ncontent = "1"',
    "another mode": '[[files]]\npath = "/x"\ncontent = ""\nmode = 0o600',
}


def test_the_key_changes_with_everything_that_is_built(
    write_template: WriteTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [write_template(text).key() for text in ("", *CHANGES.values())]
    monkeypatch.setattr(platform, "machine", lambda: "another")
    keys.append(write_template("").key())
    monkeypatch.undo()
    monkeypatch.setattr(module, "BUILD_FORMAT", module.BUILD_FORMAT + 1)
    keys.append(write_template("").key())
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_the_content_of_a_source(write_template: WriteTemplate, own_settings: Settings) -> None:
    assert own_settings.templates_dir is not None
    source = own_settings.templates_dir / "data"
    source.write_text("1")
    template = write_template('[[files]]\npath = "/x"\nsource = "data"')
    first = template.key()
    source.write_text("2")
    assert template.key() != first


def test_the_key_does_not_change_with_what_a_machine_is_started_with(write_template: WriteTemplate) -> None:
    text = 'description = "x"\nwarm = ["python"]\nwarmup = "1"\nenv = { A = "b" }\nworkdir = "/home/user/x"\n'
    assert write_template(f"{text}[limits]\nmemory_mb = 300").key() == write_template("").key()


def test_the_key_does_not_change_with_order(write_template: WriteTemplate) -> None:
    one = '[[files]]\npath = "/x"\ncontent = "1"\n'
    two = '[[files]]\npath = "/y"\ncontent = "2"\n'
    lists = 'packages = ["git", "curl"]\npip = ["a", "b"]\nnpm = ["c", "d"]\n'
    again = 'npm = ["d", "c"]\npip = ["b", "a"]\npackages = ["curl", "git"]\n'
    assert write_template(lists + one + two).key() == write_template(again + two + one).key()


def test_the_key_does_not_depend_on_where_the_template_is(tmp_path: Path) -> None:
    keys = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_text(FULL)
        keys.append(read_template(tmp_path / folder / "mine.toml").key())
    assert keys[0] == keys[1]


# --- finding ----------------------------------------------------------------------------------------------------------


def test_the_templates_that_come_with_the_package_are_right(own_settings: Settings) -> None:
    assert list_templates(own_settings) == ["default", "minimal"]
    for name in list_templates(own_settings):
        assert load_template(name, own_settings).description


def test_an_own_template_hides_the_one_of_the_package(write_template: WriteTemplate, own_settings: Settings) -> None:
    write_template('description = "own"', name="minimal")
    write_template("", name="zebra")
    assert list_templates(own_settings) == ["default", "minimal", "zebra"]
    assert load_template("minimal", own_settings).description == "own"


def test_a_template_by_its_path(own_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here.toml").write_text('description = "by path"')
    monkeypatch.chdir(tmp_path)
    template = load_template("./here.toml", own_settings)
    assert (template.name, template.description, template.directory) == ("here", "by path", tmp_path.resolve())


@pytest.mark.parametrize("name", ["nope", "../templates/mine", "", "MINE", "/etc/passwd"])
def test_an_unknown_name_is_answered_with_the_known_ones(
    write_template: WriteTemplate, own_settings: Settings, name: str
) -> None:
    write_template("")
    with pytest.raises(ConfigError, match="no template") as info:
        load_template(name, own_settings)
    assert "default, mine, minimal" in info.value.remediation


def test_files_that_cannot_be_named_are_not_listed(own_settings: Settings) -> None:
    assert own_settings.templates_dir is not None
    (own_settings.templates_dir / "My Template.toml").touch()
    assert list_templates(own_settings) == ["default", "minimal"]


def test_without_a_setting_own_templates_are_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config/emberbox/templates"
    folder.mkdir(parents=True)
    (folder / "mine.toml").touch()
    assert "mine" in list_templates(Settings(cache_dir=tmp_path))


def test_a_template_can_be_made_in_a_program(tmp_path: Path) -> None:
    assert len(Template(name="x", directory=tmp_path).key()) == 20
