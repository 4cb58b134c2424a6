"""What comes before and after the build of a kernel; tests/integration/test_kernel.py builds one for real."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.errors import ImageError
from emberbox.images import kernel_build
from emberbox.images.kernel import find_kernel, kernels_folder
from emberbox.images.kernel_build import build_kernel, missing_packages, recipe_folder

from .kernels import VMLINUX


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "linux.tar.xz"
    path.write_bytes(b"an archive")
    return path


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose build.sh does what a test says."""
    folder = tmp_path / "recipe"
    shutil.copytree(recipe_folder(), folder)
    (tmp_path / "vmlinux").write_bytes(VMLINUX)
    monkeypatch.setattr(kernel_build, "recipe_folder", lambda: folder)
    monkeypatch.setattr(kernel_build, "missing_packages", lambda _: [])
    return folder


def write(recipe: Path, script: str) -> None:
    (recipe / "build.sh").write_text(f"set -eu\n{script}\n")


def left(settings: Settings) -> list[str]:
    found = [path.name for path in kernels_folder(settings).rglob("*") if not path.name.endswith(".lock")]
    return sorted(name for name in found if name != "building")


def test_the_recipe_is_there() -> None:
    names = {path.name for path in recipe_folder().iterdir()}
    assert {"build.sh", "frag.config", "hardware.config", "emukvm.patch", "README.md"} <= names


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(kernel_build, "SOURCE", tmp_path / "none.tar.xz")
    missing = missing_packages(tmp_path / "none.tar.xz")
    assert {"linux-source-6.1", "gcc", "make", "flex", "bison", "bc"} <= set(missing)


async def test_what_is_missing_is_said_before_anything_is_done(
    own_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_build, "missing_packages", lambda _: ["bison", "flex"])
    with pytest.raises(ImageError, match="these packages are missing: bison, flex") as error:
        await build_kernel(own_settings)
    assert error.value.remediation == "Install them: apt-get install bison flex"
    assert not kernels_folder(own_settings).exists()


async def test_a_source_that_is_not_there_is_named(own_settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"There is no archive .*/none\.tar\.xz"):
        await build_kernel(own_settings, source=tmp_path / "none.tar.xz")


async def test_a_build_is_kept_by_what_it_is_made_from(
    own_settings: Settings, recipe: Path, archive: Path, tmp_path: Path
) -> None:
    write(
        recipe,
        'for n in 1 2 3; do echo "  CC      kernel/irq/$n.o"; done; echo "  LD      vmlinux"\n'
        f'echo "$SOURCE $*" >> {tmp_path}/runs\nfor last; do :; done; cp {tmp_path}/vmlinux "$last"',
    )
    steps: list[tuple[str, float | None]] = []
    made = await build_kernel(own_settings, source=archive, progress=lambda *step: steps.append(step))
    assert (made.release, made.origin, made.initrd) == ("9.9.9-cloud-amd64", "built", None)
    assert "compiling, 0 % done" in [step for step, _ in steps]
    assert [part for _, part in steps if part is not None] == sorted(part for _, part in steps if part is not None)
    assert await build_kernel(own_settings, source=archive) == made == find_kernel(own_settings)
    emulated = await build_kernel(own_settings, source=archive, emulated=True)
    assert emulated.vmlinux.parent.name.startswith("built-emulated-")
    archive.write_bytes(b"another archive")
    assert (await build_kernel(own_settings, source=archive)).vmlinux != made.vmlinux
    runs = (tmp_path / "runs").read_text().splitlines()
    assert [line.split()[:-1] for line in runs] == [[str(archive)], [str(archive), "--emulated"], [str(archive)]]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no such option: CONFIG_X=y' >&2; exit 1", r"(?s)status 1:\n.*no such option: CONFIG_X=y"),
        ("kill -KILL $$", "status -9"),
        ("head -c 3000000 /dev/zero | tr '\\0' x; exit 2", r"status 2:\nx{400}$"),
        ("exit 0", "failed: .*vmlinux"),
    ],
)
async def test_a_failed_build_has_the_end_of_its_output_and_leaves_nothing(
    own_settings: Settings, recipe: Path, archive: Path, script: str, said: str
) -> None:
    write(recipe, script)
    with pytest.raises(ImageError, match=said) as error:
        await build_kernel(own_settings, source=archive)
    assert len(error.value.message) < 2000
    assert left(own_settings) == []


async def test_a_cancelled_build_leaves_no_process_and_no_file(
    own_settings: Settings, recipe: Path, archive: Path
) -> None:
    write(recipe, "sleep 1000 & echo '  CC      a/b.o'; wait")
    started = asyncio.Event()

    def seen(step: str, _: float | None) -> None:
        if step.startswith("compiling"):
            started.set()

    task = asyncio.create_task(build_kernel(own_settings, source=archive, progress=seen))
    await asyncio.wait_for(started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(own_settings) == []


async def test_two_builders_make_one(own_settings: Settings, recipe: Path, archive: Path, tmp_path: Path) -> None:
    write(recipe, f'echo run >> {tmp_path}/runs; cp {tmp_path}/vmlinux "$1"')
    one, two = await asyncio.gather(*(build_kernel(own_settings, source=archive) for _ in range(2)))
    assert one == two
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_a_full_disk_is_said_before_the_build(
    own_settings: Settings, recipe: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_build, "_SPACE", 1 << 60)
    write(recipe, "exit 3")
    with pytest.raises(ImageError, match="MiB left; a build takes"):
        await build_kernel(own_settings, source=archive)
