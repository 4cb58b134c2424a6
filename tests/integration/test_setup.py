"""`emberbox setup` on a host without runsc, and what `doctor` says of a runsc that is no good."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from commandline import Done, emberbox
from emberbox import Engine, Settings, load_settings
from emberbox.engine import ExecuteRequest
from emberbox.errors import VmNotAvailable
from emberbox.machines.gvisor.install import install_runsc
from emberbox.machines.gvisor.runsc import PINNED_VERSION, find_runsc

pytestmark = pytest.mark.e2e

GOOD = "0.0~20240729.0"


def path_without(program: str) -> str:
    return ":".join(part for part in os.environ["PATH"].split(":") if not (Path(part) / program).exists())


def apt_state() -> dict[str, str]:
    """Digests of everything that says where this host's packages come from, and what is installed."""
    folders = [Path("/etc/apt"), Path("/var/lib/apt/lists"), Path("/var/cache/apt/archives")]
    files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file()]
    files.append(Path("/var/lib/dpkg/status"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name != "lock"}


@pytest.fixture
def no_runsc_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", path_without("runsc"))


async def test_runsc_is_fetched_from_the_signed_package(
    tmp_path: Path, nothing_left: None, no_runsc_on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    settings = load_settings(cache_dir=cache)
    assert find_runsc(settings)[0] is None
    before = apt_state()
    said: list[str] = []
    # the package only: that a release is downloaded instead must not go unnoticed
    monkeypatch.setattr("emberbox.machines.gvisor.install._from_release", _refused)
    try:
        runsc = install_runsc(settings, said.append)
    except VmNotAvailable as error:
        assert apt_state() == before
        pytest.skip(f"the mirror does not give the package: {error.message[:300]}")
    assert runsc.program == (cache / "bin/runsc").resolve()
    assert runsc.origin == "private folder"
    assert runsc.version
    assert any(line.startswith("unpacking runsc_") for line in said)
    assert apt_state() == before, "sources, package lists and installed packages of the host are as they were"
    assert sorted(path.name for path in cache.iterdir()) == ["bin", "packages"], "no temporary files stay"

    shared = load_settings(runsc=runsc.program)  # with the image of the usual cache
    async with Engine(shared) as engine:
        sandbox = await engine.create_sandbox("minimal")
        assert (await engine.execute(ExecuteRequest(sandbox, "python", "6 * 7"))).text == "42"


def _refused(*_: object) -> None:
    raise VmNotAvailable("not in this test")


def test_a_download_with_a_wrong_checksum_is_not_used(
    tmp_path: Path, no_runsc_on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = f"#!/bin/sh\necho 'runsc version {GOOD}'\n".encode()
    monkeypatch.setattr("emberbox.machines.gvisor.install._from_debian", _refused)
    monkeypatch.setattr("emberbox.machines.gvisor.install._download", lambda url, most: program)
    wrong = load_settings(cache_dir=tmp_path / "one", runsc_sha512="0" * 128)
    with pytest.raises(VmNotAvailable, match="does not have the checksum"):
        install_runsc(wrong, lambda _: None)
    assert not (tmp_path / "one").exists()
    right = load_settings(cache_dir=tmp_path / "two", runsc_sha512=hashlib.sha512(program).hexdigest())
    assert install_runsc(right, lambda _: None).version == GOOD


def test_without_any_source_every_reason_is_told(
    tmp_path: Path, no_runsc_on_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(url: str, most: int) -> bytes:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("emberbox.machines.gvisor.install._download", offline)
    monkeypatch.setattr("emberbox.host.apt.has_apt", lambda: False)
    with pytest.raises(VmNotAvailable) as error:
        install_runsc(load_settings(cache_dir=tmp_path), lambda _: None)
    assert "no apt" in error.value.message
    assert "the network is unreachable" in error.value.message
    assert "EMBERBOX_RUNSC" in error.value.remediation


# --- a runsc that is no good --------------------------------------------------------------------------------------


def fake(folder: Path, script: str, name: str = "runsc") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


BAD = {
    "old": ("echo 'runsc version release-20210101.0'", f"older than {PINNED_VERSION}"),
    "without a date": ("echo 'runsc version VERSION_MISSING'", "names no release"),
    "that fails": ("echo broken >&2; exit 3", "exit status 3"),
    "that is killed": ("kill -SEGV $$", "SIGSEGV"),
    "that says nothing": ("exit 0", "version unknown"),
    "that says nonsense": ("head -c 1000 /dev/urandom", "names no release"),
}


def doctor(**variables: str) -> Done:
    return emberbox("doctor", "--template", "minimal", **variables)


@pytest.mark.parametrize(("script", "reason"), BAD.values(), ids=BAD.keys())
def test_doctor_names_a_runsc(tmp_path: Path, nothing_left: None, script: str, reason: str) -> None:
    program = fake(tmp_path, script)
    done = doctor(EMBERBOX_RUNSC=str(program))
    assert done.returncode == 5, done.stdout
    assert str(program) in done.stdout
    assert reason in done.stdout
    assert "emberbox setup" in done.stdout
    assert "does not work here yet" in done.stdout
    assert "Traceback" not in done.stderr


def test_doctor_names_a_runsc_that_is_no_program(tmp_path: Path, nothing_left: None) -> None:
    program = tmp_path / "runsc"
    program.write_bytes(b"\x7fELF, but not really")
    done = doctor(EMBERBOX_RUNSC=str(program))
    assert done.returncode == 5
    assert "not executable" in done.stdout
    program.chmod(0o755)
    done = doctor(EMBERBOX_RUNSC=str(program))
    assert done.returncode == 5
    assert "Exec format error" in done.stdout


def test_a_bad_runsc_on_the_path_is_passed_over(tmp_path: Path, nothing_left: None, settings: Settings) -> None:
    """What works in the private folder is used; an old one on the PATH does not stand in its way."""
    real, problems = find_runsc(settings)
    assert real is not None, problems
    cache = tmp_path / "cache"
    (cache / "bin").mkdir(parents=True)
    (cache / "bin/runsc").symlink_to(real.program)
    (cache / "images").symlink_to(settings.cache_dir / "images")
    old = fake(tmp_path / "bin", "echo 'runsc version release-20210101.0'")
    done = doctor(EMBERBOX_CACHE_DIR=str(cache), PATH=f"{old.parent}:{path_without('runsc')}")
    assert done.returncode == 0, done.stdout
    assert "private folder" in done.stdout
    assert f"passed over: {old}: version release-20210101.0 is older than" in done.stdout
