"""Settings of a test's own, and an image that nobody built."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberbox import Settings, load_settings
from emberbox.images.store import Image
from snapshot_fakes import make_image


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")


@pytest.fixture
def image(settings: Settings) -> Image:
    return make_image(settings)
