"""Bounds that the operator has lowered count for what was made before."""

from __future__ import annotations

import pytest

from emberbox import MachineLimits, Sandbox, load_settings
from emberbox.errors import ValidationFailed


def test_a_kept_snapshot_is_no_way_around_bounds_that_were_lowered(nothing_left: None) -> None:
    with Sandbox.create("minimal", limits=MachineLimits(processes=900)) as sandbox:
        kept = sandbox.snapshot(keep=True).snapshot_id
    lowered = {"vm_execution": {"security_settings": {"resource_limits": {"max_processes": 300}}}}
    with pytest.raises(ValidationFailed, match="processes 900 is above the limit of 300"):
        Sandbox.create(snapshot=kept, settings=load_settings(**lowered))
