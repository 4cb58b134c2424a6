"""What makes copies of a machine draw different random numbers: parts of every image.

- A provider for OpenSSL whose generator asks the kernel for every number (`random_provider.c`). It reaches every
  program and thread that uses the image's libcrypto: Python's `ssl`, Node's `crypto`, `openssl`.
- A hook in every Python of the image that seeds `random` and its like anew when the agent says that the machine is a
  copy (`guest/kernels/freshness.py`). It reaches programs of the user that run in the background.
"""

from __future__ import annotations

import functools
import hashlib
import re
import struct
import subprocess
import tempfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from emberbox.errors import ImageError, VmNotAvailable
from emberbox.host.apt import Say, fetch_package
from emberbox.images.contents import inside, write_file

PROVIDER = "/opt/emberbox/kernel-random.so"
OPENSSL_SETTINGS = "/etc/ssl/openssl.cnf"
"""Where a Node with an OpenSSL of its own looks."""
_DEBIAN_SETTINGS = "/usr/lib/ssl/openssl.cnf"
"""Where Debian's libcrypto looks; a link to the other one, if the package `openssl` is installed."""
_COMPILER = "tcc"
_LEAST_COMPILER = "0.9.27"
_SOURCE = "random_provider.c"
_COMPILE_TIMEOUT = 60
_SECTIONS = f"""
# Added by Emberbox: random numbers come from the kernel, so that copies of this machine do not share them.
[default]
openssl_conf = emberbox_init
nodejs_conf = emberbox_init

[emberbox_init]
providers = emberbox_providers
random = emberbox_random

[emberbox_providers]
default = emberbox_default
emberbox = emberbox_provider

[emberbox_default]
activate = 1

[emberbox_provider]
module = {PROVIDER}
activate = 1

[emberbox_random]
random = KERNEL-RANDOM
properties = provider=emberbox
"""
"""config(5): what comes later counts. Node reads the section that `nodejs_conf` names."""

_PYTHON_HOOK = """
# Added by Emberbox: new seeds for `random` and its like where the agent says (SIGURG) that this machine is a copy.
def _emberbox():
    import _signal

    def freshen(_number, _frame, source="/opt/emberbox/guest/kernels/freshness.py"):
        names = {}
        with open(source, "rb") as file:
            exec(compile(file.read(), source, "exec"), names)
        names["freshen"]()

    try:
        _signal.signal(_signal.SIGURG, freshen)
    except ValueError:
        pass  # a thread of a program that embeds Python


_emberbox()
del _emberbox
"""


@functools.cache
def fingerprint() -> str:
    """A digest of what this module does to images, for the key of the cache."""
    return hashlib.sha256(Path(__file__).read_bytes() + _source().read_bytes()).hexdigest()


def compile_provider(cache: Path, say: Say) -> bytes:
    """The provider as a shared library, compiled by a small compiler that is fetched into `cache` for it.

    Raises:
        ImageError: the compiler cannot be had, or failed.
    """
    folder = cache / "packages" / _COMPILER
    program = folder / "usr/bin" / _COMPILER
    try:
        if not program.is_file():
            fetch_package(_COMPILER, _LEAST_COMPILER, (), folder, say)
        with tempfile.TemporaryDirectory(prefix="emberbox-cc-") as work, resources.as_file(_source()) as source:
            library = Path(work) / "provider.so"
            own = next(folder.glob("usr/lib/*/tcc"))
            argv = [str(program), f"-B{own}", "-w", "-shared", "-nostdlib", "-o", str(library), str(source)]
            subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT)
            return without_executable_stack(library.read_bytes())
    except VmNotAvailable as exc:
        raise ImageError(
            f"The compiler {_COMPILER} is needed for the image's random numbers: {exc.message}",
            remediation=f"Package lists that are old are read anew by: apt-get update. Or install {_COMPILER} by hand.",
        ) from exc
    except (OSError, StopIteration, subprocess.SubprocessError) as exc:
        words = getattr(exc, "stderr", None) or exc
        raise ImageError(f"The image's random number provider cannot be compiled: {words}.") from exc


def without_executable_stack(library: bytes) -> bytes:
    """A 64-bit ELF library with a PT_GNU_STACK header, which this compiler does not write.

    glibc makes the stacks of a program executable that loads a library without one, or refuses to (from 2.41 on). The
    program headers move to the end of the file: there is no room for another one where they are (elf(5)).
    """
    (offset,), (count,) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<H", library, 56)
    size = struct.calcsize("<IIQQQQQQ")
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    data = bytearray(library + b"\0" * (-len(library) % 8))
    struct.pack_into("<Q", data, 32, len(data))
    struct.pack_into("<H", data, 56, count + 1)
    return bytes(data) + library[offset : offset + count * size] + stack


def install(rootfs: Path, provider: bytes) -> None:
    """Put the provider and the hook into an image, whatever settings of OpenSSL it has already.

    Raises:
        ImageError: too many symbolic links on the way.
    """
    write_file(rootfs, PROVIDER, provider)
    settings = inside(rootfs, OPENSSL_SETTINGS)
    old = settings.read_bytes().decode(errors="surrogateescape") if settings.is_file() else ""
    write_file(rootfs, OPENSSL_SETTINGS, f"{old}{_kept(old, _SECTIONS)}".encode(errors="surrogateescape"))
    debian = inside(rootfs, _DEBIAN_SETTINGS)
    if not debian.exists():
        write_file(rootfs, _DEBIAN_SETTINGS, f".include {OPENSSL_SETTINGS}\n".encode())
    for standard_library in inside(rootfs, "/usr/lib").glob("python3.*/"):
        path = f"/usr/lib/{standard_library.name}/sitecustomize.py"
        target = inside(rootfs, path)
        old = target.read_text(encoding="utf-8") if target.is_file() else ""
        write_file(rootfs, path, (old + _PYTHON_HOOK).encode())


def _kept(old: str, sections: str) -> str:
    """Our sections, with the settings for TLS of the section that they take the place of."""
    name = re.search(r"(?m)^\s*openssl_conf\s*=\s*(\S+)", old)
    section = name and re.search(rf"(?ms)^\[\s*{re.escape(name[1])}\s*\]\s*$(.*?)(?=^\[|\Z)", old)
    tls = section and re.search(r"(?m)^\s*ssl_conf\s*=.*$", section[1])
    return sections.replace("[emberbox_init]\n", f"[emberbox_init]\n{tls[0].strip()}\n") if tls else sections


def _source() -> Traversable:
    return resources.files("emberbox.images") / _SOURCE
