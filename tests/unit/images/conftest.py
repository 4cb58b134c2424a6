"""A store of the test's own, and images in it that nobody built."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from emberbox import Settings
from emberbox.images.store import LOCK, MANIFEST, ImageStore, Manifest
from emberbox.images.template import Template, read_template

WriteTemplate = Callable[..., Template]


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    templates = tmp_path / "templates"
    templates.mkdir()
    return Settings(cache_dir=tmp_path / "cache", templates_dir=templates)


@pytest.fixture
def store(own_settings: Settings) -> ImageStore:
    return ImageStore(own_settings)


@pytest.fixture
def write_template(own_settings: Settings) -> WriteTemplate:
    """Writes a template file and reads it."""

    def write(text: str = "", name: str = "mine") -> Template:
        assert own_settings.templates_dir is not None
        path = own_settings.templates_dir / f"{name}.toml"
        path.write_text(text)
        return read_template(path)

    return write


def manifest_of(template: Template, **fields: object) -> Manifest:
    made = Manifest(
        name=template.name,
        key=template.key(),
        suite=template.suite,
        built_at=datetime(2026, 1, 2, tzinfo=UTC),
        build_seconds=1,
        size_bytes=2,
        languages=template.languages,
    )
    return made.model_copy(update=fields)


def make_image(store: ImageStore, template: Template) -> Path:
    """The directory of an image, as a build leaves it."""
    directory = store.path_of(template)
    (directory / "rootfs" / "etc").mkdir(parents=True)
    (directory / LOCK).touch()
    (directory / MANIFEST).write_text(manifest_of(template).model_dump_json())
    return directory
