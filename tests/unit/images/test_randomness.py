"""What an image gets so that copies draw different numbers: settings of OpenSSL, a hook in Python, a sound library."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from emberbox.images.randomness import OPENSSL_SETTINGS, PROVIDER, fingerprint, install, without_executable_stack

DEBIAN = """openssl_conf = openssl_init
[openssl_init]
providers = provider_sect
ssl_conf = ssl_sect
[provider_sect]
default = default_sect
[ssl_sect]
system_default = system_default_sect
"""


def make_rootfs(folder: Path, settings: str) -> Path:
    (folder / "usr/lib/python3.11").mkdir(parents=True)
    (folder / "etc").mkdir()
    if settings:
        (folder / "usr/lib/ssl").mkdir()
        (folder / "etc/ssl").mkdir()
        (folder / OPENSSL_SETTINGS[1:]).write_text(settings)
        (folder / "usr/lib/ssl/openssl.cnf").symlink_to(OPENSSL_SETTINGS)
    return folder


def value_of(settings: str, section: str, name: str) -> str | None:
    """What OpenSSL takes: sections of one name are one, and the last value counts (config(5))."""
    current, found = "default", None
    for line in settings.splitlines():
        if line.startswith("["):
            current = line.strip("[] ")
        elif current == section and line.partition("=")[0].strip() == name:
            found = line.partition("=")[2].strip()
    return found


@pytest.mark.parametrize("before", [DEBIAN, ""])
def test_openssl_and_node_draw_by_the_provider(tmp_path: Path, before: str) -> None:
    rootfs = make_rootfs(tmp_path, before)
    install(rootfs, b"library")
    settings = (rootfs / OPENSSL_SETTINGS[1:]).read_text()
    assert (rootfs / PROVIDER[1:]).read_bytes() == b"library"
    for name in ("openssl_conf", "nodejs_conf"):
        section = value_of(settings, "default", name)
        assert section is not None
        assert value_of(settings, str(value_of(settings, section, "random")), "random") == "KERNEL-RANDOM"
        providers = str(value_of(settings, section, "providers"))
        activated = [value_of(settings, providers, "default"), value_of(settings, providers, "emberbox")]
        assert [value_of(settings, str(name), "activate") for name in activated] == ["1", "1"]
    kept = value_of(settings, str(value_of(settings, "default", "openssl_conf")), "ssl_conf")
    assert kept == ("ssl_sect" if before else None)


def test_debians_libcrypto_finds_the_settings_where_no_package_put_any(tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path, "")
    install(rootfs, b"library")
    assert (rootfs / "usr/lib/ssl/openssl.cnf").read_text() == f".include {OPENSSL_SETTINGS}\n"


def test_the_python_hook_follows_what_is_there(tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path, "")
    hook = rootfs / "usr/lib/python3.11/sitecustomize.py"
    (rootfs / "etc/sitecustomize.py").write_text("theirs = 1\n")
    hook.symlink_to("/etc/sitecustomize.py")
    install(rootfs, b"")
    program = "import sitecustomize, signal; print(sitecustomize.theirs, callable(signal.getsignal(signal.SIGURG)))"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, env={"PYTHONPATH": str(rootfs / "etc")}, capture_output=True, text=True, check=True)
    assert done.stdout == "1 True\n"


def test_a_library_gets_a_header_that_keeps_stacks_from_being_executable() -> None:
    elf = bytearray(200)
    struct.pack_into("<Q", elf, 32, 64)  # e_phoff
    struct.pack_into("<H", elf, 56, 2)  # e_phnum
    elf[64:176] = b"A" * 56 + b"B" * 56
    made = without_executable_stack(bytes(elf))
    (offset,), (count,) = struct.unpack_from("<Q", made, 32), struct.unpack_from("<H", made, 56)
    headers = [made[offset + 56 * n : offset + 56 * (n + 1)] for n in range(count)]
    assert headers[:2] == [b"A" * 56, b"B" * 56]
    assert struct.unpack_from("<II", headers[2]) == (0x6474E551, 6), "PT_GNU_STACK, readable and writable (elf(5))"


def test_the_fingerprint_is_one_of_the_contents() -> None:
    assert len(fingerprint()) == 64
