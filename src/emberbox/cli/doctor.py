"""`emberbox doctor`: what was found, what was chosen, what is missing, what to do."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emberbox import __version__
from emberbox.cli.exits import Exit, run_async
from emberbox.config import Settings, load_settings
from emberbox.engine import Engine, ExecuteRequest
from emberbox.errors import ImageError, VmExecutionError
from emberbox.images.kernel import find_kernel
from emberbox.images.store import ImageStore
from emberbox.images.template import load_template
from emberbox.machines.contract import Capabilities
from emberbox.machines.microvm.processor import emulated


@dataclass(frozen=True, slots=True)
class Check:
    """One row: `state` is ok, note or missing."""

    name: str
    state: str
    found: str
    remedy: str = ""


def run_doctor(*, as_json: bool, template: str | None) -> None:
    """The command; leaves the process."""
    run_async(lambda: _doctor(as_json, template), as_json=as_json)


async def _doctor(as_json: bool, template_name: str | None) -> int:
    settings = load_settings()
    settings.vm_execution.auto_provision = False  # a look, not an installation
    template_name = template_name or settings.vm_execution.default_vm_type
    checks = [*_host(settings)]
    async with Engine(settings) as engine:
        backends = engine.capabilities()
        any_usable = any(found.usable for found in backends)
        checks += [check for found in backends for check in _backend(found, others=any_usable)]
        checks += [_kernel(settings), _image(settings, template_name)]
        proof = await _proof(engine, template_name)
        note = await asyncio.to_thread(engine.probe_note)
    checks.append(proof)
    if note is not None:
        checks.append(Check("another program", "note", note, "emberbox setup, which looks whether it works"))
    works = proof.state == "ok"
    if as_json:
        answer = {
            "version": __version__,
            "works": works,
            "backends": [asdict(found) for found in backends],
            "checks": [asdict(check) for check in checks],
        }
        print(json.dumps(answer, indent=2))
    else:
        _show(checks, works)
    return int(Exit.SUCCESS if works else Exit.NO_BACKEND)


def _host(settings: Settings) -> list[Check]:
    user = "root" if os.getuid() == 0 else f"uid {os.getuid()}"
    rows = [
        Check("host", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}, {user}"),
        Check("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        Check("emberbox", "ok", f"{__version__}, cache {settings.cache_dir}, running state {settings.run_dir}"),
    ]
    history = settings.vm_execution.history
    kept = history.enabled and history.persist_history
    where = (settings.history_url and "by history_url") or str(settings.state_dir / "history.db")
    rows.append(Check("history", "ok", where) if kept else Check("history", "note", "not kept (settings)"))
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap:
        rows.append(Check("mmdebstrap", "ok", mmdebstrap))
    else:
        rows.append(Check("mmdebstrap", "note", "not found; only needed to build images", "apt-get install mmdebstrap"))
    return rows


def _backend(found: Capabilities, *, others: bool) -> list[Check]:
    """`others`: there is a usable back end, so that this one need not be."""
    if not found.usable:
        return [Check(f"back end {found.backend}", "note" if others else "missing", found.why, found.remedy)]
    rows = [Check(f"back end {found.backend}", "ok", f"{found.version} ({found.program}), {found.why}")]
    if found.cgroup == "none":
        rows.append(
            Check("cgroup", "note", "none that can be written", "Run as root, or give this user a delegated cgroup.")
        )
    else:
        rows.append(Check("cgroup", "ok", f"{found.cgroup}: memory, CPU and process caps by the kernel"))
    rows += [Check("feature", "ok", text) for text in found.features]
    rows += [Check("limitation", "note", text) for text in found.limitations]
    if found.for_tests:
        rows.append(Check("choice", "note", f"never chosen by auto; by EMBERBOX_BACKEND={found.backend} it is"))
    elif found.unproven:
        how = f"emberbox setup --backend {found.backend}"
        rows.append(Check("choice", "note", "auto does not choose it before it was tried here", how))
    return rows


def _kernel(settings: Settings) -> Check:
    """The one that a microVM would start with here."""
    how = "emberbox image build-kernel (some minutes), or emberbox image fetch-kernel (Debian's)"
    try:
        kernel = find_kernel(settings, emulated=emulated()) or find_kernel(settings)
    except ImageError as error:
        return Check("guest kernel", "missing", error.message, error.remediation)
    if kernel is None:
        return Check("guest kernel", "note", "none yet; only firecracker and qemu need one", how)
    return Check("guest kernel", "ok", f"{kernel.release or 'unknown release'} ({kernel.origin}), {kernel.vmlinux}")


def _image(settings: Settings, name: str) -> Check:
    try:
        image = ImageStore(settings).find(load_template(name, settings))
    except VmExecutionError as error:
        return Check(f"image {name}", "missing", error.message, error.remediation)
    if image is None:
        return Check(f"image {name}", "missing", "not built", f"emberbox setup --template {name}")
    return Check(f"image {name}", "ok", f"{image.manifest.size_bytes >> 20} MiB, {image.directory}")


async def _proof(engine: Engine, template: str) -> Check:
    """A back end is usable when a sandbox answered, not when a file exists."""
    started = time.monotonic()
    try:
        sandbox = await engine.create_sandbox(template)
        execution = await engine.execute(ExecuteRequest(sandbox, "python", "6 * 7"))
    except VmExecutionError as error:
        return Check("proof", "missing", error.message, error.remediation)
    if execution.text != "42":
        return Check("proof", "missing", f"6 * 7 gave {execution.text!r}", "emberbox image build --force")
    milliseconds = (time.monotonic() - started) * 1000
    return Check("proof", "ok", f"6 * 7 = 42, computed in a {execution.backend} sandbox, {milliseconds:.0f} ms in all")


def _show(checks: list[Check], works: bool) -> None:
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    marks = {"ok": "[green]✓[/]", "note": "[yellow]•[/]", "missing": "[red]✗[/]"}
    for check in checks:
        found = escape(check.found) + (f"\n[cyan]→ {escape(check.remedy)}[/]" if check.remedy else "")
        table.add_row(marks[check.state], check.name, found)
    console.print(table)
    chosen = "[bold green]Emberbox works here.[/]" if works else "[bold red]Emberbox does not work here yet.[/]"
    console.print(chosen)
