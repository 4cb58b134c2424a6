"""What the container of a sandbox may see, be and use."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from emberbox.images.store import Image, Manifest
from emberbox.images.template import Template
from emberbox.machines.gvisor.bundle import write_bundle
from emberbox.models import MachineLimits


@pytest.fixture
def image(tmp_path: Path) -> Image:
    template = Template(name="mine", directory=tmp_path)
    manifest = Manifest(
        name="mine",
        key="k",
        suite="bookworm",
        built_at=datetime.now(UTC),
        build_seconds=1,
        size_bytes=1,
        languages=["python"],
    )
    return Image(tmp_path / "image", template, manifest, tmp_path / "guest")


@pytest.fixture
def config(image: Image, tmp_path: Path) -> dict[str, Any]:
    return config_with(image, tmp_path / "bundle", MachineLimits(disk_mb=100, tmp_mb=50))


def config_with(image: Image, directory: Path, limits: MachineLimits) -> dict[str, Any]:
    write_bundle(directory, image, limits, hostname="box")
    made: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return made


def mounts(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in config["mounts"]}


def test_the_root_is_that_of_the_image_and_read_only(config: dict[str, Any], image: Image) -> None:
    assert config["root"] == {"path": str(image.rootfs), "readonly": True}
    assert config["hostname"] == "box"


def test_nothing_of_the_host_is_mounted_but_the_agent_and_that_read_only(config: dict[str, Any], image: Image) -> None:
    bound = [mount for mount in config["mounts"] if mount["type"] == "bind"]
    assert [(mount["source"], mount["destination"]) for mount in bound] == [
        (str(image.guest_dir), "/opt/emberbox/guest")
    ]
    assert {"ro", "nosuid", "nodev"} <= set(bound[0]["options"])
    assert {mount["type"] for mount in config["mounts"]} == {"bind", "proc", "sysfs", "tmpfs"}


def test_what_can_be_written_is_limited(config: dict[str, Any]) -> None:
    by_place = mounts(config)
    assert "size=100m" in by_place["/home/user"]["options"]
    assert "size=50m" in by_place["/tmp"]["options"]
    for place in ("/home/user", "/tmp", "/run", "/dev/shm"):
        options = by_place[place]["options"]
        assert any(option.startswith("size=") for option in options)
        assert {"nosuid", "nodev"} <= set(options)
    assert {"uid=1000", "gid=1000"} <= set(by_place["/home/user"]["options"])
    assert "ro" in by_place["/sys"]["options"]


def test_a_network_of_its_own_and_everything_else_too(config: dict[str, Any]) -> None:
    namespaces = config["linux"]["namespaces"]
    assert {space["type"] for space in namespaces} == {"pid", "network", "ipc", "uts", "mount"}
    assert all(set(space) == {"type"} for space in namespaces)  # none is joined by a path


def test_the_agent_gains_no_privileges_and_no_environment_of_the_host(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = config["process"]
    assert process["noNewPrivileges"] is True
    assert process["terminal"] is False
    assert process["env"] == ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]
    assert process["args"][0] == "/usr/bin/python3"
    for name in ("CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_MKNOD", "CAP_SYS_MODULE"):
        assert all(name not in names for names in process["capabilities"].values())


@pytest.mark.parametrize(("wanted", "hard"), [(1024, 4096), (10_000, 10_000)])
def test_open_files_suffice_for_agent_and_user(image: Image, tmp_path: Path, wanted: int, hard: int) -> None:
    config = config_with(image, tmp_path / "b", MachineLimits(open_files=wanted))
    (limit,) = config["process"]["rlimits"]
    assert limit == {"type": "RLIMIT_NOFILE", "soft": 4096, "hard": hard}


def test_the_bundle_is_private_and_new(image: Image, tmp_path: Path, config: dict[str, Any]) -> None:
    assert stat.S_IMODE((tmp_path / "bundle").stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        write_bundle(tmp_path / "bundle", image, MachineLimits(), hostname="box")
