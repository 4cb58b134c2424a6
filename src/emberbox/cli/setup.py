"""`emberbox setup`: from a bare host to a sandbox that answered."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from emberbox.cli.exits import Exit, run_async
from emberbox.cli.progress import build_progress
from emberbox.config import Settings, load_settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ConfigError, VmNotAvailable
from emberbox.host.apt import install_packages
from emberbox.images.kernel import find_kernel, kernels_folder
from emberbox.images.kernel_debian import ensure_debian_kernel
from emberbox.images.store import ImageStore
from emberbox.images.template import Template, load_template
from emberbox.machines.firecracker.install import install_firecracker
from emberbox.machines.firecracker.options import (
    PINNED_VERSION,
    FirecrackerOptions,
    kernel_problem,
    kvm_problem,
    private_folder,
)
from emberbox.machines.gvisor.install import choose_runsc, install_runsc
from emberbox.machines.gvisor.runsc import find_runsc, private_runsc
from emberbox.machines.microvm.processor import emulated
from emberbox.machines.qemu.options import PACKAGE, QemuOptions, host_problem


@dataclass(frozen=True, slots=True)
class Plan:
    """What is missing on this host."""

    packages: list[str]
    runsc: bool
    image: bool
    firecracker: bool = False
    kernel: bool = False

    @property
    def empty(self) -> bool:
        return not (self.packages or self.runsc or self.image or self.firecracker or self.kernel)


def plan_setup(settings: Settings, template: Template) -> Plan:
    """Look what has to be done."""
    image = ImageStore(settings).find(template) is None
    packages = []
    if image and shutil.which("mmdebstrap") is None:
        packages.append("mmdebstrap")
    if image and template.npm and "/usr/local/bin/npm" not in template.links and shutil.which("npm") is None:
        packages.append("npm")
    if shutil.which("unshare") is None:
        packages.append("util-linux")
    if settings.backend not in ("firecracker", "qemu"):
        return Plan(packages, find_runsc(settings)[0] is None, image)
    if shutil.which("mke2fs") is None or shutil.which("debugfs") is None:
        packages.append("e2fsprogs")
    if settings.backend == "qemu":
        if not QemuOptions.of(settings).qemu.is_file():
            packages.append(PACKAGE)
        return Plan(packages, False, image, kernel=find_kernel(settings) is None)
    options = FirecrackerOptions.of(settings)
    programs = [options.firecracker, *([options.jailer] if options.jailed else [])]
    missing = not all(program.is_file() for program in programs)
    return Plan(packages, False, image, missing, kernel=not options.kernel.is_file())


def check_host(settings: Settings) -> None:
    """What setup cannot mend; raises VmNotAvailable."""
    if settings.backend == "qemu":
        qemu = QemuOptions.of(settings)
        problem = host_problem(qemu)
        if problem is None and settings.qemu is not None and not qemu.qemu.is_file():
            problem = (f"{qemu.qemu} is not there", "Remove the setting `qemu`, or name the program.")
        if problem is not None:
            raise VmNotAvailable(f"QEMU cannot be used: {problem[0]}.", remediation=problem[1])
    options = FirecrackerOptions.of(settings)
    if settings.backend == "firecracker":
        if (problem := kvm_problem(options)) is not None:
            raise VmNotAvailable(f"Firecracker cannot be used: {problem[0]}.", remediation=problem[1])
        # Debian's kernel can be fetched where there is none; it does not start on an emulated KVM
        given = settings.kernel is not None or emulated() or options.kernel.is_file()
        if given and (problem := kernel_problem(options)) is not None:
            raise VmNotAvailable(f"Firecracker cannot be used: {problem[0]}.", remediation=problem[1])


def run_setup(
    *,
    yes: bool,
    template: str | None,
    backend: str | None = None,
    archive: Path | None = None,
    runsc: str | None = None,
) -> None:
    """The command; leaves the process."""
    run_async(lambda: _setup(yes, template, backend, archive, runsc), as_json=False)


async def _setup(
    yes: bool, template_name: str | None, backend: str | None, archive: Path | None, wanted_runsc: str | None
) -> int:
    settings = load_settings() if backend is None else load_settings(backend=backend)
    check_host(settings)
    template = load_template(template_name or settings.vm_execution.default_vm_type, settings)
    console = Console(stderr=True, highlight=False)
    if wanted_runsc is not None:
        _choose_runsc(console, settings, wanted_runsc)
    plan = plan_setup(settings, template)
    if not plan.empty:
        _announce(console, plan, settings, template)
        if not yes and not _agreed(console):
            console.print("Nothing was changed.")
            return int(Exit.USAGE)
        _install(console, plan, settings, archive)
    await _prove(console, settings, template)
    return 0


def _announce(console: Console, plan: Plan, settings: Settings, template: Template) -> None:
    console.print("[bold]Emberbox will[/]")
    if plan.packages:
        console.print(f"  • install these Debian packages with apt: {', '.join(plan.packages)}")
    if plan.runsc:
        console.print(f"  • fetch runsc (gVisor) from a signed package into {private_runsc(settings)}", soft_wrap=True)
    if plan.firecracker:
        console.print(
            f"  • install firecracker and jailer {PINNED_VERSION} into {private_folder(settings)}", soft_wrap=True
        )
    if plan.kernel:
        console.print(f"  • fetch Debian's kernel (12 MB) into {kernels_folder(settings)}", soft_wrap=True)
    if plan.image:
        console.print(
            f"  • build the image {template.name!r} below {settings.cache_dir} (a download of some hundred MB)",
            soft_wrap=True,
        )


def _agreed(console: Console) -> bool:
    if not sys.stdin.isatty():
        raise VmNotAvailable("Setup needs a yes.", remediation="Run `emberbox setup --yes`.")
    return console.input("Go on? [Y/n] ").strip().lower() in ("", "y", "yes")


def _choose_runsc(console: Console, settings: Settings, wanted: str) -> None:
    if settings.runsc is not None:
        raise ConfigError(
            f"The setting `runsc` names {settings.runsc}, which comes before any choice.",
            remediation="Remove the setting, or change it instead of giving --runsc.",
        )
    chosen = choose_runsc(
        settings, wanted, lambda words: console.print(f"  {escape(words)}", style="dim", soft_wrap=True)
    )
    console.print(f"[green]✓[/] runsc {chosen.version}: {chosen.program.resolve()}", soft_wrap=True)


def _install(console: Console, plan: Plan, settings: Settings, archive: Path | None) -> None:
    def say(message: str) -> None:
        console.print(f"  {escape(message)}", style="dim", soft_wrap=True)

    if plan.packages:
        install_packages(plan.packages, say)
        console.print(f"[green]✓[/] packages: {', '.join(plan.packages)}")
    if plan.runsc:
        runsc = install_runsc(settings, say)
        console.print(f"[green]✓[/] runsc {runsc.version}: {runsc.program}", soft_wrap=True)
    if plan.firecracker:
        folder = install_firecracker(settings, say, archive)
        console.print(f"[green]✓[/] firecracker and jailer: {folder}", soft_wrap=True)
    if plan.kernel:
        with build_progress("kernel", console) as progress:
            kernel = ensure_debian_kernel(settings, progress=progress)
        console.print(f"[green]✓[/] guest kernel {kernel.release}: {kernel.vmlinux}", soft_wrap=True)


async def _prove(console: Console, settings: Settings, template: Template) -> None:
    """Start a sandbox and run something: only that says that it works."""
    async with Engine(settings) as engine:
        with build_progress(f"image {template.name}", console) as progress:
            image = await engine.image(str(template.directory / f"{template.name}.toml"), progress)
        console.print(f"[green]✓[/] image {image.name}: {image.manifest.size_bytes >> 20} MiB")
        started = time.monotonic()
        sandbox = await engine.create_sandbox(str(template.directory / f"{template.name}.toml"))
        execution = await engine.execute(ExecuteRequest(sandbox, "python", "6 * 7"))
        if execution.text != "42":
            raise VmNotAvailable(
                f"A sandbox started, but its answer to 6 * 7 was {execution.text!r} {execution.error or ''}.",
                remediation="Build the image again: emberbox image build --force",
            )
        seconds = time.monotonic() - started
        console.print(f"[green]✓[/] a [bold]{execution.backend}[/] sandbox started and answered in {seconds:.1f} s")
        if settings.backend in ("firecracker", "qemu"):  # the first one booted, perhaps: copies are what it is about
            started = time.monotonic()
            (copy,) = await engine.checkpoints.fork(sandbox, 1)
            execution = await engine.execute(ExecuteRequest(copy, "python", "6 * 7"))
            if execution.text != "42":
                raise VmNotAvailable(f"A copy of a sandbox started, but its answer to 6 * 7 was {execution.text!r}.")
            console.print(f"[green]✓[/] a copy of it started and answered in {time.monotonic() - started:.1f} s")
        if (note := await asyncio.to_thread(engine.record_probe)) is not None:
            console.print(f"[green]✓[/] {note}", soft_wrap=True)
