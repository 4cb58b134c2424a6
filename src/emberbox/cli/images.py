"""`emberbox image …`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emberbox._files import replacing
from emberbox.cli.exits import fail, run_async
from emberbox.cli.progress import build_progress
from emberbox.config import load_settings
from emberbox.errors import ImageError, VmExecutionError
from emberbox.images.builder import ensure_image
from emberbox.images.kernel import GuestKernel
from emberbox.images.store import ImageInfo, ImageStore
from emberbox.images.template import load_template


def list_images(*, as_json: bool) -> None:
    """Templates and images, ready, stale or not built."""
    try:
        rows = ImageStore(load_settings()).rows()
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    if as_json:
        print(json.dumps([_row(row) for row in rows], indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("template", "state", "size", "built", "description"):
        table.add_column(column)
    colours = {"ready": "green", "stale": "yellow", "not built": "dim", "broken": "red"}
    for row in rows:
        manifest = row.manifest
        table.add_row(
            row.name,
            f"[{colours[row.state]}]{row.state}[/]",
            f"{manifest.size_bytes >> 20} MiB" if manifest else "",
            f"{manifest.built_at:%Y-%m-%d %H:%M}" if manifest else "",
            manifest.description if manifest else "",
        )
    Console().print(table)


def _row(row: ImageInfo) -> dict[str, object]:
    manifest = row.manifest
    return {
        "name": row.name,
        "key": row.key,
        "state": row.state,
        "directory": str(row.directory) if row.directory else None,
        "size_bytes": manifest.size_bytes if manifest else None,
        "built_at": manifest.built_at.isoformat() if manifest else None,
    }


def build_image(name: str, *, force: bool) -> None:
    """Build (or find) an image; leaves the process."""

    async def build() -> int:
        settings = load_settings()
        template = load_template(name, settings)
        store = ImageStore(settings)
        if force and store.find(template) is not None:
            store.remove(template.name)
        console = Console(stderr=True)
        with build_progress(f"image {template.name}", console) as progress:
            image = await ensure_image(template, settings, progress)
        Console().print(
            f"[green]✓[/] {image.name}: {image.manifest.size_bytes >> 20} MiB, built in "
            f"{image.manifest.build_seconds:.0f} s, {image.directory}",
            soft_wrap=True,
        )
        return 0

    run_async(build, as_json=False)


def show_image(name: str, *, as_json: bool) -> None:
    """What an image holds."""
    try:
        settings = load_settings()
        template = load_template(name, settings)
        image = ImageStore(settings).find(template)
        if image is None:
            raise ImageError(f"The image of {name!r} is not built.", remediation=f"emberbox image build {name}")
    except VmExecutionError as error:
        fail(error, as_json=as_json)
    manifest = image.manifest
    if as_json:
        print(manifest.model_dump_json(indent=2))
        return
    console = Console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("template", f"{manifest.name} (Debian {manifest.suite})")
    table.add_row("key", manifest.key)
    table.add_row("directory", str(image.directory))
    table.add_row("size", f"{manifest.size_bytes >> 20} MiB")
    table.add_row("built", f"{manifest.built_at:%Y-%m-%d %H:%M} UTC in {manifest.build_seconds:.0f} s")
    versions = (f"{language} {manifest.version_of(language)}".strip() for language in manifest.languages)
    table.add_row("languages", ", ".join(versions))
    table.add_row("limits", ", ".join(f"{key} {value}" for key, value in template.limits.model_dump().items()))
    table.add_row("python", ", ".join(f"{k} {v}" for k, v in sorted(manifest.python_packages.items())) or "none")
    table.add_row("npm", ", ".join(f"{k} {v}" for k, v in sorted(manifest.npm_packages.items())) or "none")
    asked = {name: manifest.debian_packages.get(name, "") for name in sorted(template.packages)}
    named = ", ".join(f"{name} {version}".strip() for name, version in asked.items())
    table.add_row("debian", f"{named} (and {len(manifest.debian_packages.keys() - asked.keys())} that these need)")
    console.print(table)


def build_guest_kernel(*, emulated: bool, output: Path | None, source: Path | None) -> None:
    """Build (or find) the minimal guest kernel; leaves the process."""

    async def build() -> int:
        from emberbox.images.kernel_build import build_kernel

        settings = load_settings()
        with build_progress("kernel", Console(stderr=True)) as progress:
            kernel = await build_kernel(settings, emulated=emulated, source=source, progress=progress)
        if output is not None:
            _copy(kernel.vmlinux, output)
        _print_kernel(kernel, output)
        return 0

    run_async(build, as_json=False)


def fetch_guest_kernel(packages: list[Path]) -> None:
    """Get Debian's kernel, or make one of package files."""
    from emberbox.images.kernel_debian import ensure_debian_kernel

    try:
        with build_progress("kernel", Console(stderr=True)) as progress:
            kernel = ensure_debian_kernel(load_settings(), packages=packages, refresh=True, progress=progress)
    except VmExecutionError as error:
        fail(error, as_json=False)
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]interrupted[/]")
        sys.exit(130)
    _print_kernel(kernel, None)


def _copy(source: Path, target: Path) -> None:
    """A copy that is there as a whole or not at all; raises ImageError."""
    try:
        with replacing(target, mode=0o644) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 1 << 20)
    except OSError as exc:
        raise ImageError(
            f"The kernel cannot be written to {target}: {exc.strerror}.",
            remediation="Is the folder there, and is there space?",
        ) from exc


def _print_kernel(kernel: GuestKernel, copy: Path | None) -> None:
    path = copy or kernel.vmlinux
    initrd = f" and {kernel.initrd}" if kernel.initrd else ""
    Console().print(
        f"[green]✓[/] Linux {escape(kernel.release)}: {escape(str(path))} "
        f"({path.stat().st_size >> 20} MiB){escape(initrd)}",
        soft_wrap=True,
        highlight=False,
    )


def remove_image(name: str, *, stale_only: bool) -> None:
    """Remove the images of a template."""
    try:
        removed = ImageStore(load_settings()).remove(name, stale_only=stale_only)
    except VmExecutionError as error:
        fail(error, as_json=False)
    console = Console()
    for path in removed:
        console.print(f"[green]✓[/] removed {path}", soft_wrap=True)
    if not removed:
        console.print("Nothing to remove.")
