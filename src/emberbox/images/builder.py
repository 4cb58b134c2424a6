"""Builds an image from a template: Debian packages by mmdebstrap, then pip and npm packages and files.

Everything happens in a directory with a locked, random name and a spawner of its own: if Emberbox dies, the spawner
kills mmdebstrap and removes the directory; if both die, the next build does. The last step is a rename.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from emberbox.config import Settings
from emberbox.errors import ImageError
from emberbox.host.rundir import RunDir, dead_owners, kill_processes_in, make_run_dir
from emberbox.host.spawner import Spawner
from emberbox.images import contents, randomness
from emberbox.images.store import LOCK, MANIFEST, Image, ImageStore, Manifest, Progress, no_progress
from emberbox.images.template import Template

_BUILD_TIMEOUT = 3600.0
_ALWAYS = (
    "base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils", "grep", "gzip",
    "hostname", "libc-bin", "login", "mawk", "passwd", "procps", "sed", "tar", "util-linux", "python3",
)  # fmt: skip
"""What every image has: a POSIX user land, and Python for the agent."""
_EXCLUDED = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_ENV_PASSED = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip


async def ensure_image(template: Template, settings: Settings, progress: Progress = no_progress) -> Image:
    """The image of this template, built now if it is not in the cache. Two builders of one key: the second waits.

    Raises:
        ImageError: the build failed; the message has the end of its output.
    """
    store = ImageStore(settings)
    image = await asyncio.to_thread(store.find, template)
    if image is not None:
        return image
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ImageError(f"Cannot make {store.folder}: {exc.strerror}.") from exc
    key = await asyncio.to_thread(template.key)
    async with exclusively(store.folder / f".{template.name}-{key}.lock", progress, "builds the same image"):
        image = await asyncio.to_thread(store.find, template)
        return image if image is not None else await _build(template, store, progress)


@contextlib.asynccontextmanager
async def exclusively(path: Path, progress: Progress, doing: str) -> AsyncIterator[None]:
    """Hold a lock file; whoever else wants it waits, and is told that another process does what `doing` says."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                progress(f"waiting for another process that {doing}", None)
                await asyncio.sleep(0.2)
        yield
    finally:
        os.close(fd)


async def _build(template: Template, store: ImageStore, progress: Progress) -> Image:
    building = store.folder / "building"
    await asyncio.to_thread(clear_dead_builds, building)
    run_dir = make_run_dir(building, socket_paths=False)
    spawner: Spawner | None = None
    work = run_dir.path / "image"
    started = time.monotonic()
    try:
        work.mkdir()
        spawner = await Spawner.start(run_dir.path, run_dir.lock_fd, user_namespace=False)
        async with asyncio.timeout(_BUILD_TIMEOUT):
            await _Build(template, store.settings, spawner, work, progress).run()
        manifest = await asyncio.to_thread(_finish, template, work, time.monotonic() - started)
        shutil.rmtree(store.path_of(template), ignore_errors=True)  # what a removal that was cut short left
        work.rename(store.path_of(template))
    except TimeoutError as exc:
        raise ImageError(f"Building {template.name!r} took more than {_BUILD_TIMEOUT:.0f} s.") from exc
    except OSError as exc:
        raise ImageError(f"Building {template.name!r} failed: {exc}.") from exc
    finally:
        await asyncio.shield(asyncio.ensure_future(end_of_build(spawner, run_dir)))
    progress("finished", 1.0)
    return Image(store.path_of(template), template, manifest, store.guest_dir())


async def end_of_build(spawner: Spawner | None, run_dir: RunDir) -> None:
    """Kill what a build started, and remove what it made and did not put into place."""
    if spawner is not None:
        killed = spawner.gone  # then nobody has ended what it started
        await spawner.close()
        if killed:
            await asyncio.to_thread(kill_processes_in, run_dir.path)
    run_dir.release()


def clear_dead_builds(building: Path) -> None:
    """Remove what builders left that died together with their spawners."""
    for path, fd in dead_owners(building):
        kill_processes_in(path)
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)


class _Build:
    """One build under way."""

    def __init__(
        self, template: Template, settings: Settings, spawner: Spawner, work: Path, progress: Progress
    ) -> None:
        self.template, self.settings, self.spawner = template, settings, spawner
        self.work, self.rootfs, self.progress = work, work / "rootfs", progress
        self.tmp = work.parent / "tmp"
        self.log = work / "build.log"

    async def run(self) -> None:
        self.tmp.mkdir(mode=0o755)
        self.rootfs.mkdir(mode=0o755)
        await self._debian()
        if self.template.pip:
            await self._pip()
        self.progress("preparing the root file system", 0.9)
        await asyncio.to_thread(contents.prepare_rootfs, self.rootfs, self.template)
        if self.template.npm:
            await self._npm()
        for argv in self.template.run:
            self.progress(f"running {argv[0]}", 0.93)
            await self._inside(argv)
        provider = await asyncio.to_thread(randomness.compile_provider, self.settings.cache_dir, self._say)
        await asyncio.to_thread(randomness.install, self.rootfs, provider)

    def _say(self, message: str) -> None:
        self.progress(message, 0.95)

    async def _debian(self) -> None:
        mmdebstrap = _program("mmdebstrap", "Run `emberbox setup`, or install the package mmdebstrap.")
        packages = sorted({*_ALWAYS, *self.template.packages})
        argv = [
            *await asyncio.to_thread(_own_namespaces),
            mmdebstrap, "--variant=custom", "--format=tar", f"--include={','.join(packages)}",
            "--aptopt=APT::Install-Recommends \"false\"",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            self.template.suite, "-",
        ]  # fmt: skip
        if self.settings.debian_mirror:
            argv.append(self.settings.debian_mirror)
        tar = ["tar", "--extract", f"--directory={self.rootfs}", "--exclude=./dev/*", "--no-same-owner"]
        if os.getuid() == 0:
            tar[-1] = "--same-owner"
        read_fd, write_fd = os.pipe()
        try:
            runs = [await self._start(argv, stdout=write_fd), await self._start(tar, stdin=read_fd)]
        finally:
            os.close(read_fd)
            os.close(write_fd)
        watcher = asyncio.ensure_future(self._watch_log())
        try:
            statuses = await asyncio.gather(*(asyncio.shield(run) for run in runs))
        finally:
            watcher.cancel()
        self._check("mmdebstrap", statuses[0])
        self._check("tar", statuses[1])

    async def _watch_log(self) -> None:
        """Turn mmdebstrap's own lines into progress; the shares of the steps are those of the default template."""
        steps = (
            ("running apt-get update", "reading package lists", 0.02),
            ("downloading packages", "downloading packages", 0.05),
            ("extracting archives", "unpacking the base system", 0.2),
            ("installing essential", "installing the base system", 0.25),
            ("installing remaining", "installing packages", 0.35),
            ("cleaning package", "cleaning up", 0.7),
            ("creating tarball", "writing the root file system", 0.75),
        )
        while True:
            text = self._log_tail(2000)
            done = [(label, part) for needle, label, part in steps if needle in text]
            if done:
                self.progress(*done[-1])
            await asyncio.sleep(0.25)

    async def _pip(self) -> None:
        self.progress("installing pip packages", 0.85)
        version = contents.python_version(self.rootfs)
        machine, newest = platform.machine(), contents.glibc_version(self.rootfs)[1]
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1)]  # PEP 600
        folder = f"/usr/local/lib/python{version}/dist-packages"
        target = self.rootfs / folder[1:]
        argv = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
            "--only-binary=:all:", f"--python-version={version}", "--implementation=cp", f"--target={target}",
            "--no-compile", f"--platform=manylinux2014_{machine}", *(f"--platform={name}" for name in platforms),
            *self.template.pip,
        ]  # fmt: skip
        self._check("pip", await (await self._start(argv, passed_prefix="PIP_")))
        await asyncio.to_thread(contents.adopt_programs, self.rootfs, target / "bin")
        self.progress("compiling pip packages", 0.87)
        names = sorted(path.name for path in target.iterdir() if path.name.isidentifier())
        shares = [names[n :: os.cpu_count() or 1] for n in range(os.cpu_count() or 1)]
        # by the Python that will import them, whose folder nobody can write to then; without /dev/shm it has no pool
        compileall = ["python3", "-m", "compileall", "-q"]
        runs = [self._inside([*compileall, *(f"{folder}/{name}" for name in share)]) for share in shares if share]
        await asyncio.gather(*runs)

    async def _npm(self) -> None:
        self.progress("installing npm packages", 0.9)
        own = [contents.inside(self.rootfs, f"/usr/local/bin/{name}") for name in ("node", "npm")]
        if all(program.is_file() for program in own):
            npm = [str(program) for program in own]
        else:
            npm = [_program("npm", "Install the package npm: this template lists npm packages.")]
        argv = [
            *npm, "install", f"--prefix={self.rootfs}", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund",
            "--no-package-lock", "--", *self.template.npm,
        ]  # fmt: skip
        self._check("npm", await (await self._start(argv, passed_prefix="npm_config_")))

    async def _inside(self, argv: list[str]) -> None:
        """Run a program of the image in it, without a network: /proc, /dev and /run are empty."""
        own = ("--user", "--map-root-user") if os.getuid() else ()
        unshare = ["unshare", *own, "--mount", "--net", "--pid", "--fork", "--kill-child", "--"]
        self._check(argv[0], await (await self._start([*unshare, "chroot", str(self.rootfs), *argv])))

    async def _start(
        self, argv: list[str], *, stdin: int | None = None, stdout: int | None = None, passed_prefix: str | None = None
    ) -> asyncio.Future[int]:
        env = {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "TMPDIR": str(self.tmp),
            "LC_ALL": "C.UTF-8",
        }
        env["HOME"] = str(Path.home())
        passed = {
            k: v for k, v in os.environ.items() if k in _ENV_PASSED or (passed_prefix and k.startswith(passed_prefix))
        }
        env.update(passed)
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as null:
            process = await self.spawner.spawn(
                argv,
                stdin=null.fileno() if stdin is None else stdin,
                stdout=log.fileno() if stdout is None else stdout,
                stderr=log.fileno(),
                env=env,
                cwd=str(self.tmp),
            )
        return process.ended

    def _log_tail(self, size: int) -> str:
        with contextlib.suppress(OSError):
            data = self.log.read_bytes()[-size:]
            return data.decode("utf-8", "replace")
        return ""

    def _check(self, program: str, status: int) -> None:
        if status != 0:
            tail = "\n".join(line for line in self._log_tail(3000).splitlines() if line.strip())[-1500:]
            hint = (
                "Is the network reachable, and is there disk space?"
                if re.search(r"(?i)resolv|fetch|space", tail)
                else ""
            )
            raise ImageError(
                f"Building {self.template.name!r} failed: {program} ended with status {status}. {hint}\n{tail}",
                details={"program": program, "status": status},
            )


def _finish(template: Template, work: Path, seconds: float) -> Manifest:
    rootfs = work / "rootfs"
    manifest = Manifest(
        name=template.name,
        key=template.key(),
        suite=template.suite,
        description=template.description,
        built_at=datetime.now(UTC),
        build_seconds=round(seconds, 1),
        size_bytes=contents.size_of(rootfs),
        languages=template.languages,
        python_version=contents.python_version(rootfs),
        has_skeleton=(rootfs / contents.SKELETON.lstrip("/")).is_dir(),
        debian_packages=contents.debian_packages(rootfs),
        python_packages=contents.python_packages(rootfs),
        npm_packages=contents.npm_packages(rootfs),
    )
    (work / LOCK).touch(mode=0o644)
    (work / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    work.chmod(0o755)
    os.sync()  # the rename that follows must not reach the disk before the files
    return manifest


def _own_namespaces() -> tuple[str, ...]:
    """What to put before a command that mounts file systems as root: in a mount namespace of its own the mounts end
    with it, and in a pid namespace all of its processes do. An ordinary user's mmdebstrap makes its own."""
    command = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return ()
    possible = subprocess.run([*command, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return command if possible.returncode == 0 else ()


def _program(name: str, remedy: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ImageError(f"The program {name!r} is needed to build images and was not found.", remediation=remedy)
    return path
