"""What a snapshot depends on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from emberbox.errors import VmNotAvailable
from emberbox.images.store import Image
from emberbox.machines.contract import Snapshot
from emberbox.machines.firecracker.snapshot_files import Fingerprint as FirecrackerFingerprint
from emberbox.machines.microvm.fingerprint import FINGERPRINT, MicroVmFingerprint
from emberbox.machines.qemu.snapshot_files import Fingerprint as QemuFingerprint
from emberbox.models import MachineLimits

FIRECRACKER = FirecrackerFingerprint(firecracker="1.12.1", processor="AuthenticAMD-25-1-1", disk="d" * 64)
QEMU = QemuFingerprint(
    qemu="7.2.22", accel="kvm", processor="AuthenticAMD-25-1-1", disk="d" * 64, kernel="k" * 64, args="console=hvc0"
)
BOTH = pytest.mark.parametrize("ours", [FIRECRACKER, QEMU], ids=["firecracker", "qemu"])


def snapshot(directory: Path) -> Snapshot:
    return Snapshot(directory, cast(Image, SimpleNamespace()), MachineLimits(), 0, 0)


@BOTH
def test_the_same_is_accepted(ours: MicroVmFingerprint, tmp_path: Path) -> None:
    ours.write(tmp_path)
    assert ours.check(snapshot(tmp_path)) == ours


def test_what_may_differ_is_that_of_the_snapshot(tmp_path: Path) -> None:
    QEMU.model_copy(update={"base": "b" * 64, "method": "stream"}).write(tmp_path)
    theirs = QEMU.check(snapshot(tmp_path))
    assert (theirs.base, theirs.method) == ("b" * 64, "stream")


@pytest.mark.parametrize(
    ("ours", "field"), [(ours, field) for ours in (FIRECRACKER, QEMU) for field in ours.words if field != "layout"]
)
def test_each_difference_is_refused(ours: MicroVmFingerprint, field: str, tmp_path: Path) -> None:
    ours.model_copy(update={field: "other"}).write(tmp_path)
    with pytest.raises(VmNotAvailable, match="was taken") as error:
        ours.check(snapshot(tmp_path))
    assert not error.value.retryable


@BOTH
def test_a_snapshot_of_another_version_of_emberbox_is_refused(ours: MicroVmFingerprint, tmp_path: Path) -> None:
    ours.model_copy(update={"layout": 99}).write(tmp_path)
    with pytest.raises(VmNotAvailable, match="by another version of Emberbox"):
        ours.check(snapshot(tmp_path))


@BOTH
@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"firecracker": 1}'])
def test_damage_is_named(ours: MicroVmFingerprint, text: str, tmp_path: Path) -> None:
    (tmp_path / FINGERPRINT).write_text(text)
    with pytest.raises(VmNotAvailable, match="is damaged"):
        ours.check(snapshot(tmp_path))
