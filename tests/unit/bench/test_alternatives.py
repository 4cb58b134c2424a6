"""Alternatives that are not there, or do not work, are lines of the table and no errors."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from emberbox import load_settings
from emberbox.bench.alternatives import Alternative, Program, Unavailable, bare_python, bubblewrap, run_hello, usable
from emberbox.bench.facts import cpu_seconds, descriptors, disk_mib, machine, pss_mib, resident_mib, with_descendants
from emberbox.bench.jupyter import KernelStart, LiveKernel
from emberbox.bench.lab import others
from emberbox.bench.plain_runsc import RunscCold, RunscSession, bundle_config
from emberbox.bench.results import BWRAP, JUPYTER, PYTHON, RUNSC, RUNSC_RESTORE


async def test_what_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = load_settings(runsc=tmp_path / "nowhere")
    run = tmp_path / "run"
    kinds: list[Alternative] = [
        bubblewrap(tmp_path), RunscCold(settings, tmp_path, run), RunscSession(settings, tmp_path, run),
        KernelStart(run), bare_python(),
    ]  # fmt: skip
    async with usable(kinds) as (found, missing):
        assert [one.name for one in found] == [PYTHON]
        remedies = {name: why.remedy for name, why in missing.items()}
        figures = others([PYTHON, BWRAP], {PYTHON: [10.0]}, missing)
    assert remedies == {
        BWRAP: "apt-get install bubblewrap",
        RUNSC: "emberbox setup",
        RUNSC_RESTORE: "emberbox setup",
        JUPYTER: 'pip install "emberbox[bench]"',
    }
    assert [(figure.name, figure.missing) for figure in figures] == [(PYTHON, ""), (BWRAP, "not installed")]
    with pytest.raises(Unavailable):
        await LiveKernel(run).__aenter__()
    assert not run.exists() or not any(run.iterdir())


async def test_a_program_that_says_something_else_is_left_out() -> None:
    liar = Program("liar", lambda: [sys.executable, "-c", "import sys; sys.exit('wrong words')"])
    async with usable([liar]) as (found, missing):
        assert found == []
        assert "wrong words" in missing["liar"].reason
    with pytest.raises(Unavailable, match="/nowhere"):
        run_hello(["/nowhere/program"])


async def test_a_held_program_is_there_and_then_gone() -> None:
    async with bare_python().held() as pids:
        assert pss_mib(pids) > 0
        (pid,) = pids
        assert Path(f"/proc/{pid}").exists()
    assert not Path(f"/proc/{pid}").exists()


def test_a_plain_bundle_sees_the_image_read_only_and_no_network() -> None:
    config = bundle_config(Path("/images/rootfs"), "print(1)")
    assert config["root"] == {"path": "/images/rootfs", "readonly": True}
    assert config["process"]["args"] == ["/usr/bin/python3", "-c", "print(1)"]
    assert {"type": "network"} in config["linux"]["namespaces"]


def test_facts_of_this_process(tmp_path: Path) -> None:
    import os

    me = os.getpid()
    assert me in with_descendants([me])
    assert resident_mib(me) > 5
    assert pss_mib([me]) > 5
    assert cpu_seconds([me]) > 0
    before = descriptors([me])
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        assert descriptors([me]) == before + 1
    assert disk_mib([tmp_path]) == pytest.approx(1, abs=0.1)
    assert machine()["cores"] >= 1


def test_facts_of_processes_that_are_gone_are_nothing() -> None:
    gone = [2**22 + 1]
    assert (pss_mib(gone), cpu_seconds(gone), descriptors(gone), resident_mib(gone[0])) == (0, 0, 0, 0)
