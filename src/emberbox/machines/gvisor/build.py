"""Builds runsc from gVisor's own Go module, for hosts that reach a Go module proxy and no releases.

The module is `gvisor.dev/gvisor` (its branch `go`, as https://github.com/google/gvisor describes it), pinned with the
checksums of all that it needs by `source/go.mod` and `source/go.sum`; Go compares them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emberbox.config import Settings, load_settings
from emberbox.errors import VmNotAvailable

_PACKAGE = "gvisor.dev/gvisor/runsc"
_SOURCE = Path(__file__).with_name("source")
_SECONDS = 3600
"""Some four minutes of processor, and a download of 60 MB."""
_EVERY = 25
"""Packages of some 700, after which progress is told."""
_LAST_WORDS = 2000

Say = Callable[[str], None]


def module_version() -> str:
    """The pinned version of the module: `v0.0.0-DATE-COMMIT`."""
    found = re.search(r"gvisor\.dev/gvisor (v\S+)", (_SOURCE / "go.mod").read_text(encoding="utf-8"))
    assert found is not None  # noqa: S101 (a file of this package; a test reads it)
    return found[1]


def label() -> str:
    """What the built program says is its version."""
    _, time, commit = module_version().split("-")
    return f"go-{time[:8]}-{commit}"


def built_runsc(settings: Settings) -> Path:
    """Where a built runsc is, or goes."""
    return settings.cache_dir / "packages" / f"runsc-{label()}" / "runsc"


def build_runsc(settings: Settings, say: Say) -> Path:
    """Build runsc, or find that it is built.

    Args:
        say: told what happens, now and then.

    Raises:
        VmNotAvailable: there is no Go, or it refused; the message has Go's own words.
    """
    target = built_runsc(settings)
    if target.is_file():
        return target
    go = shutil.which("go")
    if go is None:
        raise VmNotAvailable(
            "runsc cannot be built: there is no `go` on the PATH.",
            remediation="Install Go (https://go.dev/doc/install), or name a runsc: emberbox setup --runsc FILE.",
        )
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as folder:
        place = Path(folder)
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(_SOURCE / name, place / name)
        say(f"fetching gVisor {module_version()} and what it needs")
        packages = _list(go, place)
        _compile(go, place, len(packages), say)
        (place / "runsc").chmod(0o755)
        (place / "runsc").replace(target)
    return target


def _environment() -> dict[str, str]:
    """Of Go: proxies, mirrors and caches are the user's; what is built is not."""
    mine = {"CGO_ENABLED": "0", "GOOS": "linux", "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false", "GOWORK": "off"}
    return {**os.environ, **mine}


def _list(go: str, place: Path) -> list[str]:
    """Download the modules; the packages that are to be compiled."""
    argv = [go, "list", "-deps", _PACKAGE]
    try:
        done = subprocess.run(
            argv, cwd=place, env=_environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"it was not downloaded within {_SECONDS} s") from None
    if done.returncode != 0:
        raise _refused(done.stderr)
    return done.stdout.split()


def _compile(go: str, place: Path, count: int, say: Say) -> None:
    flags = f"-s -w -X {_PACKAGE}/version.version={label()}"
    argv = [go, "build", "-v", f"-ldflags={flags}", "-o", "runsc", _PACKAGE]
    with _running(argv, place) as lines:
        words = ""
        for number, line in enumerate(lines, 1):
            words = (words + line)[-_LAST_WORDS:]
            if number % _EVERY == 1:
                say(f"compiling package {min(number, count)} of {count}")
    if not (place / "runsc").is_file():
        raise _refused(words)


@contextmanager
def _running(argv: list[str], place: Path) -> Iterator[Iterator[str]]:
    """Lines that a program prints, until it ends, or its time is over."""
    with subprocess.Popen(
        argv, cwd=place, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        timer = threading.Timer(_SECONDS, process.kill)
        timer.start()
        try:
            yield iter(process.stderr or ())
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()


def _refused(words: str) -> VmNotAvailable:
    return VmNotAvailable(
        f"runsc cannot be built from {_PACKAGE} {module_version()}: {words.strip()[-_LAST_WORDS:]}",
        remediation="Where this host reaches no Go module proxy, set GOPROXY to one that it reaches, or take a runsc "
        "from elsewhere: emberbox setup --runsc FILE.",
    )


def main() -> int:
    """Build it from the command line: `python -m emberbox.machines.gvisor.build`."""
    try:
        print(build_runsc(load_settings(), lambda words: print(f"runsc: {words}", file=sys.stderr, flush=True)))
    except VmNotAvailable as exc:
        print(f"{exc.message}\n{exc.remediation}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
