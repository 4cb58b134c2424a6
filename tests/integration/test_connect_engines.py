"""A second handle on a sandbox: which engines of this process are looked into."""

from __future__ import annotations

import pytest

from emberbox import AsyncSandbox, Engine, Sandbox, Settings, load_settings
from emberbox.errors import SessionNotFound

MINIMAL = "minimal"


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
