"""Images from templates: built, cached, stale, removed, and safe against every kind of interruption."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from commandline import PROGRAM, emberbox
from emberbox import Sandbox, Settings, load_settings
from emberbox.errors import ImageError, ValidationFailed
from emberbox.host.rundir import _processes_in
from emberbox.images.builder import ensure_image
from emberbox.images.store import Image, ImageStore
from emberbox.images.template import load_template
from emberbox.machines.gvisor.runsc import find_runsc
from waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]
DEADLINE = 400.0
"""Of a build: the mirror may be slow, and the host busy."""
HAS_NPM = shutil.which("npm") is not None

TEMPLATE = """
description = "of the tests"
packages = ["python3"{node}]
pip = ["six==1.16.0"]
{npm}
languages = ["python", "bash"{javascript}]
warm = ["python"]
workdir = "/home/user/work/deep"
writable = ["/mnt/data"]
run = [["sh", "-c", "id -u > /opt/built"]]
links = {{ "/usr/local/bin/ci" = "/usr/bin/id" }}
warmup = "import json; answer = 40 + 2"

[env]
COLOUR = "blue"

[limits]
memory_mb = 384
disk_mb = 48

[[files]]
path = "/home/user/notes/hello.txt"
content = "hello from the template"

[[files]]
path = "/opt/tool"
source = "tool.sh"
mode = 0o755
"""
SMALL = 'packages = ["python3"]\nlanguages = ["python"]\n'


@dataclass(frozen=True)
class Place:
    """A cache with a folder of templates, and the ways to use them."""

    folder: Path
    runsc: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def building(self) -> Path:
        return self.cache / "images/building"

    @property
    def settings(self) -> Settings:
        return load_settings(cache_dir=self.cache, templates_dir=self.folder, runsc=self.runsc)

    def template(self, name: str, text: str) -> str:
        (self.folder / f"{name}.toml").write_text(text)
        return name

    def find(self, name: str) -> Image:
        image = ImageStore(self.settings).find(load_template(name, self.settings))
        assert image is not None
        return image

    @property
    def variables(self) -> dict[str, str]:
        return {"EMBERBOX_CACHE_DIR": str(self.cache), "EMBERBOX_TEMPLATES_DIR": str(self.folder)}

    def command(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            env={**os.environ, **self.variables, "COLUMNS": "300"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def emberbox(self, *arguments: str) -> tuple[int, str, str]:
        done = emberbox(*arguments, **self.variables)
        return done.returncode, done.stdout, done.stderr

    def is_clean(self) -> bool:
        """No build is under way, and nothing of one is left: no file, no process, no mount."""
        left = list(self.building.iterdir()) if self.building.is_dir() else []
        return not left and not _processes_in(self.cache) and str(self.cache) not in Path("/proc/mounts").read_text()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    runsc, problems = find_runsc(load_settings())
    assert runsc is not None, problems
    place = Place(tmp_path_factory.mktemp("images"), runsc.program)
    (place.folder / "tool.sh").write_text("#!/bin/sh\necho the tool says $1\n")
    yield place
    shutil.rmtree(place.folder)


@pytest.fixture(scope="session")
def begun(place: Place) -> Place:
    """The folder with the template `custom`. Builds of it are killed before it is built."""
    place.template(
        "custom",
        TEMPLATE.format(
            node=', "nodejs", "node-acorn"' if HAS_NPM else "",
            npm='npm = ["is-number@7.0.0"]' if HAS_NPM else "",
            javascript=', "javascript"' if HAS_NPM else "",
        ),
    )
    return place


@pytest.fixture(scope="session")
def built(begun: Place) -> tuple[Place, list[tuple[int, str, str]]]:
    """`custom`, built by two builders at once, after all that was killed; what both said."""
    place = begun
    answers = []
    with place.command("image", "build", "custom") as one, place.command("image", "build", "custom") as two:
        for process in (one, two):
            stdout, stderr = process.communicate(timeout=DEADLINE)
            answers.append((process.returncode, stdout, stderr))
    return place, answers


# --- interruptions (first: what was built once is not built again) -------------------------------------------------


@pytest.mark.parametrize("moment", ["reading package lists", "unpacking the base system", "installing the base system"])
def test_a_killed_builder_leaves_nothing(begun: Place, moment: str) -> None:
    with begun.command("image", "build", "custom") as builder:
        assert moment in said(builder, moment)
        assert not begun.is_clean()
        builder.kill()
    until(begun.is_clean, "the end of the build")
    assert ImageStore(begun.settings).find(load_template("custom", begun.settings)) is None


def said(builder: subprocess.Popen[str], moment: str) -> str:
    assert builder.stderr is not None
    text = ""
    while moment not in text and (line := builder.stderr.readline()):
        text += line
    return text


@pytest.mark.parametrize("victims", ["spawner", "builder and spawner"])
def test_a_killed_spawner_leaves_nothing_for_long(begun: Place, victims: str) -> None:
    """Without its spawner nobody ends a build at once. The builder does it, or else the next one."""
    with begun.command("image", "build", "custom") as builder:
        assert "unpacking the base system" in said(builder, "unpacking the base system")
        spawners = [p for p in psutil.Process(builder.pid).children() if "spawner_main" in " ".join(p.cmdline())]
        if "builder" in victims:
            builder.kill()
        for spawner in spawners:
            spawner.kill()
        _, stderr = builder.communicate(timeout=DEADLINE)
    if "builder" in victims:
        assert not begun.is_clean()
        begun.template("broken", 'packages = ["no-such-package-anywhere"]')
        assert begun.emberbox("image", "build", "broken")[0] == 5
    else:
        assert builder.returncode == 5
        assert "failed" in stderr
    until(begun.is_clean, "the clean-up")


# --- what is built --------------------------------------------------------------------------------------------------

Built = tuple[Place, list[tuple[int, str, str]]]


def test_two_builders_at_once_build_once(built: Built) -> None:
    place, answers = built
    assert [code for code, _, _ in answers] == [0, 0], answers
    (one, two) = [re.search(r"built in .*", stdout) for _, stdout, _ in answers]
    assert one is not None
    assert two is not None
    assert one[0] == two[0], "both have the same image"
    said = " ".join(stderr for _, _, stderr in answers)
    assert said.count("writing the root file system") == 1
    assert "waiting for another process" in said
    assert place.is_clean()
    assert place.emberbox("image", "build", "custom")[2] == "", "a third finds it and builds nothing"


async def test_a_second_call_is_a_cache_hit(built: Built) -> None:
    place, _ = built
    steps: list[str] = []
    template = load_template("custom", place.settings)
    image = await ensure_image(template, place.settings, lambda message, _: steps.append(message))
    assert image.directory == place.find("custom").directory
    assert steps == []


@pytest.fixture
def sandbox(built: Built, nothing_left: None) -> Iterator[Sandbox]:
    place, answers = built
    assert answers[0][0] == 0, answers[0][2]
    with Sandbox.create("custom", settings=place.settings) as sandbox:
        yield sandbox


def test_pip_packages(built: Built, sandbox: Sandbox) -> None:
    run = sandbox.run_code("import six; six.__version__", requirements=["six>=1.16"])
    assert run.text == "'1.16.0'"
    assert built[0].find("custom").manifest.python_packages["six"] == "1.16.0"
    with pytest.raises(ValidationFailed, match=r"six 1\.16\.0"):
        sandbox.run_code("1", requirements=["six>=2"])


@pytest.mark.skipif(not HAS_NPM, reason="this host has no npm, which installs npm packages into images")
def test_npm_packages(built: Built, sandbox: Sandbox) -> None:
    run = sandbox.run_code("require('is-number')('7')", "javascript", requirements=["is-number"])
    assert run.text == "true"
    assert sandbox.run_code("(await import('is-number')).default(NaN)", "javascript").text == "false"
    assert built[0].find("custom").manifest.npm_packages["is-number"] == "7.0.0"


def test_files(sandbox: Sandbox) -> None:
    assert sandbox.files.read("/home/user/notes/hello.txt") == "hello from the template"
    owners = sandbox.commands.run("stat -c '%U %G' /home/user /home/user/notes /home/user/notes/hello.txt")
    assert owners.stdout == "user user\n" * 3
    sandbox.files.write("/home/user/notes/hello.txt", "changed")
    assert sandbox.commands.run("rm -r /home/user/notes").exit_code == 0
    assert sandbox.commands.run("/opt/tool hi").stdout == "the tool says hi\n"
    assert sandbox.commands.run("echo x >> /opt/tool").exit_code != 0


def test_links_programs_that_ran_and_folders_to_write_to(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("ci -u; cat /opt/built").stdout == "1000\n0\n"
    point = sandbox.snapshot()
    written = sandbox.run_code("open('/mnt/data/a.csv', 'w').write('a,b')")
    assert [change.path for change in written.changed_files or []] == ["/mnt/data/a.csv"]
    assert "No space left" in sandbox.commands.run("head -c 60M /dev/zero > /mnt/data/large").stderr
    sandbox.rollback(point)
    assert sandbox.files.list("/mnt/data") == []


def test_files_of_the_home_are_fresh_in_every_sandbox(built: Built, sandbox: Sandbox) -> None:
    sandbox.files.write("/home/user/notes/hello.txt", "changed")
    with Sandbox.create("custom", settings=built[0].settings) as other:
        assert other.files.read("/home/user/notes/hello.txt") == "hello from the template"


def test_environment_work_directory_warm_up_limits_languages(sandbox: Sandbox) -> None:
    assert sandbox.run_code("import os; os.environ['COLOUR'], os.getcwd()").text == "('blue', '/home/user/work/deep')"
    assert sandbox.commands.run("echo $COLOUR; pwd").stdout == "blue\n/home/user/work/deep\n"
    assert sandbox.commands.run("stat -c %U .").stdout == "user\n"
    assert sandbox.run_code("import sys; 'json' in sys.modules").text == "True"
    limits = sandbox.get_info().limits
    assert (limits.memory_mb, limits.disk_mb) == (384, 48)
    assert 47 << 20 <= sandbox.get_metrics().disk_total_bytes <= 48 << 20
    with pytest.raises(ValidationFailed, match="has no rust"):
        sandbox.run_code("fn main() {}", "rust")


def test_an_image_in_use_is_not_removed(built: Built, sandbox: Sandbox) -> None:
    place, _ = built
    code, _, stderr = place.emberbox("image", "rm", "custom")
    assert code == 5
    assert "is in use" in stderr
    assert sandbox.run_code("import six; 1").text == "1"
    assert place.find("custom").rootfs.is_dir()


def test_a_changed_template_is_another_image_and_the_old_one_is_stale(built: Built) -> None:
    place, _ = built
    old = place.find("custom")
    place.template("stale", (place.folder / "custom.toml").read_text())
    copied = ImageStore(place.settings).path_of(load_template("stale", place.settings))
    shutil.copytree(old.directory, copied, symlinks=True, ignore=lambda *_: {"rootfs"})
    (copied / "rootfs").mkdir()
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "name": "stale"}))
    assert states(place, "stale") == ["ready"]

    (place.folder / "tool.sh").write_text("#!/bin/sh\necho another tool\n")
    try:
        assert ImageStore(place.settings).find(load_template("stale", place.settings)) is None
        assert states(place, "stale") == ["not built", "stale"]
        code, stdout, _ = place.emberbox("image", "rm", "stale", "--stale")
        assert code == 0
        assert str(copied) in stdout
        assert not copied.exists()
        assert states(place, "stale") == ["not built"]
        assert place.emberbox("image", "rm", "stale", "--stale")[1] == "Nothing to remove.\n"
    finally:
        (place.folder / "tool.sh").write_text("#!/bin/sh\necho the tool says $1\n")
    assert place.find("custom").directory == old.directory, "the image of another template stays"


def states(place: Place, name: str) -> list[str]:
    code, stdout, stderr = place.emberbox("image", "list", "--json")
    assert code == 0, stderr
    return sorted(row["state"] for row in json.loads(stdout) if row["name"] == name)


def test_an_unknown_package_is_an_error_in_apts_words(place: Place) -> None:
    place.template("unknown", 'packages = ["no-such-package-anywhere"]')
    code, _, stderr = place.emberbox("image", "build", "unknown")
    assert code == 5
    assert "Unable to locate package no-such-package-anywhere" in stderr
    assert "Traceback" not in stderr
    assert place.is_clean()
    assert states(place, "unknown") == ["not built"]


def test_cancelling_a_build_ends_it(place: Place) -> None:
    place.template("cancelled", 'packages = ["hostname"]\n')

    async def build() -> None:
        begun = asyncio.Event()

        def progress(message: str, _: float | None) -> None:
            if message == "downloading packages":
                begun.set()

        template = load_template("cancelled", place.settings)
        task = asyncio.create_task(ensure_image(template, place.settings, progress))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(build())
    assert place.is_clean()


def test_a_full_disk_is_named(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "emberbox-test", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        settings = load_settings(cache_dir=folder, templates_dir=place.folder)
        place.template("too-big", SMALL)
        with pytest.raises(ImageError, match=r"(?s)disk space.*[Ss]pace"):
            asyncio.run(ensure_image(load_template("too-big", settings), settings))
        assert list((folder / "images/building").iterdir()) == []
        assert [path.name for path in (folder / "images").iterdir() if not path.name.startswith(".")] == ["building"]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
