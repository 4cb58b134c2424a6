"""Guest kernels for real: Debian's packages from apt, started by QEMU without KVM up to Python as the first process.

The build from source takes minutes: EMBERBOX_TEST_KERNEL_BUILD=1 runs it.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from commandline import Done, emberbox
from emberbox import Settings, load_settings
from emberbox.errors import ImageError
from emberbox.images.builder import ensure_image
from emberbox.images.disk import ensure_disk
from emberbox.images.kernel import GuestKernel, find_kernel, kernels_folder
from emberbox.images.kernel_build import build_kernel, missing_packages
from emberbox.images.kernel_debian import ensure_debian_kernel
from emberbox.images.template import load_template

QEMU = "qemu-system-x86_64"
ARGUMENTS = (
    "console=ttyS0 reboot=t panic=-1 quiet loglevel=4 random.trust_cpu=on tsc_early_khz=2500000 lpj=10000000 "
    "root=/dev/vda ro rootfstype=ext4 init=/usr/bin/python3"
)
SECONDS = 60.0
_ATTEMPTS = 3
"""Boots without KVM hang now and then, on any kernel."""

needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


@pytest.fixture(scope="module")
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def debian(own_settings: Settings) -> GuestKernel:
    """Debian's kernel, by apt."""
    if os.uname().machine != "x86_64" or shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("wants x86-64 and apt")
    try:
        return ensure_debian_kernel(own_settings)
    except ImageError as exc:
        if "cannot be fetched" in exc.message:
            pytest.skip(f"apt has no network, or not these packages: {exc.message}")
        raise


@pytest.fixture
async def disk() -> Path:
    """The root disk of an image."""
    if shutil.which("mke2fs") is None:
        pytest.skip("wants mke2fs (e2fsprogs)")
    settings = load_settings()
    return ensure_disk(await ensure_image(load_template("minimal", settings), settings)).path


def boot(kernel: GuestKernel, disk: Path | None, words: str, until: str, cpus: int = 1) -> str:
    """The console of a machine from its start until a line that matches."""
    for _ in range(_ATTEMPTS):
        said = _boot(kernel, disk, words, until, cpus)
        if re.search(until, said):
            return said
    pytest.fail(f"no line {until!r} in {_ATTEMPTS} attempts; the last one said: {said}")


def _boot(kernel: GuestKernel, disk: Path | None, words: str, until: str, cpus: int) -> str:
    argv = [
        QEMU, "-M", "microvm,rtc=on,isa-serial=on", "-accel", "tcg,tb-size=64", "-cpu", "max,-pku,-la57",
        "-m", "256", "-smp", str(cpus), "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
        "-serial", "stdio",
        "-kernel", str(kernel.vmlinux), "-append", f"{ARGUMENTS} {words}", "-device", "virtio-rng-device",
    ]  # fmt: skip
    if kernel.initrd is not None:
        argv += ["-initrd", str(kernel.initrd)]
    if disk is not None:
        argv += ["-drive", f"id=root,file={disk},format=raw,if=none,readonly=on"]
        argv += ["-device", "virtio-blk-device,drive=root"]
    said, end = b"", time.monotonic() + SECONDS
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            while time.monotonic() < end and not re.search(until, said.decode("utf-8", "replace")):
                if select.select([process.stdout], [], [], 1)[0]:
                    data = os.read(process.stdout.fileno(), 1 << 16)
                    if not data:
                        break
                    said = (said + data)[-(1 << 16) :]
        finally:
            process.kill()
    return said.decode("utf-8", "replace")


def looked(code: str) -> str:
    """Arguments of Python as the first process; the kernel's command line has quotes, and no lines."""
    return f'SEEN=1 -- -ESsc "{code}"'.replace("\n", ";")


LOOK = """import os, sys
print('SEEN',os.getpid(),os.environ.get('SEEN'),sys.argv[1:],os.uname().release,os.cpu_count(),sorted(os.listdir('/')))
print('DISK',os.path.exists('/dev/vda'),os.access('/',os.W_OK),os.path.exists('/proc/mounts'))
print('DONE')"""


@needs_qemu
def test_debians_kernel_starts_the_program_of_its_command_line(debian: GuestKernel, disk: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\S*-cloud-amd64", debian.release)
    assert debian.initrd is not None
    said = boot(debian, disk, looked(LOOK) + " one two=2", r"DONE")
    assert re.search(rf"SEEN 1 1 \['one', 'two=2'\] {re.escape(debian.release)} 1 \[.*'opt', .*'usr'", said)
    assert "DISK True False False" in said


@needs_qemu
def test_debians_kernel_brings_what_the_guest_agent_needs(debian: GuestKernel, disk: Path) -> None:
    """The agent's own first process mounts its file systems and listens on vsock."""
    words = "home_mb=64 tmp_mb=32 run_mb=16 open_files=4096 hostname=emberbox"
    assert "Traceback" not in boot(
        debian, disk, f"-- -ESs /opt/emberbox/guest/vm_init.py {words}", "emberbox-vm: ready"
    )


@needs_qemu
def test_without_a_root_disk_the_console_says_so(debian: GuestKernel) -> None:
    said = boot(debian, None, "", "Kernel panic")
    assert "emberbox-initramfs: there is no root disk /dev/vda" in said


def test_the_same_packages_give_the_same_bytes(debian: GuestKernel, own_settings: Settings, tmp_path: Path) -> None:
    again = ensure_debian_kernel(Settings(cache_dir=tmp_path))
    assert debian.initrd is not None
    assert again.initrd is not None
    assert again.initrd.read_bytes() == debian.initrd.read_bytes()
    assert again.vmlinux.parent.name == debian.vmlinux.parent.name
    assert find_kernel(own_settings) == debian
    assert sorted(path.name for path in kernels_folder(own_settings).iterdir()) == [".lock", debian.vmlinux.parent.name]


@needs_qemu
@pytest.mark.timeout(3600)
async def test_the_kernel_for_hardware_starts_several_processors(disk: Path) -> None:
    """Not what runs on emulated KVM: that one is started by tests/integration/test_firecracker.py."""
    settings = load_settings()
    if os.environ.get("EMBERBOX_TEST_KERNEL_BUILD"):
        if missing := missing_packages():
            pytest.skip(f"to build a kernel, packages are missing: {', '.join(missing)}")
        kernel: GuestKernel | None = await build_kernel(settings)
    else:
        kernel = find_kernel(settings)
    if kernel is None or kernel.origin != "built":
        pytest.skip("EMBERBOX_TEST_KERNEL_BUILD=1 builds one, which takes minutes")
    said = boot(kernel, disk, looked(LOOK), r"DONE", cpus=2)
    assert re.search(rf"SEEN 1 1 \[\] {re.escape(kernel.release)} 2 \[", said)


# --- the command line -------------------------------------------------------------------------------------------------


def image(*arguments: str, **variables: str) -> Done:
    return emberbox("image", *arguments, **variables)


def test_build_kernel_says_which_packages_are_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = image("build-kernel", EMBERBOX_CACHE_DIR=str(tmp_path / "cache"), PATH=str(tmp_path / "bin"))
    assert done.returncode == 5, done.stderr
    assert re.search(r"packages are missing: .*flex", done.stderr)
    assert "apt-get install" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_build_kernel_names_a_source_that_is_not_there(tmp_path: Path) -> None:
    done = image("build-kernel", "--source", str(tmp_path / "none"), EMBERBOX_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 5, done.stderr
    assert f"There is no archive {tmp_path}/none" in done.stderr


def test_fetch_kernel_names_a_wrong_package(tmp_path: Path) -> None:
    (tmp_path / "a.deb").write_text("no package")
    done = image("fetch-kernel", str(tmp_path / "a.deb"), EMBERBOX_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 5, done.stderr
    assert "a.deb cannot be read as a Debian package" in done.stderr
    assert "→" in done.stderr
    assert [path.name for path in (tmp_path / "cache/kernels").iterdir()] == [".lock"]


def test_fetch_kernel_makes_a_kernel(debian: GuestKernel, own_settings: Settings) -> None:
    done = image("fetch-kernel", EMBERBOX_CACHE_DIR=str(own_settings.cache_dir))
    assert done.returncode == 0, done.stderr
    assert f"Linux {debian.release}: {debian.vmlinux}" in done.stdout
