"""Which back end is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from emberbox import Settings, load_settings
from emberbox.engine.resources import EngineResources
from emberbox.errors import VmNotAvailable
from emberbox.machines.contract import Capabilities
from emberbox.machines.probe_cache import is_proven, record_probe


@dataclass
class Factory:
    """Says what it is told to say."""

    settings: Settings
    found: Capabilities
    identity: str = "one"

    @property
    def backend(self) -> str:
        return self.found.backend

    @property
    def probed(self) -> str:
        return self.identity

    def capabilities(self) -> Capabilities:
        return replace(self.found, unproven=self.found.unproven and not is_proven(self.settings, self))  # type: ignore[arg-type]


HARDWARE = Capabilities("firecracker", True, "KVM by /dev/kvm", unproven=True)
EMULATED = replace(HARDWARE, why="KVM present, guest kernel mode is emulated: for tests only", for_tests=True)
NONE = Capabilities("firecracker", False, "/dev/kvm is not there", "Use another host.")
PLAIN = Capabilities("gvisor", True, "systrap")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", run_dir=tmp_path / "run")


def chosen(settings: Settings, monkeypatch: pytest.MonkeyPatch, *found: Capabilities, identity: str = "one") -> str:
    made = {one.backend: (lambda s, one=one: Factory(s, one, identity)) for one in found}
    monkeypatch.setattr("emberbox.engine.resources.BACKENDS", made)
    monkeypatch.setattr("emberbox.engine.resources.hardware_kvm", lambda: True)
    return EngineResources(settings)._choose().backend


@pytest.mark.parametrize("found", [HARDWARE, EMULATED, NONE], ids=["unproven", "emulated", "none"])
def test_auto_takes_what_needs_no_proof(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, found: Capabilities
) -> None:
    assert chosen(settings, monkeypatch, found, PLAIN) == "gvisor"


def test_auto_takes_the_best_that_was_proven_just_as_it_is(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    record_probe(settings, Factory(settings, HARDWARE))  # type: ignore[arg-type]
    assert chosen(settings, monkeypatch, HARDWARE, PLAIN) == "firecracker"
    assert chosen(settings, monkeypatch, HARDWARE, PLAIN, identity="a newer one") == "gvisor"
    assert chosen(settings, monkeypatch, NONE, PLAIN) == "gvisor"


def test_emulation_is_never_taken_by_itself(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    record_probe(settings, Factory(settings, EMULATED))  # type: ignore[arg-type]
    assert chosen(settings, monkeypatch, EMULATED, PLAIN) == "gvisor"


def test_what_is_named_is_taken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.backend = "firecracker"
    assert chosen(settings, monkeypatch, HARDWARE, PLAIN) == "firecracker"
    assert chosen(settings, monkeypatch, EMULATED, PLAIN) == "firecracker"
    with pytest.raises(VmNotAvailable, match="kvm is not there"):
        chosen(settings, monkeypatch, NONE, PLAIN)


def test_where_there_is_none_each_is_explained(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu, none = replace(EMULATED, backend="qemu"), replace(NONE, backend="gvisor", why="no runsc")
    with pytest.raises(VmNotAvailable) as error:
        chosen(settings, monkeypatch, HARDWARE, qemu, none)
    for words in ("emberbox setup --backend firecracker", "backend = qemu", "no runsc"):
        assert words in error.value.message


def test_a_damaged_note_is_no_proof(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (settings.cache_dir / "proven").mkdir(parents=True)
    (settings.cache_dir / "proven/firecracker").write_bytes(b"\xff\xfe")
    assert chosen(settings, monkeypatch, HARDWARE, PLAIN) == "gvisor"
