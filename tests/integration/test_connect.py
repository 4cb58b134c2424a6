"""A second handle on a sandbox, by its id."""

from __future__ import annotations

import pytest

from emberbox import AsyncSandbox, Engine, Sandbox, Settings, load_settings
from emberbox.errors import SessionNotFound, VmNotAvailable

MINIMAL = "minimal"


def test_two_handles_on_one_sandbox(nothing_left: None) -> None:
    first = Sandbox.create(MINIMAL)
    first.run_code("x = 1")
    second = Sandbox.connect(first.sandbox_id)
    assert second.run_code("x").text == "1"
    second.run_code("x = 2")
    assert first.run_code("x").text == "2"
    first.kill()
    assert not second.is_running()
    with pytest.raises(VmNotAvailable):
        second.run_code("x")
    second.kill()
    with pytest.raises(SessionNotFound) as error:
        Sandbox.connect(first.sandbox_id)
    assert "durable" in error.value.remediation


def test_a_paused_one_goes_on(nothing_left: None) -> None:
    with Sandbox.create(MINIMAL) as sandbox:
        sandbox.run_code("x = 1")
        sandbox.pause()
        with Sandbox.connect(sandbox.sandbox_id) as again:
            assert again.run_code("x").text == "1"


def test_one_with_settings_of_its_own_and_forks(nothing_left: None) -> None:
    with (
        Sandbox.create(MINIMAL, settings=load_settings()) as own,
        Sandbox.create(MINIMAL) as other,
        Sandbox.connect(own.sandbox_id) as found,
    ):
        assert found.sandbox_id == own.sandbox_id
        assert found.run_code("1").text == "1"
        (child,) = other.fork(1)
        with Sandbox.connect(child.sandbox_id) as again:
            assert again.is_running()
        child.kill()


async def test_in_an_engine(nothing_left: None, settings: Settings) -> None:
    async with Engine(settings) as engine, Engine(settings) as stranger:
        sandbox = await AsyncSandbox.create(MINIMAL, engine=engine)
        assert await (await AsyncSandbox.connect(sandbox.sandbox_id, engine=engine)).is_running()
        with pytest.raises(SessionNotFound):
            await AsyncSandbox.connect(sandbox.sandbox_id, engine=stranger)
        with pytest.raises(SessionNotFound):
            await AsyncSandbox.connect(sandbox.sandbox_id)  # the engine is not one of those that sandboxes share
