"""Snapshots and records without machines: what they hold is made up, their files are real."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from emberbox import Settings
from emberbox.images.store import Image, ImageStore, Manifest
from emberbox.images.template import load_template
from emberbox.machines.contract import Snapshot
from emberbox.models import SnapshotInfo, SnapshotKind
from emberbox.sandbox.durability.registry import SandboxRecord
from emberbox.sandbox.lineage import SnapshotPoint
from emberbox.sandbox.snapshots.tree import Node

BUILT = datetime(2026, 1, 2, tzinfo=UTC)
FILES = {"checkpoint.img": b"state", "pages.img": b"memory" * 1000}


def make_image(settings: Settings) -> Image:
    """An image in the cache of these settings, as far as a snapshot asks for one."""
    template = load_template("minimal", settings)
    store = ImageStore(settings)
    directory = store.path_of(template)
    directory.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name=template.name,
        key=template.key(),
        suite="bookworm",
        built_at=BUILT,
        build_seconds=1,
        size_bytes=1,
        languages=["python"],
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    (directory / "lock").touch()
    return Image(directory, template, manifest, store.guest_dir())


def make_node(
    image: Image,
    folder: Path,
    *,
    sandbox_id: str = "sb-1",
    path: tuple[str, ...] = (),
    kind: SnapshotKind = "manual",
    parent: str | None = None,
    kept: bool = False,
) -> Node:
    """A snapshot with files, in a directory of its own below a folder."""
    directory = folder / f"snap-{secrets.token_hex(6)}"
    directory.mkdir(mode=0o700, parents=True)
    for name, data in FILES.items():
        (directory / name).write_bytes(data)
    size = sum(map(len, FILES.values()))
    info = SnapshotInfo(
        snapshot_id=directory.name,
        name=directory.name,
        sandbox_id=sandbox_id,
        kind=kind,
        parent_id=parent,
        execution_id=path[-1] if path else None,
        kept=kept,
        created_at=datetime.now(UTC),
        size_bytes=size,
    )
    return Node(info, Snapshot(directory, image, image.limits, 7, size), SnapshotPoint(path))


def make_record(image: Image, sandbox_id: str = "sb-1", **fields: object) -> SandboxRecord:
    values: dict[str, object] = {
        "sandbox_id": sandbox_id,
        "agent_id": "alice",
        "image": image.directory.name,
        "built_at": BUILT,
        "guest": image.guest_dir.name,
        "template": image.template,
        "limits": image.limits,
        "envs": {"SECRET": "s3cret"},
        "metadata": {},
        "started_at": datetime.now(UTC),
    }
    return SandboxRecord.model_validate({**values, **fields})
