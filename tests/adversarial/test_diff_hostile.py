"""Differences of files that were written to be expensive, in a real sandbox: the engine goes on serving others."""

from __future__ import annotations

import asyncio

import pytest

from emberbox import AsyncSandbox, Engine, Settings
from emberbox.errors import ExecutionFailed

WRITE = """
import random
def write(name, seed, words):
    draw = random.Random(seed)
    with open(name, "w") as file:
        file.write("".join(draw.choice(words) + "\\n" for _ in range(87_000)))
for n in range({count}):
    write("short%d" % n, {seed} + n, "abcdefgh")
    write("words%d" % n, {seed} + n, ["%x" % word for word in range(16, 136)])
open("plain", "w").write("{seed}\\n")
"""


async def test_files_that_are_expensive_to_compare_are_only_said_to_differ(
    nothing_left: None, settings: Settings
) -> None:
    async with (
        Engine(settings) as engine,
        await AsyncSandbox.create(engine=engine) as sandbox,
        await AsyncSandbox.create(engine=engine) as other,
    ):
        await sandbox.run_code(WRITE.format(count=4, seed=100), timeout=60)
        point = await sandbox.snapshot()
        await sandbox.run_code(WRITE.format(count=4, seed=200), timeout=60)
        looking = asyncio.create_task(sandbox.diff(point))
        served = 0
        while not looking.done():
            assert (await other.run_code("6 * 7")).text == "42"
            served += 1
        found = {diff.path.rsplit("/", 1)[1]: diff for diff in await looking}
        assert served > 1, "the engine served nobody else meanwhile"
        assert len(found) == 9
        assert found["plain"].diff is not None
        assert "-100\n+200\n" in found["plain"].diff
        for name in found.keys() - {"plain"}:
            assert (found[name].change, found[name].diff) == ("changed", None)
            assert found[name].size_before
            assert found[name].size_after


DEEP = """
import os
home = os.getcwd()
for level in range({levels}):
    os.makedirs("d", exist_ok=True)
    os.chdir("d")
open("file", "w").write("{word}\\n")
os.chdir(home)
"""


async def test_files_in_very_deep_folders_are_compared_and_deeper_ones_refused(
    nothing_left: None, settings: Settings
) -> None:
    async with (
        Engine(settings) as engine,
        await AsyncSandbox.create(engine=engine, template="minimal") as sandbox,
    ):
        await sandbox.run_code(DEEP.format(levels=900, word="one"))
        point = await sandbox.snapshot()
        await sandbox.run_code(DEEP.format(levels=900, word="two"))
        (found,) = await sandbox.diff(point)
        assert found.path.endswith("/d" * 900 + "/file")
        assert found.diff is not None
        assert "-one\n+two\n" in found.diff
        await sandbox.run_code(DEEP.format(levels=1100, word="three"))
        with pytest.raises(ExecutionFailed, match="more than 1000 deep"):
            await sandbox.diff(point)
