"""Limits and wishes that cannot be kept are refused before anything runs, whatever the back end is."""

from __future__ import annotations

import pytest

from emberbox import MachineLimits, Sandbox
from emberbox.errors import ValidationFailed

TEMPLATE = "minimal"


def test_more_memory_than_allowed_is_refused_before_anything_starts(nothing_left: None) -> None:
    with pytest.raises(ValidationFailed, match="memory_mb 4096"):
        Sandbox.create(limits=MachineLimits(memory_mb=4096))


@pytest.mark.parametrize("timeout", [0, -1, 61])
def test_impossible_time_outs_are_refused(sandbox: Sandbox, timeout: float) -> None:
    with pytest.raises(ValidationFailed, match="timeout"):
        sandbox.run_code("1", timeout=timeout)


def test_requirements_that_the_image_lacks(sandbox: Sandbox) -> None:
    with pytest.raises(ValidationFailed, match="requests is not in the image") as error:
        sandbox.run_code("1", requirements=["requests>=2"])
    assert "no network" in error.value.remediation
